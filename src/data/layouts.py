"""The layouts in which libraries keep trajectories, as whole episodes.

    D4RL               flat arrays, terminals and timeouts; next_observations or not
    d3rlpy             flat arrays, terminals and episode_terminals (1), or one group of arrays per episode (2)
    stable-baselines3  flat arrays with episode_starts, or a replay buffer (steps, environments, ...) with dones and timeouts
    robomimic          data/demo_<k>/ with obs, actions, rewards; its dones are successes and say nothing here
    Minari, imitation  one more observation than actions, per episode
    RLDS               flat arrays with is_first, is_last, is_terminal (src/data/rlds.py)
    any                a list of trajectory dicts, flat arrays with episode_ends, episode_lengths or episode_ids, stacked arrays
                       (episodes, steps, ...)

Where an episode ends: src/data/ends.py.
"""

import dataclasses
import functools
import re

import numpy as np

from src.data.ends import APART, HOW, breaks_between, breaks_of, changes, cut, whole_episode
from src.data.rlds import as_transitions
from src.run.errors import UserError
from src.run.stepping import is_task

FIELDS = {  # ours: what others call it
    "observations": ("observations", "observation", "obs", "states", "state"),
    "actions": ("actions", "acts", "action"),
    "rewards": ("rewards", "rews", "reward"),
    "next_observations": (
        *("next_observations", "next_observation", "next_obs", "next_states", "next_state"),
        *("observations_next", "observation_next", "obs_next"),
    ),
    "terminals": ("terminals", "terminations", "terminated", "is_terminal", "terminal"),  # the environment ended the episode
    "timeouts": ("timeouts", "truncations", "truncated"),  # the clock ended it
    "dones": ("dones", "done"),  # either of them
    "last": ("episode_terminals", "is_last"),  # the last step that is stored, whatever ended it
    "starts": ("episode_starts", "is_first"),
    "ends": ("episode_ends",),
    "episode_lengths": (
        *("episode_lengths", "lengths", "ep_lengths", "ep_lens", "traj_lengths", "traj_lens", "path_lengths"),
        *("episode_length", "ep_length", "ep_len", "traj_length", "traj_len", "path_length"),
    ),
    "mask": ("mask", "masks", "valid", "valid_mask", "attention_mask"),
    "padding": ("padding_mask", "pad_mask"),  # 1 or 0 where a step is none, it depends on who wrote it
    "episode_ids": ("episode_ids", "episode_id", "trajectory_ids", "traj_ids"),
    "task": ("task", "task_id", "task_ids", "task_idx", "task_index"),
}
KNOWN = {name for names in FIELDS.values() for name in names}
INFOS = ("infos", "info", "env_infos")  # dicts of facts of every step
OTHERS = ("metadata", "meta", "extras", "agent_infos")  # dicts, where they are any, that may hold a task, too
FLAGS = ("terminals", "timeouts", "dones", "last", "starts")
PER_STEP = (*FLAGS, "rewards", "episode_ids")
TINY = 1e-30  # observations and actions below are as good as 0
NUMBER = "number in its file"  # of an episode


