"""RLDS: the observation after an episode's last action is a step of its own, marked is_last, whose action and reward mean nothing
(github.com/google-research/rlds, its README's description of steps)."""

import numpy as np


def as_transitions(content, names):
    """A dict of RLDS's steps as one of transitions: without the steps that are is_last, with next_observations, and the flags of
    an end at the transition that leads to it. Any other content as it is. names: {our field: names of others}.
    """
    steps = isinstance(content, dict) and "is_last" in content and not content.keys() & {*names["next_observations"]}
    if not steps or not content.keys() & {"is_first", "is_terminal"}:
        return content
    last = np.asarray(content["is_last"])
    if last.ndim != 1 or len(last) < 2 or not np.isin(last, (0, 1)).all():
        return content
    moves = np.flatnonzero(last[:-1] == 0)  # what follows the very last step is unknown, is it an end or not
    told = {key: _rows(values, moves, len(last)) for key, values in content.items()}
    told |= {key: _rows(content[key], moves + 1, len(last)) for key in ("is_last", "is_terminal") if key in content}
    observations = next((content[name] for name in names["observations"] if content.get(name) is not None), None)
    return told if observations is None else told | {"next_observations": _rows(observations, moves + 1, len(last))}


def _rows(values, rows, count):
    """Some rows of what has `count` of them; anything else as it is."""
    if isinstance(values, dict):
        return {key: _rows(part, rows, count) for key, part in values.items()}
    whole = isinstance(values, list) or (isinstance(values, np.ndarray) and values.ndim)
    if not whole or len(values) != count:
        return values
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
