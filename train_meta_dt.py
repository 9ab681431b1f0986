"""Stage 4: train Meta-DT on a dataset and its world model, then measure it on tasks it never saw.

    python train_meta_dt.py --env_type point_robot --recipe fast --data_quality medium
    python train_meta_dt.py --env_name AntDir-v0 --zero_shot False --data_quality medium
    python train_meta_dt.py --env_name AntDir-v0 --zero_shot True --data_quality medium

Few-shot (the default): prompts in training; tested after warm-up episodes of the same frozen agent. Zero-shot: no prompts at all.
Point-Robot on two cores: the fast recipe about two minutes, the paper's 100,000 steps about three hours. The same command
continues an interrupted run; --eval_only measures a finished one again, for example with other --warmup_episodes.
Writes saves/<env_type>/<quality>/<method>/<regime>/seed_<s>/ and a file under results/. Next: python -m tools.report.
"""

import time
from pathlib import Path

import numpy as np
import torch

from src.data import trajectories
from src.data.prompts import SELECTIONS
from src.data.qualities import data_name
from src.data.relabel import with_best_of_other_tasks
from src.data.windows import BatchSampler
from src.evaluation.measure import measure, measure_curve
from src.evaluation.paper_protocol import PaperPool
from src.models.meta_dt import MetaDT, action_loss
from src.models.meta_dt_agent import MetaDTAgent, build_episodes, return_bounds, training_errors
from src.models.world_model import episode_contexts, load_world_model
from src.run.config import (
    fraction,
    natural,
    next_command,
    nonnegative_float,
    parse_args,
    positive_float,
    positive_int,
    proper_fraction,
    real,
    report_command,
    script_parser,
    settings,
)
from src.run.devices import autocast_dtype, keep_memory, schedule_factor
from src.run.directory import run_directory
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import digest, load_state, read_json, save_state, save_tensors
from src.run.logger import Logger
from src.run.loop import StopSignal
from src.run.paths import context_directory, policy_directory
from src.run.seeding import derive, numpy_generator, torch_generator

# settings of the evaluation that decide what is measured, see `evaluated_as`
EVALUATION = (
    "warmup_episodes", "explore_noise", "explore_steps", "probe_steps", "forget_exploration", "carry_context", "target",
    "target_return", "prompt_pool", "use_action_means", "try_contexts",
)  # fmt: skip
STATE = ("step", "seconds", "curve", "policy", "optimizer", "generator", "dropout_generator", "pool")  # of state.pt
# settings that a resumed or re-evaluated run may change
VOLATILE = (
    "resume", "device", "output_dir", "tensorboard", "eval_only", "protocol", "eval_episodes", "render", "later_episodes",
    "zero_shot", "ablation", *EVALUATION,
)  # fmt: skip


