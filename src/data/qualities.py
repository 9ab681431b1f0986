"""The qualities of data: whose policy, and which checkpoint of its training, plays which episode. One rule for all families."""

import argparse
import re

import numpy as np

LATE_SHARE = 0.2  # expert level and expert checkpoint come from this last part of training
MEDIUM_PART = {"mixed": 0.7, "medium-expert": 0.5}  # Meta-DT's README: 70 % medium, 30 % expert; D4RL: half and half
QUALITIES = {
    "medium": "first checkpoint whose measured return reaches random + medium_share * (expert - random); "
    "expert = mean return of the last 20 % of the checkpoints",
    "expert": "checkpoint with the highest measured return among the last 20 %",
    "mixed": "70 % of the episodes as medium, 30 % as expert",
    "medium-expert": "half of the episodes as medium, half as expert",
    "replay": "all checkpoints of training, an equal share of the episodes each",
    "medium-replay": "the checkpoints up to that of medium, an equal share of the episodes each",
    "cross": "half of the episodes as expert; each of the others as the expert of another training task",
    "random": "uniform random actions",
}


def data_name(value):
    """argparse type: a key of QUALITIES, or the name that imported data were given."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        shown = repr(value)[:60]
        raise argparse.ArgumentTypeError(f"{shown} is no name of a dataset: up to 100 letters, digits and . _ - are")
    return value


def choose_checkpoints(curve, quality, episodes, medium_share):
    """(episodes,) index of the checkpoint that plays each episode; medium comes before expert in mixed.

    Args:
        curve: curve.json of a behaviour policy (src/behaviour/store.py). quality: a key of QUALITIES but random.
    """
    measured = np.mean(curve["stochastic_returns"], axis=1)  # (C,)
    late = _late(measured)
    expert = len(measured) - late + int(np.argmax(measured[-late:]))
    random, level = np.mean(curve["random_returns"]), measured[-late:].mean()
    # where training left the policy no better than random, no level lies between: take the best there is
    threshold = random + medium_share * (level - random) if level > random else measured.max()
    medium = int(np.argmax(measured >= threshold))
    if quality == "replay":
        return np.arange(episodes) * len(measured) // episodes
    if quality == "medium-replay":
        return np.arange(episodes) * (medium + 1) // episodes
    if quality in MEDIUM_PART:
        split = round(MEDIUM_PART[quality] * episodes)
        return np.repeat([medium, expert], [split, episodes - split])
    return np.full(episodes, medium if quality == "medium" else expert)  # cross: every player as an expert


def choose_players(quality, task, training, episodes, generator):
    """(episodes,) the task whose policy plays each episode: `task` itself; in cross data, in the second half of the episodes,
    the other tasks of `training` in an order that the NumPy generator draws, none twice before all have played."""
    others = [other for other in training if other != task]
    if quality != "cross" or not others:
        return np.full(episodes, task)
    own = episodes - episodes // 2
    return np.concatenate([np.full(own, task), np.resize(generator.permutation(others), episodes - own)])


def _late(measured):
    return max(1, round(LATE_SHARE * len(measured)))
