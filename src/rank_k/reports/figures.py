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
from rank_k.reports.charts import FONT, GAIN, HALO, INK, LOSS, PAPER, RULE, SERIES, SOFT, Chart

_SHAPES = ("o", "s", "^", "D", "v", "P")

_MOST_NAMED, _MOST_BARS = 40, 300
"""Above so many bars their names do not fit, and above so many they are drawn as one area."""


@dataclass(frozen=True, slots=True)
class Point:
    """A dot. `x_ends`, `y_ends`: where its error bars end. Points of one `series` share color and shape."""

    name: str
    x: float
    y: float
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None
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
    joined: bool = False,
    best: Sequence[bool] | None = None,
    description: str = "",
) -> str:
    """Quality (`y`, more is better) against cost (`x`, less is better). The Pareto set is filled and joined by a
    dashed line; what another point beats is hollow. `best`: which points are on it, where it is that of more points
    than these. `joined`: so are the points of each series, by a line in its color, in the order given. `title` and
    `description` are for those who cannot see it.

    Raises `InputError` where there is nothing to draw or a logarithm cannot be taken, `MissingExtra`.
    """
    if not points:
        raise InputError("there are no points to draw", "give at least one")
    if log_x and any(min((point.x, *(point.x_ends or ()))) <= 0 for point in points):
        raise InputError("a logarithmic axis has no place for zero", "draw it with log_x=False")
    sheet = Chart(title, description)
    best = pareto_set(points) if best is None else best
    names = list(dict.fromkeys(point.series for point in points))
    with sheet.axes(x_label, y_label) as axes:
        if log_x:
            axes.set_xscale("log")
        _ticks(axes.xaxis, log_x)
        _ticks(axes.yaxis, False)
        axes.grid(color=RULE, linewidth=0.8)
        frontier = sorted({(point.x, point.y) for point, is_best in zip(points, best, strict=True) if is_best})
        if frontier:
            axes.plot(*zip(*frontier, strict=True), "--", color=SOFT, linewidth=1, drawstyle="steps-post", zorder=1.5)
        for place, name in enumerate(names if joined else ()):
            some = [(point.x, point.y) for point in points if point.series == name]
            axes.plot(*zip(*some, strict=True), color=SERIES[place % len(SERIES)], linewidth=1.2, zorder=1.8)
        for number, (point, is_best) in enumerate(zip(points, best, strict=True)):
            place = names.index(point.series)
            color = SERIES[place % len(SERIES)]
            axes.errorbar(
                point.x,
                point.y,
                xerr=_error(point.x, point.x_ends),
                yerr=_error(point.y, point.y_ends),
                fmt="none",
                color=color,
                elinewidth=1,
                capsize=3,
            )
            (dot,) = axes.plot(
                point.x,
                point.y,
                _shape(place),
                markersize=8,
                markeredgewidth=1.5,
                color=color,
                markerfacecolor=color if is_best else PAPER,
                zorder=3,
            )
            dot.set_gid(sheet.explained(f"dot{number}", f"{point.name or point.series}: {point.x:,.6g}, {point.y:.4f}"))
        axes.margins(0.12, 0.15)
        if len(names) > 1:
            for place, name in enumerate(names):
                color, shape = SERIES[place % len(SERIES)], _shape(place)
                axes.plot([], [], shape, color=color, label=sheet.text(name))
            axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, handletextpad=0.2, labelcolor=INK)
        _name_points(axes, points, sheet)
    return sheet.svg()


