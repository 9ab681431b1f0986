"""Measure the reference levels of a family whose levels no formula gives: trivial, best task-blind policy, oracle.

    python -m tools.measure_references --env_type ant_dir

Candidates for the best task-blind policy are no action, every training task's expert acting without noise on all tasks, the
shared agent told the average task, and a policy cloned from the pooled data of all experts; the one with the highest mean return
on the training tasks is the level. The oracle of a task is the best of its own expert and these candidates: what is known to be
possible there. Choices are made on other episodes than those that are reported. Needs behaviour policies: those of stage 1, else
the committed ones. Writes configs/references/<env_type>.json, which every later result of the family shows.

Where the environment brings its own oracle (Meta-World: the scripted policies), its reference policies are played instead, and on
validation and test tasks the oracles of the training tasks: the best of them is the explicit choice.

    python -m tools.measure_references --env_type metaworld_reach --eval_episodes 1
"""

import itertools

import numpy as np
import torch
from torch import nn

from src.behaviour.policies import BehaviourPolicies
from src.behaviour.store import SHARED, SOURCES, find_source, load_behaviour
from src.data.qualities import choose_checkpoints
from src.data.scales import clipped, scale_of
from src.evaluation import references
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.evaluate import successes
from src.evaluation.rollout import returns, rollout
from src.run.config import CONFIG_DIR, next_command, num_tasks, parse_args, positive_int, script_parser
from src.run.errors import main_guard
from src.run.files import load_tensors, write_json
from src.run.provenance import provenance
from src.run.seeding import derive, torch_generator

OWN = "its own expert"


