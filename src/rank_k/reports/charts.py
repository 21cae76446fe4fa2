"""A sheet to draw a figure on: matplotlib draws in placeholders, and what comes out is rewritten.

Colors become CSS variables of the page (with the light theme's as fallback, so that a figure also stands alone),
names come in as text that nothing measures or parses, ids are made the figure's own, and the rest of matplotlib's
styling turns into attributes, which a page under a strict Content-Security-Policy may have.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from rank_k.optional_deps import load

WIDTH, HEIGHT, FONT = 480, 300, 12
"""Of a figure, in units that are CSS pixels where it is shown in its own size."""

_COLORS = {
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
INK, SOFT, RULE, PAPER, GAIN, LOSS, *SERIES_COLORS = _COLORS
HALO_ID = "halo"

_MAX_LABEL_LENGTH = 22
"""Characters of a name in a figure; the page's tables have the whole."""


def escape_label(text: str) -> str:
    """`text` as XML and UTF-8 can hold it: control characters and undecodable bytes written as escapes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if (unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n") or character in "\ufffe\uffff"
        else character
        for character in text
    )


@dataclass
class Chart:
    """One figure being drawn: matplotlib's, and what its placeholders stand for."""

    title: str
    description: str
    texts: dict[str, str] = field(default_factory=dict)
    tooltips: dict[str, str] = field(default_factory=dict)
    svg_source: str = ""

    @contextmanager
    def axes(self, x_label: str, y_label: str) -> Iterator[Any]:
        """Axes to draw on, in matplotlib's own defaults whatever the user's are."""
        matplotlib, figure_module = load("matplotlib"), load("matplotlib.figure")
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(
                {"svg.fonttype": "none", "svg.hashsalt": "rank-k", "font.size": FONT, "axes.edgecolor": SOFT}
                | {
                    "text.color": INK,
                    "axes.titlecolor": INK,
                    "axes.labelcolor": INK,
                    "xtick.color": SOFT,
                    "ytick.color": SOFT,
                }
                | {"xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.axisbelow": True}
                | {"axes.spines.top": False, "axes.spines.right": False, "hatch.color": INK}
            )
            figure = figure_module.Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, layout="constrained")
            axes = figure.add_subplot()
            axes.set_xlabel(self.add_text(x_label, 60))
            axes.set_title(self.add_text(y_label, 40), loc="left", fontsize=FONT)  # read without turning one's head
            yield axes
            svg_file = io.StringIO()
            empty_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(svg_file, format="svg", transparent=True, metadata=empty_metadata)
            self.svg_source = svg_file.getvalue()

    def add_text(self, text: str, max_length: int = _MAX_LABEL_LENGTH) -> str:
        """A placeholder about as wide as `text`, which takes its place at the end."""
        if not text:
            return ""
        text = escape_label(text)
        label = text if len(text) <= max_length else f"{text[: max_length // 2]}…{text[-(max_length // 2 - 1) :]}"
        width = sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in label)
        placeholder = f"@{len(self.texts)}@".ljust(width, "n")
        self.texts[placeholder] = label
        return placeholder

    def add_tooltip(self, mark: str, text: str) -> str:
        """`mark`, whose element will say `text` when pointed at."""
        self.tooltips[mark] = escape_label(text)
        return mark

    def svg(self) -> str:
        root = ElementTree.fromstring(self.svg_source)
        id_prefix = (
            "f" + hashlib.sha256((self.title + self.svg_source).encode("utf-8", "surrogatepass")).hexdigest()[:8]
        )
        referenced_ids = set(re.findall(r'(?:href="#|url\(#)([^")]+)', self.svg_source))
        for element in root.iter():
            self._rewrite_element(element, id_prefix, referenced_ids)
        for parent in root.iter():
            for child in [child for child in parent if child.tag in ("style", "metadata")]:
                parent.remove(child)
        descriptions = [("title", f"{id_prefix}-title", self.title), ("desc", f"{id_prefix}-desc", self.description)]
        label_ids = []
        for position, (tag, identifier, text) in enumerate(entry for entry in descriptions if entry[2]):
            element = ElementTree.Element(tag, {"id": identifier})
            element.text = escape_label(text)
            root.insert(position, element)
            label_ids.append(identifier)
        root.attrib = {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {HEIGHT}",
            "role": "img",
            "aria-labelledby": " ".join(label_ids),
            "font-family": "system-ui, sans-serif",
            "stroke-linejoin": "round",
        }
        return ElementTree.tostring(root, encoding="unicode")

    def _rewrite_element(self, element: ElementTree.Element, id_prefix: str, referenced_ids: set[str]) -> None:
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        for declaration in attributes.pop("style", "").split(";"):
            name, _, value = (part.strip() for part in declaration.partition(":"))
            if name and name != "font-family":
                attributes[name] = _COLORS.get(value, value.removesuffix("px") if name == "font-size" else value)
        identifier = attributes.pop("id", "")
        if identifier in referenced_ids:
            attributes["id"] = f"{id_prefix}-{identifier}"
        for name in ("href", "clip-path"):
            if name in attributes:
                attributes[name] = attributes[name].replace("#", f"#{id_prefix}-", 1)
        if "d" in attributes:
            attributes["d"] = " ".join(_round_numbers(attributes["d"]).split())
        if identifier == HALO_ID:  # readable where it crosses a line
            attributes |= {"stroke": _COLORS[PAPER], "stroke-width": "3", "paint-order": "stroke"}
        if identifier in self.tooltips:
            explanation = ElementTree.Element("title")
            explanation.text = self.tooltips[identifier]
            element.insert(0, explanation)
        element.attrib = {
            name: _round_numbers(value) if name in ("x", "y", "transform", "width", "height") else value
            for name, value in attributes.items()
        }
        if element.text is not None:
            element.text = self.texts.get(element.text, element.text).strip("\n")
        element.tail = None


def _round_numbers(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), numbers)
