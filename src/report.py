"""Tables, figures and one HTML page from the result files of finished runs (seconds to a minute).

    python -m src.report                                          # results/ -> report/index.html, tables.md, *.png
    python -m src.report --env_type point_robot --table_only      # print the tables, write nothing

Reads results/**/*.json and nothing else. The legend at the end of the page explains every term.
"""

import base64
import dataclasses
import html
import re
from itertools import chain
from pathlib import Path

import numpy as np

from src import figures, results, statistics
from src.checkpoint import atomic_path, main_guard
from src.config import Parser

NONE = "—"
PANELS = dict(zip(results.SERIES, ("training tasks", "validation tasks", "test tasks"), strict=True))

LEGEND = {
    "Return": """Undiscounted sum of the rewards of one episode; higher is better. The score of a run on a
        task is the mean over its evaluation episodes there.""",
    "IQM": """Interquartile mean, the mean of the middle half of all (seed × task) scores: of n scores the
        ⌊n/4⌋ lowest and the ⌊n/4⌋ highest are left out, so that one lucky or broken run moves it little.""",
    "[low, high]": """95 % interval. Seeds are resampled with replacement within each task (stratified
        percentile bootstrap, 2,000 resamples), so it speaks of other seeds on the same tasks. With fewer than
        five seeds it tends to be too narrow; a single seed has none.""",
    "★": "Highest IQM of the column. It claims no significance: compare the intervals.",
    "Regime": """zero_shot: the agent sees nothing but the running episode. few_shot: before it is scored, the
        frozen agent plays a few warm-up episodes on the test task. bamdp: episodes 1 to K on one task, what was
        learnt is kept from one to the next, and the score is the mean over the K. Other names are explained by
        the script in the row's command. pretrained, finetuned: after the offline phase, and after learning online.""",
    "Protocol": """strict: nothing about a test task is known beforehand; target returns come from the
        training tasks. paper: what the official code does (target return = best return in the test task's own
        dataset, warm-up pool grown over all evaluations); for comparison with published numbers only. Compare
        methods within one column.""",
    "Reference levels": """trivial: a policy that does nothing. task_blind: the best policy that ignores the
        task; a method that does not beat it has not adapted. dataset_mean, dataset_best: mean and best return of
        the test tasks' own offline episodes. oracle: a policy that knows the task. thompson, walk_and_redraw,
        bayes_optimal, arc_sweep, door_probe: explorers that need no learning, defined in configs/references/.
        single_task_agents: mean over the agents whose logs are the data. They have no seeds, hence no interval.""",
    "Normalised": """100 × (return − minimum) / (maximum − minimum), with the minimum and the maximum named in the row's
        last cell. Scores are comparable only where these, the data and the robots are the same.""",
    "20th percentile": "Over tasks, of the mean over seeds: how the hard tasks fare.",
    "Last / chosen / best": """Mean test return at the last point of the learning curve, at the point with the
        best validation return, and at its best point. The third looks at the test tasks, so it flatters.""",
    "P(better)": """Probability that a run of this row beats a run of the named method on a test task; ties
        count one half.""",
    "World model": """Root mean square error of predicted rewards and next states on held-out episodes of
        training tasks, in physical units, beside the error of always predicting the mean. Probe R²: how well a
        linear map reads the task parameters from the context z (1: fully; 0 or less: not at all), on the windows
        named.""",
    "Command": "That of the first of the seeds.",
}


# ------------------------------------------------------------------------------------------------------------ tables


@dataclasses.dataclass
class Table:
    """Cells are texts. A line break parts a cell's main line from the one below it; backticks mark code."""

    title: str
    headers: list
    rows: list
    references: list = dataclasses.field(default_factory=list)  # more rows, below a rule


def section_tables(section):
    """The tables of one section that have rows, in display order; the last one holds the commands."""
    tables = [score_table, normalised_table, episode_table, details_table, world_model_table, command_table]
    return [_without_empty_columns(table) for table in (make(section) for make in tables) if table.rows]