def make_parser():
    parser = script_parser(__doc__)
    data = parser.add_argument_group("data and task")
    data.add_argument("--data_quality", "--data_type", type=data_name, default="medium", help="which dataset")
    data.add_argument("--zero_shot", action="boolean", default=False, help="train and test without prompts")
    data.add_argument("--validation", action="boolean", default=False, help="test on the validation tasks, left out of training")
    data.add_argument(
        "--world_model", help="folder of the world model (default: that of this environment, quality, recipe, seed)"
    )
    data.add_argument(
        "--ablation", choices=["none", "no_context", "no_prompt", "random_prompt"], default="none",
        help="z replaced by zeros; few-shot without prompts; prompt segment drawn uniformly",
    )  # fmt: skip
    model = parser.add_argument_group("model")
    model.add_argument("--width", type=positive_int, default=128, help="of the transformer")
    model.add_argument("--layers", type=positive_int, default=3, help="transformer blocks")
    model.add_argument("--heads", type=positive_int, default=1, help="attention heads")
    model.add_argument("--dropout", type=proper_fraction, default=0.1, help="on inputs, attention weights and residual branches")
    model.add_argument("--history_length", type=positive_int, default=20, help="K: steps of history")
    model.add_argument("--prompt_length", type=positive_int, default=5, help="k: steps of the prompt")
    model.add_argument("--return_scale", type=positive_float, default=500.0, help="c: returns-to-go are divided by it")
    model.add_argument("--prompt_context", action="boolean", default=False, help="z in the prompt's state tokens too (ours)")
    model.add_argument("--rescale_actions", action="boolean", default=False, help="tanh head times the action bounds (ours)")
    model.add_argument("--stochastic", action="boolean", default=False, help="a Gaussian policy, squashed by tanh (ours)")
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=positive_int, default=100_000, help="gradient steps")
    training.add_argument("--batch_size", type=positive_int, default=128, help="windows per step")
    training.add_argument("--learning_rate", type=positive_float, default=5e-5, help="of AdamW")
    training.add_argument("--lr_schedule", choices=["constant", "cosine"], default="constant", help="cosine ends at 5 %% of it")
    training.add_argument("--lr_warmup_steps", type=natural, default=10_000, help="steps of linear learning-rate warm-up")
    training.add_argument("--weight_decay", type=nonnegative_float, default=1e-4, help="of AdamW")
    training.add_argument("--grad_clip", type=positive_float, default=0.25, help="largest gradient norm")
    training.add_argument("--prompt_start_step", type=natural, default=20_000, help="steps before prompts are switched on")
    training.add_argument(
        "--prompt_dropout", type=fraction, default=0.0, help="share of batches without prompts after that (ours)"
    )
    training.add_argument(
        "--prompt_select", choices=SELECTIONS, default="argmax", help="segment; sample is the official code's way"
    )
    training.add_argument(
        "--top_share", type=fraction, default=1.0, help="imitate this best share of each task's episodes (ours)"
    )
    training.add_argument(
        "--best_steps", action="boolean", default=False, help="the share is of the steps at each time, by return-to-go (ours)"
    )
    training.add_argument(
        "--relabel", action="boolean", default=False, help="imitate other tasks' episodes too, paid by this task (ours)"
    )
    training.add_argument(
        "--imagined_tasks", type=natural, default=0, help="learn tasks around the training tasks too; with --relabel (ours)"
    )
    training.add_argument(
        "--hindsight_share", type=fraction, default=0.0, help="windows that get another episode's last z (ours)"
    )
    training.add_argument(
        "--absolute_error", action="boolean", default=False, help="imitate the median action, not the mean one (ours)"
    )
    training.add_argument("--full_windows", action="boolean", default=False, help="draw only windows of K steps (ours)")
    training.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="of the matrix products")
    test = parser.add_argument_group("evaluation")
    test.add_argument(
        "--protocol", choices=["strict", "paper"], default="strict", help="paper: target and prompts as the official code"
    )
    test.add_argument("--eval_only", action="boolean", default=False, help="no training: measure the saved policy")
    test.add_argument("--eval_every", type=positive_int, default=500, help="gradient steps between evaluations and checkpoints")
    test.add_argument("--eval_episodes", type=positive_int, default=20, help="final evaluation episodes per task")
    test.add_argument("--curve_episodes", type=positive_int, default=5, help="evaluation episodes per task during training")
    test.add_argument(
        "--warmup_episodes", type=positive_int, default=3, help="N: few-shot episodes before each evaluation episode"
    )
    test.add_argument(
        "--later_episodes", type=natural, default=2, help="few-shot episodes after the evaluated one, for the adaptation figure"
    )
    test.add_argument(
        "--use_action_means", action="boolean", default=False, help="play the mean action of a stochastic policy, not a sample"
    )
    test.add_argument("--render", metavar="FILE.gif", help="film the first evaluation episode on the first test task")
    test.add_argument(
        "--explore_noise", type=nonnegative_float, default=0.0, help="action noise, in half-ranges, of the explore_steps (ours)"
    )
    test.add_argument(
        "--explore_steps", type=natural, default=0, help="first steps of warm-up episodes, and of those without a prompt (ours)"
    )
    test.add_argument(
        "--probe_steps", type=natural, default=0,
        help="an episode without a prompt begins instead with so many full actions, each at right angles to the last (ours)",
    )  # fmt: skip
    test.add_argument(
        "--forget_exploration", action="boolean", default=False,
        help="the policy's history begins anew after either; what the context learned from them stays (ours)",
    )  # fmt: skip
    test.add_argument(
        "--carry_context", action="boolean", default=False,
        help="episodes with a prompt keep the context that the warm-up episodes ended with, the mean of them (ours)",
    )  # fmt: skip
    test.add_argument(
        "--try_contexts", action="boolean", default=False,
        help="warm-up episodes try the contexts of training tasks, the best one is carried; with --carry_context (ours)",
    )  # fmt: skip
    test.add_argument(
        "--prompt_pool", choices=["top3", "best"], default="top3", help="warm-up episode that the prompt is cut from"
    )
    test.add_argument(
        "--clamp_returns", action="boolean", default=False, help="keep returns-to-go within the training data's (ours)"
    )
    test.add_argument("--target", choices=["train", "pool_max", "constant"], default="train", help="rule of the target return")
    test.add_argument("--target_return", type=real, help="target return of --target constant; write =-5 for a negative number")
    return parser


