"""Logs of tasks that are trained side by side."""

from src.run.logger import Logger


class TaskLogs:
    """The logs of several tasks in the place of one Logger; a progress bar elsewhere is moved by `report(steps)`.

    Args:
        directories: {task: its folder}. total, start: of each task's steps.
    """

    def __init__(self, directories, total, start, tensorboard, report):
        self.report = report
        self.logs = {
            task: Logger(folder, total, start, tensorboard=tensorboard, bar=False) for task, folder in directories.items()
        }
        self.advance(start)

    def advance(self, steps):
        """So many steps of every task are done."""
        self.report(steps * len(self.logs))

    def log(self, step, values):
        """values: {task: {name: number}}; tasks that have no log here are left out."""
        for task, log in self.logs.items():
            log.log(step, values[task])

    def close(self):
        for log in self.logs.values():
            log.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
