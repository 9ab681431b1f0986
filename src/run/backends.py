"""Where commands run: as processes of this machine, on a Ray cluster, or through Slurm.

A back end has `slots`, how many commands may run at once, and `start`, which begins one and returns what can be asked as a
subprocess.Popen is: `poll()` gives None while it runs, then its exit status, a negative one where it was killed or its machine
was lost; `terminate()` asks it to save and end. The command is the same everywhere, so are its files, which all machines must
see under the same paths.
"""

import contextlib
import ctypes
import dataclasses
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from src.run.errors import UserError
from src.run.flags import natural, nonnegative_float, positive_int
from src.run.settings import setting

LOST = -signal.SIGKILL  # status of a command whose machine was lost
PR_SET_PDEATHSIG = 1  # of Linux's prctl
SHARED_PARAMETERS = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")  # of submitit
DAY = 24 * 60  # minutes


@dataclasses.dataclass(frozen=True)
class Running:
    """where runs go"""

    backend: str = setting(
        "local", "processes of this machine; a Ray cluster (pip install ray); Slurm (pip install submitit)",
        choices=["local", "ray", "slurm"],
    )  # fmt: skip
    workers: int | None = setting(
        None, "runs at once, a core each (default: as many as there are cores; slurm: 64 in its queue)", positive_int
    )  # fmt: skip
    gpus: float = setting(0.0, "ray, slurm: GPUs of each run; ray also shares one, 0.25", nonnegative_float)
    retries: int = setting(1, "times that a run which was killed, or whose machine was lost, is started again", natural)
    ray_address: str | None = setting(
        None, "ray: a cluster that runs, HOST:PORT or auto (default: one for this command, which only this machine reaches)", str
    )  # fmt: skip
    slurm: tuple = setting((), "slurm: partition=gpu timeout_min=600 mem_gb=8 ..., as submitit names them", str, nargs="*")


@contextlib.contextmanager
def open_backend(running, folder):
    """The back end that Running asks for. folder: for what it writes itself. Raises UserError."""
    effects = {"gpus": ("ray", "slurm"), "ray_address": ("ray",), "slurm": ("slurm",)}
    idle = [name for name, backends in effects.items() if getattr(running, name) and running.backend not in backends]
    if idle:
        raise UserError(f"--{idle[0]} has no effect with --backend {running.backend}: leave it out")
    if running.backend == "local":
        backend = Local(running.workers)
    elif running.backend == "ray":
        backend = Ray(running.workers, running.gpus, running.ray_address)
    else:
        parameters = dict(_parameter(word) for word in running.slurm)
        backend = Slurm(running.workers, running.gpus, parameters, Path(folder) / "submitit")
    with contextlib.closing(backend):
        yield backend


def _parameter(word):
    name, equals, value = word.partition("=")
    if not (name.isidentifier() and equals and value):
        raise UserError(f"--slurm {word}: give name=value, for example partition=gpu")
    return name, int(value) if value.isdecimal() else value


def _optional(package):
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"this back end needs a package: pip install {package}") from None


# ------------------------------------------------------------------------------------------------------- one command


