"""The one roll-out: for evaluation, behaviour data, probes and reference levels."""

import numpy as np

from src.evaluation.agent import as_played
from src.run.errors import UserError


def rollout(agent, batch, seeds, steps):
    """One whole episode in every row.

    Args:
        agent: an Agent (src/evaluation/agent.py), adapted. batch: environments of B rows (`make_batch`).
        seeds: (B,) of their resets. steps: T, the horizon.
    Returns an Episode: dict of observations (B, T + 1, d_s), actions (B, T, d_a), rewards (B, T), all float32; infos: {key:
    (B, T, ...)}, what the environment reports beside them; lengths (B,): the steps of every row, T but where an episode ended on
    its own (infos["terminated"] is True from then on). What follows a row's end means nothing; rewards are 0 there.
    Raises UserError when the agent or the environment gives a number that is not finite.
    """
    observation = batch.reset(seeds)
    rows = observation.shape[0]
    # whole arrays from the start: small ones that stay, between the large ones that go, keep a heap from shrinking
    episode = {
        "observations": np.zeros((rows, steps + 1, *observation.shape[1:]), np.float32),
        "actions": np.zeros((rows, steps, *batch.action_space.shape), np.float32),
        "rewards": np.zeros((rows, steps), np.float32),
    }
    episode["observations"][:, 0], infos = observation, []
    agent.start(observation)
    for step in range(steps):
        action = as_played(agent.act(), batch.action_space)
        if not np.isfinite(action).all():
            raise UserError("the policy's actions are not finite: its training diverged; lower --learning_rate and train again")
        observation, reward = batch.step(action)
        agent.observe(action, reward, observation)
        episode["observations"][:, step + 1] = observation
        episode["actions"][:, step] = action
        episode["rewards"][:, step] = reward
        infos.append(getattr(batch, "infos", {}))
        if np.all(infos[-1].get("terminated", False)):
            break  # the rest stays 0
    for name, values in episode.items():
        if not np.isfinite(values).all():
            raise UserError(f"the environment's {name} of an episode are not all finite: mend its step or reset")
    episode["infos"] = {key: _stacked([info[key] for info in infos], steps - len(infos)) for key in infos[0]}
    ended = episode["infos"].get("terminated", np.zeros(episode["rewards"].shape, bool))
    episode["lengths"] = np.where(ended.any(1), ended.argmax(1) + 1, steps)
    return episode


def _stacked(rows, missing):
    stacked = np.stack(rows, 1)
    return np.pad(stacked, [(0, 0), (0, missing), *[(0, 0)] * (stacked.ndim - 2)]) if missing else stacked


def returns(episode):
    """(B,) undiscounted returns of an Episode, float64."""
    return episode["rewards"].sum(1, dtype=np.float64)
