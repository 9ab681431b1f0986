"""Tables of files that are no results: of benchmarks, of behaviour agents, of exported policies. tools/readme.py writes them."""

import re

import numpy as np

from src.report.statistics import decimals
from src.run.errors import UserError
from src.run.files import read_json
from tools.markdown import markdown, number


def file_table(path):
    """Markdown of a benchmark's result file. Raises UserError where it is none."""
    kinds = {"curves": curve_table, "figures": speed_table, "trials": trial_table, "own_policy": cross_play_table}
    document = read_json(path) if path.is_file() else {}
    table = next((kinds[key] for key in kinds if isinstance(document, dict) and key in document), None)
    fault = UserError(f"table {path}: this is no result file of a benchmark; name one of benchmarks/results/")
    if table is None:
        raise fault
    try:
        return table(document)
    except (AttributeError, LookupError, StopIteration, TypeError, ValueError):  # altered
        raise fault from None


def curve_table(document, columns=5):
    """A row per task: what `python -m tools.sac_experts` found, at a few steps of training and beside the references."""
    curves = document["curves"]
    steps = next(iter(curves.values()))["steps"]
    shown = np.unique(np.linspace(0, len(steps) - 1, columns).round().astype(int))
    levels = [name for name in ("random", "task_blind", "best_known") if name in document]
    lines = [["task", *levels, *(f"{steps[index]:,} steps" for index in shown)]]
    for task, curve in curves.items():
        lines.append([task, *(number(document[name][task]) for name in levels)])
        lines[-1] += [number(curve["stochastic_returns"][index]) for index in shown]
    return markdown(lines)


def speed_table(document):
    """The figures of `python -m benchmarks`, with their aims and shares of the matrix-multiply peak of the same run."""
    lines = [["", "measured", "aim", "share of the float32 / bfloat16 peak"]]
    for figure in document["figures"]:
        aim = f"{figure['aim']}, {'met' if figure['met'] else 'missed'}" if "aim" in figure else "–"
        if "share_met" in figure:
            aim += f"; {figure['aim_share_of_peak']} of the peak, {'met' if figure['share_met'] else 'missed'}"
        shares = " / ".join(f"{share:.2f}" for share in figure["share_of_peak"].values()) if figure["gflop"] else "–"
        lines.append([figure["name"], f"{number(figure['value'])} {figure['unit']}", aim, shares])
        for name, unit, goal, met in (
            ("peak_mib_above_data", "MiB", "aim_mib", "mib_met"),
            ("peak_to_data", "× the data", "aim_peak_to_data", "peak_met"),
        ):
            if name in figure:
                aim = f"{figure[goal]}, {'met' if figure[met] else 'missed'}"
                lines.append(["… its memory", f"{figure[name]:g} {unit}", aim, "–"])
    return markdown(lines)


def trial_table(document):
    """A row per run that settings were chosen by: what differed, what z tells, the returns on training and validation tasks."""
    heads = ["data", "world model", "R² of z, own / off-course", "policy", "training tasks", "first episode", "few-shot"]
    lines = [[*heads, "data mean", "best known"]]
    returns = ("train_return", "zero_shot_return", "few_shot_return", "dataset_mean", "best_known")
    for trial in document["trials"]:
        world_model, settings = (f"`{trial[name]}`" if trial[name] else "–" for name in ("world_model", "settings"))
        probes = (trial["probe_r2"].get(name) for name in ("dataset", "relabelled_unseen_tasks"))
        told = " / ".join("–" if value is None else f"{value:.2f}" for value in probes)
        line = [f"{trial['env_type']}, {trial['quality']}", world_model, told, settings]
        lines.append([*line, *("–" if trial[name] is None else number(trial[name]) for name in returns)])
    return markdown(lines)


def cross_play_table(document):
    """One row: returns of expert behaviour policies on other tasks than their own (`python -m tools.cross_play`)."""
    heads = {
        "own policy": "own_policy",
        "another's": "another_policy",
        "that of the nearest parameters": "policy_of_nearest_parameters",
        "one for all": "one_policy_for_all",
    }
    tried = [key for key in document if re.fullmatch(r"best_of_\d+_tried", key)]
    lines = [["family", *heads, *(key.replace("_", " ") for key in tried)], [document["env_type"]]]
    lines[1] += [number(document[key]) for key in (*heads.values(), *tried)]
    return markdown(lines)


def behaviour_table(folder):
    """A row per family whose behaviour agents come with the repository: the tasks they know and their return, with noise, at the
    end. Of agents of single tasks the mean."""
    lines = [["family", "trained on", "steps of the environment", "mean return at the end"]]
    for path in sorted(folder.glob("*/multitask/curve.json")):
        curve, tasks = read_json(path), read_json(path.with_name("config.json"))["task_ids"]
        known = f"tasks {tasks[0]} to {tasks[-1]}" if tasks == list(range(tasks[0], tasks[-1] + 1)) else f"tasks {tasks}"
        last = np.mean(curve["stochastic_returns"][-1])
        lines.append([path.parts[-3], known, f"{curve['steps'][-1]:,}", number(last)])
    for family in sorted({path.parent.parent for path in folder.glob("*/task_001/curve.json")}):
        curves = [read_json(path) for path in sorted(family.glob("task_*/curve.json"))]
        last = np.mean([np.mean(curve["stochastic_returns"][-1]) for curve in curves])
        known = f"{len(curves)} agents, a task each"
        lines.append([family.name, known, f"{curves[0]['steps'][-1]:,} each", number(last)])
    return markdown(lines)


def trained_table(root):
    """The exported policies below a folder: what these weights earn, their size on disk."""
    lines = [["folder", "few-shot", "zero-shot", "seed", "size"]]
    for folder in sorted(path.parent for path in root.glob("*/*/*/config.json")):
        config, earned = read_json(folder / "config.json"), read_json(folder / "results.json")
        means = {name: np.mean(found["returns"]) for name, found in earned.items()}
        digits = decimals(means.values(), 2)
        returns = [f"{means[name]:.{digits}f}" if name in means else "–" for name in ("few_shot", "zero_shot")]
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        name = folder.relative_to(root).as_posix()
        lines.append([f"[{name}]({name}/README.md)", *returns, str(config["seed"]), f"{size:.1f} MB"])
    return markdown(lines)
