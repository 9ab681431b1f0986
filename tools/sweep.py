"""Run a grid of trainings: environments × qualities × methods × recipes × seeds × settings, side by side.

    python -m tools.sweep --env_types point_robot cheetah_vel --methods meta_dt focal --recipes fast --seeds 0 1 2
    python -m tools.sweep --methods meta_dt --recipes fast --set meta_dt.learning_rate=1e-4,3e-4 context.context_horizon=0,4
    python -m tools.sweep --grid grid.yaml --backend slurm --slurm partition=gpu --gpus 1

Every run is one command of this project in a process of its own; what it needs (datasets, world models) is made first where it
is missing. Runs without --set write what the commands write by hand; those with settings write below sweep/<settings>/, so that
no two share a file. Logs and the record of finished runs lie in saves/sweep/: the same command goes on where it stopped.
--dry_run prints the commands. A file for --grid holds the same names:

    env_types: [point_robot]
    methods: [meta_dt, focal]
    seeds: [0, 1, 2]
    settings: {meta_dt.learning_rate: [1.0e-4, 3.0e-4]}
"""

import argparse
import dataclasses
import hashlib
import itertools
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

import get_datasets
import train_context
import train_data_collection
from src.behaviour.store import committed_directory
from src.data.qualities import QUALITIES, data_name
from src.data.trajectories import dataset_directory
from src.evaluation.results import DIAGNOSTICS, label
from src.report.results import read_results
from src.run.backends import Running, open_backend
from src.run.command_line import TaskRange, apply_section, find_config, parse_args, report_command
from src.run.config import is_settings_file, known_env_type, read_env, read_yaml, recipe_layers
from src.run.errors import UserError, main_guard
from src.run.files import write_json
from src.run.flags import Parser, natural, nearest
from src.run.paths import context_directory
from src.run.scheduler import Job, Scheduler, exclusive, remaining
from src.run.settings import ablation_name, add_settings, pick

BASELINES = ("dt", "prompt_dt", "generalized_dt", "ad", "focal", "csro", "corro", "unicorn", "iql", "idaq")
SET_BY_SWEEP = (
    "seed", "recipe", "output_dir", "env_type", "env_name", "config", "data_quality", "data_type", "validation", "world_model",
)  # fmt: skip
METHODS = ("meta_dt", "context", *BASELINES)
TASKS_PER_RUN = 4  # of stage 1; as many as batched_sac stacks on a CPU


# --------------------------------------------------------------------------------------------------- stages 1 and 2


def load_family(env_type, recipes, compared=()):
    """EnvConfig of a family, or of a settings file by its path. Raises UserError where it lacks one of the recipes.

    compared: the recipes that compared methods are to have. One that says nothing of them is refused, too: they would train at
    published sizes under its name.
    """
    own = is_settings_file(env_type)
    chosen = argparse.Namespace(env_type=None if own else env_type, env_name=None, config=env_type if own else None)
    path = find_config(chosen)
    document = read_yaml(path)
    for recipe in recipes:
        if recipe != "paper":
            layers = recipe_layers(path, document, recipe)
            if recipe in compared and not any(settings.get("baselines") for _, settings, _ in layers):
                raise UserError(
                    f"the recipe {recipe} says nothing of compared methods: give them compare, and {recipe} to meta_dt"
                )
    return read_env(path, document)


def common_flags(env_type, recipe, output_dir):
    """Flags of every command; defaults are left out, so that results carry the shortest command that makes them."""
    flags = ["--config" if is_settings_file(env_type) else "--env_type", str(env_type)]
    flags += [] if recipe == "paper" else ["--recipe", recipe]
    return flags + ([] if str(output_dir) == "." else ["--output_dir", str(output_dir)])


def data_jobs(env_type, env, quality, recipe, output_dir):
    """Stages 1 and 2 of one dataset, the last job the dataset's; none where it is there. Stage 1 in runs of a few tasks, and only
    where no behaviour policies come with the repository. Raises UserError where nobody can make such data."""
    file = dataset_directory(Path(output_dir) / "datasets", env.env_type, quality) / "data" / "main_data.hdf5"
    if file.exists():
        return []
    if quality not in QUALITIES:
        raise UserError(f"there is no dataset {quality} of {env.env_type}: import it first, see get_datasets.py --import_from")
    flags = common_flags(env_type, recipe, output_dir)
    words = ("get_datasets.py", *flags, "--data_type", quality, "--workers", "1")
    other = parse_args(get_datasets.make_parser(), "get_datasets", words[1:], notes=False).behaviour_of
    theirs = load_family(other, [recipe]) if other else env
    known = quality == "random" or committed_directory(theirs.env_type).is_dir() or hasattr(theirs.make(), "scripted_policy")
    needs = [] if known else behaviour_jobs(theirs, common_flags(other or env_type, recipe, output_dir))
    return [*needs, Job(words, "dataset", f"{env.env_type}-{quality}-dataset", file, tuple(needs))]


