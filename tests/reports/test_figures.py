"""Figures: SVG documents in two themes, with every text as text, the same for the same data."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import InputError
from rank_k.reports.figures import THEMES, Figure, Point, bars, pareto_set, scatter
from rank_k.reports.html import escape_control_characters, stylesheet

POINTS = [
    Point("sliding", 120_000, 0.512, (0.48, 0.54), "Rank-K"),
    Point("blocks", 90_000, 0.521, (0.49, 0.55), series="Rank-K"),
    Point("<script>alert(1)</script>", 20_000, 0.45, series="other"),
    Point("_$x^2$ 中文 שלום \udcff\x00", 22_000, 0.47, series="other"),
]
LABELS: dict[str, Any] = {"title": "Quality <1>", "caption": "c", "x_label": "tokens", "y_label": "nDCG@10"}
BAR_LABELS: dict[str, Any] = {"title": "t", "description": "d", "caption": "c", "y_label": "y"}
SVG = "{http://www.w3.org/2000/svg}"


def parse_svg(svg: str) -> ElementTree.Element:
    svg.encode()  # no half characters
    return ElementTree.fromstring(svg)


def text_elements(figure: Figure) -> list[str]:
    return [element.text or "" for element in parse_svg(figure.light).iter(f"{SVG}text")]


def filled_markers(svg: str) -> list[bool]:
    """Whether each point of a scatter plot is filled, by series. Markers are closed shapes, error bars are lines."""
    root = parse_svg(svg)
    [axes] = [group for group in root.iter(f"{SVG}g") if group.attrib.get("id") == "axes_1"]
    shapes = {f"#{path.get('id')}" for path in root.iter(f"{SVG}path") if path.attrib["d"].rstrip().endswith("z")}
    markers = [use for use in axes.iter(f"{SVG}use") if use.get("{http://www.w3.org/1999/xlink}href") in shapes]
    return ["fill-opacity: 0" not in marker.attrib["style"] for marker in markers]


def luminance(color: str) -> float:
    """Relative luminance by WCAG 2.2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("figure", [scatter(POINTS, **LABELS), bars([("a", 0.2), ("b", -0.1)], **BAR_LABELS)])
def test_figures_are_inert_documents_that_differ_in_colors_only(figure: Figure) -> None:
    for svg in (figure.light, figure.dark):
        tags = {element.tag.removeprefix(SVG) for element in parse_svg(svg).iter() if element.tag.startswith(SVG)}
        assert tags <= set("svg title metadata defs style g path use text clipPath rect".split())
        assert "@import" not in svg
        assert not re.search(r"\bon\w+=|url\((?!#)", svg)
    without_colors, dark_without_colors = (
        re.sub(r"#[0-9a-f]{6}\b|(?<=[#\"])[mp][0-9a-f]{10}", "", svg) for svg in (figure.light, figure.dark)
    )
    assert without_colors == dark_without_colors
    assert figure.light != figure.dark


@pytest.mark.parametrize("theme", THEMES)
def test_figure_colors_contrast_with_the_page(theme: str) -> None:
    light_paper, dark_paper = re.findall(r"--paper: (#[0-9a-f]{6})", stylesheet())
    paper = luminance(light_paper if theme == "light" else dark_paper)
    values = " ".join(value for name, value in THEMES[theme].items() if name != "grid.color")
    colors = set(re.findall(r"#[0-9a-f]{6}", values))
    assert len(colors) == 7
    for color in colors:
        ink = luminance(color)
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, f"{color}: WCAG 2.2 AA, text"
        assert color in stylesheet() or THEMES[theme]["axes.prop_cycle"].count(color) == 1


def test_scatter_writes_names_as_plain_text_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = scatter(POINTS, **LABELS)
    assert {"sliding", "blocks", "<script>alert(1)</script>"} <= set(text_elements(figure))
    assert " _$x^2$ 中文 שלום \\udcff\\x00" in text_elements(figure)
    assert "<script" not in figure.light
    assert parse_svg(figure.light).findtext(f"{SVG}title") == "Quality <1>"
    assert "<script>alert(1)</script>: 20,000, 0.4500" in figure.description
    long_name = scatter([Point("a" * 60 + "b" * 60, 1, 1)], **LABELS)
    assert "a" * 26 + "…" + "b" * 25 in text_elements(long_name)


