"""Online Decision Transformer (Zheng, Zhang and Grover, 2022): offline pre-training, then online fine-tuning.

    python -m baselines.online_dt --env hopper --dataset medium --recipe small
    python -m baselines.online_dt --env hopper --dataset medium --recipe small --online_training --target_entropy \\
        --init_temperature 0.01 --temperature_learning_rate 0.001 --max_iters 64 --num_online_rollouts 5 \\
        --num_steps_per_iter 300 --online_buffer_size 150 --keep_best --exploration_std 0.5 --eval_interval 8

On one core the first takes 5 minutes, the second 15. The flags are those of the unofficial code, whose two published commands
run here as they stand (on a GPU; baselines/online_dt/README.md). --env hopper is short for --env_type gym_hopper; any single-task
environment with a settings file will do. Data: train_data_collection.py and get_datasets.py, which also imports D4RL and Minari.

Without --stochastic this is the plain Decision Transformer, with --model_type bc behaviour cloning. Ablations of the online
phase: --no-use_entropy --no-target_entropy, --no-relabel, --online_rtg equal to --eval_rtg, --no-stochastic (in both phases).
The online phase and --eval_only take over the model's flags (sizes, optimiser, a learned temperature, targets and context of
evaluation) where the command does not give them; --eval_only also whether the mean action is played.
The same command continues an interrupted run. Writes saves/<env_type>/<dataset>/<method>/<phase>/seed_<s>/ and
results/<env_type>/<dataset>/<method>/<phase>-strict/seed_<s>.json.
"""

import dataclasses
import hashlib
import math
import sys
from pathlib import Path

import numpy as np
import torch

from baselines.online_dt.policy import Policy
from baselines.online_dt.pretrained import (
    FIXED,
    INHERITED,
    find_pretrained,
    fitting,
    load_pretrained,
    read_pretrained,
    result_facts,
    run_folder,
)
from baselines.online_dt.replay import TrajectoryBuffer, best, delayed
from baselines.online_dt.training import Learner, Settings, Trainer, evaluate_policy
from src.data.trajectories import load, observation_statistics
from src.evaluation.method import RunSettings, note_results
from src.evaluation.results import write_result
from src.evaluation.saved import save_known
from src.run import command_line
from src.run.command_line import next_command, parse_args, script_parser
from src.run.config import num_tasks
from src.run.devices import find_device
from src.run.directory import run_directory
from src.run.errors import UserError, main_guard
from src.run.flags import Parser
from src.run.logger import Logger
from src.run.loop import Loop
from src.run.settings import add_settings, pick

ROBOTS = ("hopper", "halfcheetah", "walker2d")
D4RL_SCORES = {  # returns of random and expert that D4RL normalises with
    "gym_hopper": (-20.272305, 3234.3),
    "gym_halfcheetah": (-280.178953, 12135.0),
    "gym_walker2d": (1.629008, 4592.3),
}
SAVE_INTERVAL = 300  # seconds between checkpoints at most; every iteration ends with one
KINDS = {field.name: field.type for field in dataclasses.fields(Settings) if field.name != "run"}
VOLATILE = (
    "max_iters", "device", "threads", "resume", "tensorboard", "log_to_wandb", "output_dir", "eval_only", "pretrained_model",
)  # fmt: skip


def make_parser():
    parser = script_parser(__doc__)
    parser.add_argument("--env", choices=ROBOTS, help="short for --env_type gym_<env>")
    add_settings(parser, *KINDS.values())
    return parser


# --------------------------------------------------------------------------------------------------------------- flags


