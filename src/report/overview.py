"""Who wins where: every row of the results as one record, and from these the main tables, comparisons, verdicts and a CSV file.

The main tables hold the rows that a reader compares: whole methods (no ablation, no variant) on test tasks, under the strict
protocol; those of protocols that use data of the test tasks stand in a table of their own. Rows are ranked among those whose
training was given the same.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np

from src.report import results, statistics
from src.report.tables import NONE, Table, rows_of, span, without_empty_columns
from src.run.files import read_json

GROUPS = {  # what an agent may have lived on the test task before it is scored -> regimes
    "Few-shot": ("few_shot",),
    "Zero-shot": ("zero_shot",),
    "K episodes in sequence": ("bamdp",),
    "Learning online": ("finetuned", "pretrained"),
    "With data of the test tasks": (),  # other protocols than strict, whatever the regime
}
*STRICT, SHOWN = GROUPS
MAIN = ("Few-shot", "Zero-shot")
BEST, CLOSE, DIRTY = " ★", " ≈", " †"
SCALE = "0 is the best single policy, 1 the best known of each task"
PUBLISHED = Path(__file__).with_name("published.json")


# ------------------------------------------------------------------------------------------------------------ records


def records(sections):
    """Sections -> list of dicts, one per row and column of their tables.

    iqm, mean, and score with their 95 % intervals (*_low, *_high; None with a single seed). score: the mean, normalised so that
    the task-blind level of the family is 0 and the best known 1 (both in `zero`, `one`); None where these are unknown. scores:
    the normalised scores (seeds, tasks), see `results.normalised`. Budget: parameters, gradient_steps and minutes (means over
    seeds), and warmup_episodes:
    those on a test task before the one that is scored.
    """
    return [_record(section, *row) for section in sections for row in rows_of(section)]


def _record(section, column, name, runs):
    first, scores, scale = runs[0], results.scores_of(runs), results.scale_of(section.runs[column])
    record = {"env_type": section.env_type, "quality": section.quality, "data": section.data, "row": name}
    record |= {key: first[key] for key in ("method", "recipe", "ablation", "variant", "regime", "protocol")}
    record |= {key: first[key] for key in ("validation", "fresh", "privileges")}
    record |= {"tasks": span(sorted(first["task_ids"])), "seeds": len(runs)}
    normalised = results.normalised(scores, section.runs[column])
    for key, statistic, matrix in (
        ("iqm", statistics.iqm, scores), ("mean", statistics.mean, scores), ("score", statistics.mean, normalised),
    ):  # fmt: skip
        known = matrix is not None
        low, high = statistics.bootstrap_interval(statistic, matrix) if known and len(runs) > 1 else (None, None)
        record |= {key: float(statistic(matrix)) if known else None, f"{key}_low": low, f"{key}_high": high}
    zero, one = scale or (None, None)
    record |= {"zero": zero, "one": one}
    record |= budget(runs) | {"warmup_episodes": len(first["warmup_returns"][0][0]) if first.get("warmup_returns") else 0}
    record["dirty"] = any(run["commit"].endswith("-dirty") for run in runs)
    record["scores"] = normalised
    return record


def budget(runs):
    """{"parameters", "gradient_steps", "minutes"} of training, means over the seeds; None where results do not say."""
    means = {}
    for key in ("parameters", "gradient_steps", "wall_clock_s"):
        known = [run["training"][key] for run in runs if run["training"].get(key) is not None]
        means[key] = float(np.mean(known)) if known else None
    seconds = means.pop("wall_clock_s")
    return {**means, "minutes": None if seconds is None else seconds / 60}


def csv_text(rows):
    """Records -> CSV with a head; empty where unknown."""
    text = io.StringIO()
    names = [name for name in rows[0] if name != "scores"] if rows else ["env_type"]
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "variant": json.dumps(row["variant"]) if row["variant"] else ""})
    return text.getvalue()


# --------------------------------------------------------------------------------------------------------- main tables


def main_rows(rows, group):
    """The records that the main table of a group of regimes shows, those without privileges first."""
    shown = [row for row in rows if row["score"] is not None and not row["validation"] and results.is_whole(row)]
    shown = [row for row in shown if _group_of(row) == group]
    return sorted(shown, key=lambda row: (rank_of(row["privileges"]), *results.method_order(row["method"]), row["row"]))


def _group_of(facts):
    regime = facts["regime"]
    return next((group for group in STRICT if regime in GROUPS[group]), None) if facts["protocol"] == "strict" else SHOWN


def main_tables(rows, failures=(), marked=False):
    """Records -> {group: Table methods × families of the normalised score}, where there are rows; few-shot first.

    ★: the best of equal privileges. ≈: not surely behind it. failures: see `results.read_failures`. marked: † at rows of a
    checkout with uncommitted changes.
    """
    tables = {group: _main_table(group, main_rows(rows, group), failures, marked) for group in GROUPS}
    return {group: table for group, table in tables.items() if table.rows}


def _main_table(group, rows, failures, marked):
    columns, names = data_sets(rows), list(dict.fromkeys(map(row_key, rows)))
    cells = {(row_key(row), data_set_of(row)): _cell(row, rows) + DIRTY * (marked and row["dirty"]) for row in rows}
    for fault in failures:  # of a cell that has nothing else to show
        if _group_of(fault) != group or not results.is_whole(fault):
            continue
        cell = fault["row"], fault["regime"], fault["protocol"]
        known = [key for key in names if key[:3] == cell]
        name = known[0] if known else (*cell, None)
        for column in (key for key in columns if key[:2] == (fault["env_type"], fault["quality"])):
            if not any((key, column) in cells for key in [*known, name]):
                cells[name, column] = "failed"
                names += [name] * (name not in names)
    lines = [[row_name(name), _given(name[3]), *(cells.get((name, key), NONE) for key in columns)] for name in names]
    return Table(f"{group}: {SCALE}", ["method", "given", *map(_two_lines, columns.values())], lines)


def _cell(row, rows):
    rivals = [other for other in rows if data_set_of(other) == data_set_of(row)]
    rivals = [other for other in rivals if all(other[key] == row[key] for key in ("privileges", "protocol"))]
    best = max(rivals, key=lambda rival: rival["score"])
    below = "1 seed" if row["score_low"] is None else f"[{row['score_low']:.2f}, {row['score_high']:.2f}]"
    return f"{row['score']:.2f}{_mark(row, best) if len(rivals) > 1 else ''}\n{below}"


def _mark(row, best):
    if row["score"] == best["score"]:
        return BEST
    _, low, _ = difference(best, row)
    return CLOSE if low is not None and low <= 0 else ""


def difference(better, worse):
    """How far the normalised score of one record is above another's: (difference, low, high), the 95 % interval by bootstrap over
    whole seeds of each and shared tasks; None, None where one of them has a single seed."""
    value = better["score"] - worse["score"]
    if min(better["seeds"], worse["seeds"]) == 1:
        return value, None, None
    return value, *statistics.bootstrap_interval(statistics.mean_difference, better["scores"], worse["scores"])


def sure(better, worse):
    """Whether the whole interval of their difference is above 0."""
    low = difference(better, worse)[1]
    return low is not None and low > 0


def data_set_of(row):
    return row["env_type"], row["quality"], row["data"], row["tasks"]


def data_sets(rows):
    """{key: name} of the families and data of records, sorted; the tasks stand in the name where there are several lists."""
    keys = sorted({data_set_of(row) for row in rows})
    names = {}
    for key in keys:
        env_type, quality, data, tasks = key
        several = len([other for other in keys if other[:3] == key[:3]]) > 1
        names[key] = f"{env_type} · {quality}" + (f" (data {data})" if data else "") + (f", tasks {tasks}" if several else "")
    return names


def row_key(row):
    return row["row"], row["regime"], row["protocol"], row["privileges"]


def row_name(key):
    """The name of a row; a regime that is not the group's first is named below it, and so is another protocol than strict."""
    name, regime, protocol, _ = key
    if protocol != "strict":
        return f"{name}\n{regime}, {protocol} protocol"
    return name if regime in ("few_shot", "zero_shot", "bamdp", "finetuned") else f"{name}\n{regime}"