def launch(words, log, directory=None, inherit=(), mortal=False):
    """Begin `python words`, with one thread; what it prints is added to the file `log`. Returns its Popen.

    directory: that it runs in. inherit: descriptors that it keeps open. mortal: it is killed when this process dies, so that a
    second start elsewhere finds the run's folder free.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(['python', *words])}\n")
        file.flush()
        return subprocess.Popen(
            [sys.executable, *words], cwd=directory, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
            pass_fds=inherit, preexec_fn=_die_with_parent if mortal else None,
        )  # fmt: skip


def _die_with_parent():
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_here(words, log, directory):
    """Run a command to its end on the machine that calls this; returns its status. Interrupted, it lets the command save."""
    process = launch(words, log, directory, mortal=True)
    try:
        while process.poll() is None:
            time.sleep(0.2)  # short, for Ray interrupts between two of Python's steps, never in the middle of a long one
        return process.returncode
    finally:
        process.terminate()
        process.wait()


# ---------------------------------------------------------------------------------------------------------- back ends


class Local:
    """Processes of this machine."""

    seconds = 0.2  # between two looks at them

    def __init__(self, workers=None):
        self.slots = workers or len(os.sched_getaffinity(0))

    def start(self, words, log, lock=None):
        """lock: descriptor whose lock the command holds too, so that commands of a killed scheduler hold off the next one."""
        return launch(words, log, inherit=() if lock is None else (lock,))

    def close(self):
        pass


class Ray:
    """Tasks of a Ray cluster, a core and `gpus` GPUs each; every task is one subprocess.

    address: of a cluster that runs. Without one a cluster is started that listens on the loopback interface alone, and ends with
    this process.
    """

    seconds = 0.5

    def __init__(self, workers=None, gpus=0.0, address=None):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a busy machine takes its time
        if address is None or address.startswith("127."):
            # read when Ray is imported: its own way to stay on the loopback interface
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        self.ray, self.workers, self.gpus = _optional("ray"), workers, gpus
        own = {"num_cpus": workers, "include_dashboard": False}
        try:
            self.ray.init(address=address or "local", log_to_driver=False, **({} if address else own))
        except Exception as error:  # Ray raises many types, the bare one among them
            raise UserError(f"no Ray cluster ({' '.join(str(error).split())[:160]}): mend --ray_address, or try again") from None
        self.function = self.ray.remote(max_retries=0)(run_here)  # the scheduler starts lost runs again, as elsewhere

    @property
    def slots(self):
        """Cores of the nodes that are there now."""
        cores = int(self.ray.cluster_resources().get("CPU", 0))
        return min(cores, self.workers or cores)

    def start(self, words, log, lock=None):
        task = self.function.options(num_cpus=1, num_gpus=self.gpus)
        return _RayRun(self.ray, task.remote(words, str(Path(log).resolve()), str(Path.cwd())))

    def close(self):
        self.ray.shutdown()


class _RayRun:
    def __init__(self, ray, task):
        self.ray, self.task = ray, task

    def poll(self):
        ended, _ = self.ray.wait([self.task], timeout=0)
        if not ended:
            return None
        try:
            return self.ray.get(self.task)
        except self.ray.exceptions.RayTaskError:  # the command could not be started there
            return 1
        except self.ray.exceptions.RayError:
            return LOST

    def terminate(self):
        self.ray.cancel(self.task)


class Slurm:
    """Jobs of Slurm through submitit, each one subprocess.

    parameters: of submitit's executor, those of Slurm without their prefix. folder: for submitit's files. cluster: "local" is
    submitit's stand-in for Slurm, processes of this machine.
    """

    seconds = 2.0

    def __init__(self, workers=None, gpus=0.0, parameters=None, folder="submitit", cluster="slurm"):
        self.slots, self.submitit = workers or 64, _optional("submitit")
        given = {"timeout_min": DAY, "cpus_per_task": 1, **({"gpus_per_node": int(-(-gpus // 1))} if gpus else {})}
        given |= {name if name in SHARED_PARAMETERS else f"slurm_{name}": value for name, value in (parameters or {}).items()}
        try:
            self.executor = self.submitit.AutoExecutor(folder=folder, cluster=cluster)
            self.executor.update_parameters(**given)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise UserError(f"submitit refuses this: {' '.join(str(error).split())[:200]}") from None

    def start(self, words, log, lock=None):
        job = self.executor.submit(run_here, words, str(Path(log).resolve()), str(Path.cwd()))
        return _SlurmRun(self.submitit, job)

    def close(self):
        pass


class _SlurmRun:
    def __init__(self, submitit, job):
        self.submitit, self.job = submitit, job

    def poll(self):
        if not self.job.done():
            return None
        try:
            return self.job.result()
        except self.submitit.core.utils.FailedJobError:  # the command could not be started there
            return 1
        except self.submitit.core.utils.UncompletedJobError:  # the job was killed, or its node was lost
            return LOST

    def terminate(self):
        self.job.cancel()
