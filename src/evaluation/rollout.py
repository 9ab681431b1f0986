"""One episode in every row."""

import numpy as np

from src.evaluation.exploration import NO_EXPLORATION, orthogonal_actions
from src.run.errors import UserError


def rollout(agent, batch, seeds, steps, target_returns, bounds, prompt=None, explore=NO_EXPLORATION, generator=None):
    """One episode in every row.

    Args:
        batch: environments of B rows (src/evaluation/batch.py). seeds: (B,) of their resets. steps: T.
        target_returns: (B,). bounds: (low, high) of the actions, each (d_a,).
        explore: an Exploration; generator (numpy's) draws it.
    Returns: dict of observations (B, T + 1, d_s), actions (B, T, d_a), rewards (B, T), float32. Where episodes end on their own
    also terminated (B, T) bool; what follows a row's end means nothing then (rewards are 0 there).
    Raises UserError when the policy gives a number that is not finite.
    """
    low, high = bounds
    observations, actions, rewards, ended = [batch.reset(seeds)], [], [], []
    half_range = (high - low) / 2
    probing = explore.probe_steps if prompt is None else 0
    exploring = probing or explore.steps
    if probing:
        probes = (low + high) / 2 + half_range * orthogonal_actions(len(seeds), len(low), probing, generator)
    agent.start(observations[0], target_returns, prompt)
    for step in range(steps):
        if explore.forget and step == exploring > 0:
            agent.forget()
        action = probes[:, step] if step < probing else agent.act()
        if probing <= step < exploring:
            action = action + explore.noise * half_range * generator.standard_normal(action.shape)
        action = np.clip(action, low, high).astype(np.float32)
        if not np.isfinite(action).all():
            raise UserError("the policy's actions are not finite: its training diverged; lower --learning_rate and train again")
        after, reward = batch.step(action)
        agent.observe(action, reward, after)
        observations.append(after)
        actions.append(action)
        rewards.append(reward)
        if "terminated" in getattr(batch, "infos", {}):
            ended.append(batch.infos["terminated"])
            if ended[-1].all():
                break
    parts = {"observations": observations, "actions": actions, "rewards": rewards} | ({"terminated": ended} if ended else {})
    missing = steps - len(rewards)  # all rows ended early; the rounds of a pool are stacked, so they are of one length
    stacked = {key: np.stack(values, 1) for key, values in parts.items()}
    return {key: np.pad(values, [(0, 0), (0, missing)] + [(0, 0)] * (values.ndim - 2)) for key, values in stacked.items()}