def _without_empty_columns(table):
    """Columns that say nothing in any row go."""
    kept = [place for place, cells in enumerate(zip(*table.rows, strict=True)) if set(cells) != {NONE}]
    headers, *rows = ([row[place] for place in kept] for row in (table.headers, *table.rows))
    references = [[row[place] for place in kept] for row in table.references]
    return dataclasses.replace(table, headers=headers, rows=rows, references=references)


def score_table(section):
    """Methods and reference levels × regimes."""
    digits = _digits(section)
    columns, levels = [], []
    for column in section.runs.values():
        scores = {method: results.scores_of(runs) for method, runs in column.items()}
        best = max(scores, key=lambda method, scores=scores: statistics.iqm(scores[method]))
        cells = {}
        for method, matrix in scores.items():
            star = " ★" if method == best and len(scores) > 1 else ""
            centre = _with_interval(statistics.iqm, matrix, digits=digits)
            average = _with_interval(statistics.mean, matrix, digits=digits)
            cells[method] = f"{centre}{star}\nmean {average}, {len(matrix)} seed{'s' * (len(matrix) > 1)}"
        columns.append(cells)
        levels.append(
            {
                level: f"{statistics.iqm(values[None]):.{digits}f}\nmean {values.mean():.{digits}f}"
                for level, values in results.reference_levels(column).items()
            }
        )
    rows = [[method, *(cells.get(method, NONE) for cells in columns)] for method in section.methods]
    order = results.level_order(set().union(*levels))
    references = [[level, *(cells.get(level, NONE) for cells in levels)] for level in order]
    headers = ["method", *map(_column_title, section.runs)]
    return Table("Return on the test tasks: IQM [95 % interval], below it the mean", headers, rows, references)


def normalised_table(section):
    """Normalised scores of the runs that name what counts as 0 and as 100, the reference levels below."""
    rows, references = [], {}
    for column, method, runs in _groups(section):
        scales = [run.get("normalisation") for run in runs]
        if not all(scales):
            continue
        low, high = (np.array([scale[key] for scale in scales])[:, None] for key in ("minimum", "maximum"))
        scores = 100 * (results.scores_of(runs) - low) / (high - low)
        meaning = f"0 = {low.mean():.1f}, 100 = {high.mean():.1f}: {scales[0].get('source', NONE)}"
        steps = _span(sorted({run.get("environment_steps", 0) for run in runs}))
        rows.append([method, column[0], _with_interval(statistics.mean, scores, digits=1), steps, meaning])
        for level, value in _mean_levels(section.runs[column]).items():
            references[level] = [NONE, f"{100 * (value - low.mean()) / (high - low).mean():.1f}", NONE, NONE]
    headers = ["method", "regime", "normalised score", "environment steps", "constants"]
    return Table("Normalised scores, mean [95 % interval]", headers, rows, [[level, *references[level]] for level in references])


def episode_table(section):
    """Mean return of warm-up episode 1..N and of the evaluation, a row per method that has them; for a sequential regime
    also the sum of its K episodes, the share of goals visited in the last one, and the reference levels by episode.
    """
    digits = _digits(section)
    rows, references = [], []
    for column, method, runs in _groups(section):
        episodes = results.episode_scores(runs, column[0])
        if episodes is not None:
            cells = [_with_interval(statistics.mean, scores, digits=digits) for scores in np.moveaxis(episodes, -1, 0)]
            after = [_with_interval(statistics.mean, results.scores_of(runs), digits=digits), NONE, NONE]
            if column[0] in results.SEQUENTIAL:
                total = _with_interval(statistics.mean, episodes.sum(-1), digits=digits)
                after = [NONE, total, _last_success(runs)]
            rows.append((method, column, cells, after))
    for column, methods in section.runs.items():
        for level, episodes in results.reference_episodes(methods).items():
            cells = [f"{value:.{digits}f}" for value in episodes]
            references.append((level, column, cells, [NONE, f"{episodes.sum():.{digits}f}", NONE]))
    longest = max((len(cells) for _, _, cells, _ in [*rows, *references]), default=0)
    headers = ["method", "regime", *(f"episode {n}" for n in range(1, longest + 1)), "evaluation", "sum", "goal reached"]
    rows, references = (
        [[name, _column_title(column), *cells, *[NONE] * (longest - len(cells)), *after] for name, column, cells, after in group]
        for group in (rows, references)
    )
    return Table("Mean return by episode on the task: warm-up episodes, then the evaluation", headers, rows, references)


