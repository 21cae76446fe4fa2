"""Draw plots with matplotlib as SVG documents, in a light and a dark theme. The same data give the same bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.reports.html import escape_control_characters, format_integer

WIDTH, HEIGHT = 420, 270
"""The width and the height of a figure in points. A legend is added to the height."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rank-k",
    "text.parse_math": False,
    "savefig.transparent": True,
    "font.size": 12,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "errorbar.capsize": 3,
}


def _theme(ink: str, soft: str, rule: str, *series: str) -> dict[str, str]:
    """Return matplotlib settings for the colors of text (`ink`), axes (`soft`), grid lines (`rule`) and `series`."""
    return {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor", "lines.color"), ink),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), soft),
        "grid.color": rule,
        "axes.prop_cycle": f"cycler(color={list(series)})",
    }


THEMES = {
    "light": _theme("#1c2128", "#59636e", "#d8dde3", "#1f62b0", "#b4472c", "#17795a", "#8a4aa8", "#8f6a00", "#59636e"),
    "dark": _theme("#e4e8ed", "#a0aab6", "#333b45", "#7fb3f0", "#f0937a", "#5cc79f", "#c79be0", "#d9b44a", "#a0aab6"),
}
"""The two themes of figures. They use the colors of the page's color schemes (`templates/page.css`)."""

_LOSS, _GAIN = "C1", "C2"
_COLORS = 6
"""The number of colors of series in each theme."""

_MARKERS = "os^DvP"

_LOGARITHMIC_FROM_RATIO = 20
"""The minimum ratio of the largest to the smallest cost for which the axis is logarithmic."""

_MAX_NAMED_BARS = 40
"""The maximum number of bars that are labeled with their names. More bars are drawn as one area, and only the names at
both ends are shown."""

_NAMED_EXTREMES = 3
"""The number of names at each end, if there are more than `_MAX_NAMED_BARS` bars."""

