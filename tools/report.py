"""Who wins where: tables, figures and one HTML page from the result files of finished runs (a minute or two).

    python -m tools.report                                      # results/ -> report/index.html, tables.md, results.csv, *.png
    python -m tools.report --env_type point_robot --table_only  # print the main table, write nothing

Reads results/**/*.json; paths and contexts are drawn where the runs' own folders still lie beside results/. A file that cannot be
shown is left out and named. The legend at the end of the page explains every term.
"""

import base64
import dataclasses
import html
import sys
from pathlib import Path

from src.report import results
from src.report.overview import csv_text, overview_tables, records
from src.report.pictures import section_pictures, slug
from src.report.tables import html_table, markdown_table, section_note, section_tables, text_table
from src.run.config import Parser
from src.run.errors import UserError, main_guard
from src.run.files import atomic_path

PAGE_LIMIT = 2_900_000  # bytes of index.html; pictures beyond it stand on the page as links to their files
LEGEND = {
    "Score": """Normalised return, the table at the top: (return − task-blind) / (best known − task-blind), IQM over seeds and
        tasks. 0 is the best single policy, 1 the best known of each task; both are means over the family's test tasks. Of
        families with one task 0 is random actions and 1 the expert of the data.""",
    "Privileges": """What training was given beyond the recorded data. reward function: recorded transitions were paid again
        by the true reward of other tasks. simulator: recorded policies were played again on other tasks. task parameters: the
        tasks' own parameters. Methods are ranked (★, P(better)) among those that were given the same.""",
    "Data": """The first digits of the data's SHA-256, where results on several versions of one kind of data lie side by side.
        They stand apart and are not compared.""",
    "Return": """Undiscounted sum of the rewards of one episode; higher is better. The score of a run on a
        task is the mean over its evaluation episodes there.""",
    "IQM": """Interquartile mean, the mean of the middle half of all (seed × task) scores: of n scores the
        ⌊n/4⌋ lowest and the ⌊n/4⌋ highest are left out, so that one lucky or broken run moves it little.""",
    "[low, high]": """95 % interval. Whole seeds and whole tasks are resampled with replacement (two-way
        percentile bootstrap, 2,000 resamples), so it speaks of other seeds and other tasks. With fewer than
        five seeds it tends to be too narrow; a single seed has none.""",
    "★": "Highest IQM among rows with equal privileges. It claims no significance: compare the intervals.",
    "Regime": """zero_shot: the agent sees nothing but the running episode. few_shot_policy_no_prompt: the same,
        by the few-shot policy. few_shot: before it is scored, the
        frozen agent plays a few warm-up episodes on the test task. bamdp: episodes 1 to K on one task, what was
        learnt is kept from one to the next, and the score is the mean over the K. Other names are explained by
        the script in the row's command. pretrained, finetuned: after the offline phase, and after learning online.""",
    "Protocol": """strict: nothing about a test task is known beforehand; target returns come from the
        training tasks. paper: what the official code does (target return = best return in the test task's own
        dataset, warm-up pool grown over all evaluations); for comparison with published numbers only. Compare
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
    "P(better)": """Probability that a run of this row beats a run of the named method on a test task; ties
        count one half.""",
    "World model": """Root mean square error of predicted rewards and next states on held-out episodes of
        training tasks, in physical units, beside the error of always predicting the mean. Probe R²: how well a
        linear map reads the task parameters from the context z (1: fully; 0 or less: not at all), on the windows
        named.""",
    "Command": "That of the first of the seeds.",
}

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
details { margin: .8rem 0; border-top: 1px solid #bbb; padding-top: .5rem }
summary { cursor: pointer; font-size: 1.15rem; font-weight: 600 }
ul.notes { color: #8a4b00; font-size: .9rem }
figure { margin: 0 }
figure img { display: block; max-width: 100%; height: auto }
dt { font-weight: 600; margin-top: .7rem }
dd { margin: .1rem 0 0; color: #333 }
@media (max-width: 45rem) { body { padding: .5rem .8rem 3rem } figure img { max-width: none; width: 46rem } }
"""


@dataclasses.dataclass
class Part:
    """A Section with its Tables, its Pictures, and lines that name what is left out or to be known of it."""

    section: results.Section
    tables: list
    pictures: list
    notes: list


def make_part(section, with_pictures):
    """Section -> Part, or a line that says why it cannot be shown."""
    try:
        tables, notes = section_tables(section), section.notes
    except Exception as error:  # whatever the files hold, they cost their own section alone
        return f"{section.name}: left out ({' '.join(str(error).split())[:150] or type(error).__name__})"
    pictures, faults = section_pictures(section) if with_pictures else ([], [])
    return Part(section, tables, pictures, [*notes, *faults])


def html_page(overview, parts, faults):
    """One self-contained page: the overview, then every section folded. As many pictures as PAGE_LIMIT allows stand in it."""
    legend = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in _legend())
    texts = [_html_section(part) for part in parts]
    left = PAGE_LIMIT - sum(len(text.encode()) for text in texts) - 40_000 - len("".join(map(html_table, overview)).encode())
    bodies = []
    for text, part in zip(texts, parts, strict=True):
        figures = []
        for picture in part.pictures:
            figure = _html_picture(picture, linked=False)
            if len(figure) > left:
                figure = _html_picture(picture, linked=True)
            left -= len(figure)
            figures.append(figure)
        bodies.append(text.replace("<!-- pictures -->", "\n".join(figures)))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Offline meta-RL: results</title><style>{CSS}</style></head><body>
