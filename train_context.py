"""Stage 3: train the world model, whose context encoder tells Meta-DT the task.

    python train_context.py --env_type point_robot --data_quality medium
    python train_context.py --env_type point_robot --data_quality medium --recipe fast
    python train_context.py --env_name AntDir-v0

Point-Robot on two cores: the fast recipe about four minutes, the paper's 301 epochs about half an hour. The same command goes
on with an interrupted run. Writes saves/<env_type>/<quality>/context/seed_<s>/ with the best and the last weights, and
results/<env_type>/<quality>/context/diagnostics/seed_<s>.json with the diagnostics. Next: train_meta_dt.py.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch

from src.data import trajectories
from src.data.qualities import data_name
from src.data.relabel import imagined_tasks, paid_by, relabeller
from src.data.transitions import TransitionSampler
from src.evaluation.results import DIAGNOSTICS, write_result
from src.models.probe import full_contexts, linear_probe, project, random_walk, task_matrix
from src.models.world_model import MODEL_KEYS, WorldModel, balanced, load_world_model, reward_changes
from src.run.config import (
    fraction,
    natural,
    next_command,
    nonnegative_float,
    parse_args,
    positive_float,
    positive_int,
    script_parser,
    settings,
)
from src.run.devices import keep_memory, schedule_factor
from src.run.directory import run_directory
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import load_state, save_state, save_tensors
from src.run.logger import Logger, read_metrics
from src.run.loop import StopSignal
from src.run.paths import context_directory
from src.run.seeding import derive, numpy_generator, torch_generator

VOLATILE = ("resume", "device", "output_dir", "tensorboard", "data_quality")  # settings that a resumed run may change


def make_parser():
    parser = script_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--data_quality", "--data_type", type=data_name, default="medium", help="which dataset")
    data.add_argument(
        "--validation", action="boolean", default=False, help="leave the validation tasks out of training (for tuning)"
    )
    data.add_argument("--validation_share", type=fraction, default=0.1, help="share of each training task's episodes held out")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--context_horizon", type=natural, default=4, help="h: past transitions that z reads; 0: the whole episode (ours)"
    )
    model.add_argument("--embedding_size", type=positive_int, default=16, help="width of the inputs' embeddings")
    model.add_argument(
        "--predict_change", action="boolean", default=False, help="decode s' - s in units of its own deviation, not s' (ours)"
    )
    model.add_argument(
        "--reward_change", action="boolean", default=False, help="the encoder reads r_t - r_(t-1) too (ours); with horizon 0"
    )
    model.add_argument("--standardise", action="boolean", default=True, help="standardise inputs (the official code does not)")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive_int, default=301, help="passes over the data, where --steps is not given")
    training.add_argument("--steps", type=positive_int, help="gradient steps")
    training.add_argument("--batch_size", type=positive_int, default=128, help="transitions per step")
    training.add_argument("--learning_rate", type=positive_float, default=1e-3, help="of Adam")
    training.add_argument("--lr_schedule", choices=["constant", "cosine"], default="constant", help="cosine ends at 5 %% of it")
    training.add_argument("--weight_decay", type=nonnegative_float, default=0.0, help="decoupled (AdamW); 0 is plain Adam")
    training.add_argument("--grad_clip", type=positive_float, default=1.0, help="largest gradient norm")
    training.add_argument("--reward_weight", type=nonnegative_float, default=1.0, help="weight of the reward decoder's loss")
    training.add_argument("--state_weight", type=nonnegative_float, default=1.0, help="weight of the state decoder's loss")
    training.add_argument("--relabel", action="boolean", default=False, help="relabel rewards across the training tasks (ours)")
    training.add_argument("--relabel_share", type=fraction, default=0.5, help="share of the windows moved to another task")
    training.add_argument(
        "--imagined_tasks", type=natural, default=0, help="tasks around the training tasks that --relabel may pay too (ours)"
    )
    training.add_argument(
        "--across_episodes", action="boolean", default=False, help="decode any transition of the task, not of the episode (ours)"
    )
    training.add_argument(
        "--balance_steps", action="boolean", default=False,
        help="the reward's error counts alike at every time step, by its logarithm (ours); with horizon 0",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument(
        "--eval_every", type=positive_int, default=1000, help="gradient steps between validations and checkpoints"
    )
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "train_context", argv)
    if not (args.reward_weight or args.state_weight):
        raise UserError("--reward_weight 0 --state_weight 0 leaves nothing to learn: make one of them positive")
    if args.imagined_tasks and not args.relabel:
        raise UserError("--imagined_tasks has no effect without --relabel: give both, or --imagined_tasks 0")
    if args.relabel and args.across_episodes:
        raise UserError("--relabel decodes across episodes already: give one of --relabel and --across_episodes")
    if args.reward_change and args.context_horizon:
        raise UserError("--reward_change needs the rewards of the whole episode: give --context_horizon 0")
    if args.balance_steps and args.context_horizon:
        raise UserError("--balance_steps needs contexts of whole episodes: give --context_horizon 0")
    keep_memory()
    environment = args.env.make()
    make_data = next_command(args, "get_datasets.py", "--data_type", args.data_quality)
    dataset = trajectories.load(Path(args.output_dir) / "datasets", args.env_type, args.data_quality, args.env, make_data)
    training, held_out = split_episodes(args, dataset)
    sampler = make_sampler(args, environment, training, args.relabel, args.across_episodes)
    validation = make_sampler(args, environment, held_out)
    model = make_model(args, training)
    config = {**settings(args), "dataset_sha256": dataset.metadata["sha256"]}
    with run_directory(context_directory(args), config, args.resume, VOLATILE) as directory:
        seconds = train(args, model, sampler, validation, directory)
        best, _ = load_world_model(directory, "best")
        made = diagnose(args, environment, best, held_out)
        path = write_result(
            args.output_dir, args.env_type, args.data_quality, method="context", recipe=args.recipe, ablation="none",
            regime=DIAGNOSTICS, protocol=None, validation=args.validation, seed=args.seed, task_ids=[],
            privileges="reward function" if args.relabel else "none", measured={"embedding": made["embedding"]},
            errors=made["errors"], probe=made["probe"], curve=curve(directory), directory=directory,
            training={
                "gradient_steps": num_steps(args, sampler.size), "wall_clock_s": seconds,
                "parameters": sum(weights.numel() for weights in best.parameters()),
            },
            made_from={"dataset_sha256": dataset.metadata["sha256"]}, config=settings(args),
        )  # fmt: skip
    report(made)
    follow = next_command(
        args, "train_meta_dt.py", "--data_quality", args.data_quality, *(["--validation"] if args.validation else [])
    )
    print(f"world model in {directory}, diagnostics in {path}; next: {follow}")


def split_episodes(args, dataset):
    """Training and held-out episodes (Trajectories) of the training tasks; whole episodes, drawn by the seed, per task."""
    tasks = [task for task in range(*args.env.train_tasks) if not (args.validation and task in range(*args.env.validation_tasks))]
    if not tasks:
        raise UserError(f"--validation leaves no training task: give {args.env_type}.yaml validation_tasks inside train_tasks")
    known = [task for task in tasks if task in dataset.tasks]
    if not known:
        raise UserError(f"the dataset holds none of the training tasks {tasks[0]}-{tasks[-1]}: generate some of them")
    if len(known) < len(tasks):
        print(f"note: the dataset holds {len(known)} of the {len(tasks)} training tasks")
    dataset = dataset.select(known)
    order = numpy_generator(args.seed, "validation_split").permutation(len(dataset))
    held_out = np.zeros(len(dataset), bool)
    for task in known:
        rows = order[dataset.task_ids[order] == task]
        held_out[rows[: round(args.validation_share * len(rows))]] = True
    if held_out.all() or not held_out.any():
        raise UserError(
            f"--validation_share {args.validation_share} leaves no episode to {'train on' if held_out.all() else 'validate on'}"
        )
    return dataset.take(np.flatnonzero(~held_out)), dataset.take(np.flatnonzero(held_out))


def num_steps(args, transitions):
    """Gradient steps: --steps, or --epochs passes over the training transitions (their number)."""
    return args.steps or args.epochs * math.ceil(transitions / args.batch_size)


def flat_transitions(episodes):
    """All transitions of Trajectories: tensors (N, d_s), (N, d_a), (N, 1), (N, d_s), and the changes of their rewards (N, 1)."""
    inside = np.arange(episodes.rewards.shape[1]) < episodes.lengths[:, None]
    arrays = episodes.observations[:, :-1], episodes.actions, episodes.rewards[..., None], episodes.observations[:, 1:]
    changes = reward_changes(torch.from_numpy(episodes.rewards[..., None]))
    return [*(torch.from_numpy(array[inside]) for array in arrays), changes[torch.from_numpy(inside)]]


def make_sampler(args, environment, episodes, relabel=False, across_episodes=False):
    """TransitionSampler over Trajectories; `relabel` pays the rewards of other (and imagined) tasks."""
    arrays = (torch.from_numpy(getattr(episodes, name)) for name in ("observations", "actions", "rewards", "lengths", "task_ids"))
    if not relabel:
        return TransitionSampler(*arrays, args.context_horizon, across_episodes=across_episodes)
    infos = {key: torch.from_numpy(values) for key, values in episodes.infos.items()}
    table = environment.unwrapped.tasks
    known = len(next(iter(table.values())))
    if args.imagined_tasks:
        generator = numpy_generator(args.seed, "imagined_tasks")
        table = imagined_tasks(environment, np.unique(episodes.task_ids), args.imagined_tasks, generator)
    return TransitionSampler(
        *arrays, args.context_horizon, relabeller(environment, episodes, table), args.relabel_share, infos,
        imagined=range(known, known + args.imagined_tasks),
    )  # fmt: skip


def make_model(args, training):
    """The untrained world model on args.device."""
    torch.manual_seed(derive(args.seed, "context"))
    sizes = training.observations.shape[-1], training.actions.shape[-1]
    model = WorldModel(*sizes, *(getattr(args, key) for key in MODEL_KEYS))
    if args.standardise:
        model.set_normaliser(*flat_transitions(training))
    return model.to(args.device)


def train(args, model, sampler, validation, directory):
    """Train to the last step, or go on from where state.pt stands; returns the seconds that all of it took.

    Every `eval_every` steps: full validation, best and last weights, and a state from which the same command continues.
    """
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=args.weight_decay, fused=True)
    generator = torch_generator(args.seed, "context_batches")
    total, state = num_steps(args, sampler.size), {"step": 0, "best": math.inf, "seconds": 0.0}
    if (directory / "state.pt").exists():
        state = load_state(directory / "state.pt", "step", "best", "seconds", "model", "optimizer", "generator")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
    if state["step"] >= total:
        return state["seconds"]
    best, began = state["best"], time.time() - state["seconds"]
    with Logger(directory, total, state["step"], tensorboard=args.tensorboard) as logger, StopSignal() as stop:
        for step in range(state["step"] + 1, total + 1):
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * schedule_factor(step - 1, total, 0, args.lr_schedule)
            reward_loss, state_loss = losses(model, sampler.draw(args.batch_size, generator), args.device, args.balance_steps)
            optimizer.zero_grad()
            (args.reward_weight * reward_loss + args.state_weight * state_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
            optimizer.step()
            logger.advance()
            if step % args.eval_every and step < total and not stop.received:
                continue
            require_finite(reward_loss.item() + state_loss.item(), f"the loss at step {step}")
            if step % args.eval_every == 0 or step == total:
                scores = validate(model, validation, args.device)
                value = args.reward_weight * scores["reward_loss"] + args.state_weight * scores["state_loss"]
                logger.log(step, {"train/reward_loss": reward_loss.item(), "train/state_loss": state_loss.item()} | scores)
                if value < best:
                    best = value
                    save_tensors(directory / "best.safetensors", model.state_dict())
            save_tensors(directory / "last.safetensors", model.state_dict())
            state = {
                "step": step,
                "total": total,
                "best": best,
                "seconds": time.time() - began,
                "generator": generator.get_state(),
            }
            save_state(directory / "state.pt", state | {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            if stop.received:
                logger.close()
                stop.exit(step)
    return round(state["seconds"], 1)


def losses(model, batch, device, balance_steps=False):
    """Losses (reward, state) of a batch of TransitionSampler: mean squared errors in standardised units; with `balance_steps` the
    reward's is `balanced` over the time steps."""
    window, transition = ([value.to(device) for value in part] for part in batch)
    reward, state = model.errors(*transition, model.contexts(*window))
    return balanced(reward, window[3]) if balance_steps else reward.mean(), state.mean()


