"""The report's pictures: which there are, from which results, and what is written around them. figures.py draws them."""

import dataclasses
import re

import numpy as np

from src.evaluation.results import read_pictures
from src.report import figures, results, statistics
from src.report.tables import column_title, digits_of, mean_levels

PANELS = dict(zip(results.SERIES, ("training tasks", "validation tasks", "test tasks"), strict=True))


@dataclasses.dataclass
class Picture:
    """A PNG file: its name in the output folder, and what stands around it on the page."""

    name: str
    title: str
    caption: str
    png: bytes
    detail: bool = False  # folded on the page, where it may be one of very many


def section_pictures(section, styles):
    """The pictures of one section for which there are data, in display order, and a line for each kind that cannot be drawn.

    Args: styles: {method: line style} of all methods of the report, see `figures.method_styles`.
    """
    main = adaptation_pictures, profile_pictures, curve_pictures, online_pictures
    drawn, faults = [], []
    for make in (*main, belief_pictures, context_pictures, path_pictures):
        try:
            drawn += make(section, styles)
        except Exception as error:  # whatever the data are, they cost this picture alone
            reason = " ".join(str(error).split())[:150] or type(error).__name__
            faults.append(f"{section.name}: {make.__name__.replace('_', ' ')} are left out ({reason})")
    return drawn, faults


def data_of(runs, key):
    """(run, its pictures' data of this kind) of the first seed that has some, or (None, None)."""
    found = ((run, read_pictures(run["root"], run).get(key)) for run in runs)
    return next(((run, data) for run, data in found if data), (None, None))


def curve_pictures(section, styles):
    """Learning curves, a panel per kind of tasks; a training that several regimes come from is drawn once."""
    panels, seen = [], {}
    for key, column in section.main.items():
        for series, tasks in PANELS.items():
            lines = {}
            for method, runs in column.items():
                curve, former = results.common_curve(runs, series), seen.get((method, series))
                known = curve and former and all(np.array_equal(*pair) for pair in zip(curve, former, strict=True))
                if curve and not known:
                    lines[method] = seen[method, series] = curve
            references = mean_levels(column) if series == "test_return" else {}
            if lines:
                panels.append({"title": f"{key[0]}: {tasks}", "x": "gradient steps", "y": "mean return", "lines": lines,
                               "references": references})  # fmt: skip
    if panels:
        caption = "Line: mean over seeds; band: lowest to highest seed. Dashed: reference levels of the test tasks."
        yield Picture(f"{slug(section)}-curves.png", "Learning curves", caption, figures.draw_lines(panels, styles))


def online_pictures(section, styles):
    """Return, entropy and temperature of methods that learn online: against environment steps, in pre-training gradient steps."""
    titles = {"test_return": "mean return", "entropy": "entropy of the policy (nats)", "temperature": "temperature λ"}
    for column, methods in section.runs.items():
        panels, played = [], [results.common_curve(runs, "test_return", "environment_steps") for runs in methods.values()]
        played = [curve[0][-1] for curve in played if curve is not None]
        if not played:
            continue
        axis = "environment_steps" if max(played) > 0 else "gradient_steps"
        for series, title in titles.items():
            lines = {method: results.common_curve(runs, series, axis) for method, runs in methods.items()}
            lines = {method: curve for method, curve in lines.items() if curve is not None}
            references = mean_levels(methods) if series == "test_return" else {}
            if lines:
                panels.append({"title": title, "x": axis.replace("_", " "), "y": "", "lines": lines, "references": references})
        if panels:
            caption = "Line: mean over seeds; band: lowest to highest seed, as far as all seeds go."
            caption += " Zero steps: the pre-trained policy." if axis == "environment_steps" else ""
            png = figures.draw_lines(panels, styles)
            yield Picture(f"{slug(section)}-online-{_safe(*column)}.png", f"Online: {column_title(column)}", caption, png)