def _last_success(runs):
    """Share of roll-outs that visited the goal in their last episode, in per cent, or a dash."""
    shares = [np.mean([episodes[-1] for episodes in run["success"]]) for run in runs if run.get("success")]
    return f"{100 * np.mean(shares):.0f} %" if shares else NONE


def details_table(section):
    """What a careful reader asks next: seeds, hard tasks, last against best, comparison with the first method."""
    digits = _digits(section)
    base = section.methods[0] if section.runs else ""
    headers = ["method", "regime", "seeds", "episodes per task", "20th percentile", "last / chosen / best"]
    headers.append(f"P(better than {base})")
    rows = []
    for column, method, runs in _groups(section):
        scores, rivals = results.scores_of(runs), section.runs[column].get(base)
        compared = rivals and method != base
        chance = statistics.probability_of_improvement
        rows.append(
            [
                method,
                _column_title(column),
                ", ".join(str(run["seed"]) for run in runs),
                _span(sorted({len(episodes) for run in runs for episodes in run["returns"]})),
                f"{statistics.task_percentile(scores):.{digits}f}",
                _curve_points(runs, digits),
                _with_interval(chance, scores, results.scores_of(rivals), digits=2) if compared else NONE,
            ]
        )
    return Table("Details", headers, rows)


def _curve_points(runs, digits):
    test, validation = (results.common_curve(runs, series) for series in ("test_return", "validation_return"))
    if test is None:
        return NONE
    steps, values = test[0], test[1].mean(0)
    chosen = NONE
    if validation is not None:
        chosen = f"{np.interp(validation[0][validation[1].mean(0).argmax()], steps, values):.{digits}f}"
    return f"{values[-1]:.{digits}f} / {chosen} / {values.max():.{digits}f}"


def world_model_table(section):
    """Diagnostics of the world models, means over seeds."""
    probes = sorted({name for runs in section.diagnostics.values() for run in runs for name in run.get("probe") or {}})
    headers = ["world model", "seeds", "reward error / of the mean", "state error / of the mean"]
    headers += [f"R² on {name.replace('_', ' ')}" for name in probes]
    rows = []
    for name, runs in section.diagnostics.items():
        errors = [run.get("validation") or {} for run in runs]
        cells = [_mean_entries(errors, [f"{kind}_rmse", f"{kind}_std"], ".3g") for kind in ("reward", "state")]
        for probe in probes:
            entries = [(run.get("probe") or {}).get(probe, {}) for run in runs]
            cells.append(_mean_entries(entries, ["r2"], ".2f"))
        rows.append([name, ", ".join(str(run["seed"]) for run in runs), *cells])
    return Table("World model: validation error, and what the context knows of the task", headers, rows)


def _mean_entries(entries, keys, style):
    """Means over seeds of some keys, "0.12 / 0.80"."""
    means = []
    for key in keys:
        values = [entry[key] for entry in entries if entry.get(key) is not None]
        means.append(format(np.mean(values), style) if values else NONE)
    return " / ".join(means)