def parse(argv=None):
    """Flags -> namespace, with what fine-tuning inherits from its pre-trained model. Raises UserError."""
    argv = translate(sys.argv[1:] if argv is None else list(argv))
    args = parse_args(make_parser(), "baselines.online_dt", argv)
    if args.online_training or args.eval_only:
        settings = choose(args)
        folder = find_pretrained(settings)
        former, _ = read_pretrained(settings.run, folder)
        # the online phase is measured by means unless told otherwise; an evaluation repeats what the model's run did
        keys = (*INHERITED, "use_action_means") if args.eval_only else INHERITED
        inherited = [f"--{key}={former[key]}" for key in keys if former[key] is not None]
        if former["target_entropy"]:  # a temperature that was learned goes on; a recipe may also begin it online
            inherited.append("--target_entropy")
        args = parse_args(make_parser(), "baselines.online_dt", [*inherited, *argv])
        for key in ("env_type", "dataset", *FIXED):
            if getattr(args, key) != former[key]:
                raise UserError(f"{folder} was made with --{key} {former[key]}, this command says {getattr(args, key)}")
        args.pretrained_model = str(folder)
        args.pretrained_sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    elif args.pretrained_model:
        raise UserError("--pretrained_model has no effect here: add --online_training or --eval_only, or leave it out")
    if given(argv, "--stochastic_tanh") and not args.stochastic:
        raise UserError("--stochastic_tanh squashes a Gaussian: add --stochastic, or leave it out")
    if args.model_type == "dt" and args.embed_dim % args.n_head:
        raise UserError(f"--embed_dim {args.embed_dim} must be a multiple of --n_head {args.n_head}")
    if num_tasks(args.env.make()) != 1:
        raise UserError(f"{args.env_type} has several tasks; this method knows only one: --env {'|'.join(ROBOTS)}")
    args.target_entropy &= args.stochastic
    if args.use_entropy is None:
        args.use_entropy = args.online_training or args.target_entropy
    args.use_entropy &= args.stochastic
    if args.use_action_means is None:
        args.use_action_means = args.online_training
    if args.target_entropy and not args.use_entropy:
        raise UserError("--no-use_entropy leaves nothing for --target_entropy to steer: add --no-target_entropy")
    if args.log_to_wandb:
        import_wandb()
    args.eval_context = min(args.eval_context or args.K, args.K)
    return args


def choose(args):
    """Settings from the namespace."""
    return Settings(
        pick(RunSettings, args, data_quality=args.dataset), **{name: pick(kind, args) for name, kind in KINDS.items()}
    )


def translate(argv):
    """The published spelling of the environment and of a GPU that is not here -> ours."""
    first = Parser(add_help=False)
    for flag in ("--env", "--env_type", "--device"):
        first.add_argument(flag)
    chosen, _ = first.parse_known_args(argv)
    if chosen.env is not None:
        if chosen.env not in ROBOTS:
            raise UserError(f"--env {chosen.env} is unknown: choose {', '.join(ROBOTS)}, or another environment by --env_type")
        if chosen.env_type not in (None, f"gym_{chosen.env}"):
            raise UserError(f"--env {chosen.env} contradicts --env_type {chosen.env_type}: give one of them")
        argv = [*argv, f"--env_type=gym_{chosen.env}"]
    if (chosen.device or "").startswith("cuda"):
        try:
            find_device(chosen.device)
        except UserError:
            argv = [*argv, "--device=auto"]
            print(f"--device {chosen.device} is not available here; using {find_device('auto')}", file=sys.stderr)
    return argv


def given(argv, flag):
    """Whether the command itself turns a boolean flag on; a recipe or the model may do so too."""
    words = Parser(add_help=False)
    words.add_argument(flag, action="boolean", default=False)
    return getattr(words.parse_known_args(argv)[0], flag[2:])


# ---------------------------------------------------------------------------------------------------------------- runs


