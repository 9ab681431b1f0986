"""Rolling behaviour policies out: which checkpoint plays which episode, and the episodes of one task as arrays."""

import numpy as np

from src.batch import make_batch, rollout
from src.behaviour import BehaviourPolicies, load_behaviour, uniform_actions
from src.checkpoint import UserError
from src.config import next_command
from src.seeding import derive, numpy_generator, torch_generator
from src.trajectories import Trajectories, task_parameters

LATE_SHARE = 0.2  # expert level and expert checkpoint come from this last part of training
MEDIUM_PART_OF_MIXED = 0.7  # Meta-DT's README: 70 % medium, 30 % expert
QUALITIES = {
    "medium": "first checkpoint whose measured return reaches random + medium_share * (expert - random); "
    "expert = mean return of the last 20 % of the checkpoints",
    "expert": "checkpoint with the highest measured return among the last 20 %",
    "mixed": "70 % of the episodes as medium, 30 % as expert",
    "replay": "all checkpoints of training, an equal share of the episodes each",
    "random": "uniform random actions",
}


def choose_checkpoints(curve, quality, episodes, medium_share):
    """(episodes,) index of the checkpoint that plays each episode; medium comes before expert in mixed.

    Args:
        curve: curve.json of a behaviour policy (src/sac.py). quality: a key of QUALITIES but random.
    """
    measured = np.mean(curve["stochastic_returns"], axis=1)  # (C,)
    late = max(1, round(LATE_SHARE * len(measured)))
    expert = len(measured) - late + int(np.argmax(measured[-late:]))
    random, level = np.mean(curve["random_returns"]), measured[-late:].mean()
    # where training left the policy no better than random, no level lies between: take the best there is
    threshold = random + medium_share * (level - random) if level > random else measured.max()
    medium = int(np.argmax(measured >= threshold))
    if quality == "replay":
        return np.arange(episodes) * len(measured) // episodes
    if quality == "mixed":
        split = round(MEDIUM_PART_OF_MIXED * episodes)
        return np.repeat([medium, expert], [split, episodes - split])
    return np.full(episodes, medium if quality == "medium" else expert)


def collect_task(args, source, task, report=None):
    """All episodes of one task, played at once; they depend on (seed, data_type, task) and the policies alone.

    source: where the policies are (src.behaviour.find_source); not read for random data.
    Returns (observations (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T), infos, facts about the behaviour).
    """
    env, quality = args.env, args.data_type
    episodes = args.capacity // env.max_episode_steps
    space = env.make().action_space
    names = (args.seed, "get_datasets", quality, task)
    if quality == "random":
        act, facts = uniform_actions(space, numpy_generator(*names)), {}
    else:
        act, facts = _behaviour(args, source, task, episodes, space, torch_generator(*names))
    seeds = [derive(*names, "reset", episode) for episode in range(episodes)]
    batch = make_batch(env, [task] * episodes)
    observations, actions, rewards, infos = rollout(env, batch, act, seeds)
    for key in getattr(env.make().unwrapped, "info_keys", ()):  # without these no reward can be computed later
        if key not in infos:
            raise UserError(f"{env.entry_point} names {key!r} in info_keys, but its steps do not report it")
    return observations, actions, rewards, infos, facts


def _behaviour(args, source, task, episodes, space, noise):
    """(act, facts) of the stored checkpoints: every episode is played by the one that the rule assigns to it."""
    curve, weights = load_behaviour(source, args.env, task, training_command(args))
    rows = choose_checkpoints(curve, args.data_type, episodes, args.medium_share)
    used, counts = np.unique(rows, return_counts=True)
    weights = {name: value[used] for name, value in weights.items()}
    policies = BehaviourPolicies(weights, space.low, space.high, args.device)
    # place of each episode in a grid (policies, episodes of the busiest one), so that one batched product serves all
    order = np.argsort(rows, kind="stable")
    policy = np.repeat(np.arange(len(used)), counts)
    column = np.arange(episodes) - np.repeat(np.cumsum(counts) - counts, counts)

    def act(observations):
        grid = np.zeros((len(used), counts.max(), observations.shape[1]), np.float32)
        grid[policy, column] = observations[order]
        actions = np.empty((episodes, *space.shape), np.float32)
        actions[order] = policies.act(grid, noise)[policy, column]
        return actions

    measured = np.mean(curve["stochastic_returns"], axis=1)
    facts = {
        "checkpoint_steps": [curve["steps"][row] for row in used],
        "checkpoint_episodes": counts.tolist(),
        "checkpoint_returns": [round(float(measured[row]), 4) for row in used],
        "random_return": round(float(np.mean(curve["random_returns"])), 4),
    }
    return act, facts


def training_command(args):
    """The command that makes the behaviour policies which are missing."""
    return next_command(args, "train_data_collection.py", keep=("task_id_start", "task_id_end"))


def join_tasks(args, results):
    """{task: what collect_task returned} -> (Trajectories in the order of task ids, facts to record)."""
    tasks = sorted(results)
    observations, actions, rewards, infos, facts = zip(*(results[task] for task in tasks), strict=True)
    rewards = np.concatenate(rewards)
    trajectories = Trajectories(
        observations=np.concatenate(observations),
        actions=np.concatenate(actions),
        rewards=rewards,
        lengths=np.full(len(rewards), args.env.max_episode_steps),
        task_ids=np.repeat(tasks, [len(results[task][2]) for task in tasks]),
        tasks=task_parameters(args.env.make(), tasks),
        infos={key: np.concatenate([info[key] for info in infos]).astype(np.float32) for key in infos[0]},
    )
    behaviour = {task: fact for task, fact in zip(tasks, facts, strict=True) if fact}
    return trajectories, {"medium_share": args.medium_share, "behaviour": behaviour}
