"""Who wins where: tables, figures and one HTML page from the result files of finished runs (a minute or two).

    python -m tools.report                                      # results/ -> report/index.html, tables.md, results.csv, *.png
    python -m tools.report --env_type point_robot --table_only  # print the main table, write nothing

Reads results/**/*.json; paths and contexts are drawn where the runs' own folders still lie beside results/. A file that cannot be
shown is left out and named, and so is a run of tools.reproduce that failed. Recipes that no settings file has any more stand in
results.csv only. The legend at the end of the page explains every term.
"""

import base64
import dataclasses
import html
import shutil
import sys
from pathlib import Path

from src.report import results
from src.report.figures import method_styles
from src.report.overview import (
    MAIN,
    SHOWN,
    STRICT,
    budget_table,
    csv_text,
    improvement_table,
    main_tables,
    published_table,
    records,
)
from src.report.pictures import section_pictures, slug
from src.report.tables import html_table, markdown_table, section_note, section_tables, text_table
from src.report.verdicts import verdicts
from src.run.errors import UserError, main_guard
from src.run.files import atomic_path
from src.run.flags import Parser

PAGE_LIMIT = 2_900_000  # bytes of index.html; pictures beyond it stand on the page as links to their files
LEGEND = {
    "Score": """Normalised return, the tables at the top: (return − task-blind) / (best known − task-blind), mean over seeds and
        tasks. 0 is the best single policy, 1 the best known of each task, which is no upper bound; both are means
        over the family's test tasks. Of families with one task 0 is random actions and 1 the expert of the data.""",
    "Given": """Privileges: what training was given beyond the recorded data; a dash is nothing. reward function: recorded
        transitions were paid again by the true reward of other tasks. simulator: recorded policies were played again on other
        tasks. task parameters: the tasks' own parameters. Methods are ranked among those that were given the same.""",
    "★ and ≈": """★: the highest score among rows that were given the same, in the tables by family the highest IQM.
        ≈: the 95 % interval of its difference to that row holds 0, so it may be as good. Each comparison stands alone; the best
        of many rows is a little lucky. Rows of one seed have neither interval nor ≈. “Sure” in the sentences: the whole interval
        of the difference is above 0.""",
    "†": "The checkout of at least one run had changes that were not committed.",
    "failed": "The run was tried by tools.reproduce and ended in an error, which the notes at the top name.",
    "Budget": """Parameters and updates of the policy's training, minutes of one run on its hardware, and the episodes that the
        agent lives on a test task before the one that is scored. Meta-DT needs its world model too.""",
    "Published": """Read: in the text of the source. Told: the agent was given its task. Such figures rest on other data, tasks
        and protocols.""",
    "Data": """The first digits of the data's SHA-256, where results on several versions of one kind of data lie side by side.
        They stand apart and are not compared.""",
    "Return": """Undiscounted sum of the rewards of one episode; higher is better. The score of a run on a
        task is the mean over its evaluation episodes there.""",
    "IQM": """Interquartile mean, the mean of the middle half of all (seed × task) scores: of n scores the
        ⌊n/4⌋ lowest and the ⌊n/4⌋ highest are left out, so that one lucky or broken run moves it little.""",
    "[low, high]": """95 % interval. Whole seeds and whole tasks are resampled with replacement (two-way
        percentile bootstrap, 2,000 resamples), so it speaks of other seeds and other tasks. With fewer than
        five seeds it tends to be too narrow; a single seed has none.""",
    "Regime": """zero_shot: the agent sees nothing but the running episode. few_shot: before it is scored, the
        frozen agent plays a few warm-up episodes on the test task. bamdp: episodes 1 to K on one task, what was
        learnt is kept from one to the next, and the score is the mean over the K. Other names are explained by
        the script in the row's command. pretrained, finetuned: after the offline phase, and after learning online.""",
    "Protocol": """strict: nothing about a test task is known beforehand; target returns come from the
        training tasks. paper: what the official code does (target return = best return in the test task's own
        dataset, warm-up pool grown over all evaluations); for comparison with published numbers only. recorded_context,
        expert_prompt: the agent is shown recorded episodes of the test task itself, as the papers of some methods do. Compare
        methods within one column: where methods were scored on different tasks, each list of tasks has a column of
        its own, and the number in its title stands before the tasks below the heading.""",
    "Reference levels": """trivial: a policy that does nothing. task_blind: the best single policy, chosen on the training tasks;
        a method that does not beat it has not adapted. explicit_inference: the first rewards tell the task, without learning.
        dataset_mean, dataset_best: mean and best return of the test tasks' own offline episodes. best_known: of each task the
        best of all known policies, those that are told the task among them; what was found, no upper bound. thompson,
        walk_and_redraw, bayes_optimal, arc_sweep, door_probe: explorers that need no learning, defined in configs/references/.
        single_task_agents: mean over the agents whose logs are the data. They have no seeds, hence no interval.""",
    "Normalised": """100 × (return − minimum) / (maximum − minimum), with the minimum and the maximum named in the row's
        last cell. Scores are comparable only where these, the data and the robots are the same.""",
    "20th percentile": "Over tasks, of the mean over seeds: how the hard tasks fare.",
    "Last / chosen / best": """Mean test return at the last point of the learning curve, at the point with the
        best validation return, and at its best point. The third looks at the test tasks, so it flatters.""",
    "Probability that a run beats another": """Over pairs of runs on a test task, the mean over the tasks; ties count one half.
        0.5 is a draw. Where both were given different things, both are named.""",
    "Performance profile": "Share of (seed, task) scores above each value.",
    "World model": """Root mean square error of predicted rewards and next states on held-out episodes of
        training tasks, in physical units, beside the error of always predicting the mean. Probe R²: how well a
        linear map reads the task parameters from the context z (1: fully; 0 or less: not at all), on the windows
        named.""",
    "Command": "That of the first of the seeds.",
}

CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #555; --paper: #fff; --rule: #e2e2e2; --strong: #1a1a1a;
  --link: #0a5a94; --note: #8a4b00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a8a8a8; --paper: #141414; --rule: #333; --strong: #ccc;
  --link: #7ab8e8; --note: #e0a458 } figure img { filter: invert(.92) hue-rotate(180deg) } }
body { margin: 0 auto; max-width: 80rem; padding: 1rem 1.2rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .3rem }
h2 { font-size: 1.35rem; margin: 3rem 0 .3rem; padding-top: .8rem; border-top: 2px solid var(--strong) }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem }
a { color: var(--link) }
p, figcaption { color: var(--soft); font-size: .9rem; margin: .2rem 0 .8rem }
p.verdict { color: var(--ink); font-size: 1.05rem; font-weight: 600 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; white-space: nowrap; padding: .4rem 1.3rem .4rem 0;
  border-bottom: 1px solid var(--rule) }
th { vertical-align: bottom; white-space: pre-line; min-width: 4rem; border-bottom: 1.5px solid var(--strong) }
td:first-child { font-weight: 600; position: sticky; left: 0; background: var(--paper) }
td small, tr.reference td { color: var(--soft) }
td small { font-size: .82rem; font-weight: 400 }
tr.reference td:first-child { font-weight: 400; font-style: italic }
tr:not(.reference) + tr.reference td { border-top: 1.5px solid var(--strong) }
td code { display: block; width: 34rem; white-space: pre-wrap; overflow-wrap: anywhere }
code { font: .82rem ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
details { margin: .8rem 0; border-top: 1px solid var(--rule); padding-top: .5rem }
details details { margin-left: 1rem }
summary { cursor: pointer; font-size: 1.15rem; font-weight: 600 }
details details > summary { font-size: 1rem }
ul.notes { color: var(--note); font-size: .9rem }
figure { margin: 0 }
figure img { display: block; max-width: 100%; height: auto }
dt { font-weight: 600; margin-top: .7rem }
dd { margin: .1rem 0 0; color: var(--soft) }
@media (max-width: 45rem) { body { padding: .5rem .8rem 3rem } figure img { max-width: none; width: 46rem } }
"""


@dataclasses.dataclass
class Overview:
    """What stands above the families: the main tables, sentences, and tables that say more, each under the name of its fold."""

    main: list
    summaries: list
    sentences: list
    further: dict


@dataclasses.dataclass
class Part:
    """A Section with its Tables, its Pictures, and lines that name what is left out or to be known of it."""

    section: results.Section
    tables: list
    pictures: list
    notes: list


def make_overview(rows, sections, failures):
    """Records, Sections and failures -> Overview."""
    tables = main_tables(rows, failures, marked=True)
    said = {group: verdicts(rows, group) for group in tables if group in STRICT}
    others = {"Episodes in sequence, and learning online": [tables[group] for group in said if group not in MAIN]}
    others["Protocols that use data of the test tasks"] = [tables[SHOWN]] if SHOWN in tables else []
    compared = [improvement_table(rows, group) for group in STRICT]
    further = {**others, "How sure: Meta-DT against each method": compared, "Budget": [budget_table(rows, sections)]}
    further["Published figures"] = [published_table()]
    further = {name: [table for table in group if table.rows] for name, group in further.items()}
    return Overview(
        [table for group, table in tables.items() if group in MAIN],
        [line for summary, _ in said.values() for line in summary],
        [line for _, sentences in said.values() for line in sentences],
        {name: group for name, group in further.items() if group},
    )


def make_part(section, styles):
    """Section -> Part, or a line that says why it cannot be shown. Without `styles` nothing is drawn."""
    try:
        tables, notes = section_tables(section), section.notes
    except Exception as error:  # whatever the files hold, they cost their own section alone
        return f"{section.name}: left out ({' '.join(str(error).split())[:150] or type(error).__name__})"
    pictures, faults = section_pictures(section, styles) if styles is not None else ([], [])
    return Part(section, tables, pictures, [*notes, *faults])


def html_page(overview, parts, faults):
    """One self-contained page: the overview, then every section folded. As many pictures as PAGE_LIMIT allows stand in it, those
    of single methods last."""
    legend = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in _legend())
    texts, top = [_html_section(part) for part in parts], _html_overview(overview)
    left = PAGE_LIMIT - sum(len(utf8(text)) for text in [*texts, top, legend, CSS]) - 10_000
    figures = {}
    for picture in sorted((picture for part in parts for picture in part.pictures), key=lambda picture: picture.detail):
        figure = _html_picture(picture, linked=False)
        if len(figure) > left:
            figure = _html_picture(picture, linked=True)
        left -= len(figure)
        figures[picture.name] = figure
    bodies = []
    for text, part in zip(texts, parts, strict=True):
        shown, single = ([figures[each.name] for each in part.pictures if each.detail == detail] for detail in (False, True))
        text = text.replace("<!-- pictures -->", "\n".join(shown))
        bodies.append(text.replace("<!-- details -->", _html_fold("Paths", "\n".join(single)) if single else ""))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Offline meta-RL: results</title><style>{CSS}</style></head><body>
<h1>Offline meta-RL: who wins where</h1>
<p>Made by <code>python -m tools.report</code> from the result files alone; scores are measured on test tasks. Every row:
<a href="results.csv">results.csv</a>. <a href="#legend">Legend: every term explained</a>.</p>
{_html_notes(faults)}{top}
<h2>Family by family</h2>
{"".join(bodies)}
<h2 id="legend">Legend</h2><dl>{legend}</dl>
</body></html>
"""


def _html_overview(overview):
    lines = [f'<p class="verdict">{html.escape(line)}</p>' for line in overview.summaries]
    lines += map(html_table, overview.main)
    if overview.sentences:
        said = "".join(f"<li>{html.escape(line)}</li>" for line in overview.sentences)
        lines.append(_html_fold("Data set by data set, in words", f"<ul>{said}</ul>"))
    lines += [_html_fold(name, "".join(map(html_table, tables))) for name, tables in overview.further.items()]
    return "\n".join(lines)


def _html_fold(title, body):
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def _html_section(part):
    scores, *tables = map(html_table, part.tables)
    head = f'<details id="{slug(part.section)}"><summary>{html.escape(part.section.name)}</summary>'
    note = f"<p>{html.escape(section_note(part.section))}</p>{_html_notes(part.notes)}"
    return "\n".join([head, note, "<!-- pictures -->", scores, "<!-- details -->", *tables, "</details>"])


def _html_notes(lines):
    return f'<ul class="notes">{"".join(f"<li>{html.escape(line)}</li>" for line in lines)}</ul>' if lines else ""


def _html_picture(picture, linked):
    title = html.escape(picture.title)
    if linked:
        return f'<p><a href="{html.escape(picture.name)}">{title}</a></p>'
    data = base64.b64encode(picture.png).decode()
    image = f'<div class="scroll"><img alt="{title}" src="data:image/png;base64,{data}"></div>'
    return f"<figure><h3>{title}</h3>{image}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"


def markdown_page(overview, parts, faults):
    """All tables and the legend as one markdown text."""
    blocks = ["# Results", "Made by `python -m tools.report` from the result files alone.", *overview.summaries]
    blocks += map(markdown_table, overview.main)
    blocks += ["\n".join(f"- {line}" for line in lines) for lines in (overview.sentences, faults) if lines]
    blocks += [markdown_table(table) for tables in overview.further.values() for table in tables]
    for part in parts:
        blocks += [f"## {part.section.name}", section_note(part.section)]
        blocks += ["\n".join(f"- {line}" for line in part.notes)] if part.notes else []
        blocks += map(markdown_table, part.tables)
    blocks += ["## Legend", "\n".join(f"- **{term}**: {text}" for term, text in _legend())]
    return "\n\n".join(blocks) + "\n"


def _legend():
    return [(term, " ".join(text.split())) for term, text in LEGEND.items()]


def utf8(text):
    """Text as bytes; the names of files in it may be any."""
    return text.encode(errors="backslashreplace")


def write_file(path, data):
    """bytes -> file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@main_guard
def main(argv=None):
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default="results", help="folder of the result files")
    parser.add_argument(
        "--output", type=Path, default="report", help="folder for index.html, tables.md, results.csv and the PNG files"
    )
    parser.add_argument("--env_type", nargs="+", default=(), help="only these environments, for example point_robot")
    parser.add_argument("--table_only", action="boolean", default=False, help="print the main table and write nothing")
    args = parser.parse_args(argv)

    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: name a folder")
    found, faults = results.read_results(args.results, args.env_type)
    failures = results.read_failures(args.results, args.env_type)
    faults += map(failure_line, failures)
    sections = results.group_results([result for result in found if results.is_current(result)])
    styles = method_styles(_methods(sections))
    made = [make_part(section, None if args.table_only else styles) for section in sections]
    parts = [part for part in made if isinstance(part, Part)]
    faults += [part for part in made if not isinstance(part, Part)]
    rows = records(part.section for part in parts)
    overview = make_overview(rows, [part.section for part in parts], failures)
    further = next(iter(overview.further.values()))[:1] if rows else []
    width = shutil.get_terminal_size((130, 24)).columns
    shown = [table for group, table in main_tables(rows, failures).items() if group in MAIN]
    for table in shown or [table for part in parts for table in part.tables[:1]] or further:
        print(f"\n{text_table(table, width, kept=2)}")
    for line in [*faults, *(note for part in parts for note in part.notes)]:
        print(f"note: {line}", file=sys.stderr)
    if args.table_only:
        return

    for picture in (picture for part in parts for picture in part.pictures):
        write_file(args.output / picture.name, picture.png)
    write_file(args.output / "results.csv", utf8(csv_text(records(results.group_results(found)))))
    write_file(args.output / "tables.md", utf8(markdown_page(overview, parts, faults)))
    write_file(args.output / "index.html", utf8(html_page(overview, parts, faults)))
    print(f"\n{args.output / 'index.html'}")


def _methods(sections):
    """All rows of a report; those that are compared come first, so that as many as possible have a colour of their own."""
    compared = {name for section in sections for methods in section.main.values() for name in methods}
    every = {name for section in sections for name in section.methods}
    return sorted(every, key=lambda name: (name not in compared, *results.method_order(name)))


def failure_line(fault):
    """One line that names a failed run."""
    place = f"{fault['env_type']} · {fault['quality']}, {fault['regime']}, seed {fault['seed']}"
    return f"{fault['row']} on {place}: failed ({fault['reason']})"


if __name__ == "__main__":
    main()
