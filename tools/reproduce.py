"""Run every command behind a family's table: Meta-DT and every compared method.

    python -m tools.reproduce --env_type point_robot
    python -m tools.reproduce --env_type point_robot --qualities replay --seeds 0 --dry_run

Behaviour policies and datasets where they are missing; then, seed by seed, a complete table: Meta-DT in every recipe, and the
compared methods (baselines/) in the first recipe, which is a budget that all share; at last the ablations and the paper's
protocol. What else tables show (fresh tasks, recorded contexts, other numbers of warm-up episodes) is `--eval_only` of these
runs, by the command in its result file. --env_type all takes every family of the paper. A cell that fails costs only what needs
it, and the report says "failed" in its place.

A run whose result file exists is skipped (a world model or policy that a run still needs is made again where only its result is
there) and an interrupted one goes on from its checkpoint, so the same command resumes. With all results in place nothing is left
to do; --output_dir elsewhere runs everything anew. Runs are single-threaded processes, as many at once as there are cores, or
runs on a cluster (--backend); what they print goes to saves/<env_type>/reproduce/. Next: python -m tools.report.
"""

import argparse
from pathlib import Path

import train_context
import train_meta_dt
from src.data.qualities import QUALITIES
from src.evaluation.results import result_path
from src.run.backends import Running, open_backend
from src.run.command_line import parse_args, report_command
from src.run.errors import UserError, main_guard
from src.run.files import read_json, write_json
from src.run.flags import Parser, natural
from src.run.paths import context_directory, policy_directory, reproduce_directory
from src.run.scheduler import Job, Scheduler, exclusive, remaining
from src.run.settings import ablation_name, add_settings, pick
from tools.sweep import BASELINES, changes_of, common_flags, data_jobs, load_family

METHODS = ("meta_dt", *BASELINES)
FAMILIES = ("point_robot", "cheetah_vel", "ant_dir", "cheetah_dir", "hopper_rand_params", "walker_rand_params")
# Without prompts few-shot is the zero-shot policy: z is that of the running episode.
ABLATIONS = {"no_context": ("--context", "none"), "random_prompt": ("--prompt_select", "random")}
# A recipe without prompts, less one idea: of the policy's training, of the world model's, of the adaptation (the same weights).
LESS_POLICY = (
    "--context none", "--hindsight_share 0", "--other_tasks none", "--imitate episodes --top_share 1", "--dropout 0.1",
    "--window_time False",
)  # fmt: skip
LESS_CONTEXT = ("--decode own",)
LESS_ADAPTATION = ("--context running", "--explore none --explore_steps 0")


def learning_jobs(args, env, quality, seed, data):
    """Of one quality and seed: (what a first table needs: world models, Meta-DT, compared methods; ablations and the rest). data:
    the job that makes the dataset, in a list; empty where it is there."""
    main, further = [], []
    for recipe in args.recipes:
        parts = meta_dt_jobs(args, env, quality, seed, recipe, data) if "meta_dt" in args.methods else ([], [])
        main, further = main + parts[0], further + parts[1]
    flags = [*common_flags(args.family, args.recipes[0], args.output_dir), "--data_quality", quality, "--seed", str(seed)]
    for method in args.methods:
        if method != "meta_dt":
            cells = [cell(env, quality, seed, method, args.recipes[0], regime) for regime in ("few_shot", "zero_shot")]
            main.append(make_job(args, ("-m", f"baselines.{method}", *flags), method, cells, data))
    return main, further


