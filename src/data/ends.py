"""Where episodes end in a stream of steps, and whether on their own or by a time limit.

It is taken from what the file says and compared with the observations; what it does not say is refused. Wrong ends are worse than
no import. A stream is a dict of flat arrays that follow in time, under our names (src/data/layouts.py).
"""

import dataclasses

import numpy as np

from src.run.errors import UserError

CONTINUITY = 1e-4  # how far next_observations may differ from the observations that follow, in spreads of the dimension
ROUNDING = 1e-6  # and relative to the number itself
HOW = (
    "say where episodes end: terminals and timeouts (1 at the last step), episode_ends, episode_lengths, "
    "or a list of trajectory dicts"
)
APART = "store terminals (ended on its own) and timeouts apart"


@dataclasses.dataclass(frozen=True)
class Episode:
    """One whole episode of L steps."""

    observations: np.ndarray  # (L + 1, d_s)
    actions: np.ndarray  # (L, d_a)
    rewards: np.ndarray  # (L,)
    terminated: bool
    task: int | None = None
    short: bool = False  # ended before max_episode_steps, and not on its own
    end_lost: bool = False  # ended on its own, by a step that is left out
    infos: dict = dataclasses.field(default_factory=dict)  # (L, ...)
    options: dict = dataclasses.field(default_factory=dict)  # what the file says of its task


def breaks_between(observations, following):
    """(N - 1, ...) whether the next observation of a step is another one than the observation of the step that follows.

    Each dimension is compared in units of its own, so that a large one hides nothing.
    """
    rows = observations.reshape(-1, observations.shape[-1]).astype(np.float64)
    spread = np.minimum(rows.std(0), np.subtract(*np.percentile(rows, (90, 10), 0)))  # a single large number widens no tolerance
    before, after = following[:-1].astype(np.float64), observations[1:].astype(np.float64)
    differs = np.abs(before - after) > CONTINUITY * spread + ROUNDING * np.abs(after)
    return (differs | (np.isnan(before) != np.isnan(after))).any(-1)


def breaks_of(stream, path):
    """Steps (n,) before which an episode must have ended, since the next observations do not go on; None where there are none."""
    following = stream.get("next_observations")
    if following is None:
        return None
    if following.shape != stream["observations"].shape:
        raise UserError(f"{path}: next observations have another shape than observations")
    return np.flatnonzero(breaks_between(stream["observations"], following)) + 1


def changes(ids):
    """(N,) whether an id is another one than that before it; that of the first is."""
    return np.append(True, ids[1:] != ids[:-1])


def whole_episode(stream, path, env):
    """The one episode of a stream."""
    count = len(stream["rewards"])
    for key in ("terminals", "timeouts", "dones", "last"):
        inside = np.flatnonzero(stream.get(key, np.zeros(count))[:-1])
        if len(inside):
            raise UserError(f"{path}: {key} mark step {inside[0]} of a trajectory of {count} steps as its end: {HOW}")
    begins = stream.get("starts", np.zeros(count)) > 0
    if "episode_ids" in stream:
        begins = begins | changes(stream["episode_ids"])
    said = [stream[key].reshape(-1) for key in ("ends", "episode_lengths") if key in stream]
    if begins[1:].any() or any(not np.array_equal(values, [count]) for values in said):
        raise UserError(
            f"{path}: a trajectory of {count} steps says of itself that it is another number of episodes or steps: {HOW}"
        )
    breaks = breaks_of(stream, path)
    if breaks is not None and len(breaks):
        raise UserError(f"{path}: steps 0 to {count} are not one episode (next observations do not follow at step {breaks[0]})")
    told = "episode_lengths" in stream or any(
        key in stream and stream[key][-1] for key in ("terminals", "timeouts", "dones", "last")
    )
    final = [stream.get("next_observations", stream["observations"])[-1], stream["actions"][-1], stream["rewards"][-1:]]
    if not told and not any(values.any() for values in final):
        raise UserError(f"{path}: some of its episodes end in zeros alone, as padding does: give episode_lengths")
    still = [stream[key][:2].any() for key in ("observations", "actions", "rewards", "next_observations") if key in stream]
    if count > 2 and not any(still):
        raise UserError(f"{path}: some of its episodes begin with steps of zeros alone, as padding does: cut them off")
    return _episodes(stream, np.array([count]), path, env)