def test_bars_are_identical_across_processes_and_matplotlib_settings() -> None:
    code = (
        "import matplotlib; matplotlib.rcParams.update({'font.size': 30, 'axes.grid': True, 'svg.fonttype': 'path'})\n"
        "import sys; from rank_k.reports.figures import bars\n"
        "figure = bars([('a', 0.5), ('b', -0.25)], title='t', description='d', caption='c', y_label='y')\n"
        "sys.stdout.write(figure.dark)\n"
        "assert matplotlib.rcParams['font.size'] == 30"
    )
    subprocess_svg = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert subprocess_svg == bars([("a", 0.5), ("b", -0.25)], **BAR_LABELS).dark


def test_scatter_fills_points_on_the_pareto_set() -> None:
    assert pareto_set(POINTS) == [False, True, True, True]
    assert pareto_set([Point("a", 1, 1), Point("b", 1, 1), Point("c", 1, 0.5)]) == [True, True, False]
    assert filled_markers(scatter(POINTS, **LABELS).light) == pareto_set(POINTS)


@pytest.mark.parametrize("mask", [[True, False, False, True], [False] * 4])
def test_scatter_accepts_explicit_pareto_mask(mask: list[bool]) -> None:
    assert filled_markers(scatter(POINTS, **LABELS, pareto_mask=mask).dark) == mask


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_pareto_set_dominates_every_other_point(values: list[tuple[int, int]]) -> None:
    points = [Point("", x, y) for x, y in values]
    pareto_points = [point for point, on_pareto_set in zip(points, pareto_set(points), strict=True) if on_pareto_set]
    for point in points:
        assert (point in pareto_points) != any(
            other.x <= point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y)
            for other in pareto_points
        )


def test_scatter_has_a_logarithmic_axis_for_costs_of_different_magnitude() -> None:
    figure = scatter([Point("a", 20_000, 0.5), Point("b", 1_000_000, 0.6)], **LABELS)
    assert {"20,000", "100,000", "1,000,000", "tokens (logarithmic)"} <= set(text_elements(figure))
    assert "tokens" in text_elements(scatter(POINTS, **LABELS))
    assert "tokens" in text_elements(scatter([Point("free", 0, 0.5), *POINTS], **LABELS)), "no logarithm of zero"
    with pytest.raises(InputError, match="no points"):
        scatter([], **LABELS)


def test_scatter_legend_lists_named_points() -> None:
    points = [Point("whole" if n == 3 else "", n, n / 10, series="cell") for n in range(4)]
    texts = text_elements(scatter(points, **LABELS, connect_series=True))
    assert texts.count("whole") == 1
    assert "cell" not in texts


def test_bars_show_names_only_where_they_fit() -> None:
    few_bars = bars([("q1", 0.2), ("q2", 0.0), ("q3", -0.1)], **BAR_LABELS)
    assert {"q1", "q2", "q3", "0.0"} <= set(text_elements(few_bars))
    many_bars = bars([(f"q{n}", 0.3 - n / 2000) for n in range(1200)], **BAR_LABELS)
    assert "q1" not in text_elements(many_bars)
    assert len(many_bars.light) < 150_000
    assert {"leftmost: q0, q1, q2", "rightmost: q1197, q1198, q1199"} <= set(text_elements(many_bars))
    only_gains = text_elements(bars([(f"q{n}", 0.1) for n in range(50)], **BAR_LABELS))
    assert any(text.startswith("leftmost") for text in only_gains)
    assert not any(text.startswith("rightmost") for text in only_gains)
    with pytest.raises(InputError, match="no bars"):
        bars([], **BAR_LABELS)


@pytest.mark.parametrize(
    ("names", "is_rotated"), [(["hard", "middle", "easy"], False), ([f"topic-number-{n:08}" for n in range(5)], True)]
)
def test_bars_rotate_names_that_would_overlap(names: list[str], is_rotated: bool) -> None:
    root = parse_svg(bars([(name, 0.1) for name in names], **BAR_LABELS).light)
    labels = [element for element in root.iter(f"{SVG}text") if element.text in names]
    assert len(labels) == len(names)
    assert all(("rotate(-90" in label.attrib["transform"]) is is_rotated for label in labels)


@pytest.mark.parametrize("heights", [(0.37, -0.13), (0.06, 0.0), (0.0, 0.0)])
def test_bars_axis_ends_at_ticks(heights: tuple[float, float]) -> None:
    figure = bars([("a", heights[0]), ("b", heights[1])], **BAR_LABELS)
    values = [
        float(text.replace("\u2212", "-")) for text in text_elements(figure) if re.fullmatch(r"[\u2212-]?[\d.]+", text)
    ]
    assert min(values) <= min(heights)
    assert max(values) >= max(heights)
    assert len(values) >= 3


def test_escape_control_characters() -> None:
    assert escape_control_characters("a\x00\x1b[31m\udcff\x85é中") == "a\\x00\\x1b[31m\\udcff\\x85é中"
