"""Plots as strings of SVG, to stand inside a page: no file, no script, no style of their own, colours by theme.

matplotlib draws in placeholders. What comes out is then rewritten: colours become CSS variables of the page
(with the light theme's as fallback, so that a figure also stands alone), names come in as text that nothing
measures or parses, ids are made the figure's own, and the rest of matplotlib's styling turns into attributes,
which a page under a strict Content-Security-Policy may have. The same data gives the same bytes.

A page may set --ink, --soft, --rule, --paper, --gain, --loss and --series-1 ... --series-6.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from rank_k.errors import InputError
from rank_k.extras import load

WIDTH, HEIGHT, FONT = 480, 300, 12
"""Of a figure, in units that are CSS pixels where it is shown in its own size."""

_COLOURS = {
    "#010101": "var(--ink, #1c2128)",
    "#010102": "var(--soft, #59636e)",
    "#010103": "var(--rule, #d8dde3)",
    "#010104": "var(--paper, #ffffff)",
    "#010105": "var(--gain, #17795a)",
    "#010106": "var(--loss, #b4472c)",
    "#010201": "var(--series-1, #1f62b0)",
    "#010202": "var(--series-2, #b4472c)",
    "#010203": "var(--series-3, #17795a)",
    "#010204": "var(--series-4, #8a4aa8)",
    "#010205": "var(--series-5, #8f6a00)",
    "#010206": "var(--series-6, #59636e)",
}
_INK, _SOFT, _RULE, _PAPER, _GAIN, _LOSS, *_SERIES = _COLOURS
_SHAPES = ("o", "s", "^", "D", "v", "P")

_HALO = "halo"

_MOST_NAMED, _MOST_BARS = 40, 300
"""Above so many bars their names do not fit, and above so many they are drawn as one area."""

_LONGEST = 22
"""Characters of a name in a figure; the page's tables have the whole."""


@dataclass(frozen=True, slots=True)
class Point:
    """A dot. `x_ends`, `y_ends`: where its error bars end. Points of one `series` share colour and shape."""

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
    description: str = "",
) -> str:
    """Quality (`y`, more is better) against cost (`x`, less is better). The Pareto set is filled and joined by a
    dashed line; what another point beats is hollow. `joined`: so are the points of each series, by a line in its
    colour, in the order given. `title` and `description` are for those who cannot see it.

    Raises `InputError` where there is nothing to draw or a logarithm cannot be taken, `MissingExtra`.
    """
    if not points:
        raise InputError("there are no points to draw", "give at least one")
    if log_x and any(min((point.x, *(point.x_ends or ()))) <= 0 for point in points):
        raise InputError("a logarithmic axis has no place for zero", "draw it with log_x=False")
    sheet = _Sheet(title, description)
    best = pareto_set(points)
    names = list(dict.fromkeys(point.series for point in points))
    with sheet.axes(x_label, y_label) as axes:
        if log_x:
            axes.set_xscale("log")
        _ticks(axes.xaxis, log_x)
        _ticks(axes.yaxis, False)
        axes.grid(color=_RULE, linewidth=0.8)
        frontier = sorted({(point.x, point.y) for point, is_best in zip(points, best, strict=True) if is_best})
        axes.plot(*zip(*frontier, strict=True), "--", color=_SOFT, linewidth=1, drawstyle="steps-post", zorder=1.5)
        for place, name in enumerate(names if joined else ()):
            some = [(point.x, point.y) for point in points if point.series == name]
            axes.plot(*zip(*some, strict=True), color=_SERIES[place % len(_SERIES)], linewidth=1.2, zorder=1.8)
        for number, (point, is_best) in enumerate(zip(points, best, strict=True)):
            place = names.index(point.series)
            colour = _SERIES[place % len(_SERIES)]
            axes.errorbar(
                point.x,
                point.y,
                xerr=_error(point.x, point.x_ends),
                yerr=_error(point.y, point.y_ends),
                fmt="none",
                color=colour,
                elinewidth=1,
                capsize=3,
            )
            (dot,) = axes.plot(
                point.x,
                point.y,
                _shape(place),
                markersize=8,
                markeredgewidth=1.5,
                color=colour,
                markerfacecolor=colour if is_best else _PAPER,
                zorder=3,
            )
            dot.set_gid(sheet.explained(f"dot{number}", f"{point.name or point.series}: {point.x:,.6g}, {point.y:.4f}"))
        axes.margins(0.12, 0.15)
        if len(names) > 1:
            for place, name in enumerate(names):
                colour, shape = _SERIES[place % len(_SERIES)], _shape(place)
                axes.plot([], [], shape, color=colour, label=sheet.text(name))
            axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, handletextpad=0.2, labelcolor=_INK)
        _name_points(axes, points, sheet)
    return sheet.svg()


