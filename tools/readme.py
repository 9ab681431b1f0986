"""Write the tables of README.md and of the other pages from the result files, so that none of their returns is typed by hand.

    python -m tools.readme
    python -m tools.readme --check True

A table stands between a mark and `<!-- end of table -->`. The marks:

    <!-- table: point_robot -->                              one family: every method and regime, a column per kind of data
    <!-- table: point_robot+fast -->                         the same of one recipe, beside the paper's
    <!-- table: gridworld -->                                one that is played for K episodes in sequence: their returns and sum
    <!-- table: cheetah_vel/log -->                          the same of one kind of data only
    <!-- table: cheetah_vel ant_dir -->                      several: few-shot and zero-shot beside the reference levels
    <!-- table: ablations point_robot ant_dir -->           the recipe `fast` and its changes: what each is worth
    <!-- table: ablations+compare point_robot -->           the same of the recipe `compare`
    <!-- table: contexts point_robot ant_dir -->            few-shot from own and from recorded episodes, and on training tasks
    <!-- table: idaq point_robot_semicircle -->            IDAQ beside what it does without: shares of the data's mean return
    <!-- table: overview -->                                 methods × families, few-shot, as the report shows them
    <!-- table: overview zero-shot -->                       the same of zero-shot
    <!-- table: methods point_robot ant_dir -->             all methods with their papers and scripts: few-shot returns
    <!-- table: verdicts -->                                 who wins where, by how much, how sure: sentences, no table
    <!-- table: published -->                                figures that others published
    <!-- table: behaviour -->                                the behaviour agents that come with the repository
    <!-- table: trained -->                                  the trained policies that come with it
    <!-- table: benchmarks/results/cpu-2_threads.json -->    speeds, of a benchmark's result file
    <!-- table: benchmarks/results/sac-<family>.json -->     behaviour agents of single tasks: their returns as they train
    <!-- table: benchmarks/results/cross_play-<family>.json -->    behaviour policies on each other's tasks
    <!-- table: benchmarks/results/families-validation.json -->    runs that settings were chosen by

The pages are README.md and the .md files of docs/, baselines/*/, results/ and trained/; --pages names others. Runs of the recipe
`debug` are left out, rows of runs from a checkout with uncommitted changes are marked. --check True changes nothing and fails
where a page is not what the results say.
"""

import functools
import re
from pathlib import Path

import numpy as np

from src.report import results, statistics
from src.report.overview import BEST, DIRTY, MAIN, data_set_of, data_sets, main_rows, main_tables, published_table, records
from src.report.tables import digits_of
from src.report.verdicts import verdicts
from src.run.errors import UserError, main_guard
from src.run.files import atomic_path
from src.run.flags import Parser
from tools.file_tables import behaviour_table, file_table, trained_table
from tools.markdown import markdown

MARK = re.compile(r"(<!-- table: ([^\n]*?) -->\n)(?:(?!<!-- table: ).)*?(<!-- end of table -->)", re.DOTALL)
FACTS = ("method", "recipe", "ablation", "variant")
PAGES = ("README.md", "docs/*.md", "baselines/*/*.md", "results/*.md", "trained/*.md")
REGIMES = {"few_shot": "few-shot", "zero_shot": "zero-shot"}
METHODS = {  # in the order of their table
    "meta_dt": "Meta-DT (Wang et al., 2024)",
    "dt": "Decision Transformer on all tasks (Chen et al., 2021)",
    "prompt_dt": "Prompt-DT (Xu et al., 2022)",
    "generalized_dt": "Generalized DT (Furuta et al., 2022)",
    "ad": "Algorithm Distillation (Laskin et al., 2023)",
    "focal": "FOCAL (Li et al., 2021)",
    "csro": "CSRO (Gao et al., 2023)",
    "corro": "CORRO (Yuan and Lu, 2022)",
    "unicorn": "UNICORN (Li et al., 2024)",
    "idaq": "IDAQ (Wang et al., 2023)",
    "iql": "IQL in context (Tarasov et al., 2025)",
}
NAME = re.compile(r"([\w-]+)(?:/([\w-]+))?(?:\+(\w+))?")  # family, kind of data, recipe