@main_guard
def main(argv=None):
    parser = make_parser()
    args = parse_args(parser, "train_meta_dt", argv)
    check_args(args)
    keep_memory()
    environment = args.env.make()
    world_model, context_config = open_world_model(args)
    make_data = next_command(args, "get_datasets.py", "--data_type", args.data_quality)
    dataset = trajectories.load(Path(args.output_dir) / "datasets", args.env_type, args.data_quality, args.env, make_data)
    if dataset.metadata["sha256"] != context_config.get("dataset_sha256"):
        raise UserError("the world model was trained on another version of this dataset: run train_context.py --no-resume again")
    run = Run(args, environment, dataset, world_model)
    if args.eval_only and not (run_path(args) / "state.pt").exists():
        raise UserError(f"no trained policy in {run_path(args)}: run the same command without --eval_only first")
    made_from = {"dataset_sha256": dataset.metadata["sha256"], "world_model_sha256": digest(world_model.state_dict())}
    config = {**settings(args), **made_from}
    with run_directory(run_path(args), config, args.resume or args.eval_only, VOLATILE) as directory:
        state = train(args, run, directory)
        method = evaluated_as(args, directory, {key: parser.get_default(key) for key in EVALUATION})
        written = measure(args, run, directory, dataset, state, config, method)
    print(f"policy in {directory}; next: {report_command(Path(args.output_dir) / 'results')}")
    return written


def check_args(args):
    """Settings that contradict each other. Raises UserError."""
    if (args.target == "constant") != (args.target_return is not None):
        raise UserError("--target constant and --target_return X go together: give both or neither")
    if args.zero_shot and args.ablation in ("no_prompt", "random_prompt"):
        raise UserError(f"--ablation {args.ablation} says nothing with --zero_shot True: there are no prompts")
    if args.use_action_means and not args.stochastic:
        raise UserError("--use_action_means says nothing without --stochastic: the policy has no other action")
    if args.absolute_error and args.stochastic:
        raise UserError("--absolute_error says nothing with --stochastic, whose loss is a density: give one of them")
    if args.best_steps and args.top_share == 1:
        raise UserError("--best_steps says nothing with --top_share 1, which imitates every step: lower it")
    if args.try_contexts and not args.carry_context:
        raise UserError("--try_contexts says nothing without --carry_context: give both, or --no-try_contexts")
    if args.try_contexts and args.protocol == "paper":
        raise UserError(
            "--try_contexts needs warm-up episodes of its own, which --protocol paper has not: pass --no-try_contexts"
        )
    if args.imagined_tasks and not args.relabel:
        raise UserError("--imagined_tasks says nothing without --relabel: give both, or --imagined_tasks 0")
    if args.width % args.heads:
        raise UserError(f"--width {args.width} must be a multiple of --heads {args.heads}")
    if args.target == "pool_max" and args.zero_shot:
        raise UserError("--target pool_max needs warm-up episodes: pass --zero_shot False")
    prompted = not args.zero_shot and args.ablation != "no_prompt"
    if prompted and args.prompt_start_step >= args.steps:
        raise UserError(
            f"--prompt_start_step {args.prompt_start_step} is not below --steps {args.steps}: the policy would be tested with "
            "prompts that it never saw; lower it, or pass --zero_shot True"
        )
    if prompted and args.prompt_dropout == 1:
        raise UserError("--prompt_dropout 1 trains without prompts and tests with them: lower it, or pass --zero_shot True")
    if args.protocol == "paper" and args.target != "train":
        raise UserError(
            f"--protocol paper has a target of its own (the test task's best return): leave --target {args.target} out"
        )
    check_exploration(args)
    if args.render:
        check_film(args)
    if args.prompt_length > args.env.max_episode_steps:
        raise UserError(f"--prompt_length {args.prompt_length} is longer than an episode ({args.env.max_episode_steps} steps)")