<h1>Offline meta-RL: who wins where</h1>
<p>Made by <code>python -m tools.report</code> from the result files alone; scores are measured on test tasks. Every row:
<a href="results.csv">results.csv</a>. <a href="#legend">Legend: every term explained</a>.</p>
{_html_notes(faults)}{"".join(map(html_table, overview))}
<h2>Family by family</h2>
{"".join(bodies)}
<h2 id="legend">Legend</h2><dl>{legend}</dl>
</body></html>
"""


def _html_section(part):
    *shown, commands = map(html_table, part.tables)
    head = f'<details id="{slug(part.section)}"><summary>{html.escape(part.section.name)}</summary>'
    note = f"<p>{html.escape(section_note(part.section))}</p>{_html_notes(part.notes)}"
    return "\n".join([head, note, *shown, "<!-- pictures -->", commands, "</details>"])


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
    blocks = ["# Results", "Made by `python -m tools.report` from the result files alone.", *map(markdown_table, overview)]
    blocks += ["\n".join(f"- {line}" for line in faults)] if faults else []
    for part in parts:
        blocks += [f"## {part.section.name}", section_note(part.section)]
        blocks += ["\n".join(f"- {line}" for line in part.notes)] if part.notes else []
        blocks += map(markdown_table, part.tables)
    blocks += ["## Legend", "\n".join(f"- **{term}**: {text}" for term, text in _legend())]
    return "\n\n".join(blocks) + "\n"


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
    parser.add_argument(
        "--output", type=Path, default="report", help="folder for index.html, tables.md, results.csv and the PNG files"
    )
    parser.add_argument("--env_type", nargs="+", default=(), help="only these environments, for example point_robot")
    parser.add_argument("--table_only", action="boolean", default=False, help="print the main table and write nothing")
    args = parser.parse_args(argv)

    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: name a folder")
    found, faults = results.read_results(args.results, args.env_type)
    made = [make_part(section, not args.table_only) for section in results.group_results(found)]
    parts = [part for part in made if isinstance(part, Part)]
    faults += [part for part in made if not isinstance(part, Part)]
    rows = records(part.section for part in parts)
    overview = overview_tables(rows)
    for table in overview or [table for part in parts for table in part.tables[:1]]:
        print(f"\n{text_table(table)}")
    for line in [*faults, *(note for part in parts for note in part.notes)]:
        print(f"note: {line}", file=sys.stderr)
    if args.table_only:
        return

    for picture in (picture for part in parts for picture in part.pictures):
        write_file(args.output / picture.name, picture.png)
    write_file(args.output / "results.csv", csv_text(rows).encode())
    write_file(args.output / "tables.md", markdown_page(overview, parts, faults).encode())
    write_file(args.output / "index.html", html_page(overview, parts, faults).encode())
    print(f"\n{args.output / 'index.html'}")


if __name__ == "__main__":
    main()
