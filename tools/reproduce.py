"""Run every command behind a family's table: Meta-DT and every compared method.

    python -m tools.reproduce --env_type point_robot
    python -m tools.reproduce --env_type point_robot --qualities replay --seeds 0 --dry_run

Behaviour policies and datasets where they are missing; then, seed by seed, a complete table: Meta-DT in every recipe, and the
compared methods (baselines/) in the first recipe, which is a budget that all share; at last the ablations and the paper's
protocol. --env_type all takes every family of the paper. A cell that fails costs only what needs it, and the report says
"failed" in its place. A run whose result file
exists is skipped (a world model or policy that a run still needs is made again where only its result is there) and an
interrupted one goes on from its checkpoint, so the same command resumes. With all results in place nothing is left to do;
--output_dir elsewhere runs everything anew. Runs are single-threaded processes, as many at once as there are cores; what they
print goes to saves/<env_type>/reproduce/. Next: python -m tools.report.
"""

import argparse
import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from src.behaviour.store import committed_directory
from src.data.qualities import QUALITIES
from src.data.trajectories import dataset_directory
from src.evaluation.results import result_path
from src.run.config import Parser, find_config, natural, positive_int, read_env, read_yaml, recipe_layers, report_command
from src.run.errors import UserError, main_guard
from src.run.files import locked_file, read_json, write_json
from src.run.paths import context_directory, policy_directory, reproduce_directory