def profile_pictures(section, styles):
    """Performance profiles: which share of (seed, task) scores is above each value; a panel per regime."""
    panels = []
    for key, column in section.main.items():
        known = results.scale_of(column) is not None
        scores = {method: results.scores_of(runs) for method, runs in column.items()}
        scores = {method: np.sort((results.normalised(own, column) if known else own).ravel()) for method, own in scores.items()}
        least, most = (edge(values[end] for values in scores.values()) for edge, end in ((min, 0), (max, -1)))
        if len(scores) < 2 or least == most:
            continue
        places = np.linspace(least, most, 200)
        lines = {method: (places, (values[:, None] > places).mean(0)[None]) for method, values in scores.items()}
        name = "normalised score" if known else "return"
        panels.append({"title": column_title(key), "x": f"{name} τ", "y": "share of runs and tasks above τ", "lines": lines})
    if panels:
        caption = "The further to the right and above, the better. A line that falls early has tasks or seeds that fail."
        png = figures.draw_lines(panels, styles, columns=2)
        yield Picture(f"{slug(section)}-profiles.png", "Performance profiles", caption, png)


def adaptation_pictures(section, styles):
    """Return by episode on the task: all methods in one panel; ablations and variants, where there are some, in another."""
    panels = []
    for key, column in section.main.items():
        lines = _adaptation_lines(column, key[0])
        if lines:
            panels.append(
                {"title": column_title(key), "lines": lines, "references": mean_levels(column), **_chosen(column, lines)}
            )
        parts = {runs[0]["method"] for name, runs in section.runs[key].items() if name not in column}
        parts = {name: runs for name, runs in section.runs[key].items() if runs[0]["method"] in parts}
        lines = _adaptation_lines(parts, key[0])
        if len(lines) > 1:
            references = mean_levels(parts)
            panels.append({"title": "ablations and variants", "lines": lines, "references": references, **_chosen(parts, lines)})
    if panels:
        title = "Adaptation: return by episode on an unknown task"
        caption = "Episodes in the order in which the agent plays them. Diamond: the one that is scored. Bars, and bands where there are few lines: 95 % intervals (two seeds or more)."  # noqa: E501
        if any(panel["chosen"] for panel in panels):
            caption += (
                " Triangles: mean return of the episodes that the agent adapted to (full) and of those that it rejected (empty)."
            )
        yield Picture(f"{slug(section)}-adaptation.png", title, caption, figures.draw_adaptation(panels, styles))


def _chosen(methods, lines):
    """{"chosen": {method: (accepted (N,), rejected (N,))}} of the methods with lines that tell which episodes they adapted to."""
    found = {method: results.chosen_scores(methods[method]) for method in lines}
    return {"chosen": {method: scores for method, scores in found.items() if scores is not None}}


def _adaptation_lines(methods, regime):
    """{method: (warmup (N, 3), evaluation (3,) or None, later (L, 3) or None)} of those that have the episodes."""
    lines = {}
    for method, runs in methods.items():
        episodes = results.episode_scores(runs, regime)
        if episodes is None:
            continue
        warmup, later = (
            None if scores is None else np.array([_mean_low_high(values) for values in np.moveaxis(scores, -1, 0)])
            for scores in (episodes, results.later_scores(runs))
        )
        evaluated = regime not in results.SEQUENTIAL
        lines[method] = warmup, _mean_low_high(results.scores_of(runs)) if evaluated else None, later
    return lines


def _mean_low_high(scores):
    """(seeds, tasks) -> (3,); zero width for a single seed."""
    value = statistics.mean(scores)
    return np.array([value, *(statistics.bootstrap_interval(statistics.mean, scores) if len(scores) > 1 else (value, value))])


def _main_rows(section):
    return ((column, *row) for column, methods in section.main.items() for row in methods.items())


def path_pictures(section, _):
    """Where the agent went, a picture per method and regime (the first seed that has paths), a panel per test task."""
    digits = digits_of(section)
    for column, method, runs in _main_rows(section):
        run, paths = data_of(runs, "trajectories")
        panels = _path_panels(run, paths, column[0] in results.SEQUENTIAL, digits) if run else []
        if panels:
            title = f"Paths: {method}, {column_title(column)}"
            caption = f"Seed {run['seed']}, one dot per step. The number is the mean return of the evaluation episodes."
            name = f"{slug(section)}-paths-{_safe(method, *column)}.png"
            yield Picture(name, title, caption, figures.draw_paths(panels), detail=True)