def make_parser():
    parser = script_parser(__doc__)
    parser.set_defaults(device="cpu")
    parser.add_argument("--eval_episodes", type=positive_int, default=10, help="episodes per task of the reported levels")
    parser.add_argument("--behaviour", choices=SOURCES, default="auto", help="whose experts")
    parser.add_argument("--cloning_steps", type=positive_int, default=4000, help="gradient steps of the cloned policy")
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "measure_references", argv)
    torch.set_num_threads(1)  # the last bits of a sum depend on the number of threads
    environment = args.env.make()
    space, tasks = environment.action_space, np.arange(num_tasks(environment))
    training = np.arange(*args.env.train_tasks)
    written = getattr(environment, "reference_policies", lambda *_: {})(environment.unwrapped.tasks, training)
    if "oracle" in written:
        return measure_written(args, environment, written, tasks)
    command = next_command(args, "train_data_collection.py")
    source = find_source(args, args.behaviour, command)
    curves, weights = zip(*(load_behaviour(source, args.env, task, command) for task in tasks), strict=True)
    best = [choose_checkpoints(curve, "expert", 1, 0.5)[0] for curve in curves]
    experts = [{name: value[row] for name, value in values.items()} for values, row in zip(weights, best, strict=True)]

    def actor(policy, frame=None):
        one = BehaviourPolicies({name: value[None] for name, value in policy.items()}, space.low, space.high, frame=frame)
        return lambda observations: one.act(observations[None], deterministic=True)[0]

    def everyone(observations):  # rows are tasks x episodes, each task played by its own expert
        return stacked.act(observations.reshape(len(tasks), args.eval_episodes, -1), deterministic=True).reshape(-1, *space.shape)

    together = {name: torch.stack([one[name] for one in experts]) for name in experts[0]}
    stacked = BehaviourPolicies(together, space.low, space.high, frame=source.frame(environment, tasks))
    observations, actions, _ = play(args, everyone, tasks, "data")
    known = np.isin(np.repeat(tasks, args.eval_episodes), training)
    still = np.zeros(space.shape, np.float32)
    policies = {"no action": lambda observations: np.broadcast_to(still, (len(observations), *space.shape))}
    policies |= {f"expert of task {task}": actor(experts[task], source.frame(environment, [task])) for task in training}
    if source.shared and source.frame(environment, [0]) is None:  # the standardised features of the average task are zeros
        shared = load_tensors(source.directory / SHARED / "checkpoints.safetensors")
        features = shared.pop("task_features").shape[-1]
        last = {name: value[best[0]].float() for name, value in shared.items() if name != "steps"}
        last["latent_pi.0.weight"] = last["latent_pi.0.weight"][:, :-features]
        policies["shared agent told the average task"] = actor(last)
    policies["cloned from the pooled data of all experts"] = clone(args, observations[known, :-1], actions[known], space)

    few = max(2, 100 // len(training))
    trials = {name: play(args, act, tasks, "choice", few)[2].mean(1) for name, act in policies.items()}  # name -> (tasks,)
    chosen, scores, oracle_policies = choose(trials, play(args, everyone, tasks, "choice")[2].mean(1), training)
    oracle = play(args, everyone, tasks)[2]
    for task, name in enumerate(oracle_policies):
        if name != OWN:
            oracle[task] = play(args, policies[name], [task])[2][0]
    blind = play(args, policies[chosen], tasks)[2]
    levels = {"trivial": play(args, policies["no action"], tasks)[2], "task_blind": blind, "oracle": oracle}
    measured = {name: values.mean(1).tolist() for name, values in levels.items()}
    formulas = getattr(environment, "reference_levels", lambda *_: {})(environment.unwrapped.tasks, training)
    per_task = measured | {name: np.asarray(values, dtype=float).tolist() for name, values in formulas.items()}
    document = {
        "env_type": args.env_type,
        "max_episode_steps": args.env.max_episode_steps,
        "eval_episodes": args.eval_episodes,
        "by_formula": sorted(formulas),
        "task_blind": {"chosen": chosen, "training_tasks": scores},
        "measured_task_blind": measured["task_blind"],
        "oracle": oracle_policies,
        "per_task": per_task,
    }
    print(f"{write_levels(args, document)}; task-blind is the {chosen}")


def write_levels(args, document):
    """Write a family's file; returns its path with the means on the test tasks."""
    path = CONFIG_DIR / "references" / f"{args.env_type}.json"
    write_json(path, {**document, **provenance()})
    test = range(*args.env.test_tasks)
    levels = document["per_task"].items()
    means = ", ".join(f"{name} {np.mean([values[task] for task in test]):.4g}" for name, values in levels)
    return f"{path}: on the test tasks {means}"


def measure_written(args, environment, policies, tasks):
    """The levels of policies that the environment brings, by code: returns, and success where it is reported.

    The explicit choice is measured where tasks differ in their rewards alone: elsewhere it is no other policy than the task's.
    """
    rows, count = np.repeat(tasks, args.eval_episodes), args.eval_episodes
    per_task, success = {}, {}
    for name, policy in policies.items():
        episode = references.play(args.env, policy, rows, count)
        per_task[name] = returns(episode).reshape(-1, count).mean(1).tolist()
        if "success" in episode["infos"]:
            success[name] = successes(episode).reshape(-1, count).mean(1).tolist()
    if hasattr(environment, "compute_rewards"):
        chosen = [explicit_choice(args, policies["oracle"], task) for task in tasks]
        per_task[references.EXPLICIT_CHOICE], success[references.EXPLICIT_CHOICE] = map(list, zip(*chosen, strict=True))
    document = {"env_type": args.env_type, "max_episode_steps": args.env.max_episode_steps, "eval_episodes": count}
    print(write_levels(args, {**document, "per_task": per_task, "success": success}))


def explicit_choice(args, oracle, task):
    """(return, success) of the best oracle of another training task on `task`; Nones where it is of neither."""
    if task not in range(*args.env.test_tasks) and task not in range(*args.env.validation_tasks):
        return None, None
    count, others = args.eval_episodes, [other for other in range(*args.env.train_tasks) if other != task]
    told = np.repeat(others, count)  # every candidate starts where the reported levels do
    episode = references.play(args.env, oracle, np.full(len(told), task), count, told)
    scores = returns(episode).reshape(-1, count).mean(1)
    best = int(np.argmax(scores))
    reached = successes(episode).reshape(-1, count).mean(1)[best] if "success" in episode["infos"] else None
    return float(scores[best]), None if reached is None else float(reached)


def choose(trials, own, training):
    """The policies of the levels, from returns on episodes that are not reported.

    trials: {candidate: (tasks,) mean returns}. own: (tasks,) those of each task's own expert. training: ids of training tasks.
    Returns the task-blind level's candidate, the best on the training tasks; {candidate: its mean there}; and the list of each
    task's oracle, OWN or the candidate that does better.
    """
    scores = {name: float(values[training].mean()) for name, values in trials.items()}
    best = [max(trials, key=lambda name, task=task: trials[name][task]) for task in range(len(own))]
    oracle = [name if trials[name][task] > own[task] else OWN for task, name in enumerate(best)]
    return max(scores, key=scores.get), scores, oracle


def play(args, act, tasks, purpose="reference", episodes=None):
    """Observations and actions of every row, and returns (tasks, episodes), of a policy; `purpose` decides on the starts."""
    episodes = episodes or args.eval_episodes
    rows = np.repeat(tasks, episodes)
    seeds = [derive(args.seed, purpose, int(task), row % episodes) % 2**31 for row, task in enumerate(rows)]
    episode = rollout(PolicyAgent(act), make_batch(args.env, rows), seeds, args.env.max_episode_steps)
    return episode["observations"], episode["actions"], returns(episode).reshape(len(tasks), episodes)


def clone(args, observations, actions, space, batch=512, width=256):
    """Behaviour cloning of pooled data (E, T, ...) by a network that is not told the task: function observations -> actions."""
    torch.manual_seed(derive(args.seed, "cloning"))
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(a)).flatten(0, 1) for a in (observations, actions))
    mean, std, bound = scale_of(inputs)
    scale = torch.from_numpy(np.maximum(np.abs(space.low), np.abs(space.high)))
    sizes = [inputs.shape[-1], width, width]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(width, targets.shape[-1]), nn.Tanh())
    optimizer, generator = torch.optim.Adam(model.parameters(), 1e-3), torch_generator(args.seed, "cloning")
    for _ in range(args.cloning_steps):
        rows = torch.randint(len(inputs), (batch,), generator=generator)
        loss = (model(clipped((inputs[rows] - mean) / std, bound)) - targets[rows] / scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.inference_mode()
    def act(observations):
        return (model(clipped((torch.from_numpy(observations) - mean) / std, bound)) * scale).numpy()

    return act


if __name__ == "__main__":
    main()