def episodes_of(content, path, env):
    """Content of a file -> (list of Episode, notes for the user).

    Args:
        content: dict of arrays, or a list with one such dict per episode; infos and options may stand beside the arrays.
        env: EnvConfig, for the horizon and whether episodes may end on their own.
    Raises UserError where it cannot be known what belongs together.
    """
    if isinstance(content, dict):
        content = _by_episode(content, path)
    whole = isinstance(content, list)
    if not isinstance(content, list | dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of arrays or a list of them")
    if whole and not content:
        raise UserError(f"{path} holds no episode")
    streams, facts_of = [], []
    for part in content if whole else [content]:
        part = as_transitions(part, FIELDS)
        fields = _fields(part, path, whole)
        facts = {name: _facts(part, name, path) for name in (*INFOS, "options")}
        others = {name: part[name] for name in OTHERS if isinstance(part.get(name), dict)}
        labels = _labels(part, {**facts, **others}, path, whole)
        options = facts.pop("options") if whole else {}  # of flat arrays they are of all episodes together
        infos = _infos_of_steps(functools.reduce(dict.__or__, facts.values()), fields["rewards"].size)
        beside = {} if whole else _unknown(infos | part)  # of flat arrays they are cut as these are
        infos = _beside(part, fields["rewards"].size) | (infos if whole else {})
        if "pos" in part and "full" in part:
            _unroll((fields, labels, beside), part, path)
        for stream in _streams(fields, labels, path, whole):
            _check_finite(stream, path)
            streams.append({"beside": beside, **stream, "ring": _is_ring(part)})
            facts_of.append({"infos": infos, "options": options})
    apart = any(
        (stream["timeouts"] > stream.get("terminals", stream["timeouts"])).any() for stream in streams if "timeouts" in stream
    )
    episodes, head = [], 0
    for stream, facts in zip(streams, facts_of, strict=True):
        kept = stream if stream["whole"] or not stream["ring"] else _without_head(stream, path, env.max_episode_steps)
        head += len(stream["rewards"]) - len(kept["rewards"])
        found = (whole_episode if stream["whole"] else cut)({**kept, "apart": apart}, path, env) if len(kept["rewards"]) else []
        episodes += [
            dataclasses.replace(episode, infos=facts["infos"] | episode.infos, options=facts["options"]) for episode in found
        ]
    _check_resets(streams, path)
    _check_clock(streams, episodes, path, env)
    _check_repeats(episodes, content, path)
    if not episodes:
        raise UserError(f"{path} holds no whole episode")
    lost = sum(len(stream["rewards"]) for stream in streams) - head - sum(len(episode.rewards) for episode in episodes)
    return episodes, list(_notes(episodes, lost, head, content if whole else [], path, env))


def _notes(episodes, lost, head, parts, path, env):
    """What the user should know of an import that is not refused, a line each."""
    if lost:
        yield f"{lost} steps of {path} are left out, whose next observation or end is unknown"
    if head:
        yield f"{head} steps of {path} are left out, of episodes whose beginning its full replay buffer has lost"
    if ended := sum(episode.end_lost for episode in episodes):
        yield (
            f"{ended} episodes of {path} that ended on their own are kept without that end, since the state after it is unknown: "
            "store next_observations to keep it"
        )
    if short := sum(episode.short for episode in episodes):
        yield (
            f"{short} of {len(episodes)} episodes of {path} are shorter than max_episode_steps, {env.max_episode_steps}, and did "
            "not end on their own: see that none begins or stops in the middle"
        )
    still = sum(_repeats(episode) > 1 for episode in episodes)
    if still and not _whole_numbers(episodes):
        yield (
            f"{still} of {len(episodes)} episodes of {path} end in steps that repeat the one before, observation, action and "
            "reward: if that is padding give episode_lengths"
        )
    numbers = [part[NUMBER] for part in parts if NUMBER in part]
    if numbers and max(numbers) >= len(numbers) + min(numbers[0], 1):
        yield f"the {len(numbers)} episodes of {path} are numbered {min(numbers)} to {max(numbers)}: are some missing?"


def _whole_numbers(episodes):
    """Whether no observation has a fraction: there nothing may move for many steps."""
    return all((episode.observations == np.round(episode.observations)).all() for episode in episodes)


def _by_episode(content, path):
    """A dict whose keys are `0/observations` or `observations_0` -> list of dicts in that order; any other dict as it is."""
    for pattern in (r"(?P<episode>.*?(\d+))/(?P<key>.+)", r"(?P<key>.+)_(?P<episode>(\d+))"):
        found = [(re.fullmatch(pattern, str(key)), value) for key, value in content.items()]
        parts = {}
        for match, value in found:
            if match:
                parts.setdefault((int(match[2] if "/" in pattern else match[3]), match["episode"]), {})[match["key"]] = value
        if parts and all(any(name in part for name in FIELDS["actions"]) for part in parts.values()):
            size = content.get("total_size", len(parts))  # d3rlpy's
            if not np.array_equal(size, len(parts)):
                raise UserError(f"{path}: total_size says {size} episodes, there are {len(parts)}: it is not complete")
            beside = {str(key): value for (match, value), key in zip(found, content, strict=True) if not match}
            return with_labels({key[1]: parts[key] for key in sorted(parts)}, beside, path)
    return content


def with_labels(parts, beside, path):
    """Episodes, {name: dict} -> list of dicts, each with what the file says of its task beside them all ({key: array}).

    Nothing else that has a known name can be told apart by episodes, and is refused."""
    names, parts = list(parts), list(parts.values())
    numbers = [re.findall(r"\d+", name) for name in names]
    if all(len(found) == 1 for found in numbers):
        parts = [{**part, NUMBER: int(found[0])} for part, found in zip(parts, numbers, strict=True)]
    ordered = [part.get(NUMBER, -2) for part in parts]
    ordered = ordered[0] in (0, 1) and ordered == list(range(ordered[0], ordered[0] + len(parts)))
    for key, values in beside.items():
        if is_task(key):
            labels = _numbers(values, key, path).reshape(-1)
            if labels.size not in (1, len(parts)):
                raise UserError(f"{path}: {key} holds {labels.size} task ids for {len(parts)} episodes: give one for each")
            if labels.size > 1 and not ordered:
                raise UserError(
                    f"{path}: it cannot be told which episode has which entry of {key}, since they are not numbered 0, 1, 2: "
                    "store a task in each"
                )
            for part, label in zip(parts, np.broadcast_to(labels, len(parts)), strict=True):
                part[f"of its file/{key}"] = label
        elif key in KNOWN:
            raise UserError(
                f"{path}: {key} stand beside the arrays of its episodes, where nothing reads them: put them into each episode, "
                "or leave them out"
            )
    for name, part in zip(names, parts, strict=True):
        if re.search(r"task[_-]?\d", name.lower()) and not any(map(is_task, part)):
            raise UserError(f"{path}: {name} seems to be called after its task: store the id in it, as an array called task")
    return parts


def _check_resets(streams, path):
    """Raises UserError where trajectories end at an observation with which one begins, as if reset in between.

    Whole numbers may meet by chance, and so may episodes in which nothing moves."""
    moving = [
        s for s in streams if s["whole"] and "next_observations" in s and (s["observations"] != s["observations"][0]).any()
        and (s["observations"] != np.round(s["observations"])).any()
    ]  # fmt: skip
    begins = {stream["observations"][0].astype(np.float32).tobytes() for stream in moving}
    over = [stream for stream in moving if stream["next_observations"][-1].astype(np.float32).tobytes() in begins]
    if len(moving) > 1 and len(over) >= len(moving) / 2:  # what the last one of each environment is followed by is not here
        raise UserError(
            f"{path}: {len(over)} of {len(streams)} trajectories end at the very observation with which one of them begins, as "
            "in environments that reset themselves: store the observation before that reset, or leave the last one out"
        )


def _check_clock(streams, episodes, path, env):
    """Raises UserError where episodes end as if by a clock that is not ours, and dones alone tell of it."""
    told = not env.terminates or any("terminals" in stream or "timeouts" in stream for stream in streams)
    lengths = [len(episode.rewards) + episode.end_lost for episode in episodes if episode.terminated or episode.end_lost]
    longest = max(lengths, default=0)
    if not told and len(lengths) > 1 and lengths.count(longest) > len(lengths) / 2:
        raise UserError(
            f"{path}: {lengths.count(longest)} of {len(episodes)} episodes are done after {longest} steps, and max_episode_steps "
            f"is {env.max_episode_steps}: it cannot be told whether they ended on their own; {APART}"
        )


def _check_repeats(episodes, content, path):
    """Raises UserError where episodes repeat their last step from just where an array of another name says that they end."""
    counts = np.array([len(episode.rewards) for episode in episodes])
    moving = counts - [_repeats(episode) for episode in episodes]  # steps after which nothing changes
    parts = [_unknown(part) for part in content] if isinstance(content, list) else [_unknown(content)]
    for key in set.intersection(*map(set, parts)) if (moving < counts).any() else ():
        said = np.concatenate([part[key].reshape(-1) for part in parts])
        fits = said.shape == counts.shape and ((np.maximum(moving, 1) <= said) & (said <= counts)).all()
        if fits and (said < counts).any():
            raise UserError(
                f"{path}: some of its episodes repeat their last step from where {key} may say that they end, as padding does: "
                "call it episode_lengths, or leave it out"
            )


def _repeats(episode):
    """Steps at the end of an episode in which nothing changes: observation, action and reward stay what they are."""
    rows = np.concatenate([episode.observations[:-1], episode.actions, episode.rewards[:, None]], 1)
    other = (rows != rows[-1]).any(1) | (episode.observations[:-1] != episode.observations[1:]).any(1)
    return len(rows) - 1 - max(np.flatnonzero(other), default=-1)


# ------------------------------------------------------------------------------------------------------ names and shapes


def _fields(content, path, whole):
    """The arrays of one dict under our names. Numbers per step are (N,) or, for several environments, (N, B)."""
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of arrays")
    fields = {}
    for field, names in FIELDS.items():
        if field == "task":  # see _labels
            continue
        found = [name for name in names if content.get(name) is not None]
        for name in found[: 1 if field.endswith("observations") else None]:  # a simulator's states may stand beside them
            array = _numbers(content[name], field, path)
            if field in fields and not np.array_equal(fields[field], array):
                raise UserError(f"{path}: {' and '.join(found)} contradict each other: leave one of them out")
            fields[field] = array
    for field in ("observations", "actions", "rewards"):
        if field not in fields:
            raise UserError(f"{path} has no {field}; it has {', '.join(map(str, content))[:200]}")
        if not fields[field].size or not fields[field].ndim:
            raise UserError(f"{path}: {field} hold no steps")
    for key, array in _unknown(content).items():
        if re.search("next", key.lower()) and re.search("ob|state", key.lower()) and array.shape == fields["observations"].shape:
            raise UserError(f"{path}: {key} may be next observations: call them next_observations, or leave them out")
    for key in FLAGS:
        if key in fields and not np.isin(fields[key], (0, 1)).all():
            key = next(name for name in FIELDS[key] if content.get(name) is not None)
            raise UserError(f"{path}: {key} hold other numbers than 0 and 1 (NaN among them): put them right, or leave them out")
    if whole and fields["rewards"].squeeze().ndim < 2:  # flags may be one number per trajectory
        steps = fields["rewards"].size
        for key in ("terminals", "timeouts", "dones"):
            if key in fields and fields[key].size == 1 != steps:
                fields[key] = (np.arange(steps) == steps - 1) * fields[key].reshape(())
    return fields


def _numbers(values, field, path):
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError(f"{path}: {field} are lists of unequal lengths, not an array") from None
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: {field} are no array of numbers")
    return array


def _facts(part, name, path):
    """What a dict holds under infos or options, a dict too. Of a list with a dict per step the tasks alone."""
    facts = part.get(name)
    if isinstance(facts, list) and facts and all(isinstance(step, dict) for step in facts):
        told = {key for step in facts for key in step if is_task(key) and step[key] is not None}
        facts = {key: [step[key] for step in facts if step.get(key) is not None] for key in told}
    if facts is not None and not isinstance(facts, dict):
        raise UserError(f"{path}: infos and options of a trajectory must be dicts")
    return facts or {}


def _infos_of_steps(infos, steps):
    """Infos as one row per step: Minari's begin with what the reset told."""
    lengths = {key: np.shape(values)[:1] for key, values in infos.items() if isinstance(values, np.ndarray | list)}
    return {key: values[1:] if lengths.get(key) == (steps + 1,) else values for key, values in infos.items()}


def _beside(part, steps):
    """Arrays under names that we do not know, where they say one thing of all `steps`: {name: array}. They may be parameters of
    a task."""
    found = {}
    for key, array in _unknown(part).items():
        if array.ndim and len(array) in (steps, steps + 1) and steps > 1:  # of every step
            if (array != array[0]).any():
                continue
            array = array[0]
        found[key] = array
    return found


def _unknown(part):
    """Arrays of numbers under names that we do not know: {name: array}."""
    found = {}
    for key, values in part.items():
        if key in KNOWN or is_task(key) or not isinstance(key, str):
            continue
        try:
            array = np.asarray(values)
        except ValueError:
            continue
        if array.dtype.kind in "biuf":
            found[key] = array
    return found


def _labels(part, facts, path, whole):
    """All that a dict says of its task, wherever it stands: {name: array}. An environment may tell its task at every step.

    The names of tasks among infos are passed over; whatever else is no number is refused."""
    labels = {}
    for where, values in (("", part), *((f"{name}/", facts[name]) for name in facts)):
        for key, value in values.items():
            if not is_task(key) or value is None or isinstance(value, dict):
                continue
            if where in ("", "options/") or not _is_text(value):
                name = f"{where}{key}"
                labels[name] = _numbers(value, name, path)
                if whole and "/" in name:
                    labels[name] = np.unique(labels[name])
    return labels


def _is_text(value):
    try:
        return np.asarray(value).dtype.kind in "US"
    except ValueError:  # of unequal lengths
        return False


def _check_finite(stream, path):
    """Observations, actions and rewards can be kept as float32."""
    for key in ("observations", "actions", "rewards", "next_observations"):
        values = stream.get(key, np.zeros(1))
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32)).reshape(len(values), -1).all(1)
            kept = values.astype(np.float32)
        if not finite.all():
            raise UserError(f"{path}: {key} of step {int(np.argmin(finite))} are not finite, or too large: put them right")
        rows = values.reshape(len(values), -1)
        largest, same = np.abs(rows).max(0), np.ptp(kept.reshape(rows.shape), 0) == 0
        lost = same & (np.ptp(rows, 0) > 1e-12 * largest) & (largest > TINY)  # less is what rounding leaves
        if lost.any() or (key == "rewards" and values.any() and not kept.any()):
            raise UserError(
                f"{path}: {key} are so small, or differ by so little, that float32 does not know them apart: scale them, or "
                "subtract what they have in common"
            )