_LEGEND_LABEL, _BAR_LABEL, _EXTREME_LABEL = 52, 22, 12
"""The maximum lengths of names in figures, in characters. The tables of the page contain the full names."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot in both themes, as SVG documents.

    `title` and `description` are the text alternative of the plot. `caption` is shown below it unless it is empty.
    """

    title: str
    description: str
    caption: str
    light: str
    dark: str


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a scatter plot. `y_interval` is the range of its error bar. Points of one `series` share a color."""

    name: str
    x: float
    y: float
    y_interval: tuple[float, float] | None = None
    series: str = ""


def pareto_set(points: Sequence[Point]) -> list[bool]:
    """Return whether each point is on the Pareto set.

    A point is on the Pareto set if no other point has the same or a lower cost `x` and the same or a higher quality
    `y`, and differs in at least one of them.
    """
    return [
        not any(
            other.x <= point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y) for other in points
        )
        for point in points
    ]


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    caption: str = "",
    connect_series: bool = False,
    pareto_mask: Sequence[bool] | None = None,
) -> Figure:
    """Draw quality (`y`, more is better) against cost (`x`, less is better). The description lists the points.

    Points on the Pareto set are filled and joined by a dashed line; all other points are hollow. The legend lists the
    points that have a name. If costs differ by a factor of 20 or more, the cost axis is logarithmic.

    Args:
        points: The points, at least one.
        title: The title in the text alternative.
        x_label: The label of the cost axis.
        y_label: The label of the quality axis.
        caption: The text below the figure (default: none).
        connect_series: Whether to join the points of each series by a line, in the given order.
        pareto_mask: Whether each point is on the Pareto set (default: computed from `points`).

    Raises:
        InputError: If there are no points.
        MissingExtra: If matplotlib is not installed.
    """
    if not points:
        raise InputError("there are no points to draw", "give at least one")
    is_optimal = pareto_set(points) if pareto_mask is None else pareto_mask
    series_names = list(dict.fromkeys(point.series for point in points))
    costs = [point.x for point in points]
    logarithmic = min(costs) > 0 and max(costs) / min(costs) >= _LOGARITHMIC_FROM_RATIO
    names = [point.name for point in points if point.name]
    legend_columns = 2 if max(map(len, names), default=0) <= _LEGEND_LABEL // 2 else 1

    def draw(axes: Any) -> None:
        frontier = sorted({(point.x, point.y) for point, optimal in zip(points, is_optimal, strict=True) if optimal})
        if frontier:
            axes.plot(*zip(*frontier, strict=True), "--", color="0.5", linewidth=1, drawstyle="steps-post")
        for number, series in enumerate(series_names):
            first_marker = number + number // _COLORS  # series with the same color have different shapes
            members = [
                (point, optimal) for point, optimal in zip(points, is_optimal, strict=True) if point.series == series
            ]
            if connect_series:
                axes.plot(
                    [point.x for point, _ in members], [point.y for point, _ in members], f"C{number}", linewidth=1.2
                )
            for member_number, (point, optimal) in enumerate(members):
                low, high = point.y_interval or (point.y, point.y)
                axes.errorbar(
                    point.x,
                    point.y,
                    [[max(point.y - low, 0.0)], [max(high - point.y, 0.0)]],
                    fmt=_MARKERS[(first_marker + (0 if connect_series else member_number)) % len(_MARKERS)],
                    color=f"C{number}",
                    markersize=8,
                    markeredgewidth=1.5,
                    fillstyle="full" if optimal else "none",
                    elinewidth=1,
                    label=_label(point.name, _LEGEND_LABEL) or None,
                )
        axes.margins(0.12, 0.15)
        axes.set(xlabel=x_label + (" (logarithmic)" if logarithmic else ""), title=y_label)
        axes.locator_params(axis="y", nbins=5)
        if logarithmic:
            axes.set_xscale("log", subs=(2, 5))
            axes.xaxis.set_minor_formatter("{x:,.10g}")
        else:
            axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter("{x:,.10g}")
        if names:
            axes.figure.legend(loc="outside lower left", ncols=legend_columns)

    description = "; ".join(
        f"{point.name or point.series}: {format_integer(point.x)}, {point.y:.4f}" for point in points
    )
    return _render(draw, title, description, caption, ceil(len(names) / legend_columns))


def bars(
    values: Sequence[tuple[str, float]],
    *,
    title: str,
    description: str,
    y_label: str,
    caption: str = "",
    y_range: tuple[float, float] = (0.0, 0.0),
) -> Figure:
    """Draw a bar up or down for each value, in the given order.

    Up to 40 bars are labeled with their names. If there are more bars, only the names at both ends are shown.

    Args:
        values: The name and the value of each bar, at least one.
        title: The title in the text alternative.
        description: The description in the text alternative.
        y_label: The label of the value axis.
        caption: The text below the figure (default: none).
        y_range: The smallest and the largest value that the axis must include, so that several figures can have the
            same scale.

    Raises:
        InputError: If there are no values.
        MissingExtra: If matplotlib is not installed.
    """
    if not values:
        raise InputError("there are no bars to draw", "give at least one value")
    names, heights = zip(*values, strict=True)
    count = len(values)
    lowest, highest = min(0.0, y_range[0], *heights), max(0.0, y_range[1], *heights)
    labels = [_label(name, _BAR_LABEL) for name in names]
    size = min(12, 330 / count)
    are_too_wide = max(map(len, labels)) * 0.55 * size > (WIDTH - 50) / count  # a character is about 0.55 em wide

    def draw(axes: Any) -> None:
        if count > _MAX_NAMED_BARS:
            axes.stairs([max(height, 0.0) for height in heights], fill=True, color=_GAIN)
            axes.stairs([min(height, 0.0) for height in heights], fill=True, color=_LOSS)
            axes.set_xticks([])
            gains = [name for name, height in values if height > 0][:_NAMED_EXTREMES]
            losses = [name for name, height in values if height < 0][-_NAMED_EXTREMES:]
            for corner, horizontal, vertical, side, extremes in (
                (0.97, "right", "top", "leftmost", gains),
                (0.03, "left", "bottom", "rightmost", losses),
            ):
                if extremes:
                    text = f"{side}: {', '.join(_label(name, _EXTREME_LABEL) for name in extremes)}"
                    axes.text(corner, corner, text, transform=axes.transAxes, ha=horizontal, va=vertical, fontsize=10)
        else:
            axes.bar(range(count), heights, color=[_GAIN if height > 0 else _LOSS for height in heights])
            axes.set_xticks(range(count), labels, rotation=90 if are_too_wide else 0, fontsize=size)
        axes.axhline(0, linewidth=1)
        axes.grid(axis="x", visible=False)
        axes.locator_params(axis="y", nbins=5)
        ticks = axes.yaxis.get_major_locator().tick_values(lowest, highest)
        axes.set(title=y_label, ylim=(ticks[0], ticks[-1]))
        axes.tick_params(axis="x", length=0)
        axes.spines["bottom"].set_visible(False)

    return _render(draw, title, description, caption)


def _label(name: str, max_length: int) -> str:
    """Return a name with control characters escaped for XML. The middle of a name that is too long is left out."""
    text = escape_control_characters(name)
    if text.startswith("_"):
        text = f" {text}"  # matplotlib leaves names that begin with _ out of legends
    half = max_length // 2
    return text if len(text) <= max_length else f"{text[:half]}…{text[1 - half :]}"


def _render(draw: Callable[[Any], None], title: str, description: str, caption: str, legend_rows: int = 0) -> Figure:
    """Draw the figure in both themes. The user's matplotlib settings have no effect."""
    figure_module, style = load("matplotlib.figure"), load("matplotlib.style")
    documents = {}
    for name, theme in THEMES.items():
        with style.context(_STYLE | theme, after_reset=True), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about missing glyphs: browsers use their own fonts
            size = (WIDTH / 72, (HEIGHT + 17 * legend_rows) / 72)
            figure = figure_module.Figure(figsize=size, layout="constrained")
            draw(figure.add_subplot())
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata={"Date": None, "Title": escape_control_characters(title)})
            documents[name] = file.getvalue()
    return Figure(title, description, caption, **documents)