def check_exploration(args):
    """Whether what is explored fits an episode. Raises UserError."""
    if args.forget_exploration and not args.explore_steps and not args.probe_steps:
        raise UserError("--forget_exploration says nothing without --explore_steps or --probe_steps: give one of them")
    if args.probe_steps >= args.env.max_episode_steps:
        raise UserError(f"--probe_steps {args.probe_steps} leaves nothing of an episode ({args.env.max_episode_steps} steps)")
    if args.explore_steps > args.env.max_episode_steps:
        raise UserError(f"--explore_steps {args.explore_steps} is longer than an episode ({args.env.max_episode_steps} steps)")


def check_film(args):
    """Whether --render can work, before anything is trained. Raises UserError."""
    if args.protocol == "paper" or not args.render.endswith(".gif"):
        raise UserError("--render films the strict protocol, into a file that ends in .gif")
    if not Path(args.render).resolve().parent.is_dir():
        raise UserError(f"--render {args.render}: there is no such folder; make it first")
    if "rgb_array" not in type(args.env.make().unwrapped).metadata.get("render_modes", []):
        raise UserError(f"{args.env.env_name} has no camera: leave --render out")


def method_name(args):
    """meta_dt, its recipe and its ablation: meta_dt+fast-no_context."""
    return f"meta_dt{args.suffix}" + ("" if args.ablation == "none" else f"-{args.ablation}")


def evaluated_as(args, directory, recipe):
    """The method's name in results. Settings of the evaluation that differ from those the run was begun with are part of it, so
    that measuring again (--eval_only) does not take the place of another result; but what is measured as the recipe says today
    (its settings, by key) is the recipe's result, whenever the run was begun. Settings that a run is too old to know were off.
    """
    asked = {key: getattr(args, key) for key in EVALUATION}
    if asked == recipe:
        return method_name(args)
    begun = read_json(directory / "config.json")
    changed = [f"{key}_{value}" for key, value in asked.items() if value is not None and value != begun.get(key, False)]
    return "-".join([method_name(args), *changed])


def run_path(args):
    """The run's folder. The ablation no_prompt is trained exactly as zero-shot is and shares its folder; few-shot runs under the
    paper's protocol grow a pool while they train, hence a folder of their own."""
    if args.zero_shot or args.ablation == "no_prompt":
        return policy_directory(args, method_name(args).removesuffix("-no_prompt"), "zero_shot")
    return policy_directory(args, method_name(args), "few_shot-paper" if args.protocol == "paper" else "few_shot")