def _given(privileges):
    return NONE if privileges in ("none", None) else privileges


def rank_of(privileges):
    return privileges != "none", privileges


def _two_lines(name):
    return name.replace(" · ", "\n", 1)


# ---------------------------------------------------------------------------------------------------------- comparisons


def improvement_table(rows, group):
    """P(Meta-DT better than a method) with its interval: a row per pair of a Meta-DT and another row of the main table."""
    shown = main_rows(rows, group)
    columns, cells = data_sets(shown), {}
    for own in (row for row in shown if row["method"] == "meta_dt"):
        for other in shown:
            pair = row_key(own), row_key(other)
            known = pair[::-1] in {key[0] for key in cells}
            if data_set_of(own) == data_set_of(other) and own["row"] != other["row"] and not known:
                cells[pair, data_set_of(own)] = _probability(own["scores"], other["scores"])
    lines = []
    for own, other in dict.fromkeys(pair for pair, _ in cells):
        given = _given(own[3]) if own[3] == other[3] else f"{own[3]} / {other[3]}"
        lines.append([row_name(own), row_name(other), given, *(cells.get(((own, other), key), NONE) for key in columns)])
    headers = ["this", "better than this", "given", *map(_two_lines, columns.values())]
    title = f"{group}: probability that a run of Meta-DT beats a run of the method on a task"
    return without_empty_columns(Table(title, headers, lines))