def meta_dt_jobs(args, env, quality, seed, recipe, data):
    """(world model, few-shot and zero-shot; ablations and the paper's protocol) of one recipe."""
    run = argparse.Namespace(
        output_dir=args.output_dir, env_type=env.env_type, data_quality=quality, seed=seed, suffix=suffix_of(recipe)
    )  # fmt: skip
    flags = [*common_flags(args.family, recipe, args.output_dir), "--data_quality", quality, "--seed", str(seed)]
    context = make_job(
        args, ("train_context.py", *flags), "world model",
        [cell(env, quality, seed, "context", recipe, "diagnostics", protocol=None)], data,
        context_directory(run) / "best.safetensors",
    )  # fmt: skip

    def policy(*regimes, extra=(), ablation="none", variants=None, protocol="strict", needs=(context,), artifact=None):
        kind = "evaluation" if "--eval_only" in extra else "policy"
        of_regime = [(regime, (variants or {}).get(regime)) for regime in regimes]
        cells = [cell(env, quality, seed, "meta_dt", recipe, regime, ablation, protocol, found) for regime, found in of_regime]
        return make_job(args, ("train_meta_dt.py", *flags, *extra), f"{kind}, {recipe}", cells, (*data, *needs), artifact)

    plain = policy_directory(run, f"meta_dt{suffix_of(recipe)}", "zero_shot") / "model.safetensors"
    if not has_prompts(flags):  # one policy serves both regimes
        both = policy("few_shot", "zero_shot", artifact=plain)
        return [context, both], less_one_idea(args, env, quality, seed, recipe, data, run, policy, both)
    zero_shot = policy("zero_shot", extra=("--zero_shot", "True"), artifact=plain)
    main = [context, policy("few_shot"), zero_shot]
    further = [policy("few_shot", extra=extra, ablation=name) for name, extra in ABLATIONS.items()]
    paper = ("--protocol", "paper")
    further.append(policy("few_shot", extra=paper, protocol="paper"))
    again = ("--zero_shot", "True", "--eval_only", *paper)
    further.append(policy("zero_shot", extra=again, protocol="paper", needs=(context, zero_shot)))
    return main, further


def less_one_idea(args, env, quality, seed, recipe, data, run, policy, whole):
    """The ablations of a recipe without prompts, each less one of its ideas; those that it does not have are left out. policy:
    function that makes a policy's job. whole: the job of the recipe itself."""
    flags = [*common_flags(args.family, recipe, args.output_dir), "--data_quality", quality, "--seed", str(seed)]

    jobs = []
    for extra in (text.split() for text in (*LESS_POLICY, *LESS_ADAPTATION)):
        ablation, variants = changes_of(train_meta_dt, [*flags, *extra])
        if ablation:
            jobs.append(policy("few_shot", "zero_shot", extra=extra, ablation=ablation_name(ablation)))
        elif variants["few_shot"]:
            regimes = [regime for regime in variants if variants[regime]]  # zero-shot only where it is another row
            needs = (*whole.needs, whole, *(job for job in jobs if job.cells[0]["variant"]))  # one folder: one after the other
            jobs.append(policy(*regimes, extra=(*extra, "--eval_only"), variants=variants, needs=needs))
    for extra in (text.split() for text in LESS_CONTEXT):
        changed = ablation_name(changes_of(train_context, [*flags, *extra]))
        if changed != "none":
            folder = context_directory(run, changed)
            facts = [cell(env, quality, seed, "context", recipe, "diagnostics", changed, protocol=None)]
            context = make_job(
                args, ("train_context.py", *flags, *extra), "world model", facts, data, folder / "best.safetensors"
            )  # fmt: skip
            extra = ("--world_model", str(folder))
            jobs.append(policy("few_shot", "zero_shot", extra=extra, ablation=f"context_{changed}", needs=(context,)))
    return jobs


def has_prompts(flags):
    """Whether Meta-DT has prompts under these flags of train_meta_dt.py, which name its settings and its recipe."""
    return parse_args(train_meta_dt.make_parser(), "train_meta_dt", flags).prompt_select != "none"


def cell(env, quality, seed, method, recipe, regime, ablation="none", protocol="strict", variant=None):
    """The facts of a result."""
    return {"env_type": env.env_type, "quality": quality, "method": method, "recipe": recipe, "ablation": ablation,
            "variant": variant or {}, "regime": regime, "protocol": protocol, "validation": False, "fresh": False,
            "seed": seed}  # fmt: skip


def make_job(args, words, kind, cells, needs, artifact=None):
    """Job of a command that writes the results with these facts, the last one last."""
    result = result_path(args.output_dir, cells[-1])
    name = "-".join(result.with_suffix("").parts[-4:])  # quality, method, regime, seed
    return Job(words, kind, name, result, tuple(needs), artifact, tuple(cells))