def open_world_model(args):
    """The frozen world model and its settings; refuses that of another environment, quality or task split."""
    directory = Path(args.world_model) if args.world_model else context_directory(args)
    if not (directory / "best.safetensors").exists():
        make = next_command(
            args, "train_context.py", "--data_quality", args.data_quality, *(["--validation"] if args.validation else [])
        )
        raise UserError(f"no world model in {directory}; train it: {make}")
    if not (directory / "state.pt").exists():  # killed at its first checkpoint, which writes the weights first
        raise UserError(f"the world model in {directory} has no state.pt: give its train_context.py command again")
    progress = load_state(directory / "state.pt", "step", "total")
    if progress["step"] < progress["total"]:
        raise UserError(
            f"the world model in {directory} is at step {progress['step']} of {progress['total']}: run train_context.py again, "
            "the command that began it goes on"
        )
    model, config = load_world_model(directory)
    for key in ("env_type", "data_quality", "validation"):
        if config.get(key) != getattr(args, key):
            raise UserError(f"{directory} was trained with {key} {config.get(key)}, this command says {getattr(args, key)}")
    return model.to(args.device), config


class Run:
    """What training and evaluation share: episodes of the training tasks on the device, the policy, targets and bounds."""

    def __init__(self, args, environment, dataset, world_model):
        env, device = args.env, args.device
        validation = range(*env.validation_tasks)
        self.train_tasks = [
            t for t in range(*env.train_tasks) if t in dataset.tasks and not (args.validation and t in validation)
        ]
        self.test_tasks = list(validation if args.validation else range(*env.test_tasks))
        if not self.train_tasks:
            raise UserError("the dataset holds none of the training tasks: generate some of them")
        training = dataset.select(self.train_tasks)
        if args.relabel:
            generator = numpy_generator(args.seed, "imagined_tasks")
            training = with_best_of_other_tasks(
                training, environment, args.top_share, args.imagined_tasks, generator, args.best_steps
            )
        arrays = [
            torch.from_numpy(getattr(training, name)).to(device) for name in ("observations", "actions", "rewards", "lengths")
        ]
        self.with_prompts = not args.zero_shot and args.ablation != "no_prompt"
        self.use_context = args.ablation != "no_context"
        self.world_model = world_model
        self.dtype = autocast_dtype(args.precision, device)
        contexts = episode_contexts(world_model, *arrays[:3])
        self.error_scale = training_errors(world_model, *arrays, contexts)
        self.episodes = build_episodes(world_model, *arrays, self.error_scale, self.use_context, contexts)
        self.task_ids = torch.from_numpy(training.task_ids).to(device)
        self.sampler = BatchSampler(
            self.episodes, self.task_ids, args.history_length, args.prompt_length,
            world_model.horizon, self.select(args), args.full_windows, args.top_share, args.best_steps,
            args.hindsight_share,
        )  # fmt: skip
        best = [training.returns[training.task_ids == task].max() for task in self.train_tasks]
        self.oracle = best_returns(dataset, self.test_tasks) if args.protocol == "paper" else None
        self.target = float(np.mean(best)) if args.target != "constant" else args.target_return
        torch.manual_seed(derive(args.seed, "policy"))
        space = environment.action_space
        self.policy = MetaDT(
            training.observations.shape[-1], training.actions.shape[-1], env.max_episode_steps, args.return_scale,
            args.width, args.layers, args.heads, args.dropout, args.prompt_context,
            np.maximum(np.abs(space.low), np.abs(space.high)) if args.rescale_actions else None, args.stochastic,
        )  # fmt: skip
        self.policy.set_normaliser(*(torch.from_numpy(values) for values in trajectories.observation_statistics(training)))
        self.policy.to(device)

    def select(self, args):
        """How prompt segments are chosen, in training and at test."""
        return "random" if args.ablation == "random_prompt" else args.prompt_select

    def agent(self, args):
        """The frozen policy, ready to act."""
        bounds = return_bounds(self.episodes, args.env.max_episode_steps) if args.clamp_returns else None
        sampled = args.stochastic and not args.use_action_means
        generator = torch_generator(args.seed, "actions") if sampled else None
        return MetaDTAgent(
            self.policy, self.world_model, args.history_length, args.prompt_length, self.error_scale, self.select(args),
            args.prompt_pool, bounds, self.use_context, args.carry_context, self.dtype, generator,
            self.known_contexts() if args.try_contexts else None,
        )  # fmt: skip

    def known_contexts(self):
        """(C, 16): what z says of each training task after an episode, the mean over its episodes; tasks by the mean return of
        their episodes, the best first: whose data were paid best is what is worth trying elsewhere."""
        last = self.episodes.final_contexts(torch.arange(len(self.task_ids), device=self.task_ids.device))
        returns = self.episodes.returns_to_go[:, 0]
        order = sorted(self.train_tasks, key=lambda task: -returns[self.task_ids == task].mean().item())
        return torch.stack([last[self.task_ids == task].mean(0) for task in order])

    def loss(self, args, generator, with_prompt):
        """Action loss of one batch."""
        history, prompt = self.sampler.draw(args.batch_size, generator, with_prompt)
        with torch.autocast(args.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            predicted = self.policy(history, prompt)
        return action_loss(predicted, history["actions"], history["imitated"], self.policy.action_scale, args.absolute_error)


def best_returns(dataset, tasks):
    """Best return in each task's own data: the target of the paper's protocol, which leaks test-task data. Raises UserError."""
    missing = [task for task in tasks if task not in dataset.tasks]
    if missing:
        raise UserError(f"--protocol paper takes targets from the data of the test tasks, and task {missing[0]} has none")
    return [float(dataset.returns[dataset.task_ids == task].max()) for task in tasks]


def train(args, run, directory):
    """Train to the last step, or go on from where state.pt stands. Returns the state: step, seconds, curve, pool."""
    optimizer = torch.optim.AdamW(run.policy.parameters(), args.learning_rate, weight_decay=args.weight_decay, fused=True)
    generator = torch_generator(args.seed, "policy_batches")
    pool = PaperPool() if args.protocol == "paper" and run.with_prompts else None
    state = {"step": 0, "seconds": 0.0, "curve": [], "pool": None}
    if (directory / "state.pt").exists():
        state = load_state(directory / "state.pt", *STATE)
        run.policy.load_state_dict(state["policy"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["dropout_generator"])
        if pool:
            pool.restore(state["pool"])
    state["pool"] = pool
    if args.eval_only and state["step"] < args.steps:
        print(f"note: this policy was trained for {state['step']} of {args.steps} steps")
    if args.eval_only or state["step"] >= args.steps:
        return state
    began, curve = time.time() - state["seconds"], state["curve"]
    with Logger(directory, args.steps, state["step"], tensorboard=args.tensorboard) as logger, StopSignal() as stop:
        for step in range(state["step"] + 1, args.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * schedule_factor(step - 1, args.steps, args.lr_warmup_steps, args.lr_schedule)
            prompted = run.with_prompts and step > args.prompt_start_step
            prompted = prompted and torch.rand(1, generator=generator).item() >= args.prompt_dropout
            loss = run.loss(args, generator, prompted)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(run.policy.parameters(), args.grad_clip)
            optimizer.step()
            logger.advance()
            if step % args.eval_every and step < args.steps and not stop.received:
                continue
            require_finite(loss.item(), f"the loss at step {step}")
            if step % args.eval_every == 0 or step == args.steps:
                curve.append({"step": step, "loss": round(loss.item(), 6), **measure_curve(args, run, pool, step)})
                logger.log(step, {key: value for key, value in curve[-1].items() if key != "step"})
            state = {"step": step, "seconds": time.time() - began, "curve": curve, "pool": pool and pool.state()}
            save_checkpoint(directory, run, optimizer, generator, state)
            if stop.received:
                logger.close()
                stop.exit(step)
    state["pool"] = pool
    return state


def save_checkpoint(directory, run, optimizer, generator, state):
    """The policy's weights, and everything from which the same command continues."""
    save_tensors(directory / "model.safetensors", run.policy.state_dict())
    save_state(
        directory / "state.pt",
        state
        | {
            "policy": run.policy.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "dropout_generator": torch.get_rng_state(),
        },
    )


if __name__ == "__main__":
    main()