@main_guard
def main(argv=None):
    args = parse(argv)
    make_data = next_command(args, "get_datasets.py", "--data_type", args.dataset)
    trajectories = load(Path(args.output_dir) / "datasets", args.env_type, args.dataset, args.env, make_data)
    args.dataset_sha256 = trajectories.metadata["sha256"]
    if args.eval_rtg is None:
        args.eval_rtg = float(trajectories.returns.max())
    if args.online_rtg is None and args.online_training:
        args.online_rtg = args.eval_rtg + abs(args.eval_rtg)
    settings, saved = choose(args), command_line.settings(args)
    run, online = settings.run, settings.online
    levels, scale = reference_levels(trajectories, run.env_type)
    if settings.data.mode == "delayed":
        trajectories = dataclasses.replace(trajectories, rewards=delayed(trajectories.rewards, trajectories.lengths))
    policy = make_policy(run, settings.model, trajectories).to(run.device)
    learner = Learner(policy, settings.optimisation, settings.entropy, run.seed)
    if online.pretrained_model:
        load_pretrained(run, Path(online.pretrained_model), learner)
    if settings.evaluation.eval_only:
        returns = evaluate_policy(learner.average, settings)["returns"][0]
        print(f"{online.pretrained_model}: return {describe(returns, scale)} over {len(returns)} episodes")
        return
    folder = run_folder(settings, online.online_training)
    volatile = VOLATILE if online.online_training else (*VOLATILE, "online_rtg")  # of which pre-training knows nothing
    with run_directory(folder, saved, run.resume, volatile):
        trainer, seconds = train(settings, saved, learner, trajectories, folder, scale)
        result_file = save_result(settings, saved, trainer, seconds, trajectories, levels, scale, folder)
        save_known(folder, "online_dt", {})
        note_results(folder, run.output_dir, [result_file])
    follow = ""
    if not online.online_training:
        words = ["--dataset", run.data_quality, "--online_training", "--pretrained_model", str(folder)]
        if settings.model.stochastic and not settings.entropy.target_entropy:  # the online phase learns its temperature
            words.append("--target_entropy")
        follow = "; next: " + next_command(run, "-m baselines.online_dt", *words)
    print(f"{folder}: return {describe(trainer.last['returns'][0], scale)}; result: {result_file}{follow}")


def make_policy(run, model, trajectories):
    """A fresh policy, its scales set from the data."""
    torch.manual_seed(run.seed)
    space = run.env.make().action_space
    sizes = trajectories.observations.shape[2], trajectories.actions.shape[2]
    policy = Policy(*sizes, model, run.env.max_episode_steps)
    policy.set_scales(*observation_statistics(trajectories), space.low, space.high)
    return policy


def make_buffer(settings, t):
    """Pre-training: all trajectories (or the best --pct_traj of their steps). Online: the best --online_buffer_size."""
    run, online = settings.run, settings.online
    capacity = online.online_buffer_size if online.online_training else None
    rows = best(t.returns, t.lengths, capacity, 1.0 if online.online_training else settings.data.pct_traj)
    arrays = [torch.from_numpy(array[rows]).to(run.device) for array in (t.observations, t.actions, t.rewards, t.lengths)]
    steps = run.env.max_episode_steps if online.online_training else t.rewards.shape[1]
    return TrajectoryBuffer(*arrays, capacity or len(rows), steps, online.keep_best)


def train(settings, saved, learner, trajectories, folder, scale):
    """Run the phase to its end; returns the Trainer, and the seconds that it took. saved: the settings of config.json."""
    iterations, size = settings.optimisation.max_iters, settings.optimisation.num_steps_per_iter
    normalise = (lambda returns: normalised(returns, scale)) if scale else None
    trainer = Trainer(learner, make_buffer(settings, trajectories), settings, normalise)
    first, total, wandb = learner.step, iterations * size, None
    broken = UserError(f"{folder / 'state.pt'} is not the state of such a run: delete it, or pass --no-resume to start again")
    with fitting(broken):
        loop = Loop(
            folder, total, size * settings.evaluation.eval_interval, {"learner": learner, "trainer": trainer},
            {"model": learner.average}, save_every=size, save_seconds=SAVE_INTERVAL,
            logger=lambda start: RunLog(folder, first + total, first + start, settings.run.tensorboard, wandb),
        )  # fmt: skip
        begun = math.ceil(loop.step / size)
    if begun > iterations:
        raise UserError(f"{folder} holds {begun} iterations: give --max_iters {begun} or more, or --no-resume to replace them")
    wandb = start_wandb(folder, saved) if settings.evaluation.log_to_wandb else None
    trainer.train(loop)
    if wandb:
        wandb.finish()
    return trainer, loop.seconds