def _shape(place: int) -> str:
    """Of the series at `place`: where colours begin again, shapes are others."""
    return _SHAPES[(place + place // len(_SERIES)) % len(_SHAPES)]


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
    sheet = _Sheet(title, description)
    heights = [value for _, value in values]
    with sheet.axes("", y_label) as axes:
        places = range(len(values))
        if len(values) > _MOST_BARS:
            for colour, side in ((_GAIN, [max(h, 0.0) for h in heights]), (_LOSS, [min(h, 0.0) for h in heights])):
                axes.fill_between(places, side, step="mid", color=colour, linewidth=0)
        else:
            colours = [_GAIN if height > 0 else _LOSS for height in heights]
            for number, bar in enumerate(axes.bar(places, heights, color=colours, width=0.8)):
                name, value = values[number]
                bar.set_gid(sheet.explained(f"bar{number}", f"{name}: {value:+.4f}"))
        axes.axhline(0, color=_INK, linewidth=1)
        axes.set_xlim(-0.7, len(values) - 0.3)
        lowest, highest = min(0.0, ends[0], *heights), max(0.0, ends[1], *heights)
        room = 0.06 * (highest - lowest) or 0.05
        axes.set_ylim(lowest - room, highest + room)
        axes.grid(axis="y", color=_RULE, linewidth=0.8)
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


def legible(text: str) -> str:
    """`text` as XML and UTF-8 can hold it: control characters and undecodable bytes written as escapes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if (unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n") or character in "\ufffe\uffff"
        else character
        for character in text
    )


@dataclass
class _Sheet:
    """One figure being drawn: matplotlib's, and what its placeholders stand for."""

    title: str
    description: str
    texts: dict[str, str] = field(default_factory=dict)
    explanations: dict[str, str] = field(default_factory=dict)
    drawn: str = ""

    @contextmanager
    def axes(self, x_label: str, y_label: str) -> Iterator[Any]:
        """Axes to draw on, in matplotlib's own defaults whatever the user's are."""
        matplotlib, figures = load("matplotlib"), load("matplotlib.figure")
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(
                {"svg.fonttype": "none", "svg.hashsalt": "rank-k", "font.size": FONT, "axes.edgecolor": _SOFT}
                | {
                    "text.color": _INK,
                    "axes.titlecolor": _INK,
                    "axes.labelcolor": _INK,
                    "xtick.color": _SOFT,
                    "ytick.color": _SOFT,
                }
                | {"xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "axes.axisbelow": True}
                | {"axes.spines.top": False, "axes.spines.right": False, "hatch.color": _INK}
            )
            figure = figures.Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, layout="constrained")
            axes = figure.add_subplot()
            axes.set_xlabel(self.text(x_label, 60))
            axes.set_title(self.text(y_label, 40), loc="left", fontsize=FONT)  # read without turning one's head
            yield axes
            written = io.StringIO()
            unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(written, format="svg", transparent=True, metadata=unsaid)
            self.drawn = written.getvalue()

    def text(self, text: str, longest: int = _LONGEST) -> str:
        """A placeholder about as wide as `text`, which takes its place at the end."""
        if not text:
            return ""
        text = legible(text)
        shown = text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"
        width = sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in shown)
        placeholder = f"@{len(self.texts)}@".ljust(width, "n")
        self.texts[placeholder] = shown
        return placeholder

    def explained(self, mark: str, text: str) -> str:
        """`mark`, whose element will say `text` when pointed at."""
        self.explanations[mark] = legible(text)
        return mark

    def svg(self) -> str:
        root = ElementTree.fromstring(self.drawn)
        own = "f" + hashlib.sha256((self.title + self.drawn).encode("utf-8", "surrogatepass")).hexdigest()[:8]
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', self.drawn))
        for element in root.iter():
            self._rewrite(element, own, used)
        for parent in root.iter():
            for child in [child for child in parent if child.tag in ("style", "metadata")]:
                parent.remove(child)
        said = [("title", f"{own}-title", self.title), ("desc", f"{own}-desc", self.description)]
        labels = []
        for place, (tag, identifier, text) in enumerate(entry for entry in said if entry[2]):
            element = ElementTree.Element(tag, {"id": identifier})
            element.text = legible(text)
            root.insert(place, element)
            labels.append(identifier)
        root.attrib = {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {HEIGHT}",
            "role": "img",
            "aria-labelledby": " ".join(labels),
            "font-family": "system-ui, sans-serif",
            "stroke-linejoin": "round",
        }
        return ElementTree.tostring(root, encoding="unicode")

    def _rewrite(self, element: ElementTree.Element, own: str, used: set[str]) -> None:
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        for declaration in attributes.pop("style", "").split(";"):
            name, _, value = (part.strip() for part in declaration.partition(":"))
            if name and name != "font-family":
                attributes[name] = _COLOURS.get(value, value.removesuffix("px") if name == "font-size" else value)
        identifier = attributes.pop("id", "")
        if identifier in used:
            attributes["id"] = f"{own}-{identifier}"
        for name in ("href", "clip-path"):
            if name in attributes:
                attributes[name] = attributes[name].replace("#", f"#{own}-", 1)
        if "d" in attributes:
            attributes["d"] = " ".join(_rounded(attributes["d"]).split())
        if identifier == _HALO:  # readable where it crosses a line
            attributes |= {"stroke": _COLOURS[_PAPER], "stroke-width": "3", "paint-order": "stroke"}
        if identifier in self.explanations:
            explanation = ElementTree.Element("title")
            explanation.text = self.explanations[identifier]
            element.insert(0, explanation)
        element.attrib = {
            name: _rounded(value) if name in ("x", "y", "transform", "width", "height") else value
            for name, value in attributes.items()
        }
        if element.text is not None:
            element.text = self.texts.get(element.text, element.text).strip("\n")
        element.tail = None


def _rounded(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), numbers)


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


def _name_points(axes: Any, points: Sequence[Point], sheet: _Sheet) -> None:
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
        name.set(in_layout=False, fontsize=FONT - 1, gid=_HALO, zorder=2.5)

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