def _probability(own, other):
    value = f"{statistics.probability_of_improvement(own, other):.2f}"
    if min(len(own), len(other)) == 1:
        return value
    low, high = statistics.bootstrap_interval(statistics.probability_of_improvement, own, other)
    return f"{value}\n[{low:.2f}, {high:.2f}]"


def budget_table(rows, sections):
    """What each row of the main tables cost: parameters, updates, minutes, and episodes on a test task before the one that is
    scored; world models, which Meta-DT needs beside its policy, have rows of their own."""
    shown = [row for group in STRICT for row in main_rows(rows, group)]
    columns, cells = data_sets(shown), {}
    for row in shown:  # of a row the first regime; few-shot comes first
        cells.setdefault(row["row"], {}).setdefault(data_set_of(row), _cost(row, row["warmup_episodes"]))
    used = {row["recipe"] for row in shown if row["method"] == "meta_dt"}
    for section in sections:
        for name, runs in section.diagnostics.items():
            if runs[0]["recipe"] in used:
                for key in columns:
                    if key[:3] == (section.env_type, section.quality, section.data):
                        cells.setdefault(f"{name}\nworld model", {})[key] = _cost(budget(runs), None)
    lines = [[name, *(found.get(key, NONE) for key in columns)] for name, found in cells.items()]
    lines = [line for line in lines if set(line[1:]) != {NONE}]
    title = "Budget: parameters, updates, minutes of a run, episodes on a test task before the one that is scored"
    return Table(title, ["method", *map(_two_lines, columns.values())], lines)


def _cost(values, episodes):
    parts = [values["parameters"] is not None and _short(values["parameters"])]
    parts.append(values["gradient_steps"] is not None and f"{values['gradient_steps']:,.0f} updates")
    below = [values["minutes"] is not None and f"{values['minutes']:.1f} min"]
    below.append(episodes is not None and f"{episodes} episode{'s' * (episodes != 1)}")
    lines = [", ".join(part for part in line if part) for line in (parts, below)]
    return "\n".join(line for line in lines if line) or NONE


def _short(number):
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"


def published_table():
    """Figures that others published: never in a table with ours, for data, tasks and protocols differ."""
    rows = [
        [entry["family"], entry["figure"], entry["method"], entry["measured"], entry["mark"], entry["source"]]
        for entry in read_json(PUBLISHED)
    ]
    headers = ["family", "return", "method", "what was measured", "mark", "source"]
    return Table("Published figures, on other data and protocols: not to be compared with the rows above", headers, rows)
