"""Pictures of the report: functions from plain arrays to the bytes of a PNG file. No state, no screen, no files."""

import io
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": "#1a1a1a",
    "axes.labelcolor": "#1a1a1a",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
# Okabe and Ito's colours, readable with colour-blindness, without the yellow that fades on white
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4fa3", "#8c6d31", "#5f6b6d")
LONG = 5
FEW = 4  # lines whose bands can be told apart
EVALUATION_COLOUR = "#d55e00"
GOAL_COLOUR = "#f2b705"


def method_styles(methods):
    """Method names -> {name: line style}, the same in every picture of a report; dashes tell what shares a colour."""
    styles = ({"color": colour, "ls": dashes} for dashes in cycle(("-", "--", "-.")) for colour in PALETTE)
    return dict(zip(methods, styles, strict=False))


@matplotlib.rc_context(STYLE)
def draw_lines(panels, styles, columns=3):
    """Panels with axes of their own: per method a line (mean over seeds) and a band (lowest to highest).

    Args:
        panels: [{"title", "x", "y", "lines": {method: (places (S,), values (seeds, S))}, "references": {level: value}}].
    Where one line is more than LONG times as long as another, the horizontal axis is logarithmic, so that both can be read.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.4 * columns, 6.2), 3.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid.flat, panels, strict=False):
        for method, (places, values) in panel["lines"].items():
            if len(values) > 1:
                axes.fill_between(places, values.min(0), values.max(0), color=styles[method]["color"], alpha=0.15, lw=0)
            axes.plot(places, values.mean(0), **styles[method], lw=1.8, marker="." if len(places) == 1 else None)
        axes.set(title=panel["title"], xlabel=panel["x"], ylabel=panel["y"])
        ends = [places[-1] for places, _ in panel["lines"].values()]
        if max(ends) > LONG * min(ends) > 0:
            axes.set_xscale("symlog", linthresh=min(places[places > 0][0] for places, _ in panel["lines"].values()))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        _draw_references(axes, panel.get("references", {}))
    _draw_legend(figure, styles, {method for panel in panels for method in panel["lines"]})
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_adaptation(panels, styles):
    """Return by the number of episodes that were played on the task before: a line, and on it the evaluated episode.

    Args:
        panels: [{"title", "lines": {method: (warmup (N, 3), evaluation (3,) or None, later (L, 3) or None)}, "references"}]; the
            three numbers are mean, low and high. The evaluated episode comes after the N warm-up episodes.
    """
    figure = Figure(figsize=(max(5.2 * len(panels), 6.5), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        spread = min(0.08, 0.6 / len(panel["lines"]))  # evaluations stand side by side, so that their bars can be read
        last = 0
        for place, (method, (warmup, evaluation, later)) in enumerate(panel["lines"].items()):
            colour, parts = styles[method]["color"], [warmup]
            if evaluation is not None:
                parts.append(evaluation[None])
                centre, low, high = evaluation
                x = len(warmup) + spread * (place + 1)
                axes.errorbar(x, centre, [[centre - low], [high - centre]], fmt="D", color=colour, ms=6, capsize=3)
            values = np.concatenate([*parts, *([later] if later is not None else [])])
            if len(panel["lines"]) <= FEW:
                axes.fill_between(np.arange(len(values)), values[:, 1], values[:, 2], color=colour, alpha=0.15, lw=0)
            axes.plot(values[:, 0], marker="o", **styles[method], lw=1.8, ms=4.5)
            last = max(last, len(values) - 1)
        axes.set_xticks(range(last + 1))
        axes.set_xlim(-0.15, last + max(0.4, spread * (len(panel["lines"]) + 1)))
        axes.set(title=panel["title"], xlabel="episodes played on the task before", ylabel="mean return")
        _draw_references(axes, panel["references"])
    _draw_legend(figure, styles, {method for panel in panels for method in panel["lines"]})
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_paths(panels, columns=5, orange="evaluation"):
    """Paths of a point in the plane, one panel per task: earlier episodes from pale to dark blue, evaluations orange.

    Args:
        panels: [{"title", "goal": (2,) or None, "warmup": [(T + 1, 2), ...], "evaluation": [(T + 1, 2), ...]}].
        orange: what the key calls the latter.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(2.5 * columns, 6.2), 2.75 * rows + 0.2), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    warmups = max(len(panel["warmup"]) for panel in panels)
    blues = matplotlib.colormaps["Blues"](np.linspace(0.4, 0.95, max(warmups, 1)))
    middle, half = _square(panels)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for path, colour in zip(panel["warmup"], blues, strict=False):
            _draw_path(axes, path, colour, 1.5)
        for path in panel["evaluation"]:
            _draw_path(axes, path, EVALUATION_COLOUR, 2)
        start = (panel["evaluation"] or panel["warmup"])[0][0]
        axes.plot(*start, "o", color="white", mec="#1a1a1a", ms=6, zorder=4)
        if panel["goal"] is not None:
            axes.plot(*panel["goal"], "*", color=GOAL_COLOUR, mec="#1a1a1a", mew=0.8, ms=15, zorder=5)
        axes.set(title=panel["title"], aspect="equal", xlim=middle[0] + half, ylim=middle[1] + half)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    handles = [Line2D([], [], color=blues[n], lw=1.5, label=f"episode {n + 1}") for n in range(warmups)]
    if any(panel["evaluation"] for panel in panels):
        handles.append(Line2D([], [], color=EVALUATION_COLOUR, lw=2, label=orange))
    mark = {"ls": "", "mec": "#1a1a1a"}
    handles.append(Line2D([], [], marker="o", color="white", ms=6, label="start", **mark))
    if any(panel["goal"] is not None for panel in panels):
        handles.append(Line2D([], [], marker="*", color=GOAL_COLOUR, ms=12, label="hidden goal", **mark))
    _draw_handles(figure, handles)
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_spread(spreads, styles, episodes):
    """How uncertain a belief is over time: a line per method, a band over tasks, dotted lines where episodes end.

    Args:
        spreads: {method: {"spread", "low", "high": (T + 1,)}}. episodes: K.
    """
    figure = Figure(figsize=(7.5, 3.3), layout="constrained")
    axes = figure.subplots()
    for method, lines in spreads.items():
        steps = np.arange(len(lines["spread"]))
        axes.fill_between(steps, lines["low"], lines["high"], color=styles[method]["color"], alpha=0.15, lw=0)
        axes.plot(steps, lines["spread"], **styles[method], lw=1.8)
    _mark_episodes(axes, len(steps) - 1, episodes)
    axes.set(xlabel="steps on the task", ylabel="spread of the belief", ylim=(0, None))
    _draw_legend(figure, styles, spreads)
    return _png(figure)