def command_table(section):
    """How each row was made."""
    groups = [(method, _column_title(column), runs) for column, method, runs in _groups(section)]
    groups += [(name, "diagnostics", runs) for name, runs in section.diagnostics.items()]
    headers = ["method", "regime", "gradient steps", "time per run", "hardware", "commit", "command"]
    rows = []
    for method, title, runs in groups:
        seconds = [run["wall_clock_s"] for run in runs if run.get("wall_clock_s") is not None]
        distinct = {key: sorted({run[key] for run in runs if run.get(key)}) for key in ("hardware", "commit", "gradient_steps")}
        rows.append(
            [
                method,
                title,
                ", ".join(f"{steps:,}" for steps in distinct["gradient_steps"]) or NONE,
                f"{np.mean(seconds) / 60:,.1f} min" if seconds else NONE,
                "; ".join(distinct["hardware"]) or NONE,
                ", ".join(commit[:16] for commit in distinct["commit"]) or NONE,
                f"`{runs[0]['command']}`",
            ]
        )
    return Table("How each row was made", headers, rows)


def _groups(section):
    """Yields (column, method, results of its seeds)."""
    for column, methods in section.runs.items():
        for method, runs in methods.items():
            yield column, method, runs


def _column_title(column):
    return f"{column[0]}, {column[1]} protocol"


def _digits(section):
    """Decimals that suit the largest score of the section: -8.41, 922.1, 2714."""
    largest = max((np.abs(results.scores_of(runs)).max() for _, _, runs in _groups(section)), default=0)
    return 2 if largest < 100 else 1 if largest < 1000 else 0


def _with_interval(statistic, *scores, digits):
    """ "-4.71 [-5.10, -4.20]"; without the interval when there is a single seed."""
    value = f"{statistic(*scores):.{digits}f}"
    if min(map(len, scores)) == 1:
        return value
    low, high = statistics.bootstrap_interval(statistic, *scores)
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def _span(numbers):
    """Sorted integers as text: 45–49, or 1, 4, 7."""
    whole = len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}–{numbers[-1]}" if whole else ", ".join(map(str, numbers))


def section_note(section):
    """One line: which tasks, how many runs."""
    tasks = sorted({tuple(runs[0]["task_ids"]) for _, _, runs in _groups(section)})
    runs = sum(len(runs) for _, _, runs in _groups(section))
    return f"Test tasks {'; '.join(map(_span, tasks))}. {runs} runs." if runs else "World models only."


def text_table(table):
    """Table -> aligned text for the terminal."""
    rows = [[cell.replace("`", "").split("\n") for cell in row] for row in (table.headers, *table.rows, *table.references)]
    widths = [max(len(line) for row in rows for line in row[place]) for place in range(len(table.headers))]
    rule = "  ".join("─" * width for width in widths)
    lines = [table.title, rule]
    for number, row in enumerate(rows):
        for line in range(max(map(len, row))):
            cells = (cell[line] if line < len(cell) else "" for cell in row)
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
        if number in (0, len(table.rows), len(rows) - 1):
            lines.append(rule)
    return "\n".join(lines)