@torch.inference_mode()
def validate(model, sampler, device, chunk=8192):
    """Losses over every held-out transition, and the same as root mean squared errors in physical units.

    reward_std and state_std are the errors of predicting the mean: what a decoder that learned nothing reaches.
    """
    sums, predicted, true = torch.zeros(2, dtype=torch.float64), [], []
    for batch in sampler.chunks(chunk):
        window, (observations, actions, rewards, after) = ([value.to(device) for value in part] for part in batch)
        contexts = model.contexts(*window)
        sums += torch.stack(model.losses(observations, actions, rewards, after, contexts)).cpu().double() * len(rewards)
        reward, state = model.decode(observations, actions, after, contexts)
        predicted.append((reward * model.reward_std + model.reward_mean, model.next_observations(observations, state)))
        true.append((rewards, after))
    scores = dict(zip(("reward_loss", "state_loss"), (sums / sampler.size).tolist(), strict=True))
    for position, name in enumerate(("reward", "state")):
        guess, truth = (torch.cat([pair[position] for pair in pairs]).double() for pairs in (predicted, true))
        scores[f"{name}_rmse"] = (guess - truth).square().mean().sqrt().item()
        scores[f"{name}_std"] = (truth - truth.mean(0)).square().mean().sqrt().item()
    return scores


