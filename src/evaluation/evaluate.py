"""The evaluation protocol: the only place where returns are measured, for Meta-DT and for every baseline.

zero-shot: the running episode only. few-shot(N): N warm-up episodes collected on the task by the same frozen agent, in sequence
(each may already use the pool so far), then one evaluation episode. Tasks x episodes step together as one array, and every row
has a pool of its own, so that M evaluation episodes are M independent adaptations.

An agent has `start(observations, target_returns, prompt)`, `act()`, `observe(actions, rewards, next_observations)` and, for
few-shot, `make_prompt(pool, generator, trial)`.
"""

import numpy as np

from src.evaluation.batch import episode_lengths, make_batch
from src.evaluation.exploration import NO_EXPLORATION
from src.evaluation.rollout import rollout
from src.run.seeding import derive, numpy_generator, torch_generator


def evaluate(
    agent, env, task_ids, episodes, warmup, target, seed, explore=NO_EXPLORATION, pool_max=False, keep=0, later=0, watch=None
):
    """Returns of `agent` on `task_ids`.

    Args:
        env: EnvConfig. episodes: M evaluation episodes per task. warmup: N warm-up episodes, 0 for zero-shot.
        target: target return, a number or one per task id.
        seed: of resets, noise and prompt choices; the same seed gives the same numbers.
        explore: Exploration of the episodes that must find the task out: warm-up episodes, and zero-shot ones. An evaluation
            episode with a prompt is played without it.
        pool_max: raise the target to the best return of the warm-up episodes so far.
        keep: store the paths of the first `keep` evaluation episodes of every task.
        watch: called after the evaluation episode with the rows' task ids and reset seeds and the episode as `rollout` gives it.
        later: few-shot episodes that go on after the evaluation episode, which joins the pool then; they show the adaptation.
    Returns: {"returns": (tasks, M), "lengths": (tasks, M) where episodes can end on their own, "warmup_returns": (tasks, M, N),
    "later_returns": (tasks, M, later), "trajectories"}, JSON-able lists.
    """
    rows = np.repeat(np.asarray(task_ids), episodes)
    targets = np.repeat(np.broadcast_to(np.asarray(target, dtype=np.float64), len(task_ids)), episodes)
    batch = make_batch(env, rows)
    space = env.make().action_space
    bounds = space.low, space.high
    pool, prompt = [], None
    last = warmup + later if warmup else 0
    for number in range(last + 1):
        seeds = [derive(seed, "reset", int(task), row % episodes, number) % 2**31 for row, task in enumerate(rows)]
        generator = numpy_generator(seed, "noise", number)
        exploration = explore if number < warmup or not warmup else NO_EXPLORATION
        episode = rollout(agent, batch, seeds, env.max_episode_steps, targets, bounds, prompt, exploration, generator)
        if isinstance(prompt, dict) and "carried_context" in prompt:
            episode["carried_context"] = prompt["carried_context"]  # what was tried with which return
        pool.append(episode)
        if number == warmup and watch:
            watch(rows, seeds, episode)
        if number < last:
            prompt = agent.make_prompt(pool, torch_generator(seed, "prompt", number), trial=number + 1 < warmup)
            targets = np.maximum(targets, episode["rewards"].sum(1)) if pool_max else targets
    returns = np.stack([episode["rewards"].sum(1, dtype=np.float64) for episode in pool], 1)  # (rows, N + 1 + later)
    returns = returns.reshape(len(task_ids), episodes, last + 1).round(4)
    result = {"returns": returns[:, :, warmup].tolist()}
    if env.terminates:
        lengths = episode_lengths(pool[warmup]["rewards"], pool[warmup])
        result["lengths"] = lengths.reshape(len(task_ids), episodes).tolist()
    if warmup:
        result["warmup_returns"] = returns[:, :, :warmup].tolist()
    if last > warmup:
        result["later_returns"] = returns[:, :, warmup + 1 :].tolist()
    if keep:
        result["trajectories"] = _paths(pool[: warmup + 1], task_ids, episodes, keep)
    return result


def _paths(pool, task_ids, episodes, keep):
    """Observed paths of a few rows per task: {"45": {"warmup": [N paths of row 0], "evaluation": [up to `keep` paths]}}."""
    paths = {}
    for index, task in enumerate(task_ids):
        first = index * episodes
        last = pool[-1]["observations"]
        paths[str(int(task))] = {
            "warmup": [episode["observations"][first].round(4).tolist() for episode in pool[:-1]],
            "evaluation": [last[first + row].round(4).tolist() for row in range(min(keep, episodes))],
        }
    return paths