def cut(stream, path, env):
    """The episodes of flat arrays."""
    count, horizon = len(stream["rewards"]), env.max_episode_steps
    breaks = breaks_of(stream, path)
    ends = _explicit_ends(stream, path, horizon)
    if ends is None:
        ends = _ends_by_rule(stream, path, env, breaks)
    unmarked = np.setdiff1d(breaks if breaks is not None else [], ends)
    if len(unmarked):
        place = int(unmarked[0])
        first = max((int(end) for end in ends if end < place), default=0)
        last = min((int(end) for end in ends if end > place), default=count)
        raise UserError(f"{path}: steps {first} to {last} are not one episode (next observations do not follow at step {place})")
    inner = ends[ends < count]
    over = np.setdiff1d(inner, breaks) if breaks is not None else []
    if len(over) and (stream["observations"] != np.round(stream["observations"])).any():  # whole numbers may meet by chance
        raise UserError(
            f"{path}: an episode ends at step {int(over[0])}, and the next observation there is the first of the episode that "
            "follows: if its end is right leave next_observations out, which are not those of the ended episode"
        )
    return _episodes(stream, ends, path, env)


def _explicit_ends(stream, path, horizon):
    """One past the last step of every whole episode, from what the file says of time-outs or starts; None where it does not.

    Sources that contradict each other are refused; only the end of the file may be known to some and not to others.
    """
    count, sources = len(stream["rewards"]), {}
    zeros = np.zeros(count)
    marks = (stream.get("terminals", zeros) > 0) | (stream.get("timeouts", zeros) > 0) | (stream.get("dones", zeros) > 0)
    if any(stream.get(key, zeros).any() for key in ("timeouts", "dones")):
        sources["its flags"] = np.flatnonzero(marks) + 1
    if stream.get("last", zeros).any():
        sources["episode_terminals"] = np.flatnonzero((stream["last"] > 0) | marks) + 1
        if (marks & ~(stream["last"] > 0)).any():
            raise UserError(f"{path}: its flags mark ends that episode_terminals do not: {HOW}")
    for key, name, meaning in (
        ("ends", "episode_ends", "integers that rise, one past the last step of each episode, the last of them at most"),
        ("episode_lengths", "episode_lengths", "integers, a step or more for each episode, together at most"),
    ):
        if key not in stream:
            continue
        values = stream[key].reshape(-1)
        whole = values.dtype.kind in "iu" and len(values) and values.min() >= 1 and values.max() <= count
        ends = np.cumsum(values, dtype=np.int64) if whole and key != "ends" else values
        if not whole or (ends[1:] <= ends[:-1]).any() or ends[-1] > count:
            raise UserError(f"{path}: {name} must be {meaning} {count}")
        sources[name] = ends.astype(np.int64)
    ids = stream.get("episode_ids")
    begins = {"episode_ids": None if ids is None else np.flatnonzero(changes(ids))}
    begins["episode_starts"] = np.flatnonzero(stream["starts"]) if stream.get("starts", zeros).any() else None
    for name, places in begins.items():
        if places is None:
            continue
        if name == "episode_ids" and len(np.unique(ids)) != len(places):  # NaN too: it equals nothing
            raise UserError(f"{path}: the steps of an episode must follow each other, and episode_ids come back: sort them")
        if places[0] != 0:
            raise UserError(f"{path}: its first step is not marked as the start of an episode")
        finished = name == "episode_ids" or count - places[-1] == horizon or marks[-1]
        sources[name] = np.append(places[1:], count) if finished else places[1:]
    if not sources:
        return None
    (first, ends), *others = sources.items()
    for name, other in others:
        if not np.array_equal(ends[ends < count], other[other < count]):
            raise UserError(f"{path}: {first} and {name} say different things about where episodes end: leave one of them out")
        ends = np.union1d(ends, other)
    return ends