METHODS = ("meta_dt", "dt", "prompt_dt", "generalized_dt", "ad", "focal", "csro", "corro", "unicorn", "iql")
FAMILIES = ("point_robot", "cheetah_vel", "ant_dir", "cheetah_dir", "hopper_rand_params", "walker_rand_params")
ABLATIONS = {
    "no_context": ("--context", "none"), "no_prompt": ("--prompt_select", "none"), "random_prompt": ("--prompt_select", "random")
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """One command. `result` is the file that it writes last, `cells` the facts of all that it writes; `needs` are the jobs that
    must be finished first, `artifact` what it leaves for those that need it."""

    words: tuple  # script and flags
    result: Path
    kind: str  # jobs of one kind take about the same time
    needs: tuple = ()
    artifact: Path | None = None
    cells: tuple = dataclasses.field(default=(), compare=False)

    @property
    def finished(self):
        """Whether the result is there and not older than the artifact, which an interrupted run leaves newer."""
        if not self.result.exists() or self.artifact is None:
            return self.result.exists()
        return self.artifact.exists() and self.artifact.stat().st_mtime <= self.result.stat().st_mtime

    @property
    def command(self):
        return shlex.join(["python", *self.words])

    @property
    def log_name(self):
        """quality-method-regime-seed.log"""
        return "-".join(self.result.with_suffix("").parts[-4:]) + ".log"


# ------------------------------------------------------------------------------------------------------- what is run


def data_jobs(args, env):
    """Stages 1 and 2, one after the other: each spreads its tasks over the cores itself. Stage 1 only where a dataset lacks and
    no behaviour policies come with the repository."""
    flags = common_flags(args, env, args.recipes[-1])
    root = Path(args.output_dir) / "datasets"
    files = {quality: dataset_directory(root, env.env_type, quality) / "data" / "main_data.hdf5" for quality in args.qualities}
    jobs = [
        Job(("get_datasets.py", *flags, "--data_type", quality), file, "dataset")
        for quality, file in files.items()
        if not file.exists()
    ]
    committed = committed_directory(env.env_type).is_dir()
    if not committed and any(quality != "random" for quality in args.qualities if not files[quality].exists()):
        behaviour = Path(args.output_dir) / "saves" / env.env_type / "behaviour"
        jobs.insert(0, Job(("train_data_collection.py", *flags), behaviour, "behaviour policies"))
    return jobs


def learning_jobs(args, env, quality, seed):
    """Of one quality and seed: (what a first table needs: world models, Meta-DT, compared methods; ablations and the rest)."""
    main, further = [], []
    for recipe in args.recipes:
        parts = meta_dt_jobs(args, env, quality, seed, recipe) if "meta_dt" in args.methods else ([], [])
        main, further = main + parts[0], further + parts[1]
    flags = [*common_flags(args, env, args.recipes[0]), "--data_quality", quality, "--seed", str(seed)]
    for method in args.methods:
        if method != "meta_dt":
            cells = [cell(env, quality, seed, method, args.recipes[0], regime) for regime in ("few_shot", "zero_shot")]
            main.append(make_job(args, ("-m", f"baselines.{method}", *flags), method, cells))
    return main, further


def meta_dt_jobs(args, env, quality, seed, recipe):
    """(world model, few-shot and zero-shot; ablations and the paper's protocol) of one recipe."""
    run = argparse.Namespace(
        output_dir=args.output_dir, env_type=env.env_type, data_quality=quality, seed=seed, suffix=suffix_of(recipe)
    )  # fmt: skip
    flags = [*common_flags(args, env, recipe), "--data_quality", quality, "--seed", str(seed)]
    context = make_job(
        args, ("train_context.py", *flags), "world model",
        [cell(env, quality, seed, "context", recipe, "diagnostics", protocol=None)],
        artifact=context_directory(run) / "best.safetensors",
    )  # fmt: skip

    def policy(regime, *extra, ablation="none", protocol="strict", needs=(context,), artifact=None):
        kind = "evaluation" if "--eval_only" in extra else "policy"
        cells = [cell(env, quality, seed, "meta_dt", recipe, regime, ablation, protocol)]
        return make_job(args, ("train_meta_dt.py", *flags, *extra), f"{kind}, {recipe}", cells, needs=needs, artifact=artifact)

    plain = policy_directory(run, f"meta_dt{suffix_of(recipe)}", "zero_shot") / "model.safetensors"
    zero_shot = policy("zero_shot", "--zero_shot", "True", artifact=plain)
    main = [context, policy("few_shot"), zero_shot]
    further = [policy("few_shot", *extra, ablation=name) for name, extra in ABLATIONS.items()]
    if recipe == "fast" or len(args.recipes) == 1:
        paper = ("--protocol", "paper")
        further.append(policy("few_shot", *paper, protocol="paper"))
        again = ("--zero_shot", "True", "--eval_only", *paper)
        further.append(policy("zero_shot", *again, protocol="paper", needs=(context, zero_shot)))
    return main, further


def cell(env, quality, seed, method, recipe, regime, ablation="none", protocol="strict"):
    """The facts of a result."""
    return {"env_type": env.env_type, "quality": quality, "method": method, "recipe": recipe, "ablation": ablation,
            "variant": {}, "regime": regime, "protocol": protocol, "validation": False, "seed": seed}  # fmt: skip


def make_job(args, words, kind, cells, **more):
    """Job of a command that writes the results with these facts, the last one last."""
    return Job(words, result_path(args.output_dir, cells[-1]), kind, cells=tuple(cells), **more)


def suffix_of(recipe):
    return "" if recipe == "paper" else f"+{recipe}"


def remaining(jobs):
    """The jobs whose result is missing, and the unfinished ones that they need, in the order of `jobs`."""
    missing = {job for job in jobs if not job.result.exists()}
    needed = {need for job in missing for need in job.needs}
    needed |= {need for job in needed if not job.finished for need in job.needs}
    return [job for job in jobs if job in missing or (job in needed and not job.finished)]


def common_flags(args, env, recipe):
    """Flags of every command; defaults are left out, so that results carry the shortest command that makes them."""
    flags = ["--env_type", env.env_type]
    flags += [] if recipe == "paper" else ["--recipe", recipe]
    return flags + ([] if args.output_dir == "." else ["--output_dir", args.output_dir])


# ------------------------------------------------------------------------------------------------------------ running


class Scheduler:
    """Runs jobs side by side, each once all that it needs is there; a failed job costs only those that need it.

    Args:
        logs: folder for what the jobs print, and for failed.json: the facts of the results that are missing because a run
            failed, each with the reason; the report reads it.
        workers: jobs at once. lock: descriptor whose lock every job inherits, so that the jobs of a killed scheduler hold off the
            next one until they have ended.
    """

    def __init__(self, logs, workers, lock):
        self.logs, self.workers, self.lock = logs, workers, lock
        self.running = {}  # Popen -> (job, when it began)
        self.durations = {}  # kind -> seconds of the jobs that ended here
        self.failed = []
        self.faults = []  # what failed.json holds

    def run(self, jobs):
        """Returns when every job that can run has ended; the jobs that still wait."""
        waiting, total = remaining(jobs), len(jobs)
        print(f"{total - len(waiting)} of {total} runs are finished already", flush=True)
        self._forget(jobs)
        try:
            while waiting or self.running:
                while len(self.running) < self.workers and (job := self._next(waiting)):
                    waiting.remove(job)
                    self._start(job)
                if not self.running:
                    break  # what still waits needs a job that failed
                self._wait(waiting, total)
        finally:
            for process in self.running:
                process.terminate()  # a run answers by saving its state
            for process in self.running:
                process.wait()
        for job in waiting:
            self._remember(job, "it needs a run that failed")
        return waiting

    def _forget(self, jobs):
        """Drop the former faults of these jobs, which are tried again now; those of other commands stay."""
        path = self.logs / "failed.json"
        tried = [facts for job in jobs for facts in job.cells]
        former = read_json(path) if path.exists() else []
        self.faults = [fault for fault in former if {key: fault[key] for key in fault if key != "reason"} not in tried]
        if former:
            write_json(path, self.faults)

    def _remember(self, job, reason):
        self.faults += [{**facts, "reason": reason} for facts in job.cells]
        write_json(self.logs / "failed.json", self.faults)

    def _next(self, waiting):
        pending = {*waiting, *(job for job, _ in self.running.values()), *self.failed}
        return next((job for job in waiting if not pending.intersection(job.needs)), None)

    def _start(self, job):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with (self.logs / job.log_name).open("a") as log:
            log.write(f"$ {job.command}\n")
            log.flush()
            process = subprocess.Popen(
                [sys.executable, *job.words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                pass_fds=[self.lock],
            )  # fmt: skip
        self.running[process] = job, time.monotonic()

    def _wait(self, waiting, total):
        while not (ended := [process for process in self.running if process.poll() is not None]):
            time.sleep(0.2)
        for process in ended:
            job, began = self.running.pop(process)
            seconds = time.monotonic() - began
            if process.returncode == 0 and job.result.exists():
                self.durations.setdefault(job.kind, []).append(seconds)
                outcome = f"done in {seconds / 60:.1f} min"
            else:
                self.failed.append(job)
                self._remember(job, last_line(self.logs / job.log_name) or f"status {process.returncode}")
                outcome = f"FAILED with status {process.returncode}, see {self.logs / job.log_name}"
            finished = total - len(waiting) - len(self.running) - len(self.failed)
            print(f"[{finished}/{total}] {job.command}: {outcome}; {self._remaining(waiting)}", flush=True)

    def _remaining(self, waiting):
        """Time left: the mean of each kind (of all kinds while one has not ended yet), shared by the workers."""
        known = {kind: sum(seconds) / len(seconds) for kind, seconds in self.durations.items()}
        if not known:
            return "time left unknown"
        fallback, now = max(known.values()), time.monotonic()
        left = sum(known.get(job.kind, fallback) for job in waiting)
        left += sum(max(0.0, known.get(job.kind, fallback) - (now - began)) for job, began in self.running.values())
        return f"about {left / self.workers / 60:.0f} min left"


@contextlib.contextmanager
def exclusive(logs):
    """The lock of one environment's folder. Raises UserError while another run of this module, or a job of it, goes on."""
    with contextlib.ExitStack() as stack:
        try:
            logs.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(locked_file(logs / ".lock", wait=False))
        except BlockingIOError:
            raise UserError(f"{logs} is in use: another run, or a job of it, is still going; wait for it") from None
        except OSError as error:
            raise UserError(f"{logs} cannot be written ({error.strerror}): choose another --output_dir") from None
        yield lock


@main_guard
def main(argv=None):
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--env_type", default="point_robot", help="name of the settings file: configs/<env_type>.yaml")
    parser.add_argument(
        "--recipes", nargs="+", default=["compare", "fast"], help="of Meta-DT; the first is also the compared methods'"
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="rows of the table")
    parser.add_argument("--qualities", nargs="+", choices=QUALITIES, default=["medium", "replay"], help="datasets")
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0, 1, 2, 3, 4], help="of world models and policies")
    parser.add_argument("--workers", type=positive_int, default=len(os.sched_getaffinity(0)), help="runs at once, a core each")
    parser.add_argument("--output_dir", default=".", help="root under which saves/, datasets/ and results/ are read and written")
    parser.add_argument("--dry_run", action="boolean", default=False, help="print the commands that are left and run none")
    args = parser.parse_args(argv)
    args.qualities, args.seeds, args.recipes, args.methods = (
        [*dict.fromkeys(values)] for values in (args.qualities, args.seeds, args.recipes, args.methods)
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the runs on the way out
    families = FAMILIES if args.env_type == "all" else [args.env_type]
    unfinished = sum(reproduce(args, load_family(family, args.recipes)) for family in families)
    if unfinished:
        raise UserError(f"{unfinished} runs failed or wait for one that did; the same command tries them again")
    if not args.dry_run:
        print(f"next: {report_command(Path(args.output_dir) / 'results')}")


def load_family(env_type, wanted):
    """EnvConfig of a family. Raises UserError where it lacks one of the recipes."""
    path = find_config(argparse.Namespace(env_type=env_type, env_name=None, config=None))
    document = read_yaml(path)
    for recipe in wanted:
        if recipe != "paper":
            recipe_layers(path, document, recipe)  # whether there is such a recipe
    return read_env(path, document)


def reproduce(args, env):
    """Runs what one family's table lacks, or prints it. Returns how many runs failed or wait for one that did."""
    runs = [learning_jobs(args, env, quality, seed) for seed in args.seeds for quality in args.qualities]
    learning = [job for part in zip(*runs, strict=True) for jobs in part for job in jobs]  # the main results of all seeds first
    data = data_jobs(args, env) if remaining(learning) else []
    if args.dry_run:
        print(*(f"{job.command}{minutes_of(job)}" for job in [*data, *remaining(learning)]), sep="\n")
        return 0
    logs = reproduce_directory(args.output_dir, env.env_type)
    with exclusive(logs) as lock:
        for job in data:
            print(job.command, flush=True)
            if subprocess.run([sys.executable, *job.words], pass_fds=[lock]).returncode:
                raise UserError(f"this command failed: {job.command}; mend what it says, then run the same command again")
        scheduler = Scheduler(logs, args.workers, lock)
        left = scheduler.run(learning)
    unfinished = len(scheduler.failed) + len(left)
    print(f"{len(learning) - unfinished} of {len(learning)} results are in {Path(args.output_dir) / 'results' / env.env_type}")
    return unfinished


def last_line(path):
    """What a log says at its end, shortened: the line that ends a script names the mend."""
    lines = path.read_text(errors="replace").split("\n")
    return next((" ".join(line.split())[:200] for line in reversed(lines) if line.strip()), "")


def minutes_of(job):
    """What the run took where its result was committed, as a comment behind the command."""
    committed = Path("results", *job.result.parts[-5:])
    seconds = read_json(committed).get("training", {}).get("wall_clock_s") if committed.is_file() else None
    return f"  # {seconds / 60:.1f} min" if seconds else ""


if __name__ == "__main__":
    main()