def markdown_table(table):
    """Table -> GitHub markdown; reference levels in italics."""
    rows = [table.headers, ["---"] * len(table.headers), *table.rows]
    rows += [[f"*{level}*", *cells] for level, *cells in table.references]
    rows = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in rows]
    return f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def html_table(table):
    """Table -> HTML in a frame that scrolls sideways on a narrow screen."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.headers)
    rows = [f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in table.rows]
    rows += [f'<tr class="reference">{"".join(map(_html_cell, row))}</tr>' for row in table.references]
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h3>{html.escape(table.title)}</h3><div class="scroll">{body}</div>'


def _html_cell(cell):
    if cell.startswith("`"):
        return f"<td><code>{html.escape(cell.strip('`'))}</code></td>"
    first, *rest = re.sub(r"(?<![\w.])-(?=\d)", "−", html.escape(cell)).split("\n")
    return f"<td>{first}{''.join(f'<br><small>{line}</small>' for line in rest)}</td>"


# ---------------------------------------------------------------------------------------------------------- pictures


@dataclasses.dataclass
class Picture:
    """A PNG file: its name in the output folder, and what stands around it on the page."""

    name: str
    title: str
    caption: str
    png: bytes


def section_pictures(section):
    """The pictures of one section for which there are data, in display order."""
    styles = figures.method_styles(section.methods)
    makers = curve_pictures(section, styles), online_pictures(section, styles), adaptation_pictures(section, styles)
    return list(chain(*makers, path_pictures(section), belief_pictures(section, styles), context_pictures(section)))


def curve_pictures(section, styles):
    """Learning curves, a row of panels per regime."""
    rows = []
    for key, column in section.runs.items():
        panels = {}
        for series, title in PANELS.items():
            curves = {method: results.common_curve(runs, series) for method, runs in column.items()}
            panels[title] = {method: curve for method, curve in curves.items() if curve is not None}
        if any(panels.values()):
            rows.append({"title": _column_title(key), "panels": panels, "references": _mean_levels(column)})
    if rows:
        caption = "Line: mean over seeds; band: lowest to highest seed. Dashed: reference levels of the test tasks."
        yield Picture(f"{slug(section)}-curves.png", "Learning curves", caption, figures.draw_curves(rows, styles))


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
            references = _mean_levels(methods) if series == "test_return" else {}
            if lines:
                panels.append({"title": title, "axis": axis.replace("_", " "), "lines": lines, "references": references})
        if panels:
            caption = "Line: mean over seeds; band: lowest to highest seed, as far as all seeds go."
            caption += " Zero steps: the pre-trained policy." if axis == "environment_steps" else ""
            png = figures.draw_online(panels, styles)
            yield Picture(f"{slug(section)}-online-{_safe(*column)}.png", f"Online: {_column_title(column)}", caption, png)


def adaptation_pictures(section, styles):
    """Return by episode on the task, a panel per regime."""
    panels = []
    for key, column in section.runs.items():
        lines = {}
        for method, runs in column.items():
            episodes = results.episode_scores(runs, key[0])
            if episodes is not None:
                warmup, later = (
                    None if scores is None else np.array([_mean_low_high(values) for values in np.moveaxis(scores, -1, 0)])
                    for scores in (episodes, results.later_scores(runs))
                )
                evaluated = key[0] not in results.SEQUENTIAL
                lines[method] = warmup, _mean_low_high(results.scores_of(runs)) if evaluated else None, later
        if lines:
            panels.append({"title": _column_title(key), "lines": lines, "references": _mean_levels(column)})
    if panels:
        title = "Adaptation: return by episode on an unknown task"
        caption = "Episodes in the order in which the agent plays them. Bands and bars: 95 % intervals (two seeds or more)."
        yield Picture(f"{slug(section)}-adaptation.png", title, caption, figures.draw_adaptation(panels, styles))


def _mean_low_high(scores):
    """(seeds, tasks) -> (3,); zero width for a single seed."""
    return np.array([statistics.mean(scores), *statistics.bootstrap_interval(statistics.mean, scores)])


def _mean_levels(column):
    return {level: float(values.mean()) for level, values in results.reference_levels(column).items()}


def path_pictures(section):
    """Where the agent went, a picture per method and regime (the first seed that has paths), a panel per test task."""
    digits = _digits(section)
    for column, method, runs in _groups(section):
        run = next((run for run in runs if run.get("trajectories")), None)
        panels = _path_panels(run, column[0] in results.SEQUENTIAL, digits) if run else []
        if panels:
            title = f"Paths: {method}, {_column_title(column)}"
            caption = f"Seed {run['seed']}, one dot per step. The number is the mean return of the evaluation episodes."
            name = f"{slug(section)}-paths-{_safe(method, *column)}.png"
            yield Picture(name, title, caption, figures.draw_paths(panels))


def _path_panels(run, sequential, digits):
    panels = []
    for task, returns in zip(run["task_ids"], run["returns"], strict=True):
        warmup, evaluation = results.split_paths(run["trajectories"].get(str(task)) or [])
        if sequential:  # the order of the episodes is what there is to see
            warmup, evaluation = evaluation, []
        if warmup or evaluation:
            goal = ((run.get("task_parameters") or {}).get(str(task)) or {}).get("goal")
            title = f"task {task}: return {np.mean(returns):.{digits}f}".replace("-", "−")
            panels.append({"title": title, "goal": goal, "warmup": warmup, "evaluation": evaluation})
    return panels


def belief_pictures(section, styles):
    """What methods with a belief over tasks store: its spread over time, predicted rewards, and the map of the door."""
    for column, methods in section.runs.items():
        spreads = {}
        for method, runs in methods.items():
            known = [run["belief"] for run in runs if run.get("belief")]
            if known and len({len(belief["spread"]) for belief in known}) == 1:
                spreads[method] = {key: np.mean([belief[key] for belief in known], axis=0) for key in known[0]}
        name = f"{slug(section)}-belief-{_safe(*column)}.png"
        if spreads:
            title = f"How sure the belief is: {_column_title(column)}"
            caption = "Mean standard deviation of the latent. Line: mean over tasks; band: lowest to highest task. Episodes end at the dotted lines."  # noqa: E501
            episodes = len(next(iter(methods.values()))[0]["returns"][0])
            yield Picture(name, title, caption, figures.draw_spread(spreads, styles, episodes))
    for column, method, runs in _groups(section):
        run = next((run for run in runs if run.get("reward_prediction")), None)
        suffix = f"{_safe(method, *column)}.png"
        if run:
            predicted, observed = (run["reward_prediction"][key] for key in ("predicted", "observed"))
            panels = {f"task {task}": (np.array(predicted[task]), np.array(observed[task])) for task in predicted}
            title = f"Predicted and observed reward: {method}, {_column_title(column)}"
            caption = f"Seed {run['seed']}. Prediction: expected under the belief before each step."
            png = figures.draw_predictions(panels, len(run["returns"][0]))
            yield Picture(f"{slug(section)}-rewards-{suffix}", title, caption, png)
        run = next((run for run in runs if run.get("door_map")), None)
        if run:
            angles, maps = np.array(run["door_map"]["angles"]), run["door_map"]["outside"]
            doors = {task: (run.get("task_parameters") or {}).get(task, {}).get("angle") for task in maps}
            panels = {f"task {task}": (np.array(rows), doors[task]) for task, rows in maps.items()}
            title = f"Where the decoder sees a door: {method}, {_column_title(column)}"
            caption = (
                f"Seed {run['seed']}. Dark: an outward step at this angle is predicted to leave the room, after each episode."
            )
            png = figures.draw_doors(angles, panels)
            yield Picture(f"{slug(section)}-doors-{suffix}", title, caption, png)


def context_pictures(section):
    """The contexts of each world model (the first seed that has them) in two dimensions."""
    panels = []
    for name, runs in section.diagnostics.items():
        run = next((run for run in runs if run.get("embedding")), None)
        if run:
            embedding = run["embedding"]
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
    return _safe(section.env_type, section.quality)


def _safe(*names):
    return re.sub(r"[^\w.+-]", "_", "-".join(names))


# -------------------------------------------------------------------------------------------------------------- page

CSS = """
:root { color-scheme: light }
body { margin: 0 auto; max-width: 80rem; padding: 1rem 1.2rem 4rem; color: #1a1a1a; background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .3rem }
h2 { font-size: 1.35rem; margin: 3rem 0 .3rem; padding-top: .8rem; border-top: 2px solid #1a1a1a }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem }
a { color: #0a5a94 }
p, figcaption { color: #555; font-size: .9rem; margin: .2rem 0 .8rem }
nav ul { margin: .3rem 0; padding-left: 1.2rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; white-space: nowrap; padding: .4rem 1.3rem .4rem 0;
  border-bottom: 1px solid #e2e2e2 }
th { vertical-align: bottom; white-space: normal; min-width: 4rem; border-bottom: 1.5px solid #1a1a1a }
td:first-child { font-weight: 600; position: sticky; left: 0; background: #fff }
td small { color: #555; font-size: .82rem }
tr.reference td { color: #444 }
tr.reference td:first-child { font-weight: 400; font-style: italic }
tr:not(.reference) + tr.reference td { border-top: 1.5px solid #1a1a1a }
td code { display: block; width: 34rem; white-space: pre-wrap; overflow-wrap: anywhere }
code { font: .82rem ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
figure { margin: 0 }
figure img { display: block; max-width: 100%; height: auto }
dt { font-weight: 600; margin-top: .7rem }
dd { margin: .1rem 0 0; color: #333 }
@media (max-width: 45rem) { body { padding: .5rem .8rem 3rem } figure img { max-width: none; width: 46rem } }
"""


def html_page(parts):
    """One self-contained page from [(Section, its Tables, its Pictures)]."""
    contents = "".join(f'<li><a href="#{slug(section)}">{html.escape(_name(section))}</a></li>' for section, _, _ in parts)
    legend = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in _legend())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Offline meta-RL: results</title><style>{CSS}</style></head><body>
<h1>Offline meta-RL: results</h1>
<p>Made by <code>python -m src.report</code> from the result files alone; scores are measured on test tasks.</p>
<nav><ul>{contents}<li><a href="#legend">Legend: every term explained</a></li></ul></nav>
{"".join(_html_section(*part) for part in parts)}
<h2 id="legend">Legend</h2><dl>{legend}</dl>
</body></html>
"""


def _html_section(section, tables, pictures):
    *shown, commands = map(html_table, tables)
    head = f'<h2 id="{slug(section)}">{html.escape(_name(section))}</h2><p>{html.escape(section_note(section))}</p>'
    return "\n".join([head, *shown, *map(_html_picture, pictures), commands])


def _html_picture(picture):
    title, data = html.escape(picture.title), base64.b64encode(picture.png).decode()
    image = f'<div class="scroll"><img alt="{title}" src="data:image/png;base64,{data}"></div>'
    return f"<figure><h3>{title}</h3>{image}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"


def markdown_page(parts):
    """All tables and the legend as one markdown text."""
    blocks = ["# Results", "Made by `python -m src.report` from the result files alone."]
    for section, tables, _ in parts:
        blocks += [f"## {_name(section)}", section_note(section), *map(markdown_table, tables)]
    blocks += ["## Legend", "\n".join(f"- **{term}**: {text}" for term, text in _legend())]
    return "\n\n".join(blocks) + "\n"


def _name(section):
    return f"{section.env_type} · {section.quality}"


def _legend():
    return [(term, " ".join(text.split())) for term, text in LEGEND.items()]


def write_file(path, data):
    """bytes -> file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@main_guard
def main(argv=None):
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default="results", help="folder of the result files")
    parser.add_argument("--output", type=Path, default="report", help="folder for index.html, tables.md and the PNG files")
    parser.add_argument("--env_type", nargs="+", default=(), help="only these environments, for example point_robot")
    parser.add_argument("--table_only", action="boolean", default=False, help="print the tables and write nothing")
    args = parser.parse_args(argv)

    sections = results.group_results(results.read_results(args.results, args.env_type))
    tables = [section_tables(section) for section in sections]
    for section, shown in zip(sections, tables, strict=True):
        print(f"\n{_name(section)}. {section_note(section)}")
        for table in [*shown[1:-1], shown[0]]:  # the returns last, where the eye is; the commands only in the files
            print(f"\n{text_table(table)}")
    if args.table_only:
        return

    parts = [(section, its, section_pictures(section)) for section, its in zip(sections, tables, strict=True)]
    for picture in chain(*(pictures for _, _, pictures in parts)):
        write_file(args.output / picture.name, picture.png)
    write_file(args.output / "tables.md", markdown_page(parts).encode())
    write_file(args.output / "index.html", html_page(parts).encode())
    print(f"\n{args.output / 'index.html'}")


if __name__ == "__main__":
    main()