def _unroll(dicts, content, path):
    """Dicts of arrays of stable-baselines3's replay buffer in the order of time: `pos` is where it writes next, `full` whether it
    began anew."""
    size = len(dicts[0]["rewards"])
    position, full = (_numbers(content[name], name, path) for name in ("pos", "full"))
    if position.size != 1 or full.size != 1 or position not in range(size + 1) or full not in (0, 1):
        raise UserError(f"{path}: pos (where it writes next) and full (0 or 1) are not those of a replay buffer of {size} steps")
    if not position and not full:
        raise UserError(f"{path}: the replay buffer is empty, its pos is 0 and it is not full")
    # without next observations the newest of them stands where the oldest observation was
    first = int(bool(full) and "next_observations" not in dicts[0])
    if size <= first:
        raise UserError(f"{path}: the replay buffer has no step whose observation and next observation are known")
    for arrays in dicts:
        for key, array in arrays.items():
            if array.ndim and len(array) == size:
                arrays[key] = np.roll(array, -int(position), 0)[first:] if full else array[: int(position)]


def _is_ring(part):
    """Whether it is a replay buffer that began anew, and so begins anywhere inside an episode."""
    return "pos" in part and "full" in part and bool(np.all(part["full"]))


def _without_head(stream, path, horizon):
    """A stream from its first end on, but where its first episode has all steps that one can have."""
    count = len(stream["rewards"])
    for name, values in {key: stream[key] for key in ("ends", "episode_lengths") if key in stream}.items():
        raise UserError(f"{path}: {name} of shape {values.shape} do not fit a full replay buffer, which is no order of episodes: "
                        "leave them out, and store timeouts")  # fmt: skip
    for name, values in stream["labels"].items():
        if values.size not in (1, count):
            raise UserError(f"{path}: {name} has shape {values.shape}; of a full replay buffer one task id per step is expected")
    ends = [np.flatnonzero(stream[key]) + 1 for key in ("terminals", "timeouts", "dones", "last") if key in stream]
    if "starts" in stream:
        ends.append(np.flatnonzero(stream["starts"]))
    if "episode_ids" in stream:
        ends.append(np.flatnonzero(changes(stream["episode_ids"])))
    ends = np.concatenate([*ends, breaks_of(stream, path) if "next_observations" in stream else [], [count]])
    first = int(ends[ends > 0].min())
    if first >= horizon:
        return stream
    labels = {name: values[first:] if values.size == count else values for name, values in stream["labels"].items()}
    beside = {name: values[first:] for name, values in stream["beside"].items() if values.ndim and len(values) == count}
    kept = {key: values[first:] if isinstance(values, np.ndarray) else values for key, values in stream.items()}
    return {**kept, "labels": labels, "beside": beside}


