"""Result files: read, check, group. One finished run is one JSON file; tables and figures are made from these alone.

results/<env_type>/<quality>/<method>/<regime>-<protocol>/seed_<s>.json, written at the end of a run. Required keys:
env_type, quality, method, regime, protocol, command (texts), seed, task_ids, returns (per task, a number per evaluation
episode). Optional: reference, warmup_returns, later_returns, curve, trajectories, task_parameters, target_return, gradient_steps,
wall_clock_s, hardware, commit, the keys that `_belief_faults` checks, and any further one. A file of regime
"diagnostics" describes a world model instead, by validation, probe, embedding, and has no protocol. A run that learns online
adds environment_steps, entropy, temperature to its curve, and normalisation (minimum, maximum, source): the returns that count
as 0 and 100.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from src.report import statistics
from src.run.errors import UserError

SERIES = ("train_return", "validation_return", "test_return")  # of the learning curve
ONLINE_SERIES = ("environment_steps", "entropy", "temperature")  # more series, of methods that learn online
LEVELS = (
    "trivial",
    "random",
    "task_blind",
    "dataset_mean",
    "dataset_best",
    "expert",
    "oracle",
)  # in display order; others follow
REGIMES = ("zero_shot", "few_shot", "bamdp", "pretrained", "finetuned")  # in display order; others follow
PROTOCOLS = ("strict", "paper")
SEQUENTIAL = ("bamdp",)  # regimes whose evaluation episodes are played in sequence, each knowing the former ones


@dataclasses.dataclass
class Section:
    """The results of one environment and quality."""

    env_type: str
    quality: str
    runs: dict  # {column: {method: [result of each seed]}}, all in display order; see `group_results`
    diagnostics: dict  # {name of the world model: [result of each seed]}

    @property
    def methods(self):
        """All method names, Meta-DT and its variants first."""
        return sorted({method for methods in self.runs.values() for method in methods}, key=_method_order)

    @property
    def task_sets(self):
        """The lists of tasks that runs were scored on, sorted."""
        return sorted({tuple(runs[0]["task_ids"]) for methods in self.runs.values() for runs in methods.values()})


def read_results(folder, env_types=()):
    """All result files under `folder` (only those of `env_types` where given), checked, in the order of their paths.

    Returns:
        list of dicts as in the files, each with its own "path".
    Raises:
        UserError: there is none, or one is broken; names the file and the key.
    """
    results, seen = [], {}
    for root in [Path(folder, env_type) for env_type in env_types] or [Path(folder)]:
        paths = sorted(root.rglob("*.json"))
        if not paths:
            raise UserError(f"no result files under {root}: train a policy first, or name another folder with --results")
        results += [{**_read_checked(path), "path": path} for path in paths]
    for result in results:
        identity = tuple(result.get(key) for key in ("env_type", "quality", "method", "regime", "protocol", "seed"))
        if identity in seen:
            raise UserError(f"{result['path']}: key 'seed' repeats that of {seen[identity]}; remove one of the two")
        seen[identity] = result["path"]
    return results


def group_results(results):
    """Results -> list of Sections.

    A column is (regime, protocol). Where its methods were scored on different tasks, each list of tasks has a column of its own,
    (regime, protocol, n), n counting the section's `task_sets` from 1. Raises UserError when the seeds of one method differ.
    """
    sections = {}
    for result in sorted(results, key=lambda result: (_method_order(result["method"]), result["seed"])):
        key = result["env_type"], result["quality"]
        section = sections.setdefault(key, Section(*key, {}, {}))
        if result["regime"] == "diagnostics":
            section.diagnostics.setdefault(result["method"], []).append(result)
            continue
        column = section.runs.setdefault((result["regime"], result["protocol"]), {})
        seeds = column.setdefault(result["method"], [])
        seeds.append(result)
        if result["task_ids"] != seeds[0]["task_ids"]:
            raise UserError(f"{result['path']}: key 'task_ids' differs from {seeds[0]['path']}; score both on the same tasks")
    for section in sections.values():
        section.runs = {column: methods for item in section.runs.items() for column, methods in _by_tasks(section, *item)}
        section.runs = {column: section.runs[column] for column in sorted(section.runs, key=_column_order)}
    return [sections[key] for key in sorted(sections)]


def _by_tasks(section, column, methods):
    """Yields (column, methods) with one list of tasks each."""
    parts = {}
    for method, runs in methods.items():
        parts.setdefault(tuple(runs[0]["task_ids"]), {})[method] = runs
    for tasks, part in parts.items():
        yield (*column, section.task_sets.index(tasks) + 1) if len(parts) > 1 else column, part


def _method_order(method):
    return not method.startswith("meta_dt"), method


def _column_order(column):
    regime, protocol, *_ = column
    return [*REGIMES, regime].index(regime), [*PROTOCOLS, protocol].index(protocol), column


# ---------------------------------------------------------------------------------------------------------- checks


def _read_checked(path):
    mend = "repeat the run that wrote it, or remove the file"
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {mend}") from None
    if not isinstance(result, dict):
        raise UserError(f"{path}: must hold one JSON object; {mend}")
    for key, rule in _faults(result):
        problem = f"must be {rule}" if key.split(".")[0] in result else "is missing"
        raise UserError(f"{path}: key '{key}' {problem}; {mend}")
    return result


def _faults(result):
    """Yields (key, what it must be) where the schema is broken; later checks rely on the earlier ones having passed."""
    diagnostics = result.get("regime") == "diagnostics"
    for key in ("env_type", "quality", "method", "regime", "command", *["protocol"] * (not diagnostics)):
        if not isinstance(result.get(key), str) or not result[key]:
            yield key, "a text"
    if type(result.get("seed")) is not int:
        yield "seed", "an integer"
    for key in ("gradient_steps", "wall_clock_s"):
        if not _numbers(result.get(key), 0, nullable=True):
            yield key, "a number or null"
    if not any(_numbers(result.get("target_return"), depth, nullable=True) for depth in (0, 1)):
        yield "target_return", "a number, one per task, or null"
    objects = ("reference", "curve", "trajectories", "task_parameters", "validation", "probe", "embedding")
    for key in (*objects, "reference_episodes", "belief", "reward_prediction", "door_map"):
        if not isinstance(result.get(key) or {}, dict):
            yield key, "an object"
    yield from _diagnostics_faults(result) if diagnostics else _run_faults(result)


def _run_faults(result):
    tasks, returns, warmups = (result.get(key) for key in ("task_ids", "returns", "warmup_returns"))
    if not tasks or not _numbers(tasks, 1) or not all(type(task) is int for task in tasks):
        yield "task_ids", "a list of integers"
    if not _numbers(returns, 2) or len(returns) != len(tasks) or not all(returns):
        yield "returns", "one list of finite numbers per task, none empty"
    for name, values in (("warmup_returns", warmups), ("later_returns", result.get("later_returns"))):
        if values is not None and (not _numbers(values, 3) or len(values) != len(tasks) or not num_warmups(values)):
            yield name, "tasks × episodes × further episodes finite numbers, equally many everywhere"
    for level, values in (result.get("reference") or {}).items():
        if values is not None and (not _numbers(values, 1) or len(values) != len(tasks)):
            yield f"reference.{level}", "null or one finite number per task"
    curve = result.get("curve") or {}
    for key in ("gradient_steps", *SERIES, *ONLINE_SERIES):
        values = curve.get(key) or []
        if not _numbers(values, 1, nullable=True) or len(values) not in (0, len(curve.get("gradient_steps") or [])):
            yield f"curve.{key}", "a list of numbers as long as curve.gradient_steps, or empty"
    scale = result.get("normalisation")
    if scale and not (isinstance(scale, dict) and _numbers([scale.get("minimum"), scale.get("maximum")], 1)):
        yield "normalisation", "null, or an object with the numbers minimum and maximum"
    yield from _picture_faults(result)
    yield from _belief_faults(result)


def _belief_faults(result):
    """Keys that only methods with a belief over tasks write."""
    tasks, returns = result["task_ids"], result["returns"]
    shape = [len(episodes) for episodes in returns]
    success = result.get("success")
    if success is not None and (not _numbers(success, 2) or [len(row) for row in success] != shape):
        yield "success", "as many numbers as returns"
    for level, values in (result.get("reference_episodes") or {}).items():
        if not _numbers(values, 2) or len(values) != len(tasks) or len({len(row) for row in values}) > 1:
            yield f"reference_episodes.{level}", "one list of numbers per task, all of one length"
    for key, wanted in (("belief", ("spread", "low", "high")), ("reward_prediction", ()), ("door_map", ("angles",))):
        entry = result.get(key)
        if entry is None:
            continue
        lists = [entry.get(name) for name in wanted]
        if not all(_numbers(values, 1) for values in lists) or len({len(values) for values in lists}) > 1:
            yield key, "lists of numbers of one length"
        elif key == "reward_prediction":
            predicted, observed = (entry.get(name) or {} for name in ("predicted", "observed"))
            if predicted.keys() != observed.keys() or not _numbers([*predicted.values(), *observed.values()], 2):
                yield key, "two objects of lists of numbers"
        elif key == "door_map" and not _numbers(list((entry.get("outside") or {}).values()), 3):
            yield "door_map.outside", "an object of lists of lists of numbers"


def _picture_faults(result):
    for task, entry in (result.get("trajectories") or {}).items():
        for paths in split_paths(entry):
            if not _numbers(paths, 3) or not all(path and all(len(point) == 2 for point in path) for path in paths):
                yield f"trajectories.{task}", "lists of paths of [x, y] points"
    for task, entry in (result.get("task_parameters") or {}).items():
        goal = entry.get("goal") if isinstance(entry, dict) else 0
        if goal is not None and (not _numbers(goal, 1) or len(goal) != 2):
            yield f"task_parameters.{task}", 'an object such as {"goal": [x, y]}'


def _diagnostics_faults(result):
    groups = {f"probe.{name}": values for name, values in (result.get("probe") or {}).items()}
    for key, values in {"validation": result.get("validation") or {}, **groups}.items():
        if not isinstance(values, dict) or not _numbers(list(values.values()), 1, nullable=True):
            yield key, "an object of finite numbers"
    embedding = result.get("embedding")
    if embedding:
        points = embedding.get("points")
        if not _numbers(points, 2) or not points or any(len(point) != 2 for point in points):
            yield "embedding.points", "a list of [x, y]"
        tasks, parameters = embedding.get("task_ids"), embedding.get("task_parameters")
        if not _numbers(tasks, 1) or len(tasks) != len(points):
            yield "embedding.task_ids", "as long as embedding.points"
        known = isinstance(parameters, dict) and _numbers(list(parameters.values()), 2)
        lengths = {len(row) for row in parameters.values()} if known else set()
        if len(lengths) != 1 or 0 in lengths or {*map(str, tasks)} - parameters.keys():
            yield "embedding.task_parameters", "an object of one list of numbers for each task, all equally long"


def _numbers(value, depth, nullable=False):
    """Whether value is a list, nested `depth` deep, of finite numbers (or None where nullable)."""
    if depth:
        return isinstance(value, list) and all(_numbers(item, depth - 1, nullable) for item in value)
    if value is None:
        return nullable
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def num_warmups(warmups):
    """Warm-up episodes before each evaluation episode: their number if it is the same everywhere, otherwise 0."""
    counts = {len(numbers) for episodes in warmups for numbers in episodes}
    return counts.pop() if len(counts) == 1 and all(warmups) else 0


def split_paths(entry):
    """One task's entry of "trajectories" -> (warm-up paths, evaluation paths); a plain list holds evaluations only."""
    if isinstance(entry, dict):
        return entry.get("warmup") or [], entry.get("evaluation") or []
    return [], entry


