"""Data of a scripted policy, which is told its task: how wrong it is about it and how noisily it acts make the kind of data.

The policy is the environment's `scripted_policy` (envs/base.py). An episode's policy is wrong by an error that is drawn once;
noise is drawn for every action, before it is clipped to the bounds.
"""

import numpy as np

from src.data.qualities import MEDIUM_PART
from src.evaluation.agent import hook_actions
from src.run.errors import UserError

# standard deviations: of the error per axis in metres, of the noise in half ranges of an action
EXPERT, WORST = (0.0, 0.1), (0.3, 1.0)
RULES = {
    "medium": "scripted policy, told the task with goal_error, acting with action_noise",
    "expert": "scripted policy, told the task, noise 0.1",
    "mixed": "70 % of the episodes as medium, 30 % as expert",
    "medium-expert": "half of the episodes as medium, half as expert",
    "replay": "error from 0.3 to 0 and noise from 1 to 0.1, evenly over the episodes",
    "medium-replay": "error from 0.3 and noise from 1 to those of medium, evenly over the episodes",
    "cross": "half of the episodes as expert; each of the others told another training task",
}


def episode_levels(quality, episodes, medium):
    """(episodes, 2): standard deviations of error and noise of each episode. medium: the pair of medium data."""
    if quality in ("replay", "medium-replay"):
        return np.linspace(WORST, EXPERT if quality == "replay" else medium, episodes)
    if quality in MEDIUM_PART:
        split = round(MEDIUM_PART[quality] * episodes)
        return np.repeat([medium, EXPERT], [split, episodes - split], axis=0)
    return np.tile(medium if quality == "medium" else EXPERT, (episodes, 1))


def scripted(environment, quality, players, medium, generator):
    """(act, facts) of a task's episodes: act(observations (episodes, d_s)) -> actions; facts to record. A NumPy generator.

    players: (episodes,) the task that the policy is told. Raises UserError for cross data where observations tell the task.
    """
    if quality == "cross" and not hasattr(environment, "compute_rewards"):
        raise UserError("no cross data by a scripted policy where observations tell the task: choose another --data_type")
    episodes = len(players)
    levels, space = episode_levels(quality, episodes, medium), environment.action_space
    errors = levels[:, :1] * generator.standard_normal((episodes, 3))
    noise = levels[:, 1:] * (space.high - space.low) / 2

    def act(observations):
        actions = hook_actions("scripted_policy", space, environment.scripted_policy, observations, players, errors)
        return np.clip(actions + noise * generator.standard_normal(actions.shape), space.low, space.high)

    used, counts = np.unique(levels, axis=0, return_counts=True)
    return act, {
        "policy": getattr(environment, "scripted_name", type(environment).__name__),
        "goal_error": used[:, 0].round(6).tolist(),
        "action_noise": used[:, 1].round(6).tolist(),
        "episodes": counts.tolist(),
        **({"players": players.tolist()} if quality == "cross" else {}),
    }