def _ends_by_rule(stream, path, env, breaks):
    """Where no time-out is marked, as in the official pickles, an episode ends at a terminal or `horizon` steps after its start.

    That this is so must be seen from the next observations: an end that the file does not mark is one where they do not follow.
    """
    count, horizon = len(stream["rewards"]), env.max_episode_steps
    marked = np.flatnonzero(stream.get("terminals", np.zeros(count))) + 1
    if not len(marked) and count % horizon:
        raise UserError(f"{path} marks no episode's end, and its {count} steps are no multiple of {horizon}: {HOW}")
    starts = [0, *marked]
    pieces = [np.arange(start + horizon, end, horizon) for start, end in zip(starts, [*marked, count + 1], strict=True)]
    ruled = np.concatenate(pieces)
    unseen = ruled[ruled < count] if breaks is None else np.setdiff1d(ruled[ruled < count], breaks)
    if len(unseen):
        seen = "it has no next_observations" if breaks is None else "the next observations go on there"
        raise UserError(f"{path} does not mark that an episode ends at step {int(unseen[0])}, and {seen}: {HOW}")
    if not len(marked) and breaks is None:  # two episodes of another length may be as long together
        raise UserError(f"{path} does not mark that its {count} steps are one episode, and it has no next_observations: {HOW}")
    return np.sort(np.concatenate([ruled, marked])).astype(np.int64)


def _episodes(stream, ends, path, env):
    """The episodes between `ends`."""
    count = len(stream["rewards"])
    following, episodes = stream.get("next_observations"), []
    for episode, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        start, end = int(start), int(end)
        if end - start > env.max_episode_steps:
            raise UserError(f"{path}: an episode has {end - start} steps, the environment allows {env.max_episode_steps}")
        _check_marks(stream, start, end, path, env)
        terminated = env.terminates and _terminated(stream, start, end, path, env.max_episode_steps)
        facts = {"short": not terminated and end - start < env.max_episode_steps}
        observations = stream["observations"][start:end]
        if following is not None:
            observations = np.concatenate([observations, following[end - 1 : end]])
        else:  # the observation after the last step is unknown: that step is left out, and what is kept did not end on its own
            end, terminated, facts["end_lost"] = end - 1, False, terminated
        if end > start:
            facts["infos"] = _infos(stream["beside"], start, end, episode, len(ends), count)
            facts["task"] = _task(stream["labels"], start, end, episode, len(ends), count, path)
            actions, rewards = stream["actions"][start:end], stream["rewards"][start:end]
            episodes.append(Episode(observations, actions, rewards, terminated, **facts))
    return episodes


def _infos(beside, start, end, episode, episodes, count):
    """What arrays that stand beside flat ones say of one episode: {name: array}."""
    rows = {count: slice(start, end), episodes: episode}  # a number per step, or per episode
    return {name: values[rows[len(values)]] for name, values in beside.items() if values.ndim and len(values) in rows}


def _check_marks(stream, start, end, path, env):
    """Raises UserError where a last step is marked as an end and as a time-out, and cannot have been both.

    It can at the horizon, where elsewhere a time-out is no end: else terminals may mark every end."""
    if not all(key in stream and stream[key][end - 1] for key in ("terminals", "timeouts")):
        return
    if end - start < env.max_episode_steps or (env.terminates and not stream["apart"]):
        raise UserError(
            f"{path}: step {end - 1} is marked as an end on its own and as a time-out: {APART}, or call what marks both dones"
        )


def _terminated(stream, start, end, path, horizon):
    """Whether the episode ended on its own. Raises UserError where the file does not tell that from a time limit."""
    if "terminals" in stream:
        return bool(stream["terminals"][end - 1])
    if "dones" in stream and "timeouts" in stream:
        return bool(stream["dones"][end - 1] and not stream["timeouts"][end - 1])
    if "dones" in stream and not stream["dones"][end - 1]:
        return False
    if "dones" in stream and end - start < horizon:
        return True
    raise UserError(
        f"{path} does not say whether the episode of steps {start} to {end} ended on its own or by a time limit: {APART}"
    )


def _task(labels, start, end, episode, episodes, count, path):
    """The task id on which all labels agree, {name: array with a number per step, per episode, or one for all}; None without."""
    task = None
    for name, values in labels.items():
        if values.size not in (1, episodes, count):
            raise UserError(
                f"{path}: {name} has shape {values.shape}; one number per step is expected, {count}, or per episode, {episodes}"
            )
        flat = values.reshape(-1)
        found = flat if values.size == 1 else flat[start:end] if values.size == count else flat[episode : episode + 1]
        found = np.unique(found)
        whole = found.dtype.kind in "iuf" and np.isfinite(found).all() and (found == np.round(found)).all() and found[0] >= 0
        if len(found) != 1 or not whole:
            raise UserError(f"{path}: steps {start} to {end} have no single task id, but {', '.join(map(str, found[:5]))}")
        if task is not None and task != found[0]:
            raise UserError(f"{path}: steps {start} to {end} have task {task}, and {name} says {int(found[0])}")
        task = int(found[0])
    return task