# ------------------------------------------------------------------------------------------------------------ arrays


def scores_of(runs):
    """Results of one method -> (seeds, tasks)."""
    return statistics.score_matrix([run["returns"] for run in runs])


def reference_levels(column):
    """{method: results} of one column -> {level: (tasks,)} in display order, the mean over the files that give it."""
    found = {}
    for run in (run for runs in column.values() for run in runs):
        for level, values in (run.get("reference") or {}).items():
            if values is not None:
                found.setdefault(level, []).append(values)
    return {level: np.mean(found[level], axis=0) for level in level_order(found)}


def reference_episodes(column):
    """{method: results} of one column -> {level: returns by episode (K,)}, means over the tasks, where files give them."""
    known = [run["reference_episodes"] for runs in column.values() for run in runs if run.get("reference_episodes")]
    levels = known[0] if known else {}
    return {level: np.mean(levels[level], axis=0) for level in level_order(levels)}


def level_order(levels):
    """Names of reference levels in display order."""
    return [level for level in LEVELS if level in levels] + sorted(set(levels) - set(LEVELS))


def episode_scores(runs, regime):
    """Returns by episode on the task -> (seeds, tasks, N), or None where the runs do not have them.

    The N episodes are the warm-up episodes, or all K evaluation episodes of a sequential regime.
    """
    if regime in SEQUENTIAL:
        same_length = len({len(episodes) for run in runs for episodes in run["returns"]}) == 1
        return np.array([run["returns"] for run in runs], dtype=float) if same_length else None
    warmups = [run.get("warmup_returns") for run in runs]
    if None in warmups or len(set(map(num_warmups, warmups))) > 1:
        return None
    return np.array([[np.mean(episodes, axis=0) for episodes in tasks] for tasks in warmups])


def later_scores(runs):
    """Returns of the few-shot episodes that followed the evaluation episode -> (seeds, tasks, L), or None."""
    later = [run.get("later_returns") for run in runs]
    if None in later or len(set(map(num_warmups, later))) > 1:
        return None
    return np.array([[np.mean(episodes, axis=0) for episodes in tasks] for tasks in later])


def common_curve(runs, series, axis="gradient_steps"):
    """One series of the learning curves -> (steps (S,), values (seeds, S)), where every seed has values; or None.

    axis: the series that counts the steps.
    Nulls are left out; steps that a seed did not measure are interpolated between its neighbours.
    """
    curves = []
    for curve in (run.get("curve") or {} for run in runs):
        points = zip(curve.get(axis) or [], curve.get(series) or [], strict=False)
        points = sorted(point for point in points if None not in point)
        if points:
            curves.append(np.array(points, dtype=float).T)
    if not curves:
        return None
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    steps = steps[(steps >= max(steps[0] for steps, _ in curves)) & (steps <= min(steps[-1] for steps, _ in curves))]
    return (steps, np.stack([np.interp(steps, *curve) for curve in curves])) if len(steps) else None