def _shape(place: int) -> str:
    """Of the series at `place`: where colors begin again, shapes are others."""
    return _SHAPES[(place + place // len(SERIES)) % len(_SHAPES)]


def bars(
    values: Sequence[tuple[str, float]],
    *,
    title: str,
    y_label: str,
    description: str = "",
    ends: tuple[float, float] = (0.0, 0.0),
) -> str:
    """A bar up or down for each (name, value), in the order given. `ends`: what the axis must reach at least, for
    figures beside each other.

    Raises `InputError` where there is nothing to draw, `MissingExtra`.
    """
    if not values:
        raise InputError("there are no bars to draw", "give at least one value")
    sheet = Chart(title, description)
    heights = [value for _, value in values]
    with sheet.axes("", y_label) as axes:
        places = range(len(values))
        if len(values) > _MOST_BARS:
            for color, side in ((GAIN, [max(h, 0.0) for h in heights]), (LOSS, [min(h, 0.0) for h in heights])):
                axes.fill_between(places, side, step="mid", color=color, linewidth=0)
        else:
            colors = [GAIN if height > 0 else LOSS for height in heights]
            for number, bar in enumerate(axes.bar(places, heights, color=colors, width=0.8)):
                name, value = values[number]
                bar.set_gid(sheet.explained(f"bar{number}", f"{name}: {value:+.4f}"))
        axes.axhline(0, color=INK, linewidth=1)
        axes.set_xlim(-0.7, len(values) - 0.3)
        lowest, highest = min(0.0, ends[0], *heights), max(0.0, ends[1], *heights)
        room = 0.06 * (highest - lowest) or 0.05
        axes.set_ylim(lowest - room, highest + room)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        _ticks(axes.yaxis, False, signed=True)
        named = len(values) <= _MOST_NAMED
        axes.set_xticks(
            places if named else [],
            [sheet.text(name) for name, _ in values] if named else [],
            rotation=90 if len(values) > 6 else 0,
            fontsize=min(FONT, 330 / len(values)) if named else FONT,
        )
        axes.tick_params(axis="x", length=0)
        axes.spines["bottom"].set_visible(False)
    return sheet.svg()


def _error(at: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    """As matplotlib wants it: how far below and how far above."""
    return None if ends is None else [[max(at - ends[0], 0.0)], [max(ends[1] - at, 0.0)]]


def _ticks(axis: Any, logarithmic: bool, signed: bool = False) -> None:
    ticker = load("matplotlib.ticker")

    def written(value: float, _: int) -> str:
        sign = "−" if value < 0 else "+" if signed and value > 0 else ""
        return sign + (f"{abs(value):,.0f}" if abs(value) >= 1000 else f"{abs(value):.6g}")

    if logarithmic:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(ticker.NullLocator())
    else:
        axis.set_major_locator(ticker.MaxNLocator(5))
    axis.set_major_formatter(ticker.FuncFormatter(written))


_SIDES = (
    *((9, 0, "left", "center"), (-9, 0, "right", "center"), (0, 9, "center", "bottom"), (0, -9, "center", "top")),
    *((7, 7, "left", "bottom"), (7, -7, "left", "top"), (-7, 7, "right", "bottom"), (-7, -7, "right", "top")),
    *((0, 22, "center", "bottom"), (0, -22, "center", "top")),
)
"""Where the name of a point may stand: offset, and which side of the name is there."""


def _name_points(axes: Any, points: Sequence[Point], sheet: Chart) -> None:
    """Each name beside its point, where it covers least: no dot, then no other name, then no error bar."""
    axes.figure.draw_without_rendering()
    boxes = load("matplotlib.transforms").Bbox
    place = axes.transData.transform
    inside = axes.get_window_extent()
    taken: list[tuple[float, Any]] = []
    for point in points:
        x, y = place((point.x, point.y))
        taken.append((50.0, boxes.from_bounds(x - 6, y - 6, 12, 12)))
        for ends in ([(x, point.y) for x in point.x_ends or ()], [(point.x, y) for y in point.y_ends or ()]):
            if ends:
                taken.append((1.0, boxes.from_extents(*place(ends).ravel()).padded(1.5)))
    for point in (point for point in points if point.name):
        name = axes.annotate(sheet.text(point.name), (point.x, point.y), (0, 0), textcoords="offset points")
        name.set(in_layout=False, fontsize=FONT - 1, gid=HALO, zorder=2.5)

        def put(side: tuple[int, int, str, str], name: Any = name) -> Any:
            name.set_position(side[:2])
            name.set(horizontalalignment=side[2], verticalalignment=side[3])
            return name.get_window_extent().padded(2)

        def covered(side: tuple[int, int, str, str], put: Any = put) -> float:
            box = put(side)
            outside = _overlap(box, box) - _overlap(box, inside)
            return 9 * outside + sum(weight * _overlap(box, other) for weight, other in taken)

        taken.append((3.0, put(min(_SIDES, key=covered))))


def _overlap(one: Any, other: Any) -> float:
    """The area common to two boxes."""
    width = float(min(one.x1, other.x1) - max(one.x0, other.x0))
    height = float(min(one.y1, other.y1) - max(one.y0, other.y0))
    return 0.0 if width < 0 or height < 0 else width * height
