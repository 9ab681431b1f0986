"""Task lists are data: one JSON file per environment in `configs/tasks/`, written once from the published seeds.

`{"env_type": "point_robot", "source": "...", "tasks": [{"goal": [x, y]}, ...]}`: entry i is task id i, its keys are the task
parameters. Run `python -m envs.tasks` to regenerate the files that a written rule determines.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

TASK_DIR = Path(__file__).resolve().parent.parent / "configs" / "tasks"


@lru_cache
def load_tasks(env_type):
    """Task parameters of one environment family: dict of float64 arrays, each (num_tasks, ...)."""
    tasks = json.loads((TASK_DIR / f"{env_type}.json").read_text())["tasks"]
    return {key: np.array([task[key] for task in tasks], dtype=np.float64) for key in tasks[0]}


def point_robot_tasks():
    """50 goals, uniform in the square [-1, 1]²: the list of the Meta-DT lab (numpy's legacy generator, seed 123456)."""
    goals = np.random.RandomState(123456).uniform(-1, 1, (50, 2))
    return [{"goal": goal.tolist()} for goal in goals]


RULES = {"point_robot": point_robot_tasks}

if __name__ == "__main__":
    for env_type, rule in RULES.items():
        document = {"env_type": env_type, "source": " ".join(rule.__doc__.split()), "tasks": rule()}
        (TASK_DIR / f"{env_type}.json").write_text(json.dumps(document, indent=1) + "\n")
        print(f"{TASK_DIR / env_type}.json: {len(document['tasks'])} tasks")
