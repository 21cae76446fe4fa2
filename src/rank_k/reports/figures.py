"""Plots as strings of SVG, to stand inside a page: no file, no script, no style of their own, colors by theme
(`rank_k.reports.charts` says how). The same data gives the same bytes.

A page may set --ink, --soft, --rule, --paper, --gain, --loss and --series-1 ... --series-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.reports.charts import FONT, GAIN, HALO_ID, INK, LOSS, PAPER, RULE, SERIES_COLORS, SOFT, Chart

_MARKERS = ("o", "s", "^", "D", "v", "P")

_MAX_NAMED_BARS, _MAX_SEPARATE_BARS = 40, 300
"""Above so many bars their names do not fit, and above so many they are drawn as one area."""


@dataclass(frozen=True, slots=True)
class Point:
    """A dot. `x_interval`, `y_interval`: where its error bars end. Points of one `series` share color and shape."""

    name: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    series: str = ""


def pareto_set(points: Sequence[Point]) -> list[bool]:
    """Which points no other beats: none has as little `x` and as much `y`, and less or more of one of them."""
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
    log_x: bool = False,
    connect_series: bool = False,
    pareto_mask: Sequence[bool] | None = None,
    description: str = "",
) -> str:
    """Draw quality (`y`, more is better) against cost (`x`, less is better). Points on the Pareto set are filled and
    joined by a dashed line, the others are hollow. `pareto_mask`: which points are on the Pareto set; by default it is
    computed from `points`. `connect_series`: join the points of each series by a line in its color, in the order given.
    `title` and `description`: the text alternative of the figure.

    Raises `InputError` where there is nothing to draw or a logarithm cannot be taken, `MissingExtra`.
    """
    if not points:
        raise InputError("there are no points to draw", "give at least one")
    if log_x and any(min((point.x, *(point.x_interval or ()))) <= 0 for point in points):
        raise InputError("a logarithmic axis has no place for zero", "draw it with log_x=False")
    chart = Chart(title, description)
    pareto_mask = pareto_set(points) if pareto_mask is None else pareto_mask
    series_names = list(dict.fromkeys(point.series for point in points))
    with chart.axes(x_label, y_label) as axes:
        if log_x:
            axes.set_xscale("log")
        _format_ticks(axes.xaxis, log_x)
        _format_ticks(axes.yaxis, False)
        axes.grid(color=RULE, linewidth=0.8)
        frontier = sorted(
            {(point.x, point.y) for point, on_pareto_set in zip(points, pareto_mask, strict=True) if on_pareto_set}
        )
        if frontier:
            axes.plot(*zip(*frontier, strict=True), "--", color=SOFT, linewidth=1, drawstyle="steps-post", zorder=1.5)
        for series_index, series_name in enumerate(series_names if connect_series else ()):
            series_points = [(point.x, point.y) for point in points if point.series == series_name]
            axes.plot(
                *zip(*series_points, strict=True),
                color=SERIES_COLORS[series_index % len(SERIES_COLORS)],
                linewidth=1.2,
                zorder=1.8,
            )
        for number, (point, on_pareto_set) in enumerate(zip(points, pareto_mask, strict=True)):
            series_index = series_names.index(point.series)
            color = SERIES_COLORS[series_index % len(SERIES_COLORS)]
            axes.errorbar(
                point.x,
                point.y,
                xerr=_error_bar(point.x, point.x_interval),
                yerr=_error_bar(point.y, point.y_interval),
                fmt="none",
                color=color,
                elinewidth=1,
                capsize=3,
            )
            (marker,) = axes.plot(
                point.x,
                point.y,
                _marker(series_index),
                markersize=8,
                markeredgewidth=1.5,
                color=color,
                markerfacecolor=color if on_pareto_set else PAPER,
                zorder=3,
            )
            marker.set_gid(
                chart.add_tooltip(f"dot{number}", f"{point.name or point.series}: {point.x:,.6g}, {point.y:.4f}")
            )
        axes.margins(0.12, 0.15)
        if len(series_names) > 1:
            for series_index, series_name in enumerate(series_names):
                color, shape = SERIES_COLORS[series_index % len(SERIES_COLORS)], _marker(series_index)
                axes.plot([], [], shape, color=color, label=chart.add_text(series_name))
            axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, handletextpad=0.2, labelcolor=INK)
        _label_points(axes, points, chart)
    return chart.svg()


def _marker(series_index: int) -> str:
    """Of the series at `series_index`: where colors begin again, shapes are others."""
    return _MARKERS[(series_index + series_index // len(SERIES_COLORS)) % len(_MARKERS)]


def bars(
    values: Sequence[tuple[str, float]],
    *,
    title: str,
    y_label: str,
    description: str = "",
    y_range: tuple[float, float] = (0.0, 0.0),
) -> str:
    """A bar up or down for each (name, value), in the order given. `y_range`: what the axis must reach at least, for
    figures beside each other.

    Raises `InputError` where there is nothing to draw, `MissingExtra`.
    """
    if not values:
        raise InputError("there are no bars to draw", "give at least one value")
    chart = Chart(title, description)
    heights = [value for _, value in values]
    with chart.axes("", y_label) as axes:
        positions = range(len(values))
        if len(values) > _MAX_SEPARATE_BARS:
            for color, clipped_heights in (
                (GAIN, [max(height, 0.0) for height in heights]),
                (LOSS, [min(height, 0.0) for height in heights]),
            ):
                axes.fill_between(positions, clipped_heights, step="mid", color=color, linewidth=0)
        else:
            colors = [GAIN if height > 0 else LOSS for height in heights]
            for number, bar in enumerate(axes.bar(positions, heights, color=colors, width=0.8)):
                name, value = values[number]
                bar.set_gid(chart.add_tooltip(f"bar{number}", f"{name}: {value:+.4f}"))
        axes.axhline(0, color=INK, linewidth=1)
        axes.set_xlim(-0.7, len(values) - 0.3)
        lowest, highest = min(0.0, y_range[0], *heights), max(0.0, y_range[1], *heights)
        margin = 0.06 * (highest - lowest) or 0.05
        axes.set_ylim(lowest - margin, highest + margin)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        _format_ticks(axes.yaxis, False, signed=True)
        show_names = len(values) <= _MAX_NAMED_BARS
        axes.set_xticks(
            positions if show_names else [],
            [chart.add_text(name) for name, _ in values] if show_names else [],
            rotation=90 if len(values) > 6 else 0,
            fontsize=min(FONT, 330 / len(values)) if show_names else FONT,
        )
        axes.tick_params(axis="x", length=0)
        axes.spines["bottom"].set_visible(False)
    return chart.svg()


def _error_bar(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """As matplotlib wants it: how far below and how far above."""
    return None if interval is None else [[max(value - interval[0], 0.0)], [max(interval[1] - value, 0.0)]]


def _format_ticks(axis: Any, logarithmic: bool, signed: bool = False) -> None:
    ticker = load("matplotlib.ticker")

    def format_tick(value: float, _: int) -> str:
        sign = "−" if value < 0 else "+" if signed and value > 0 else ""
        return sign + (f"{abs(value):,.0f}" if abs(value) >= 1000 else f"{abs(value):.6g}")

    if logarithmic:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(ticker.NullLocator())
    else:
        axis.set_major_locator(ticker.MaxNLocator(5))
    axis.set_major_formatter(ticker.FuncFormatter(format_tick))


_LABEL_POSITIONS = (
    *((9, 0, "left", "center"), (-9, 0, "right", "center"), (0, 9, "center", "bottom"), (0, -9, "center", "top")),
    *((7, 7, "left", "bottom"), (7, -7, "left", "top"), (-7, 7, "right", "bottom"), (-7, -7, "right", "top")),
    *((0, 22, "center", "bottom"), (0, -22, "center", "top")),
)
"""Where the name of a point may stand: offset, and which side of the name is there."""


def _label_points(axes: Any, points: Sequence[Point], chart: Chart) -> None:
    """Each name beside its point, where it covers least: no dot, then no other name, then no error bar."""
    axes.figure.draw_without_rendering()
    bbox_class = load("matplotlib.transforms").Bbox
    to_pixels = axes.transData.transform
    axes_box = axes.get_window_extent()
    occupied: list[tuple[float, Any]] = []
    for point in points:
        x, y = to_pixels((point.x, point.y))
        occupied.append((50.0, bbox_class.from_bounds(x - 6, y - 6, 12, 12)))
        for bar_ends in (
            [(x, point.y) for x in point.x_interval or ()],
            [(point.x, y) for y in point.y_interval or ()],
        ):
            if bar_ends:
                occupied.append((1.0, bbox_class.from_extents(*to_pixels(bar_ends).ravel()).padded(1.5)))
    for point in (point for point in points if point.name):
        label = axes.annotate(chart.add_text(point.name), (point.x, point.y), (0, 0), textcoords="offset points")
        label.set(in_layout=False, fontsize=FONT - 1, gid=HALO_ID, zorder=2.5)

        def move_label(position: tuple[int, int, str, str], label: Any = label) -> Any:
            label.set_position(position[:2])
            label.set(horizontalalignment=position[2], verticalalignment=position[3])
            return label.get_window_extent().padded(2)

        def covered_area(position: tuple[int, int, str, str], move_label: Any = move_label) -> float:
            box = move_label(position)
            area_outside = _overlap_area(box, box) - _overlap_area(box, axes_box)
            return 9 * area_outside + sum(
                weight * _overlap_area(box, box_occupied) for weight, box_occupied in occupied
            )

        occupied.append((3.0, move_label(min(_LABEL_POSITIONS, key=covered_area))))


def _overlap_area(first: Any, second: Any) -> float:
    """The area common to two boxes."""
    width = float(min(first.x1, second.x1) - max(first.x0, second.x0))
    height = float(min(first.y1, second.y1) - max(first.y0, second.y0))
    return 0.0 if width < 0 or height < 0 else width * height
