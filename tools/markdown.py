"""Tables in Markdown."""

from src.report.overview import DIRTY

DIRTY_NOTE = "\n† The checkout of at least one of these runs had changes that were not committed (`-dirty` in its result file).\n"


def markdown(lines):
    """Rows of cells, the first of them the head. A note under the table explains the mark of a row."""
    rows = ["| " + " | ".join(line) + " |\n" for line in lines]
    note = DIRTY_NOTE if any(DIRTY in cell for line in lines for cell in line) else ""
    return "".join([rows[0], "|" + "---|" * len(lines[0]) + "\n", *rows[1:], note])


def number(value):
    """Four digits, thousands separated."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