def _streams(fields, labels, path, whole):
    """Yields dicts of flat arrays, each one sequence in time, with "whole": whether it is exactly one episode."""
    rewards = fields["rewards"]
    _check_mask(fields, path)
    if rewards.ndim > 3 or (rewards.ndim == 3 and rewards.shape[2] > 1):
        raise UserError(f"{path}: rewards have shape {rewards.shape}; one number per step is expected")
    if rewards.ndim == 3 or (rewards.ndim == 2 and rewards.shape[1] > 1 and not whole):
        yield from _stacked(fields, labels, path)
        return
    count = rewards.size
    one_more = len(fields["observations"]) == count + 1
    flat = {"whole": whole or one_more, "labels": labels}
    for field, array in fields.items():
        if field in ("observations", "actions", "next_observations"):
            if len(array) != count + (field == "observations" and one_more):
                raise UserError(
                    f"{path}: {field} have shape {array.shape}, rewards {rewards.shape}: one row per step is expected"
                )
            flat[field] = array.reshape(len(array), -1)
        elif field in PER_STEP:
            if array.size != count:
                raise UserError(f"{path}: {field} have shape {array.shape}; one number per step is expected, {count}")
            flat[field] = array.reshape(-1)
        else:
            flat[field] = array
    yield _shifted(flat, path) if one_more else flat


