"""What every training loop shares."""

import signal
import sys


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a flag that a training loop reads between steps; `exit` leaves with the shell's status."""

    def __enter__(self):
        self.received = None
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _receive(self, number, frame):
        self.received = number

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def exit(self, step):
        print(f"stopped at step {step}, saved; the same command continues", file=sys.stderr)
        sys.exit(128 + self.received)
