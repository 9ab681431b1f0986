"""What the report shows: the result files under a folder, read, grouped so that only what belongs together is joined.

One finished run is one file (src/evaluation/results.py). A file that cannot be read is left out and named. Seeds of one row share
environment, data, tasks, settings of the method and privileges; what differs in any of these stands apart.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from src.evaluation.results import DIAGNOSTICS, label, read_result, result_path
from src.report import statistics
from src.run.config import CONFIG_DIR, read_yaml, recipe_names
from src.run.errors import UserError
from src.run.files import read_json
from src.run.paths import reproduce_directory

SERIES = ("train_return", "validation_return", "test_return")  # of the learning curve
LEVELS = (
    "trivial",
    "random",
    "task_blind",
    "explicit_inference",
    "dataset_mean",
    "dataset_best",
    "expert",
    "explicit_choice",
    "best_known",
)  # in display order; others follow
REGIMES = ("few_shot", "zero_shot", "bamdp", "finetuned", "pretrained")  # in display order
PROTOCOLS = ("strict", "paper")
SEQUENTIAL = ("bamdp",)  # regimes whose evaluation episodes are played in sequence, each knowing the former ones
MAY_DIFFER = (  # settings that say how a run was made and not what was made
    "seed", "device", "output_dir", "resume", "tensorboard", "threads", "workers", "eval_only", "eval_every", "render",
    "vae_model_name", "pretrained_model", "world_model",
)  # fmt: skip


@dataclasses.dataclass
class Section:
    """The results of one environment and one version of one kind of data."""

    env_type: str
    quality: str
    data: str  # the first digits of the data's SHA-256 where there are results on several versions of them, else ""
    runs: dict = dataclasses.field(default_factory=dict)  # {column: {method: [result of each seed]}}, see `group_results`
    diagnostics: dict = dataclasses.field(default_factory=dict)  # {name of the world model: [result of each seed]}

    @property
    def name(self):
        """ "point_robot · medium", and the version of the data where there are several."""
        return f"{self.env_type} · {self.quality}" + (f" (data {self.data})" if self.data else "")

    @property
    def methods(self):
        """All method names, Meta-DT and its variants first."""
        return sorted({method for methods in self.runs.values() for method in methods}, key=method_order)

    @property
    def main(self):
        """{column: {method: results}} of what is compared: the strict protocol on test tasks, no ablations and no variants."""
        found = {}
        for column, methods in self.runs.items():
            whole = {name: runs for name, runs in methods.items() if is_whole(runs[0])}
            if whole and column[1] == "strict" and "validation" not in column:
                found[column] = whole
        return found

    @property
    def task_sets(self):
        """The lists of tasks that runs were scored on, sorted."""
        return sorted({tuple(runs[0]["task_ids"]) for methods in self.runs.values() for runs in methods.values()})

    @property
    def notes(self):
        """Lines that name rows whose seeds differ in a setting."""
        groups = [*(group for methods in self.runs.values() for group in methods.items()), *self.diagnostics.items()]
        return list(dict.fromkeys(note for method, runs in groups for note in _differences(method, runs)))


def read_results(folder, env_types=()):
    """All result files under `folder` (only those of `env_types` where given), in the order of their paths.

    Returns:
        (results, faults). A result is a dict as `read_result` gives it, with its "path", its "label" (name of its row) and its
        "root" (the folder above `folder`). A fault is one line that names a file that is left out.
    Raises:
        UserError: there is none, or none that can be shown.
    """
    results, faults, seen = [], [], {}
    for root in [Path(folder, env_type) for env_type in env_types] or [Path(folder)]:
        paths = sorted(root.rglob("*.json"))
        if not paths:
            raise UserError(f"no result files under {root}: train a policy first, or name another folder with --results")
        for path in paths:
            try:
                result = read_result(path)
            except UserError as error:
                faults.append(str(error))
                continue
            result |= {"path": path, "root": Path(folder).parent, "label": label(result)}
            keys = ("env_type", "quality", "label", "regime", "protocol", "validation", "fresh", "seed")
            identity = (*(result[key] for key in keys), str(result["variant"]))
            if identity in seen:
                faults.append(f"{path}: key 'seed' repeats that of {seen[identity]}; remove one of the two")
            else:
                seen[identity] = path
                results.append(result)
    if not results:
        raise UserError(faults[0] + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""))
    return results, faults


def is_whole(facts):
    """Whether a result is of a method as it is meant: no ablation, no variant of its evaluation."""
    return facts["ablation"] == "none" and not facts["variant"]


def is_current(result):
    """Whether the settings still have the recipe of a result. Of an environment whose settings lie elsewhere nobody knows."""
    known = _recipes(result["env_type"])
    return known is None or result["recipe"] in known


@functools.cache
def _recipes(env_type):
    path = CONFIG_DIR / f"{env_type}.yaml"
    return recipe_names(read_yaml(path)) if path.exists() else None


def read_failures(folder, env_types=()):
    """Runs of `python -m tools.reproduce` that failed and whose result is still missing: list of dicts of facts ("env_type",
    "quality", "row", "regime", "protocol", "seed", …) and the "reason". Nothing is known of runs made otherwise."""
    root, found = Path(folder).parent, []
    for path in sorted(root.glob("saves/*/reproduce/failed.json")):
        env_type = path.parts[-3]
        if (not env_types or env_type in env_types) and path == reproduce_directory(root, env_type) / "failed.json":
            try:
                found += [
                    {**fault, "row": label(fault), "file": result_path(root, fault, Path(folder).name)}
                    for fault in read_json(path)
                ]
            except (KeyError, TypeError, AttributeError):
                raise UserError(f"{path} is not as tools/reproduce.py writes it: remove it") from None
    return [fault for fault in found if not fault["file"].exists()]


def group_results(results, join_data=False):
    """Results -> list of Sections, one for each environment, quality and version of the data.

    A column is (regime, protocol), and "validation" or "fresh" where its tasks are such. Where runs were scored on different
    tasks, each list of tasks has a column of its own, (…, n), n counting the section's `task_sets` from 1. A method whose seeds
    had different privileges has a row for each.

    Args:
        join_data: versions of the data stand in one section; whoever shows it says so.
    """
    versions, sections = {}, {}
    for result in results:
        versions.setdefault((result["env_type"], result["quality"]), set()).add(result["made_from"].get("dataset_sha256"))
    for result in sorted(results, key=lambda result: (method_order(result["label"]), result["seed"])):
        key, data = (result["env_type"], result["quality"]), ""
        if len(versions[key]) > 1 and not join_data:
            data = (result["made_from"].get("dataset_sha256") or "unknown")[:8]
        section = sections.setdefault((*key, data), Section(*key, data))
        if result["regime"] == DIAGNOSTICS:
            section.diagnostics.setdefault(result["label"], []).append(result)
            continue
        column = (result["regime"], result["protocol"], *(kind for kind in ("validation", "fresh") if result[kind]))
        section.runs.setdefault(column, {}).setdefault((result["label"], result["privileges"]), []).append(result)
    for section in sections.values():
        section.runs = {column: _named(methods) for column, methods in section.runs.items()}
        section.runs = {column: methods for item in section.runs.items() for column, methods in _by_tasks(section, *item)}
        section.runs = {column: section.runs[column] for column in sorted(section.runs, key=_column_order)}
    return [sections[key] for key in sorted(sections)]


def _named(methods):
    """{(label, privileges): runs} -> {name: runs}; the privileges are part of the name where a label has several."""
    labels = [name for name, _ in methods]
    return {name if labels.count(name) == 1 else f"{name} ({privileges})": runs for (name, privileges), runs in methods.items()}


def _by_tasks(section, column, methods):
    """Yields (column, methods) with one list of tasks each."""
    parts = {}
    for method, runs in methods.items():
        for run in runs:
            parts.setdefault(tuple(run["task_ids"]), {}).setdefault(method, []).append(run)
    known = sorted({tuple(run["task_ids"]) for group in section.runs.values() for runs in group.values() for run in runs})
    for tasks, part in parts.items():
        yield (*column, known.index(tasks) + 1) if len(parts) > 1 else column, part


def _differences(method, runs):
    """One line per setting in which the seeds of a row differ."""
    first = runs[0]["config"]
    for key in first:
        if key in MAY_DIFFER or key.endswith("_sha256"):
            continue
        values = {str(run["config"][key])[:60]: run["seed"] for run in reversed(runs) if key in run["config"]}
        if len(values) > 1:
            said = ", ".join(f"{value} (seed {seed})" for value, seed in reversed(values.items()))
            yield f"the seeds of {method} differ in {key}: {said}"


def method_order(method):
    """Key that sorts Meta-DT and its variants first."""
    return not method.startswith("meta_dt"), method


def _column_order(column):
    regime, protocol, *further = column
    return [*REGIMES, regime].index(regime), [*PROTOCOLS, protocol].index(protocol), regime, protocol, list(map(str, further))


# ------------------------------------------------------------------------------------------------------------ arrays


def success_of(runs, regime):
    """Share of evaluated episodes in which a step was a success, mean over runs; None where the environment reports none, and of
    episodes in sequence, whose last one counts."""
    shares = [np.mean(run["success"]) for run in runs if run.get("success")]
    return float(np.mean(shares)) if shares and regime not in SEQUENTIAL else None


def scores_of(runs):
    """Results of one method -> (seeds, tasks)."""
    return statistics.score_matrix([run["returns"] for run in runs])


def reference_levels(column):
    """{method: results} of one column -> {level: (tasks,)} in display order, the mean over the files that give it."""
    found = {}
    for run in (run for runs in column.values() for run in runs):
        for level, values in run["reference"].items():
            found.setdefault(level, []).append(values)
    return {level: np.mean(found[level], axis=0) for level in level_order(found)}


def reference_episodes(column):
    """{method: results} of one column -> {level: returns by episode (K,)}, means over the tasks, where files give them."""
    known = [run["reference_episodes"] for runs in column.values() for run in runs if run["reference_episodes"]]
    levels = known[0] if known else {}
    return {level: np.mean(levels[level], axis=0) for level in level_order(levels)}


def level_order(levels):
    """Names of reference levels in display order."""
    return [level for level in LEVELS if level in levels] + sorted(set(levels) - set(LEVELS))


def scale_of(column):
    """{method: results} of one column -> (low, high), the mean returns that count as 0 and 1, or None where they are unknown.

    Means over the tasks of the task-blind and the best known level; of one task, those that the results name (normalisation).
    """
    levels = reference_levels(column)
    if "task_blind" in levels and "best_known" in levels:
        low, high = levels["task_blind"].mean(), levels["best_known"].mean()
    else:
        scales = [run.get("normalisation") for runs in column.values() for run in runs]
        if not scales or not all(scales):
            return None
        low, high = (np.mean([scale[key] for scale in scales]) for key in ("minimum", "maximum"))
    return (float(low), float(high)) if low < high else None


def normalised(scores, column):
    """Returns (seeds, tasks) -> how far they are above the level that counts as 0, in units of the mean distance from there to
    the level that counts as 1; None where `scale_of` the column is unknown.

    Every task has its own zero, so that an interval over tasks does not show how far away their goals are; the distance is one
    for all, as it is next to nothing on some tasks. The mean is (mean return − low) / (high − low).
    """
    scale = scale_of(column)
    if scale is None:
        return None
    low, high = scale
    return (scores - reference_levels(column).get("task_blind", low)) / (high - low)


def episode_scores(runs, regime):
    """Returns by episode on the task -> (seeds, tasks, N), or None where the runs do not have them.

    The N episodes are the warm-up episodes, or all K evaluation episodes of a sequential regime.
    """
    if regime in SEQUENTIAL:
        same_length = len({len(episodes) for run in runs for episodes in run["returns"]}) == 1
        return np.array([run["returns"] for run in runs], dtype=float) if same_length else None
    return _mean_episodes([run.get("warmup_returns") for run in runs])


def chosen_scores(runs):
    """Mean returns (N,) of the warm-up episodes that the agents adapted to, and of those that they did not, over seeds, tasks and
    adaptations; NaN where there was none. None where the runs do not tell, or have another N."""
    if any(run.get("accepted") is None for run in runs) or _mean_episodes([run["accepted"] for run in runs]) is None:
        return None
    accepted, values = (np.concatenate([np.concatenate(run[key]) for run in runs]) for key in ("accepted", "warmup_returns"))
    counts = [(accepted == kind).sum(0) for kind in (1, 0)]
    sums = [np.where(accepted == kind, values, 0).sum(0) for kind in (1, 0)]
    return tuple(np.where(count > 0, total / np.maximum(count, 1), np.nan) for count, total in zip(counts, sums, strict=True))


def later_scores(runs):
    """Returns of the few-shot episodes that followed the evaluation episode -> (seeds, tasks, L), or None."""
    return _mean_episodes([run.get("later_returns") for run in runs])


def _mean_episodes(runs):
    """Per run (tasks, M, N) -> (seeds, tasks, N), means over M; None where a run has none or another N."""
    if None in runs or len({len(tasks[0][0]) for tasks in runs}) > 1:
        return None
    return np.array([[np.mean(episodes, axis=0) for episodes in tasks] for tasks in runs])


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
