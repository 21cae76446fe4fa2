"""Figures: strings of SVG that a strict page may hold, in the page's colors, the same for the same data."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import InputError
from rank_k.reports.charts import escape_label
from rank_k.reports.figures import Point, bars, pareto_set, scatter

POINTS = [
    Point("sliding", 120_000, 0.512, (110_000, 130_000), (0.48, 0.54), "Rank-K"),
    Point("blocks", 90_000, 0.521, y_interval=(0.49, 0.55), series="Rank-K"),
    Point("<script>alert(1)</script>", 20_000, 0.45, series="other"),
    Point("$x^2$ 中文 שלום \udcff\x00", 22_000, 0.47, series="other"),
]
LABELS: dict[str, Any] = {"title": "Quality against tokens", "x_label": "tokens", "y_label": "nDCG@10"}
SVG = "{http://www.w3.org/2000/svg}"


def parse_svg(svg: str) -> ElementTree.Element:
    svg.encode()  # no half characters
    return ElementTree.fromstring(svg)


def text_elements(svg: str) -> list[str]:
    return [element.text or "" for element in parse_svg(svg).iter(f"{SVG}text")]


def titled_elements(svg: str) -> dict[str, ElementTree.Element]:
    """The elements that explain themselves when pointed at, by what they say."""
    root = parse_svg(svg)
    return {
        title.text or "": element
        for element in root.iter()
        if element is not root
        for title in element.findall(f"{SVG}title")
    }


@pytest.mark.parametrize("svg", [scatter(POINTS, **LABELS), bars([("a", 0.2), ("b", -0.1)], title="t", y_label="d")])
def test_figures_use_only_allowed_elements_and_page_colors(svg: str) -> None:
    root = parse_svg(svg)
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in set("svg title desc g path use defs text clipPath rect".split())
        assert "style" not in element.attrib
        assert not [name for name in element.attrib if name.startswith("on")]
        assert element.get("href", "#").startswith("#")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\")", svg)
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg.replace('href="#', ""))) == set(
        re.findall(r"var\(--[a-z0-9-]+, (#[0-9a-f]{6})\)", svg)
    ), "every color is the page's, with the light theme's to fall back on"


def test_scatter_ids_are_complete_and_unique_across_figures() -> None:
    first_svg, second_svg = scatter(POINTS, **LABELS), scatter(POINTS, **{**LABELS, "title": "Quality against calls"})
    ids_by_figure = [
        [element.attrib["id"] for element in parse_svg(svg).iter() if "id" in element.attrib]
        for svg in (first_svg, second_svg)
    ]
    assert len(set(ids_by_figure[0] + ids_by_figure[1])) == len(ids_by_figure[0]) + len(ids_by_figure[1])
    referenced_ids = set(re.findall(r'(?:href="#|url\(#)([^")]+)', first_svg)) | set(
        parse_svg(first_svg).attrib["aria-labelledby"].split()
    )
    assert referenced_ids == set(ids_by_figure[0])


def test_scatter_writes_names_as_plain_text() -> None:
    svg = scatter(POINTS, **LABELS)
    assert {"sliding", "blocks", "<script>ale…)</script>", "$x^2$ 中文 של…\\udcff\\x00"} <= set(text_elements(svg))
    assert "<script" not in svg
    assert parse_svg(svg).findtext(f"{SVG}title") == "Quality against tokens"
    assert "<script>alert(1)</script>: 20,000, 0.4500" in titled_elements(svg)


def test_bars_are_identical_across_processes_and_matplotlib_settings() -> None:
    code = (
        "import matplotlib; matplotlib.rcParams.update({'font.size': 30, 'axes.grid': True, 'svg.fonttype': 'path'})\n"
        "import sys; from rank_k.reports.figures import bars\n"
        "sys.stdout.write(bars([('a', 0.5), ('b', -0.25)], title='t', y_label='d'))\n"
        "assert matplotlib.rcParams['font.size'] == 30"
    )
    subprocess_svg = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert subprocess_svg == bars([("a", 0.5), ("b", -0.25)], title="t", y_label="d")


def test_scatter_fills_points_on_the_pareto_set() -> None:
    assert pareto_set(POINTS) == [False, True, True, True]
    assert pareto_set([Point("a", 1, 1), Point("b", 1, 1), Point("c", 1, 0.5)]) == [True, True, False]
    elements = titled_elements(scatter(POINTS, **LABELS))
    is_filled = {
        title.partition(":")[0]: "--paper" not in ElementTree.tostring(element, "unicode")
        for title, element in elements.items()
    }
    assert is_filled == {
        point.name if point.name.isprintable() else escape_label(point.name): on_pareto_set
        for point, on_pareto_set in zip(POINTS, pareto_set(POINTS), strict=True)
    }


@pytest.mark.parametrize("mask", [[True, False, False, True], [False] * 4])
def test_scatter_accepts_explicit_pareto_mask(mask: list[bool]) -> None:
    elements = titled_elements(scatter(POINTS, **LABELS, pareto_mask=mask)).values()
    assert ["--paper" not in ElementTree.tostring(element, "unicode") for element in elements] == mask


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_pareto_set_dominates_every_other_point(values: list[tuple[int, int]]) -> None:
    points = [Point("", x, y) for x, y in values]
    pareto_points = [point for point, on_pareto_set in zip(points, pareto_set(points), strict=True) if on_pareto_set]
    for point in points:
        assert (point in pareto_points) != any(
            other.x <= point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y)
            for other in pareto_points
        )


def test_scatter_supports_logarithmic_axis() -> None:
    assert {"20,000", "50,000", "100,000"} <= set(text_elements(scatter(POINTS, log_x=True, **LABELS)))
    with pytest.raises(InputError, match="logarithmic"):
        scatter([Point("free", 0, 0.5)], log_x=True, **LABELS)
    with pytest.raises(InputError, match="no points"):
        scatter([], **LABELS)


def test_bars_show_names_only_where_they_fit() -> None:
    few_bars = bars([("q1", 0.2), ("q2", 0.0), ("q3", -0.1)], title="t", y_label="d")
    assert set(titled_elements(few_bars)) == {"q1: +0.2000", "q2: +0.0000", "q3: -0.1000"}
    assert {"q1", "q2", "q3", "0"} <= set(text_elements(few_bars))
    many_bars = bars([(f"q{n}", 0.1) for n in range(100)], title="t", y_label="d")
    assert len(titled_elements(many_bars)) == 100
    assert "q1" not in text_elements(many_bars)
    area_chart = bars([(f"q{n}", 0.3 - n / 2000) for n in range(1200)], title="t", y_label="d")
    assert len(titled_elements(area_chart)) == 0
    assert len(area_chart) < 300_000
    with pytest.raises(InputError, match="no bars"):
        bars([], title="t", y_label="d")


def test_escape_label_escapes_control_characters() -> None:
    assert escape_label("a\x00\x1b[31m\udcff\x85é中") == "a\\x00\\x1b[31m\\udcff\\x85é中"