@matplotlib.rc_context(STYLE)
def draw_predictions(panels, episodes, columns=3):
    """Predicted and observed rewards over time, a panel per task: {title: (predicted (T,), observed (T,))}; episodes: K."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 1.9 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, (predicted, observed)) in zip(grid.flat, panels.items(), strict=False):
        axes.plot(np.arange(1, len(observed) + 1), observed, color="#888888", lw=2.5, alpha=0.6)
        axes.plot(np.arange(1, len(predicted) + 1), predicted, color=PALETTE[0], lw=1.3)
        _mark_episodes(axes, len(observed), episodes)
        axes.set(title=title, xlabel="steps on the task" if axes in grid[-1] else "")
    handles = [Line2D([], [], color="#888888", lw=2.5, alpha=0.6, label="observed")]
    _draw_handles(figure, [*handles, Line2D([], [], color=PALETTE[0], lw=1.3, label="predicted")])
    return _png(figure)


def _mark_episodes(axes, steps, episodes):
    for end in np.arange(1, episodes) * steps / episodes:
        axes.axvline(end, color="#999999", lw=1, ls=":")


@matplotlib.rc_context(STYLE)
def draw_doors(angles, panels, columns=3):
    """At which angles a decoder lets the robot out: {title: ((K, angles) of 0 or 1, true angle or None)}, a row per episode."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 1.3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    half = (angles[1] - angles[0]) / 2
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, (outside, door)) in zip(grid.flat, panels.items(), strict=False):
        extent = (angles[0] - half, angles[-1] + half, len(outside) + 0.5, 0.5)
        axes.imshow(outside, cmap="Blues", vmin=0, vmax=1.3, aspect="auto", extent=extent, interpolation="nearest")
        if door is not None:
            axes.axvline(door, color=EVALUATION_COLOUR, lw=2)
        axes.set(title=title, yticks=range(1, len(outside) + 1))
        axes.grid(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("after episode")
    grid[-1, 0].set_xlabel("angle (radians)")
    _draw_handles(figure, [Line2D([], [], color=EVALUATION_COLOUR, lw=2, label="middle of the door")])
    return _png(figure)


def _square(panels):
    """One frame for all panels: its middle (2,), and its half side as (-, +)."""
    paths = [path for panel in panels for path in (*panel["warmup"], *panel["evaluation"])]
    goals = [[panel["goal"]] for panel in panels if panel["goal"] is not None]
    points = np.concatenate(paths + goals)
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, np.array([-1, 1]) * (0.57 * (high - low).max() + 1e-6)


def _draw_path(axes, path, colour, width):
    path = np.asarray(path)
    axes.plot(*path.T, "-", color=colour, lw=width, alpha=0.9)
    axes.plot(*path.T, ".", color=colour, ms=3.5)  # one dot per step, so that standing still shows


@matplotlib.rc_context(STYLE)
def draw_context(panels):
    """Contexts in two dimensions, coloured by the task: a panel per world model, and the key of the colours.

    Args:
        panels: [{"title", "points" (P, 2), "parameters" (P, d)}]. Two task parameters are shown
            by hue (angle) and saturation (distance from the middle), otherwise the first one by a colour bar; none by one colour.
    """
    parameters = np.concatenate([panel["parameters"] for panel in panels])
    plane = parameters.shape[1] == 2
    figure = Figure(figsize=(4.1 * len(panels) + (3.3 if plane else 0.9), 4.1), layout="constrained")
    widths = [4] * len(panels) + [2.6] * plane
    grid = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    for axes, panel in zip(grid, panels, strict=False):
        colours, scale = PALETTE[0], {}
        if plane:
            colours = _plane_colours(panel["parameters"], parameters)
        elif parameters.shape[1]:
            colours, scale = panel["parameters"][:, 0], {"vmin": parameters[:, 0].min(), "vmax": parameters[:, 0].max()}
        shown = axes.scatter(*panel["points"].T, c=colours, s=13, edgecolors="none", **scale)
        axes.set(title=panel["title"], xlabel="first principal axis of z", ylabel="second principal axis of z")
        axes.set_aspect("equal", adjustable="datalim")
    if plane:
        key = np.unique(parameters, axis=0)
        grid[-1].scatter(*key.T, c=_plane_colours(key, parameters), s=45, edgecolors="#777777", linewidths=0.4)
        figure.get_layout_engine().set(wspace=0.06)
        grid[-1].set(title="key: the tasks", xlabel="task parameter 1", ylabel="task parameter 2", aspect="equal")
    elif parameters.shape[1]:
        figure.colorbar(shown, ax=list(grid), label="task parameter", pad=0.01)
    return _png(figure)


def _plane_colours(parameters, everything):
    """(P, 2) -> (P, 3) RGB: hue from the angle around the middle of `everything`, paler towards the middle."""
    low, high = everything.min(0), everything.max(0)
    offset = (parameters - (low + high) / 2) / np.maximum((high - low) / 2, 1e-12)
    hue = np.arctan2(offset[:, 1], offset[:, 0]) / (2 * np.pi) % 1
    saturation = 0.25 + 0.75 * np.clip(np.linalg.norm(offset, axis=1), 0, 1)
    return hsv_to_rgb(np.stack([hue, saturation, np.full_like(hue, 0.85)], -1))


def _draw_references(axes, references):
    """Dashed lines across, named at the right edge; names that would overlap are moved apart. The axis stays where the data are:
    a level that would take more room than they do is named at the edge, with its value."""
    low, high = axes.get_ylim()
    room = high - low
    near = {name: value for name, value in references.items() if low - room < value < high + room}
    beyond = {name: value for name, value in references.items() if name not in near}
    for value in near.values():
        axes.axhline(value, color="#888888", lw=1, ls=(0, (5, 3)), zorder=1)
        low, high = min(low, value - 0.03 * room), max(high, value + 0.03 * room)
    marks = {name.replace("_", " "): value for name, value in near.items()}
    for name, value in beyond.items():
        marks[f"{name.replace('_', ' ')} {value:.4g} {'↓' if value < low else '↑'}".replace("-", "−")] = max(
            min(value, high), low
        )
    height = axes.get_position().height * axes.figure.get_figheight()  # inches
    gap, place = 0.17 * (high - low) / height, -np.inf
    for name, value in sorted(marks.items(), key=lambda item: item[1]):
        place = max(value, place + gap)
        axes.annotate(
            name,
            xy=(1, value),
            xytext=(1.03, place),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            fontsize=8.5,
            color="#444444",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.8, "shrinkA": 1, "shrinkB": 0},
        )
    axes.set_ylim(low, high)


def _draw_legend(figure, styles, drawn):
    handles = [Line2D([], [], **style, lw=2.2, label=method) for method, style in styles.items() if method in drawn]
    _draw_handles(figure, handles)


def _draw_handles(figure, handles):
    widest = 0.55 + 0.078 * max(len(handle.get_label()) for handle in handles)  # inches of an entry
    columns = min(len(handles), max(1, int(figure.get_figwidth() / widest)))
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _png(figure):
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()