def behaviour_jobs(env, flags):
    """Stage 1; each run finds out itself which of its tasks are finished."""
    args = parse_args(train_data_collection.make_parser(), "train_data_collection", flags, notes=False)
    tasks, ranges = TaskRange().of(env, env.make()), [()]
    if args.algo != "multitask_sac" and len(tasks) > TASKS_PER_RUN:
        edges = [*range(0, len(tasks), TASKS_PER_RUN), len(tasks)]
        ranges = [("--task_id_start", str(a), "--task_id_end", str(b)) for a, b in itertools.pairwise(edges)]
    words = ("train_data_collection.py", *flags, "--workers", "1")
    return [
        Job((*words, *chosen), "behaviour policies", "-".join([env.env_type, "behaviour", *chosen[1::2]])) for chosen in ranges
    ]


# ----------------------------------------------------------------------------------------------------------- the grid


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of the grid: where it stands, and what its settings are."""

    env_type: str
    env: object  # EnvConfig
    quality: str
    recipe: str
    seed: int
    validation: bool
    output_dir: str

    def root(self, settings):
        """The output folder of a run with `settings`, a tuple of (name, value): its own, unless there are none."""
        if not settings:
            return self.output_dir
        name = "+".join(f"{key}={value}" for key, value in settings)
        if len(name) > 100 or not re.fullmatch(r"[\w.+=-]+", name):
            name = "settings-" + hashlib.sha256(name.encode()).hexdigest()[:10]
        return str(Path(self.output_dir, "sweep", name))

    def job(self, method, words, own, settings, needs, record):
        """own: of the method. settings: all that tell its folder from others."""
        flags = [*common_flags(self.env_type, self.recipe, self.root(settings)), "--data_quality", self.quality]
        flags += ["--seed", str(self.seed), *["--validation"] * self.validation]
        flags += words_of(own)
        parts = [self.env.env_type, self.quality, method, self.recipe, *["validation"] * self.validation]
        parts += [Path(self.root(settings)).name] if settings else []
        name = "-".join([*parts, f"seed_{self.seed}"])
        kind = f"{method}, {self.recipe}"
        return Job((*words, *flags), kind, name, Path(record) / f"{name}.json", tuple(needs))

    def context_directory(self, settings):
        flags = [*common_flags(self.env_type, self.recipe, self.root(settings)), "--data_quality", self.quality]
        ablation = ablation_name(changes_of(train_context, [*flags, *words_of(settings)]))
        suffix = ("" if self.recipe == "paper" else f"+{self.recipe}") + ("-validation" if self.validation else "")
        return context_directory(
            argparse.Namespace(
                output_dir=self.root(settings),
                env_type=self.env.env_type,
                data_quality=self.quality,
                suffix=suffix,
                seed=self.seed,
            ),
            ablation,
        )


def jobs_of(point, method, grid, data, record):
    """Jobs of one point and method, one for each combination of its settings; a world model comes before its policies."""
    for shared in combinations(grid["context"]) if method in ("meta_dt", "context") else [()]:
        context = []
        if method in ("meta_dt", "context"):
            context = [point.job("context", script_of("context"), shared, shared, data, record)]
        if method == "context":
            yield from context
            continue
        for own in combinations(grid[method]):
            settings = (*((f"context.{name}", value) for name, value in shared), *own)
            words = script_of(method)
            if method == "meta_dt" and settings:
                own = (*own, ("world_model", str(point.context_directory(shared))))
            yield point.job(method, words, own, settings, [*data, *context], record)


def script_of(method):
    """The words after `python` of a method's script."""
    return {"context": ("train_context.py",), "meta_dt": ("train_meta_dt.py",)}.get(method, ("-m", f"baselines.{method}"))