@main_guard
def main(argv=None):
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--pages", nargs="+", help=f"files whose tables are written (default: {', '.join(PAGES)})")
    parser.add_argument("--results", default="results", help="folder of the result files")
    parser.add_argument("--check", action="boolean", default=False, help="only compare")
    args = parser.parse_args(argv)
    for path in map(Path, args.pages or [page for pattern in PAGES for page in sorted(Path().glob(pattern))]):
        if not path.is_file():
            raise UserError(f"--pages {path}: there is no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"--pages {path} is not text in UTF-8: name a page of the project") from None
        count = text.count("<!-- table: ")
        if count != len(MARK.findall(text)) or (args.pages and not count):
            raise UserError(f"{path}: every table stands between <!-- table: NAME --> and <!-- end of table -->; mend its marks")
        written = MARK.sub(lambda match: match[1] + table(args.results, match[2].split()) + match[3], text)
        if args.check and written != text:
            raise UserError(f"{path} does not show the results under {args.results}: give the same command without --check")
        if written != text:
            with atomic_path(path) as temporary:
                temporary.write_text(written, encoding="utf-8")
        if count:
            print(f"{path}: {count} tables agree with {args.results}")


def read(folder, env_types=()):
    """All results under a folder, or of some families, but those of `debug`, which only shows that a script runs.

    Raises UserError where one cannot be read."""
    found, faults = results.read_results(folder, env_types)
    if faults:
        raise UserError(faults[0])
    return [result for result in found if result["recipe"] != "debug"]


def table(folder, env_types):
    """Markdown of one table: of families, or of a benchmark's file. Raises UserError where there are no results."""
    if not env_types:
        raise UserError("a table has no name: write <!-- table: FAMILY -->")
    if env_types[0].endswith(".json"):
        return file_table(Path(env_types[0]))
    if env_types[0] in OF_NAMED:
        return OF_NAMED[env_types[0]](folder, env_types[1:])
    if " ".join(env_types) in OF_ALL:
        return OF_ALL[" ".join(env_types)](folder)
    matches = [NAME.fullmatch(name) for name in env_types]
    if not all(matches):
        raise UserError(f"table {' '.join(env_types)}: a name is FAMILY, FAMILY/DATA, FAMILY+RECIPE or FAMILY/DATA+RECIPE")
    names = [match.groups() for match in matches]
    if len(names) > 1 and any(quality or recipe for _, quality, recipe in names):
        raise UserError(f"table {' '.join(env_types)}: a kind of data or a recipe may be named in the table of one family only")
    found = read(folder, [env_type for env_type, _, _ in names])
    _, quality, recipe = names[0]
    if recipe:
        found = [result for result in found if result["recipe"] in ("paper", recipe)]
        if not any(result["recipe"] == recipe for result in found):
            raise UserError(f"table {env_types[0]}: there are no results of recipe {recipe} under {folder}")
    sections = [section for section in results.group_results(found, join_data=True) if quality in (None, section.quality)]
    for section in sections:
        if any(isinstance(part, int) for column in section.runs for part in column[2:]):
            name = f"{section.env_type}/{section.quality}"
            raise UserError(f"the methods of {name} were scored on different tasks: name a recipe in the mark, or move results")
    if len(env_types) > 1:
        return overview_table(sections, env_types)
    if not sections:
        raise UserError(f"table {env_types[0]}: there are no such results under {folder}")
    sequential = all(regime in results.SEQUENTIAL for section in sections for regime, *_ in section.runs)
    return sequence_table(sections) if sequential else family_table(sections)


def overview_records(folder):
    """Records of all results under a folder whose recipe the settings still have. Raises UserError where one cannot be read."""
    return records(results.group_results([result for result in read(folder) if results.is_current(result)]))


def overview_text(folder, group):
    """Markdown of the report's main table of a group of regimes, of the data that Meta-DT has learned from. Raises UserError
    where there is none."""
    rows = overview_records(folder)
    shared = {(row["env_type"], row["quality"]) for row in rows if row["method"] == "meta_dt"}
    found = main_tables([row for row in rows if (row["env_type"], row["quality"]) in shared], marked=True)
    if group not in found:
        raise UserError(f"there are no {group.lower()} results under {folder} that a table could show: leave it out")
    return page_table(found[group])


def verdict_text(folder):
    """The summaries of few-shot and zero-shot, below them a line for each data set."""
    rows = overview_records(folder)
    said = [verdicts(rows, group) for group in MAIN]
    summaries = [f"**{line}**\n" for lines, _ in said for line in lines]
    sentences = [f"* {line}\n" for _, lines in said for line in lines]
    if not sentences:
        return "No data set has results of two methods whose training was given the same.\n"
    return "\n".join([*summaries, "".join(sentences)])


def page_table(table):
    """A Table of the report in this page's form; a cell's second line stands beside its first."""
    lines = [[cell.replace("\n", " ") for cell in row] for row in (table.headers, *table.rows)]
    return markdown(lines)


def family_table(sections):
    """All methods and regimes of one family, a column per kind of data. By episode: warm-up episodes, then the evaluated one."""
    columns = {section.quality: section for section in sections if section.runs}
    rows, levels = {}, {}
    for quality, section in columns.items():
        digits = digits_of(section, 2)
        for (regime, protocol, *kind), methods in section.runs.items():
            tasks = "".join(f", {part} tasks" if isinstance(part, str) else f", tasks ({part})" for part in kind)
            for level, values in results.reference_levels(methods).items():
                levels.setdefault(level + tasks, {}).setdefault(
                    quality, f"{values.mean():.{digits}f}"
                )  # of the first column, few-shot
            for method, runs in methods.items():
                protocols = "" if protocol == "strict" else f", protocol {protocol}"
                name = f"{method}, {REGIMES.get(regime, regime)}{protocols}{tasks}"
                share = results.success_of(runs, regime)
                more = further(runs, digits) + ("" if share is None else f", success {share:.0%}")
                rows.setdefault(name, {})[quality] = score(results.scores_of(runs), digits) + more + mark(runs)
                episodes = results.episode_scores(runs, regime)
                if episodes is not None and runs[0]["ablation"] == "none" and not runs[0]["variant"]:
                    played = [*episodes.mean((0, 1)), results.scores_of(runs).mean()]
                    rows.setdefault(f"{name}: by episode", {})[quality] = ", ".join(
                        f"{value:.{digits_of(section, 1)}f}" for value in played
                    )
    ordered = [*((level, levels[level]) for level in results.level_order(levels)), *rows.items()]
    lines = [["", *columns], *([name, *(cells.get(quality, "–") for quality in columns)] for name, cells in ordered)]
    return markdown(lines)


def sequence_table(sections):
    """Methods whose K episodes are played in sequence, and the reference levels: mean return of each episode, and the sum."""
    digits = max(digits_of(section, 1) for section in sections)
    entries = [entry for section in sections for column in section.runs.values() for entry in column.items()]
    methods, levels, rows = dict(entries), {}, []
    shapes = {(tuple(run["task_ids"]), len(run["returns"][0])) for runs in methods.values() for run in runs}
    if len(shapes) > 1 or len(methods) < len(entries):
        family = sections[0].env_type
        raise UserError(f"the results on {family} differ in tasks or episodes, or share a name: show {family}/<kind of data>")
    for run in (run for runs in methods.values() for run in runs):
        for level, values in run["reference_episodes"].items():
            levels.setdefault(level, []).append(np.mean(values, axis=0))
    for level in results.level_order(levels):
        played = np.mean(levels[level], axis=0)
        rows.append([level, *(f"{value:.{digits}f}" for value in played), f"{played.sum():.{digits}f}"])
    for method, runs in methods.items():
        played = np.array([run["returns"] for run in runs])  # (seeds, tasks, K)
        means = played.mean((0, 1))
        rows.append([method, *(f"{value:.{digits}f}" for value in means), score(played.sum(2), digits) + mark(runs)])
    return markdown([["", *(f"episode {k + 1}" for k in range(len(rows[0]) - 2)), "sum"], *rows])


def overview_table(sections, env_types):
    """One row per family and kind of data: Meta-DT between the reference levels.

    Without context: neither z nor prompts, a task-blind policy of the same data. The score: which part of the gain of the best
    known policies over the task-blind level few-shot has.
    """
    lines = [
        ["family, data", "task-blind", "data mean", "without context", "zero-shot", "few-shot", "best known", "normalised score"]
    ]
    for section in sorted(sections, key=lambda section: (env_types.index(section.env_type), section.quality)):
        runs = {key: methods for key, methods in section.runs.items() if key[1] == "strict"}
        few = pick(runs, "few_shot")
        if not few:
            continue
        levels = {level: float(values.mean()) for level, values in results.reference_levels({"": few}).items()}
        blind, best = levels.get("task_blind"), levels.get("best_known")
        known = blind is not None and best is not None
        gain = f"{(results.scores_of(few).mean() - blind) / (best - blind):.0%}" if known else "–"
        shown = without_context(runs), pick(runs, "zero_shot"), few
        digits = digits_of(section, 1)
        played = [score(results.scores_of(found), digits) + mark(found) if found else "–" for found in shown]
        names = ("task_blind", "dataset_mean", "best_known")
        *before, best = (
            f"{round(levels[name], digits) + 0.0:.{digits}f}" if name in levels else "–" for name in names
        )  # no -0.0
        lines.append([f"{section.env_type}, {section.quality}", *before, *played, best, gain])
    return markdown(lines)


def ablation_table(folder, env_types, recipe="fast"):
    """A row per family and kind of data for Meta-DT in a recipe, and below it one for each change of it: few-shot, zero-shot, and
    how far the recipe's few-shot return is ahead.

    Compared are the seeds that both have. The interval, where these are several: seeds of the two are resampled independently,
    their tasks together.
    """
    found = read(folder, env_types)
    lines = [["family, data", "changed", "zero-shot", "few-shot", f"few-shot of `{recipe}` − this"]]
    for section in results.group_results(found, join_data=True):
        few, zero = (section.runs.get((regime, "strict"), {}) for regime in ("few_shot", "zero_shot"))
        whole = pick(section.runs, "few_shot", recipe=recipe)
        ours = {name: runs for name, runs in few.items() if (runs[0]["method"], runs[0]["recipe"]) == ("meta_dt", recipe)}
        if not whole or len(ours) == 1:
            continue
        digits = digits_of(section, 1)
        for name, runs in sorted(ours.items(), key=lambda item: item[1] is not whole):
            seeds, cell = {run["seed"] for run in runs}, "–"
            beside = [run for run in whole if run["seed"] in seeds] or whole
            seeds = {run["seed"] for run in beside}
            scores = results.scores_of(beside), results.scores_of([run for run in runs if run["seed"] in seeds] or runs)
            if runs is not whole:
                cell = f"{statistics.mean(scores[0]) - statistics.mean(scores[1]):.{digits}f}"
                if min(map(len, scores)) > 1:
                    low, high = statistics.bootstrap_interval(statistics.mean_difference, *scores)
                    cell += f" [{low:.{digits}f}, {high:.{digits}f}]"
            label = name.partition(recipe)[2].lstrip("-").replace("-", ", ") or "nothing"
            shown = [score(results.scores_of(kind), digits) + mark(kind) if kind else "–" for kind in (zero.get(name), runs)]
            lines.append([f"{section.env_type}, {section.quality}", label, *shown, cell])
    if len(lines) == 1:
        raise UserError(f"table ablations {' '.join(env_types)}: there are no ablations of {recipe} under {folder}")
    return markdown(lines)


def method_table(folder, env_types):
    """A row per method, with its paper and its script: few-shot returns on the test tasks of every data set of the families that
    several methods were measured on, given nothing beyond the data; compared methods in the recipe `compare` alone. The reference
    levels come first."""
    rows = [row for row in main_rows(overview_records(folder), "Few-shot") if row["env_type"] in env_types and not row["fresh"]]
    rows = [row for row in rows if row["privileges"] == "none" and row["method"] in METHODS]
    rows = [row for row in rows if row["method"] == "meta_dt" or row["recipe"] == "compare"]  # one budget for all of them
    measured = [data_set_of(row) for row in rows]
    rows = [row for row, key in zip(rows, measured, strict=True) if measured.count(key) > 1]
    if not rows:
        raise UserError(f"table methods {' '.join(env_types)}: no data set has results of two methods under {folder}")
    columns = dict(sorted(data_sets(rows).items(), key=lambda item: (env_types.index(item[0][0]), item[0])))
    cells, levels = {}, {"best known": {}, "task-blind": {}}
    digits = {
        key: statistics.decimals([row[name] for row in rows if data_set_of(row) == key for name in ("mean", "one", "zero")], 1)
        for key in columns
    }
    for row in rows:
        key = data_set_of(row)
        levels["best known"][key], levels["task-blind"][key] = (f"{row[level]:.{digits[key]}f}" for level in ("one", "zero"))
        best = max(other["mean"] for other in rows if data_set_of(other) == key)
        seeds = f"{row['seeds']} seed" + "s" * (row["seeds"] > 1)
        cell = f"{row['mean']:.{digits[key]}f}{BEST * (row['mean'] == best)}, {seeds}"
        cells.setdefault((row["method"], row["recipe"]), {})[key] = cell
    heads = [name.replace(" · ", ", ").partition(", tasks")[0] for name in columns.values()]
    lines = [["method", "script", *heads]]
    lines += [[f"*{level}*", "", *(found[key] for key in columns)] for level, found in levels.items()]
    for (method, recipe), found in sorted(cells.items(), key=lambda item: [*METHODS].index(item[0][0])):
        script = f"`train_meta_dt.py`, `{recipe}`" if method == "meta_dt" else f"`baselines.{method}`"
        lines.append([METHODS[method], script, *(found.get(key, "–") for key in columns)])
    return markdown(lines)


def context_table(folder, env_types):
    """A row per method and kind of data, returns by seed: few-shot from the agent's own warm-up episodes; the same weights with
    recorded episodes of the test tasks as context; few-shot on training tasks, the last point of the learning curve."""
    found = read(folder, env_types)
    lines = [["data", "method", "own episodes, test tasks", "recorded episodes, test tasks", "own episodes, training tasks"]]
    for section in results.group_results(found, join_data=True):
        own, recorded = (section.runs.get(("few_shot", protocol), {}) for protocol in ("strict", "recorded_context"))
        for name, runs in own.items():
            if not results.is_whole(runs[0]):
                continue
            told = [[results.scores_of([run]).mean() for run in kind] for kind in (runs, recorded.get(name, []))]
            told.append([run["curve"]["train_return"][-1] for run in runs if run.get("curve", {}).get("train_return")])
            cells = [", ".join(f"{value:.{digits_of(section, 1)}f}" for value in values) or "–" for values in told]
            lines.append([f"{section.env_type}, {section.quality}", name + mark(runs), *cells])
    if len(lines) == 1:
        raise UserError(f"table contexts {' '.join(env_types)}: there are no few-shot results under {folder}")
    return markdown(lines)


def idaq_table(folder, env_types):
    """A row per family and kind of data of IDAQ: its first episode; FOCAL's own way, the best of its hypotheses without inference
    and itself, after as many warm-up episodes; success in brackets. As published, shares of the mean return of the test tasks'
    data where that is above 0; returns where it is not."""
    found = read(folder, env_types)
    adaptations = {"plain": "plain", "reference": "best of the hypotheses", "idaq": "IDAQ"}
    lines = [["data", "in", "task-blind", "first episode", *adaptations.values(), "best known", "warm-up episodes"]]
    for section in results.group_results([run for run in found if run["method"] == "idaq"], join_data=True):
        rows = list(section.runs.get(("few_shot", "strict"), {}).values())
        if not rows:
            continue
        longest = max(map(warmup_of, rows))
        rows = [runs for runs in rows if warmup_of(runs) == longest]
        adapted = {runs[0]["variant"].get("adaptation", "idaq"): runs for runs in rows}
        settings = [
            {**{key: runs[0][key] for key in ("recipe", "ablation")}, **runs[0]["variant"], "adaptation": None} for runs in rows
        ]
        if len(adapted) < len(rows) or any(other != settings[0] for other in settings):
            name = f"table idaq {section.env_type}"
            raise UserError(f"{name}: rows of {longest} warm-up episodes differ in more than --adaptation: move some of them")
        firsts = section.runs.get(("zero_shot", "strict"), {}).values()
        firsts = [runs for runs in firsts if all(runs[0][key] == rows[0][0][key] for key in ("recipe", "ablation"))]
        levels = {name: np.mean(values) for name, values in rows[0][0]["reference"].items()}
        unit = max(levels.get("dataset_mean", 0), 0) or 1.0
        shown = [results.scores_of(runs) / unit for runs in (*firsts, *rows)]
        digits, cells = statistics.decimals([np.abs(values).max() for values in shown], 2), []
        for runs in (firsts[0] if firsts else None, *map(adapted.get, adaptations)):
            share = results.success_of(runs, "few_shot") if runs else None
            success = "" if share is None else f" ({share:.0%})"
            cells.append(score(results.scores_of(runs) / unit, digits) + success + mark(runs) if runs else "–")
        known = [f"{levels[name] / unit:.{digits}f}" if name in levels else "–" for name in ("task_blind", "best_known")]
        kind = "returns" if unit == 1 else "shares"
        lines.append([f"{section.env_type}, {section.quality}", kind, known[0], *cells, known[1], str(longest)])
    if len(lines) == 1:
        raise UserError(f"table idaq {' '.join(env_types)}: there are no results of IDAQ under {folder}")
    return markdown(lines)


def warmup_of(runs):
    """Warm-up episodes of a row's runs."""
    return runs[0]["config"].get("warmup_episodes", 0)


def without_context(runs):
    """Results of Meta-DT with neither z nor prompts, or None."""
    return pick(runs, "zero_shot", "no_context")


def pick(runs, regime, ablation="none", recipe="fast"):
    """Results of Meta-DT in a recipe (or of an ablation of it) in a regime of the strict protocol, or None."""
    wanted = ("meta_dt", recipe, ablation, {})
    methods = runs.get((regime, "strict"), {})
    return next((found for found in methods.values() if tuple(found[0][key] for key in FACTS) == wanted), None)


def score(scores, digits):
    """Mean of scores (seeds, tasks), its 95 % interval, and the number of seeds."""
    low, high = statistics.bootstrap_interval(statistics.mean, scores)
    seeds = f"{len(scores)} seed" + "s" * (len(scores) > 1)
    interval = f" [{low:.{digits}f}, {high:.{digits}f}]" if len(scores) > 1 else ""
    return f"{np.mean(scores):.{digits}f}{interval}, {seeds}"


def further(runs, digits):
    """Interquartile mean over seeds and tasks; of a single task the normalised score instead, where the runs have its scale."""
    scores, scale = results.scores_of(runs), runs[0].get("normalisation")
    if not scale:
        return f", IQM {statistics.iqm(scores):.{digits}f}"
    return f", normalised {100 * (scores.mean() - scale['minimum']) / (scale['maximum'] - scale['minimum']):.1f}"


def mark(runs):
    """The mark of a row with a run that its commit alone does not make."""
    return DIRTY if any(run["commit"].endswith("-dirty") for run in runs) else ""


OF_NAMED = {  # marks that families follow
    "ablations": ablation_table,
    "ablations+compare": functools.partial(ablation_table, recipe="compare"),
    "contexts": context_table,
    "idaq": idaq_table,
    "methods": method_table,
}
OF_ALL = {  # marks of tables that are not of single families
    "overview": functools.partial(overview_text, group="Few-shot"),
    "overview zero-shot": functools.partial(overview_text, group="Zero-shot"),
    "verdicts": verdict_text,
    "published": lambda _: page_table(published_table()),
    "behaviour": lambda _: behaviour_table(Path("behaviour")),
    "trained": lambda _: trained_table(Path("trained")),
}


if __name__ == "__main__":
    main()
