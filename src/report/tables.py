"""The report's tables: what stands in them, and their forms as text, markdown and HTML."""

import dataclasses
import html
import re

import numpy as np

from src.report import results, statistics

NONE = "—"


@dataclasses.dataclass
class Table:
    """Cells are texts. A line break parts a cell's main line from the one below it; backticks mark code."""

    title: str
    headers: list
    rows: list
    references: list = dataclasses.field(default_factory=list)  # more rows, below a rule


def section_tables(section):
    """The tables of one section that have rows, in display order; the last one holds the commands."""
    tables = [score_table, task_table, normalised_table, episode_table, details_table, world_model_table, command_table]
    return [without_empty_columns(table) for table in (make(section) for make in tables) if table.rows]


def without_empty_columns(table):
    """Columns that are empty in every row go."""
    kept = [place for place, cells in enumerate(zip(*table.rows, strict=True)) if set(cells) != {NONE}]
    headers, *rows = ([row[place] for place in kept] for row in (table.headers, *table.rows))
    references = [[row[place] for place in kept] for row in table.references]
    return dataclasses.replace(table, headers=headers, rows=rows, references=references)


def score_table(section):
    """Methods and reference levels × regimes."""
    digits = digits_of(section)
    columns, levels = [], []
    for (regime, *_), column in section.runs.items():
        scores = {method: results.scores_of(runs) for method, runs in column.items()}
        cells = {}
        for method, matrix in scores.items():
            rivals = [
                statistics.iqm(scores[other]) for other in column if privileges(column[other]) == privileges(column[method])
            ]
            star = " ★" if len(rivals) > 1 and statistics.iqm(matrix) == max(rivals) else ""
            centre = _with_interval(statistics.iqm, matrix, digits=digits)
            average = _with_interval(statistics.mean, matrix, digits=digits)
            cells[method] = f"{centre}{star}\nmean {average}, {len(matrix)} seed{'s' * (len(matrix) > 1)}"
            if (share := results.success_of(column[method], regime)) is not None:
                cells[method] += f", success {share:.0%}"
        columns.append(cells)
        levels.append(
            {
                level: f"{statistics.iqm(values[None]):.{digits}f}\nmean {values.mean():.{digits}f}"
                for level, values in results.reference_levels(column).items()
            }
        )
    given = {method: privileges(runs) for column in section.runs.values() for method, runs in column.items()}
    rows = [[method, *(cells.get(method, NONE) for cells in columns), given[method]] for method in section.methods]
    order = results.level_order(set().union(*levels))
    references = [[level, *(cells.get(level, NONE) for cells in levels), NONE] for level in order]
    headers = ["method", *map(column_title, section.runs), "privileges"]
    return Table("Return on the test tasks: IQM [95 % interval], below it the mean", headers, rows, references)


def task_table(section):
    """Return on each test task, the mean over seeds, of what is compared; the reference levels below."""
    digits, rows, references = digits_of(section), [], []
    ids = sorted({task for runs in _main_runs(section) for task in runs[0]["task_ids"]})
    for column, methods in section.main.items():
        for method, runs in methods.items():
            found = dict(zip(runs[0]["task_ids"], results.scores_of(runs).mean(0), strict=True))
            rows.append([method, column_title(column), *_by_task(found, ids, digits)])
        for level, values in results.reference_levels(methods).items():
            found = dict(zip(next(iter(methods.values()))[0]["task_ids"], values, strict=True))
            line = [level, NONE, *_by_task(found, ids, digits)]
            references += [line] * (line not in references)
    return Table("Return by task, mean over seeds", ["method", "regime", *(f"task {task}" for task in ids)], rows, references)


def _main_runs(section):
    return [runs for methods in section.main.values() for runs in methods.values()]


def _by_task(found, ids, digits):
    return [f"{found[task]:.{digits}f}" if task in found else NONE for task in ids]


def normalised_table(section):
    """Normalised scores of the runs that name what counts as 0 and as 100, the reference levels below."""
    rows, references = [], {}
    for column, method, runs in rows_of(section):
        scales = [run.get("normalisation") for run in runs]
        if not all(scales):
            continue
        low, high = (np.array([scale[key] for scale in scales])[:, None] for key in ("minimum", "maximum"))
        scores = 100 * (results.scores_of(runs) - low) / (high - low)
        digits = statistics.decimals([low.mean(), high.mean()], 1)
        meaning = f"0 = {low.mean():.{digits}f}, 100 = {high.mean():.{digits}f}: {scales[0].get('source', NONE)}"
        steps = span(sorted({run["training"].get("environment_steps") or 0 for run in runs}))
        rows.append([method, column[0], _with_interval(statistics.mean, scores, digits=1), steps, meaning])
        for level, value in mean_levels(section.runs[column]).items():
            references[level] = [NONE, f"{100 * (value - low.mean()) / (high - low).mean():.1f}", NONE, NONE]
    headers = ["method", "regime", "normalised score", "environment steps", "constants"]
    return Table("Normalised scores, mean [95 % interval]", headers, rows, [[level, *references[level]] for level in references])


def episode_table(section):
    """Mean return of warm-up episode 1..N and of the evaluation, a row per method that has them; for a sequential regime
    also the sum of its K episodes, the share of goals visited in the last one, and the reference levels by episode.
    """
    digits = digits_of(section)
    rows, references = [], []
    for column, method, runs in rows_of(section):
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
        [[name, column_title(column), *cells, *[NONE] * (longest - len(cells)), *after] for name, column, cells, after in group]
        for group in (rows, references)
    )
    return Table("Mean return by episode on the task: warm-up episodes, then the evaluation", headers, rows, references)