def _shifted(stream, path):
    """A stream whose observations have one row more, as observations and next observations, unless it has others."""
    before, after = stream["observations"][:-1], stream["observations"][1:]
    if not np.array_equal(stream.get("next_observations", after), after):
        raise UserError(f"{path}: its next observations are not the observations that follow: leave one of them out")
    return {**stream, "next_observations": after, "observations": before}


def _check_mask(fields, path):
    """Raises UserError where a mask, which goes, leaves steps out. It may also tell where an episode goes on, as flags do."""
    mask, padding = fields.pop("mask", None), fields.pop("padding", np.zeros(1))
    if padding.min() < padding.max():
        raise UserError(f"{path}: a mask tells that some of its steps are padding: cut them off and leave it out")
    goes_on = [1 - fields[key].reshape(-1) for key in ("terminals", "dones") if key in fields]
    if mask is not None and not (mask == 1).all() and not any(np.array_equal(mask.reshape(-1), told) for told in goes_on):
        raise UserError(
            f"{path}: a mask tells that some of its steps are padding: cut them off and leave it out (or store dones beside it, "
            "where it is 1 − done)"
        )


def _stacked(fields, labels, path):
    """Arrays with two leading axes: (episodes, steps), one episode per row, or (steps, environments), one stream per column."""
    rewards = fields["rewards"].reshape(fields["rewards"].shape[:2])
    shape = rewards.shape
    per_row = {"rewards": rewards}
    one_more = fields["observations"].shape[:2] == (shape[0], shape[1] + 1)
    for key, array in fields.items():
        if key == "episode_lengths" and array.size == shape[0]:
            per_row[key] = array.reshape(-1)
            if not np.isin(array, np.arange(1, shape[1] + 1)).all():
                raise UserError(f"{path}: episode_lengths must be integers from 1 to {shape[1]}")
        elif key in ("ends", "episode_lengths", "episode_ids"):
            raise UserError(f"{path}: {key} do not fit arrays of episodes (rewards have shape {rewards.shape})")
        elif array.shape[:2] == shape or (key == "observations" and one_more):
            per_row[key] = array.reshape(shape) if key in PER_STEP else array.reshape(*array.shape[:2], -1)
        elif key != "rewards":
            raise UserError(f"{path}: {key} have shape {array.shape}, rewards {rewards.shape}")
    by_rows = one_more or "episode_lengths" in per_row
    if not by_rows:
        following = per_row.get("next_observations")
        if following is None:
            raise UserError(f"{path}: it cannot be told which axis of its arrays {shape} is time: store one more observation per "
                            "episode than actions, or episode_lengths, or next_observations")  # fmt: skip
        observations, marks = per_row["observations"], np.zeros(shape, bool)
        for key in ("terminals", "timeouts", "dones", "last"):
            marks |= per_row.get(key, np.zeros(shape)) > 0
        joined = [~breaks_between(np.moveaxis(observations, axis, 0), np.moveaxis(following, axis, 0)) for axis in (0, 1)]
        fits = [joined[0] | marks[:-1], joined[1] | marks.T[:-1]]
        streams, rows = (fit.all() and both.any() for fit, both in zip(fits, joined, strict=True))
        if streams == rows:
            raise UserError(f"{path}: it cannot be told which axis of its arrays {shape} is time (next observations follow along "
                            f"{'both' if rows else 'none'}): {HOW}")  # fmt: skip
        by_rows = rows
    labels = {name: _spread(values, name, shape, by_rows, path) for name, values in labels.items()}
    for index in range(shape[0] if by_rows else shape[1]):
        part = {key: array[index] if by_rows else array[:, index] for key, array in per_row.items()}
        if by_rows:
            length = int(part.get("episode_lengths", shape[1]))
            part = {
                key: array[: length + (key == "observations" and one_more)] if array.ndim else array
                for key, array in part.items()
            }
            part = _shifted(part, path) if one_more else part
        told = {name: values[index] if by_rows else values[:, index] for name, values in labels.items()}
        told = {name: values[: len(part["rewards"])] for name, values in told.items()}
        yield {**part, "labels": told, "beside": {}, "whole": bool(by_rows)}


def _spread(labels, name, shape, by_rows, path):
    """Task ids as (episodes, steps) or (steps, environments), of which one axis may be missing. Raises UserError where it cannot
    be told which."""
    if labels.shape[:2] == shape and labels.size == shape[0] * shape[1]:
        return labels.reshape(shape)
    flat, ways = labels.reshape(-1), []
    if labels.size in (1, shape[0]):  # per episode, or per step of all environments
        ways.append(np.broadcast_to(flat[:, None], shape))
    if not by_rows and labels.size == shape[1]:  # per environment
        ways.append(np.broadcast_to(flat, shape))
    if not ways or not all(np.array_equal(ways[0], way) for way in ways):
        raise UserError(f"{path}: {name} has shape {labels.shape}, rewards {shape}: give a task id for each of their numbers")
    return ways[0]