def _path_panels(run, paths, sequential, digits):
    panels = []
    for task, returns in zip(run["task_ids"], run["returns"], strict=True):
        entry = paths.get(str(task)) or []  # a plain list holds evaluations only
        warmup, evaluation = (entry.get("warmup"), entry.get("evaluation")) if isinstance(entry, dict) else ([], entry)
        if sequential:  # the order of the episodes is what there is to see
            warmup, evaluation = evaluation, []
        if warmup or evaluation:
            goal = run["task_parameters"].get(str(task), {}).get("goal")
            title = f"task {task}: return {np.mean(returns):.{digits}f}".replace("-", "−")
            panels.append({"title": title, "goal": goal, "warmup": warmup, "evaluation": evaluation})
    return panels


def belief_pictures(section, styles):
    """What methods with a belief over tasks store: its spread over time, predicted rewards, and the map of the door."""
    for column, methods in section.main.items():
        spreads = {}
        for method, runs in methods.items():
            known = [belief for run in runs if (belief := read_pictures(run["root"], run).get("belief"))]
            if known and len({len(belief["spread"]) for belief in known}) == 1:
                spreads[method] = {key: np.mean([belief[key] for belief in known], axis=0) for key in known[0]}
        name = f"{slug(section)}-belief-{_safe(*column)}.png"
        if spreads:
            title = f"How sure the belief is: {column_title(column)}"
            caption = "Mean standard deviation of the latent. Line: mean over tasks; band: lowest to highest task. Episodes end at the dotted lines."  # noqa: E501
            episodes = len(next(iter(methods.values()))[0]["returns"][0])
            yield Picture(name, title, caption, figures.draw_spread(spreads, styles, episodes))
    for column, method, runs in _main_rows(section):
        run, rewards = data_of(runs, "reward_prediction")
        suffix = f"{_safe(method, *column)}.png"
        if run:
            predicted, observed = (rewards[key] for key in ("predicted", "observed"))
            panels = {f"task {task}": (np.array(predicted[task]), np.array(observed[task])) for task in predicted}
            title = f"Predicted and observed reward: {method}, {column_title(column)}"
            caption = f"Seed {run['seed']}. Prediction: expected under the belief before each step."
            png = figures.draw_predictions(panels, len(run["returns"][0]))
            yield Picture(f"{slug(section)}-rewards-{suffix}", title, caption, png)
        run, doors = data_of(runs, "door_map")
        if run:
            angles, maps = np.array(doors["angles"]), doors["outside"]
            doors = {task: run["task_parameters"].get(task, {}).get("angle") for task in maps}
            panels = {f"task {task}": (np.array(rows), doors[task]) for task, rows in maps.items()}
            title = f"Where the decoder sees a door: {method}, {column_title(column)}"
            caption = (
                f"Seed {run['seed']}. Dark: an outward step at this angle is predicted to leave the room, after each episode."
            )
            png = figures.draw_doors(angles, panels)
            yield Picture(f"{slug(section)}-doors-{suffix}", title, caption, png)


def context_pictures(section, _):
    """The contexts of each world model (the first seed that has them) in two dimensions."""
    panels = []
    for name, runs in section.diagnostics.items():
        run, embedding = data_of(runs, "embedding")
        if run:
            panels.append(
                {
                    "title": f"{name}, seed {run['seed']}",
                    "points": np.array(embedding["points"]),
                    "parameters": np.array([embedding["task_parameters"][str(task)] for task in embedding["task_ids"]]),
                }
            )
    if panels:
        caption = (
            "A point is the context z after some steps of a held-out episode, coloured by the parameters of its training task."
        )
        png = figures.draw_context(panels)
        yield Picture(f"{slug(section)}-context.png", "What the context encodes", caption, png)


def slug(section):
    """Start of the section's file names, and its anchor on the page."""
    return _safe(section.env_type, section.quality, *[section.data] * bool(section.data))


def _safe(*names):
    return re.sub(r"[^\w.+-]", "_", "-".join(map(str, names)))