def check_settings(grid):
    """Whether the scripts know the flags that {method: {name: values}} names, and read their values, before anything is run.
    Raises UserError."""
    for method, settings in grid.items():
        columns = itertools.zip_longest(*([(name, value) for value in values] for name, values in settings.items()))
        for column in columns:
            words = [*script_of(method), *words_of(filter(None, column)), "--help"]  # values are read before help is given
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
            if done.returncode:
                fault = (done.stderr.strip() or "no help is given").splitlines()[-1]
                raise UserError(f"--set {method}: {fault.removeprefix('error: ')}")
            known = set(re.findall(r"--([a-z]\w+)", done.stdout))
            for name in settings.keys() - known:
                raise UserError(f"--set {method}.{name}: {' '.join(script_of(method))} has no --{name}{nearest(name, known)}")


def words_of(settings):
    """Flags of a tuple of (name, value)."""
    words = []
    for name, value in settings:
        words += [f"--{name}={value}"] if " " not in value else [f"--{name}", *value.split()]
    return words


def changes_of(script, flags):
    """What the `changes` of train_context or train_meta_dt say of these flags, which name a family and a recipe."""
    parser = script.make_parser()
    return script.changes(parser, parse_args(parser, script.__name__, flags, notes=False))


def combinations(settings):
    """{name: values} -> every tuple of (name, value)."""
    return list(itertools.product(*([(name, value) for value in values] for name, values in settings.items())))


def parse_settings(texts, methods):
    """["meta_dt.learning_rate=1e-4,3e-4", …] -> {method: {name: [values]}}. Raises UserError."""
    found = defaultdict(dict)
    allowed = {*methods, *(["context"] if "meta_dt" in methods else [])}
    for text in texts:
        where, equals, values = text.partition("=")
        method, dot, name = where.partition(".")
        if not (equals and dot and name.isidentifier() and all(values.split(","))):
            raise UserError(f"--set {text}: give method.setting=value,value, for example meta_dt.learning_rate=1e-4,3e-4")
        if method not in allowed:
            raise UserError(f"--set {text}: {method} is none of the methods of this sweep: {', '.join(sorted(allowed))}")
        if name in SET_BY_SWEEP:
            raise UserError(f"--set {text}: {name} has a flag of its own, or is set by the sweep")
        if name in found[method]:
            raise UserError(f"--set {text}: {where} is given twice")
        found[method][name] = list(dict.fromkeys(values.split(",")))
    return found


def expand(args):
    """All jobs of the grid, those of the first seeds first."""
    grid = parse_settings(args.set, args.methods)
    check_settings(grid)
    record, jobs = Path(args.output_dir, "saves", "sweep"), {}
    compared = args.recipes if set(args.methods) & set(BASELINES) else ()
    families = {env_type: load_family(env_type, args.recipes, compared) for env_type in args.env_types}
    names = [env.env_type for env in families.values()]
    if len(set(names)) < len(names):
        raise UserError("--env_types: two settings files of one name would share their files")
    data = {
        (env_type, quality): data_jobs(env_type, env, quality, args.recipes[-1], args.output_dir)[-1:]
        for env_type, env in families.items()
        for quality in args.qualities
    }
    for seed, env_type, quality, recipe in itertools.product(args.seeds, families, args.qualities, args.recipes):
        point = Point(env_type, families[env_type], quality, recipe, seed, args.validation, args.output_dir)
        for method in args.methods:
            jobs |= dict.fromkeys(jobs_of(point, method, grid, data[env_type, quality], record))
    return list(jobs)


def share_datasets(output_dir):
    """Folders of settings see the datasets of `output_dir`: a link beside each, made where it is missing."""

    def prepare(job):
        words = job.words
        root = Path(words[words.index("--output_dir") + 1]) if "--output_dir" in words else Path()
        if root.parent == Path(output_dir, "sweep"):
            root.mkdir(parents=True, exist_ok=True)
            link = root / "datasets"
            if not link.is_symlink():
                link.symlink_to(Path("..", "..", "datasets"))

    return prepare


# ------------------------------------------------------------------------------------------------------------ running