def suffix_of(recipe):
    return "" if recipe == "paper" else f"+{recipe}"


@main_guard
def main(argv=None):
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--env_type", default="point_robot", help="a family, a settings file, or all")
    parser.add_argument(
        "--recipes", nargs="+", default=["compare", "fast"], help="of Meta-DT; the first is also the compared methods'"
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="rows of the table")
    parser.add_argument("--qualities", nargs="+", choices=QUALITIES, default=["medium", "replay"], help="datasets")
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0, 1, 2, 3, 4], help="of world models and policies")
    parser.add_argument("--output_dir", default=".", help="root under which saves/, datasets/ and results/ are read and written")
    parser.add_argument("--dry_run", action="boolean", default=False, help="print the commands that are left and run none")
    add_settings(parser, Running)
    args = parser.parse_args(argv)
    args.qualities, args.seeds, args.recipes, args.methods = (
        [*dict.fromkeys(values)] for values in (args.qualities, args.seeds, args.recipes, args.methods)
    )
    families = FAMILIES if args.env_type == "all" else [args.env_type]
    unfinished = sum(reproduce(argparse.Namespace(**vars(args), family=family)) for family in families)
    if unfinished:
        raise UserError(f"{unfinished} runs failed or wait for one that did; the same command tries them again")
    if not args.dry_run:
        print(f"next: {report_command(Path(args.output_dir) / 'results')}")


def reproduce(args):
    """Runs what the table of `args.family` lacks, or prints it. Returns how many runs failed or wait for one that did."""
    env = load_family(args.family, args.recipes, args.recipes[:1] if set(args.methods) - {"meta_dt"} else ())
    data = {quality: data_jobs(args.family, env, quality, args.recipes[-1], args.output_dir)[-1:] for quality in args.qualities}
    runs = [learning_jobs(args, env, quality, seed, data[quality]) for seed in args.seeds for quality in args.qualities]
    jobs = [job for part in zip(*runs, strict=True) for some in part for job in some]  # the main results of all seeds first
    if args.dry_run:
        print(*(f"{job.command}{minutes_of(job)}" for job in remaining(jobs)), sep="\n")
        return 0
    logs, running = reproduce_directory(args.output_dir, env.env_type), pick(Running, args, slurm=tuple(args.slurm))
    with exclusive(logs) as lock, open_backend(running, logs) as backend:
        faults = Faults(logs / "failed.json", jobs)
        unfinished = Scheduler(backend, logs, running.retries, lock, on_failed=faults.add).run(jobs)
    there = sum(job.result.exists() for job in jobs)
    print(f"{there} of {len(jobs)} results are in {Path(args.output_dir) / 'results' / env.env_type}")
    return unfinished


class Faults:
    """failed.json: the facts of the results that are missing because a run failed, each with the reason; the report reads it.

    Those of `jobs`, which are tried again now, are dropped first; those of other commands stay.
    """

    def __init__(self, path, jobs):
        self.path = path
        tried = [facts for job in jobs for facts in job.cells]
        former = read_json(path) if path.exists() else []
        if not (isinstance(former, list) and all(isinstance(fault, dict) for fault in former)):
            raise UserError(f"{path} is damaged: remove it, and give the command again")
        self.faults = [fault for fault in former if {key: fault[key] for key in fault if key != "reason"} not in tried]
        if former:
            write_json(path, self.faults)

    def add(self, job, reason):
        """Of a Job that failed, or that needs one which did; reason: one line."""
        self.faults += [{**facts, "reason": reason} for facts in job.cells]
        write_json(self.path, self.faults)


def minutes_of(job):
    """What the run took where its result was committed, as a comment behind the command."""
    if job.result is None or "--eval_only" in job.words:
        return ""
    committed = Path("results", *job.result.parts[-5:])
    seconds = read_json(committed).get("training", {}).get("wall_clock_s") if committed.is_file() else None
    return f"  # {seconds / 60:.1f} min" if seconds else ""


if __name__ == "__main__":
    main()
