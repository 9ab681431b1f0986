"""Rolling behaviour policies out: which checkpoint plays which episode, and the episodes of one task as arrays."""

import dataclasses

import numpy as np
import torch

from src.behaviour.policies import BehaviourPolicies, uniform_actions
from src.behaviour.scripted import scripted
from src.behaviour.store import load_behaviour
from src.data.qualities import choose_checkpoints, choose_players
from src.data.trajectories import Trajectories, task_parameters
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.evaluate import significant
from src.evaluation.results import require_writable
from src.evaluation.rollout import rollout
from src.run.flags import fraction, nonnegative_float, positive_int
from src.run.seeding import derive, numpy_generator, torch_generator
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class Collection:
    """collection"""

    capacity: int = setting(20_000, "transitions per task (or somewhat more, where lengths vary)", positive_int)
    medium_share: float = setting(0.5, "level of medium between random (0) and expert (1), of trained policies", fraction)
    goal_error: float = setting(
        0.1, "medium of a scripted policy: standard deviation of what it is wrong about its task, metres", nonnegative_float
    )  # fmt: skip
    action_noise: float = setting(
        0.3, "medium of a scripted policy: standard deviation of its noise, in half ranges of an action", nonnegative_float
    )  # fmt: skip


def collect_task(run, collection, source, command, task, report=None):
    """All episodes of one task, played at once; they depend on (seed, data_type, task) and the policies alone.

    Where episodes end on their own, every row plays whole episodes until it has max_episode_steps steps, so that each
    checkpoint gets its share of the transitions; the last episode of a row may exceed it. (Cutting it, or leaving it out,
    would favour short episodes.)

    run: RunSettings, whose data_quality is the kind of data. source: where the policies are (src.behaviour.store.find_source);
    not read for random data. command: the one that makes policies which are missing.
    Returns (observations (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T), lengths (E,), infos, facts about the behaviour).
    """
    env, quality = run.env, run.data_quality
    episodes = collection.capacity // env.max_episode_steps
    space = env.make().action_space
    names = (run.seed, "get_datasets", quality, task)
    players = choose_players(quality, task, range(*env.train_tasks), episodes, numpy_generator(*names, "players"))
    if quality == "random":
        act, facts = uniform_actions(space, numpy_generator(*names)), {}
    elif source.kind == "scripted":
        medium = collection.goal_error, collection.action_noise
        act, facts = scripted(env.make(), quality, players, medium, numpy_generator(*names))
    else:
        act, facts = _behaviour(run, collection.medium_share, source, command, task, players, torch_generator(*names))
    played, parts = np.zeros(episodes, int), []
    while (active := np.flatnonzero(played < env.max_episode_steps)).size:
        seeds = [derive(*names, "reset", len(parts) * episodes + row) for row in active]
        batch = make_batch(env, [task] * len(active))
        episode = rollout(PolicyAgent(_act_for(active, act, episodes)), batch, seeds, env.max_episode_steps)
        played[active] += episode["lengths"]
        parts.append((active, *(episode[key] for key in ("observations", "actions", "rewards", "lengths", "infos"))))
    rows, *arrays, infos = zip(*parts, strict=True)
    order = np.argsort(np.concatenate(rows), kind="stable")
    arrays = [np.concatenate(array)[order] for array in arrays]
    infos = {key: np.concatenate([info[key] for info in infos])[order] for key in infos[0]}
    require_writable(f"returns of task {task} of {env.env_type}", arrays[2].sum(1, dtype=np.float64))
    return *arrays, infos, facts


def _act_for(active, act, episodes):
    """`act`, which expects observations of all rows, for the rows that are `active`."""
    if len(active) == episodes:
        return act

    def act_some(observations):
        everything = np.zeros((episodes, observations.shape[1]), np.float32)
        everything[active] = observations
        return act(everything)[active]

    return act_some


def _behaviour(run, share, source, command, task, players, noise):
    """(act, facts) of the stored checkpoints: every episode is played by the one that the rule assigns to it, of the policy of
    the task in `players` (episodes,)."""
    environment, episodes = run.env.make(), len(players)
    space, rows, stored = environment.action_space, np.empty(episodes, int), {}
    for player in np.unique(players):
        stored[player] = load_behaviour(source, source.env or run.env, int(player), command)
        played = players == player
        rows[played] = choose_checkpoints(stored[player][0], run.data_quality, played.sum(), share)
    used, policy, counts = np.unique(np.stack([players, rows], 1), axis=0, return_inverse=True, return_counts=True)
    policy = policy.reshape(-1)
    weights = [{name: value[row] for name, value in stored[player][1].items()} for player, row in used]
    weights = {name: torch.stack([one[name] for one in weights]) for name in weights[0]}
    frame = source.frame(environment, used[:, 0])
    policies = BehaviourPolicies(weights, space.low, space.high, run.device, frame)
    # place of each episode in a grid (policies, episodes of the busiest one), so that one batched product serves all
    order = np.argsort(policy, kind="stable")
    policy = policy[order]
    column = np.arange(episodes) - np.repeat(np.cumsum(counts) - counts, counts)

    def act(observations):
        grid = np.zeros((len(used), counts.max(), observations.shape[1]), np.float32)
        grid[policy, column] = observations[order]
        actions = np.empty((episodes, *space.shape), np.float32)
        actions[order] = policies.act(grid, noise)[policy, column]
        return actions

    curve = stored[task][0]
    expert = choose_checkpoints(curve, "expert", 1, share)[0]
    facts = {
        **({"players": used[:, 0].tolist()} if len(stored) > 1 else {}),
        "checkpoint_steps": [stored[player][0]["steps"][row] for player, row in used],
        "checkpoint_episodes": counts.tolist(),
        "checkpoint_returns": [_measured(stored[player][0], row) for player, row in used],
        "random_return": float(significant(np.mean(curve["random_returns"]))),
        "expert_return": _measured(curve, expert),
    }
    return act, facts


def _measured(curve, row):
    """Mean return of a checkpoint on its own task."""
    return float(significant(np.mean(curve["stochastic_returns"][row])))


def join_tasks(env, results):
    """{task: what collect_task returned} -> (Trajectories in the order of task ids, {"behaviour": {task: facts}})."""
    tasks = sorted(results)
    observations, actions, rewards, lengths, infos, facts = zip(*(results[task] for task in tasks), strict=True)
    with np.errstate(over="ignore"):  # an info may be as large as it likes
        infos = {key: np.concatenate([info[key] for info in infos]).astype(np.float32) for key in infos[0]}
    trajectories = Trajectories(
        observations=np.concatenate(observations),
        actions=np.concatenate(actions),
        rewards=np.concatenate(rewards),
        lengths=np.concatenate(lengths),
        task_ids=np.repeat(tasks, [len(results[task][2]) for task in tasks]),
        tasks=task_parameters(env.make(), tasks),
        infos=infos,
    )
    behaviour = {task: fact for task, fact in zip(tasks, facts, strict=True) if fact}
    return trajectories, {"behaviour": behaviour}