def make_parser():
    parser = Parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--grid", help="YAML file of the names below; flags win")
    parser.add_argument("--env_types", nargs="+", type=env_or_file, default=["point_robot"], help="families, or settings files")
    parser.add_argument("--qualities", nargs="+", type=data_name, default=["medium"], help="datasets")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["meta_dt"], help=", ".join(METHODS))
    parser.add_argument("--recipes", nargs="+", default=["paper"], help="named settings; stages 1 and 2 take the last one")
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0], help="of world models and policies")
    parser.add_argument(
        "--set", nargs="+", type=str, default=[], metavar="METHOD.NAME=V,V", help="values of a setting, each a run of its own"
    )  # fmt: skip
    parser.add_argument("--validation", action="boolean", default=False, help="test on the validation tasks: tune with this")
    parser.add_argument("--output_dir", default=".", help="root under which saves/, datasets/, results/ and sweep/ are written")
    parser.add_argument("--dry_run", action="boolean", default=False, help="print the commands that are left and run none")
    add_settings(parser, Running)
    return parser


def env_or_file(value):
    """The name of a family, or the path of a settings file."""
    value = str(value)
    return value if is_settings_file(value) else known_env_type(value, "--env_types")


def parse(argv):
    """Flags, over those of the file --grid. Raises UserError."""
    parser, first = make_parser(), Parser(add_help=False)
    first.add_argument("--grid")
    chosen, _ = first.parse_known_args(argv)
    if chosen.grid:
        document = read_yaml(chosen.grid)
        settings = document.pop("settings", None) or {}
        if "set" in document:
            raise UserError(f"{chosen.grid}: grid: unknown key 'set': what --set gives is called settings here")
        if not isinstance(settings, dict) or "grid" in document:
            raise UserError(f"{chosen.grid}: settings must be a mapping of method.name to a list of values")
        apply_section(parser, Path(chosen.grid), document, "grid")
        parser.set_defaults(set=[f"{name}={_joined(chosen.grid, name, values)}" for name, values in settings.items()])
    args = parser.parse_args(argv)
    for name in ("env_types", "qualities", "methods", "recipes", "seeds"):
        setattr(args, name, [*dict.fromkeys(getattr(args, name))])
    return args


def _joined(path, name, values):
    values = values if isinstance(values, list) else [values]
    if not values or not all(isinstance(value, str | int | float) and "," not in str(value) for value in values):
        raise UserError(f"{path}: settings.{name} must be a list of numbers or words")
    return ",".join(map(str, values))


@main_guard
def main(argv=None):
    args = parse(argv)
    jobs = expand(args)
    if args.dry_run:
        print(*(job.command for job in remaining(jobs)), sep="\n")
        return
    logs = Path(args.output_dir, "saves", "sweep")
    unfinished = run_jobs(jobs, pick(Running, args, slurm=tuple(args.slurm)), logs, prepare=share_datasets(args.output_dir))
    show(args)
    if unfinished:
        raise UserError(f"{unfinished} runs failed or wait for one that did; the same command tries them again")


def run_jobs(jobs, running, logs, prepare=lambda job: None):
    """Run jobs; one whose result lies among the logs gets a record there when it ends well. Returns how many are left."""

    def done(job, seconds):
        if job.result is not None and job.result.parent == Path(logs):
            write_json(job.result, {"command": job.command, "seconds": round(seconds, 1)})

    with exclusive(logs) as lock, open_backend(running, logs) as backend:
        for job in remaining(jobs):
            prepare(job)
        return Scheduler(backend, logs, running.retries, lock, done).run(jobs)


def show(args):
    """Mean returns of what the sweep has measured so far, a line per folder, data, method and regime."""
    roots = {"": Path(args.output_dir)} | {path.name: path for path in sorted(Path(args.output_dir, "sweep").glob("*"))}
    families = {Path(name).stem for name in args.env_types}
    rows = defaultdict(list)
    for name, root in roots.items():
        if not (root / "results").is_dir():
            continue
        for result in read_results(root / "results")[0]:
            if result["regime"] == DIAGNOSTICS or result["fresh"] or result["validation"] != args.validation:
                continue
            own = result["env_type"] in families and result["quality"] in args.qualities and result["recipe"] in args.recipes
            if own and result["seed"] in args.seeds and result["method"] in args.methods:
                regime = f"{result['regime']}-{result['protocol']}"
                rows[result["env_type"], result["quality"], label(result), name, regime].append(np.mean(result["returns"]))
    for key, means in sorted(rows.items()):
        print(f"{' '.join(filter(None, key))}: mean return {np.mean(means):.4g} over {len(means)} seeds")
    measured = sorted({name for *_, name, _ in rows})
    if measured:
        print(f"next: {report_command(roots[measured[0]] / 'results')}")
    if measured[1:]:
        print(f"every folder in {Path(args.output_dir, 'sweep')} has results of its own: --results FOLDER/results")


if __name__ == "__main__":
    main()