@torch.inference_mode()
def diagnose(args, environment, model, held_out, points=1000):
    """Validation in physical units, linear probes of the task parameters, and a projection of z for the picture.

    The probe is fitted on half of the held-out episodes of the training tasks; it is scored on the other half, and on random
    walks in the simulator on the training tasks and on the test (or validation) tasks. With relabelling also on the other half
    paid by those unseen tasks: its agents walk where they should not, and z must tell what is paid and not where they walk. No
    test-task data are read.
    """
    model.to("cpu")
    unseen = range(*(args.env.validation_tasks if args.validation else args.env.test_tasks))
    arrays = [torch.from_numpy(getattr(held_out, name)) for name in ("observations", "actions", "rewards")]
    contexts, parameters = full_contexts(model, *arrays), task_matrix(environment, held_out.task_ids)
    odd = torch.arange(len(contexts)) % 2 == 1
    score = linear_probe(contexts[~odd], parameters[~odd])
    probes = {"dataset": score(contexts[odd], parameters[odd])}
    for name, tasks in (("random_walk", sorted(held_out.tasks)), ("random_walk_unseen_tasks", unseen)):
        *walk, ids = random_walk(args.env, list(tasks), 10, args.seed)
        probes[name] = score(full_contexts(model, *walk), task_matrix(environment, ids))
    if args.relabel and odd.any():
        astray = paid_by(environment, held_out.take(np.flatnonzero(odd)), unseen, numpy_generator(args.seed, "paid_by"))
        arrays = [torch.from_numpy(getattr(astray, name)) for name in ("observations", "actions", "rewards")]
        probes["relabelled_unseen_tasks"] = score(full_contexts(model, *arrays), task_matrix(environment, astray.task_ids))
    pick = torch.randperm(contexts.shape[0] * contexts.shape[1], generator=torch_generator(args.seed, "embedding"))[:points]
    shown = held_out.task_ids[(pick // contexts.shape[1]).numpy()]
    tasks = np.unique(shown)
    validation = validate(model, make_sampler(args, environment, held_out), torch.device("cpu"))
    return {
        "errors": {name: float(f"{value:.6g}") for name, value in validation.items()},
        "probe": {name: {"r2": None if value is None else round(value, 4)} for name, value in probes.items()},
        "embedding": {
            "points": project(contexts.flatten(0, 1)[pick]).numpy().round(4).tolist(),
            "task_ids": shown.tolist(),
            "task_parameters": dict(
                zip(map(str, tasks.tolist()), task_matrix(environment, tasks).numpy().round(4).tolist(), strict=True)
            ),
        },
    }


def curve(directory):
    """metrics.jsonl as columns, six digits."""
    records = read_metrics(directory)
    keys = {key: None for record in records for key in record if key != "step"}
    columns = {key: [float(f"{record[key]:.6g}") if key in record else None for record in records] for key in keys}
    return {"gradient_steps": [record["step"] for record in records], **columns}


def report(document):
    """Print the diagnostics: what a number is worth stands beside it."""
    scores = document["errors"]
    for name in ("reward", "state"):
        print(f"{name}: validation error {scores[f'{name}_rmse']:.4g} (predicting the mean: {scores[f'{name}_std']:.4g})")
    probes = ", ".join(f"{n} {'-' if v['r2'] is None else format(v['r2'], '.3f')}" for n, v in document["probe"].items())
    print(f"linear probe of the task parameters from z, R²: {probes}")


if __name__ == "__main__":
    main()