class RunLog(Logger):
    """A Logger that counts the steps of both phases, and tells Weights & Biases too where there is a run of it."""

    def __init__(self, folder, total, start, tensorboard, wandb):
        super().__init__(folder, total, start, tensorboard=tensorboard)
        self.wandb = wandb

    def log(self, step, values):
        super().log(step, values)
        if self.wandb:
            self.wandb.log(values, step=step)


def import_wandb():
    """The package of Weights & Biases, which nothing else needs."""
    try:
        import wandb
    except ImportError:
        raise UserError("--log_to_wandb needs a package: pip install wandb") from None
    return wandb


def start_wandb(folder, saved):
    """A run of Weights & Biases. Raises UserError."""
    name = "-".join(folder.parts[-5:])
    try:
        return import_wandb().init(project="online-dt", name=name, dir=str(folder), config=saved)
    except Exception as error:  # the package has types of its own, which differ between its versions
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"Weights & Biases does not start ({reason}): log in (wandb login), or leave out --log_to_wandb"
        ) from None


# -------------------------------------------------------------------------------------------------------------- results


def reference_levels(trajectories, env_type):
    """What a return is compared with, from the data at hand.

    Returns {"random", "dataset_mean", "dataset_best", "expert"}: a return or None each; and {"minimum", "maximum", "source"}: the
    returns that count as 0 and 100, or None. Data of our own bring the measured returns of uniform actions and of the
    checkpoint that plays expert data; D4RL's own files (v2 robots) have D4RL's constants; other data, Minari's too, have none.
    """
    behaviour = [entry.get("behaviour", {}).get("0") for entry in trajectories.metadata["provenance"]]
    files = [name for entry in trajectories.metadata["provenance"] for name, _ in entry.get("imported_from", {}).values()]
    d4rl = bool(files) and "main_data.hdf5" not in files  # the name of every Minari dataset
    random = expert = source = None
    if any(behaviour):
        facts = next(filter(None, behaviour))
        random, expert = facts["random_return"], facts["expert_return"]
        source = "random actions and expert of the data's own behaviour policy"
    elif d4rl and env_type in D4RL_SCORES:
        random, expert = D4RL_SCORES[env_type]
        source = "D4RL's constants of the v2 robots"
    returns = trajectories.returns
    levels = {"random": random, "dataset_mean": float(returns.mean()), "dataset_best": float(returns.max()), "expert": expert}
    scale = None if random is None or expert <= random else {"minimum": random, "maximum": expert, "source": source}
    return levels, scale


def normalised(returns, scale):
    """Returns -> scores: 0 at the minimum of `scale`, 100 at its maximum."""
    return 100 * (np.asarray(returns) - scale["minimum"]) / (scale["maximum"] - scale["minimum"])


def describe(returns, scale):
    """Mean return as text, with the normalised score where there is one."""
    score = f" (normalised {normalised(np.mean(returns), scale):.1f})" if scale else ""
    return f"{np.mean(returns):.1f}{score}"


def save_result(settings, saved, trainer, seconds, t, levels, scale, folder):
    """The result file; returns its path."""
    run, online, target = settings.run, settings.online, settings.evaluation.eval_rtg
    facts, training = result_facts(settings, online.online_training), {"gradient_steps": trainer.learner.step}
    training |= {"environment_steps": trainer.environment_steps, "wall_clock_s": round(seconds, 1)}
    training["parameters"] = sum(weights.numel() for weights in trainer.learner.average.parameters())
    made_from = {key: saved.get(key) for key in ("dataset_sha256", "pretrained_sha256")}
    return write_result(
        run.output_dir, **facts, privileges="none", task_ids=[0], measured=trainer.last, training=training, made_from=made_from,
        config=saved, reference={level: None if value is None else [value] for level, value in levels.items()},
        target_return=target, curve=trainer.curve, directory=folder, normalisation=scale,
        target_rule=f"fixed; exploration asks for {online.online_rtg:g}" if online.online_training else "fixed",
        dataset={"episodes": len(t), "steps": int(t.lengths.sum()), "return_std": float(t.returns.std())},
    )  # fmt: skip


if __name__ == "__main__":
    main()
