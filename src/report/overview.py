"""Who wins where: every row of the results as one record, and from these the table families × methods and a CSV file."""

import csv
import io
import json
from collections import Counter

from src.report import results, statistics
from src.report.tables import NONE, Table, rows_of, span

GROUPS = {  # what an agent may have lived on the test task before it is scored -> regimes
    "Few-shot": ("few_shot", "bamdp", "finetuned"),
    "Zero-shot": ("zero_shot", "few_shot_policy_no_prompt", "pretrained"),
}


def records(sections):
    """Sections -> list of dicts, one per row and column of their tables.

    iqm, mean, and score with their 95 % intervals (*_low, *_high; None with a single seed). score: IQM, normalised so that the
    task-blind level of the family is 0 and the best known 1 (both in `zero`, `one`); None where these are unknown.
    """
    return [_record(section, *row) for section in sections for row in rows_of(section)]


def _record(section, column, name, runs):
    first, scores, scale = runs[0], results.scores_of(runs), results.scale_of(section.runs[column])
    record = {"env_type": section.env_type, "quality": section.quality, "data": section.data, "row": name}
    record |= {key: first[key] for key in ("method", "recipe", "ablation", "variant", "regime", "protocol")}
    record |= {key: first[key] for key in ("validation", "fresh", "privileges")}
    record |= {"tasks": span(sorted(first["task_ids"])), "seeds": len(runs)}
    for key, statistic in (("iqm", statistics.iqm), ("mean", statistics.mean)):
        low, high = statistics.bootstrap_interval(statistic, scores) if len(runs) > 1 else (None, None)
        record |= {key: float(statistic(scores)), f"{key}_low": low, f"{key}_high": high}
    zero, one = scale or (None, None)
    record |= {"zero": zero, "one": one}
    for end in ("", "_low", "_high"):
        value = record[f"iqm{end}"]
        record[f"score{end}"] = None if scale is None or value is None else (value - zero) / (one - zero)
    record["gradient_steps"] = first["training"].get("gradient_steps")
    return record


def overview_tables(rows):
    """Records -> Tables families × methods of the normalised score, few-shot first; the best of equal privileges has a star.

    Of a method its commonest recipe is shown, under the strict protocol, without ablations and variants.
    """
    shown = [row for row in rows if row["score"] is not None and row["protocol"] == "strict" and not row["validation"]]
    shown = [row for row in shown if row["ablation"] == "none" and not row["variant"]]
    recipes = Counter((row["method"], row["recipe"]) for row in shown)
    common = {}
    for (method, recipe), _ in sorted(recipes.items(), key=lambda item: (-item[1], item[0])):
        common.setdefault(method, recipe)
    shown = [row for row in shown if common[row["method"]] == row["recipe"]]
    tables = (_group_table(name, [row for row in shown if row["regime"] in regimes]) for name, regimes in GROUPS.items())
    return [table for table in tables if table.rows]


def _group_table(name, rows):
    columns = list(dict.fromkeys((row["row"], row["regime"], row["privileges"]) for row in rows))
    families = {}
    for row in rows:
        cells = families.setdefault((row["env_type"], row["quality"], row["data"], row["fresh"], row["tasks"]), {})
        cells[row["row"], row["regime"], row["privileges"]] = row
    lines = []
    for (env_type, quality, data, fresh, tasks), cells in sorted(families.items()):
        family = f"{env_type} · {quality}" + (f" (data {data})" if data else "")
        several = len({key[4] for key in families if key[:4] == (env_type, quality, data, fresh)}) > 1
        family += ", fresh tasks" * fresh + (f", tasks {tasks}" if several else "")
        lines.append([family, *(_cell(cells, column) for column in columns)])
    headers = [f"{row}\n{regime}" + ("" if rights == "none" else f", {rights}") for row, regime, rights in columns]
    return Table(f"{name}: 0 is the best single policy, 1 the best known of each task", ["family · data", *headers], lines)


def _cell(cells, column):
    row = cells.get(column)
    if row is None:
        return NONE
    rivals = [other["score"] for key, other in cells.items() if key[2] == column[2]]
    star = " ★" if len(rivals) > 1 and row["score"] == max(rivals) else ""
    interval = "" if row["score_low"] is None else f" [{row['score_low']:.2f}, {row['score_high']:.2f}]"
    return f"{row['score']:.2f}{interval}{star}"


def csv_text(rows):
    """Records -> CSV with a head; empty where unknown."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["env_type"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "variant": json.dumps(row["variant"]) if row["variant"] else ""})
    return text.getvalue()