def _last_success(runs):
    """Share of roll-outs that visited the goal in their last episode, in per cent, or a dash."""
    shares = [np.mean([episodes[-1] for episodes in run["success"]]) for run in runs if run.get("success")]
    return f"{100 * np.mean(shares):.0f} %" if shares else NONE


def details_table(section):
    """What a careful reader asks next: seeds, hard tasks, last against best."""
    digits = digits_of(section)
    headers = ["method", "regime", "seeds", "episodes per task", "20th percentile", "last / chosen / best"]
    rows = []
    for column, method, runs in rows_of(section):
        seeds = ", ".join(str(run["seed"]) for run in runs)
        played = span(sorted({len(episodes) for run in runs for episodes in run["returns"]}))
        hard = f"{statistics.task_percentile(results.scores_of(runs)):.{digits}f}"
        rows.append([method, column_title(column), seeds, played, hard, _curve_points(runs, digits)])
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
        errors = [run.get("errors") or {} for run in runs]
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
    groups = [(method, column_title(column), runs) for column, method, runs in rows_of(section)]
    groups += [(name, "diagnostics", runs) for name, runs in section.diagnostics.items()]
    headers = ["method", "regime", "gradient steps", "time per run", "hardware", "commit", "command"]
    rows = []
    for method, title, runs in groups:
        seconds = [run["training"]["wall_clock_s"] for run in runs if run["training"].get("wall_clock_s") is not None]
        distinct = {key: sorted({run[key] for run in runs if run[key]}) for key in ("hardware", "commit")}
        steps = sorted({run["training"]["gradient_steps"] for run in runs if run["training"].get("gradient_steps")})
        rows.append(
            [
                method,
                title,
                ", ".join(f"{number:,}" for number in steps) or NONE,
                f"{np.mean(seconds) / 60:,.1f} min" if seconds else NONE,
                "; ".join(distinct["hardware"]) or NONE,
                ", ".join(commit[:16] for commit in distinct["commit"]) or NONE,
                f"`{runs[0]['command']}`",
            ]
        )
    return Table("How each row was made", headers, rows)


def privileges(runs):
    """What the training of a row was given beyond the recorded data; a dash for nothing."""
    return NONE if runs[0]["privileges"] == "none" else runs[0]["privileges"]


def rows_of(section):
    """Yields (column, method, results of its seeds)."""
    for column, methods in section.runs.items():
        for method, runs in methods.items():
            yield column, method, runs


def mean_levels(column):
    """{reference level: mean over the tasks} of one column of a Section."""
    return {level: float(values.mean()) for level, values in results.reference_levels(column).items()}


def column_title(column):
    """(regime, protocol), and the number of the tasks where methods were scored on different ones, in words."""
    further = (f", tasks ({part})" if isinstance(part, int) else f", {part} tasks" for part in column[2:])
    return f"{column[0]}, {column[1]} protocol" + "".join(further)


def digits_of(section, usual=None):
    """Decimals that suit the largest score of the section: -8.41, 922.1, 2714; `usual` in their place. More of tiny numbers."""
    largest = max((np.abs(results.scores_of(runs)).max() for _, _, runs in rows_of(section)), default=0)
    if usual is None:
        usual = 2 if largest < 100 else 1 if largest < 1000 else 0
    levels = [values for column in section.runs.values() for values in results.reference_levels(column).values()]
    return statistics.decimals([largest, *(np.abs(values).max() for values in levels)], usual)


def _with_interval(statistic, scores, digits):
    """ "-4.71 [-5.10, -4.20]"; without the interval when there is a single seed."""
    value = f"{statistic(scores):.{digits}f}"
    if len(scores) == 1:
        return value
    low, high = statistics.bootstrap_interval(statistic, scores)
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def span(numbers):
    """Sorted integers as text: 45–49, or 1, 4, 7."""
    whole = len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}–{numbers[-1]}" if whole else ", ".join(map(str, numbers))


def section_note(section):
    """One line: which tasks, how many runs."""
    tasks = list(map(span, section.task_sets))
    if any(type(part) is int for column in section.runs for part in column[2:]):
        tasks = [f"({number}) {span}" for number, span in enumerate(tasks, 1)]
    runs = sum(len(runs) for _, _, runs in rows_of(section))
    return f"Test tasks {'; '.join(tasks)}. {runs} runs." if runs else "World models only."


def text_table(table, width=None, kept=1):
    """Table -> aligned text for the terminal. Columns that would pass `width` follow below, the first `kept` ones repeated; rows
    that have nothing there are left out."""
    parts = [
        [[cell.replace("`", "").split("\n") for cell in row] for row in rows]
        for rows in ([table.headers], table.rows, table.references)
    ]
    every = [row for rows in parts for row in rows]
    widths = [max(len(line) for row in every for line in row[place]) for place in range(len(table.headers))]
    blocks = _blocks(widths, width, kept)
    return "\n".join([table.title, *(_text_block(parts, widths, block, kept if len(blocks) > 1 else 0) for block in blocks)])


def _blocks(widths, width, kept):
    """Lists of columns that fit side by side."""
    head, blocks = list(range(kept)), [list(range(kept))]
    for place in range(kept, len(widths)):
        if width and blocks[-1] != head and sum(widths[other] + 2 for other in [*blocks[-1], place]) - 2 > width:
            blocks.append(list(head))
        blocks[-1].append(place)
    return blocks


def _text_block(parts, widths, block, kept):
    rule = "  ".join("─" * widths[place] for place in block)
    lines = [rule]
    for rows in filter(None, parts):
        for row in rows:
            if all(row[place] == [NONE] for place in block[kept:]):
                continue
            for line in range(max(len(row[place]) for place in block)):
                cells = ((row[place][line] if line < len(row[place]) else "").ljust(widths[place]) for place in block)
                lines.append("  ".join(cells).rstrip())
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
