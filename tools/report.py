"""Tables, figures and one HTML page from the result files of finished runs (seconds to a minute).

    python -m tools.report                                          # results/ -> report/index.html, tables.md, *.png
    python -m tools.report --env_type point_robot --table_only      # print the tables, write nothing

Reads results/**/*.json and nothing else. The legend at the end of the page explains every term.
"""

import base64
import html
from itertools import chain
from pathlib import Path

from src.report import results
from src.report.pictures import section_pictures, slug
from src.report.tables import html_table, markdown_table, section_note, section_tables, text_table
from src.run.config import Parser
from src.run.errors import UserError, main_guard
from src.run.files import atomic_path

LEGEND = {
    "Return": """Undiscounted sum of the rewards of one episode; higher is better. The score of a run on a
        task is the mean over its evaluation episodes there.""",
    "IQM": """Interquartile mean, the mean of the middle half of all (seed × task) scores: of n scores the
        ⌊n/4⌋ lowest and the ⌊n/4⌋ highest are left out, so that one lucky or broken run moves it little.""",
    "[low, high]": """95 % interval. Whole seeds and whole tasks are resampled with replacement (two-way
        percentile bootstrap, 2,000 resamples), so it speaks of other seeds and other tasks. With fewer than
        five seeds it tends to be too narrow; a single seed has none.""",
    "★": "Highest IQM of the column. It claims no significance: compare the intervals.",
    "Regime": """zero_shot: the agent sees nothing but the running episode. few_shot: before it is scored, the
        frozen agent plays a few warm-up episodes on the test task. bamdp: episodes 1 to K on one task, what was
        learnt is kept from one to the next, and the score is the mean over the K. Other names are explained by
        the script in the row's command. pretrained, finetuned: after the offline phase, and after learning online.""",
    "Protocol": """strict: nothing about a test task is known beforehand; target returns come from the
        training tasks. paper: what the official code does (target return = best return in the test task's own
        dataset, warm-up pool grown over all evaluations); for comparison with published numbers only. Compare
        methods within one column: where methods were scored on different tasks, each list of tasks has a column of
        its own, and the number in its title stands before the tasks below the heading.""",
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
<p>Made by <code>python -m tools.report</code> from the result files alone; scores are measured on test tasks.</p>
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
    blocks = ["# Results", "Made by `python -m tools.report` from the result files alone."]
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

    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: name a folder")
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
