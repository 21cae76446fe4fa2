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
from rank_k.reports.charts import truncate_label
from rank_k.reports.figures import Point, bars, pareto_set, scatter

POINTS = [
    Point("sliding", 120_000, 0.512, (110_000, 130_000), (0.48, 0.54), "Rank-K"),
    Point("blocks", 90_000, 0.521, y_ends=(0.49, 0.55), series="Rank-K"),
    Point("<script>alert(1)</script>", 20_000, 0.45, series="other"),
    Point("$x^2$ 中文 שלום \udcff\x00", 22_000, 0.47, series="other"),
]
LABELS: dict[str, Any] = {"title": "Quality against tokens", "x_label": "tokens", "y_label": "nDCG@10"}
SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg: str) -> ElementTree.Element:
    svg.encode()  # no half characters
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in drawn(svg).iter(f"{SVG}text")]


def points(svg: str) -> dict[str, ElementTree.Element]:
    """The elements that explain themselves when pointed at, by what they say."""
    whole = drawn(svg)
    return {
        title.text or "": element
        for element in whole.iter()
        if element is not whole
        for title in element.findall(f"{SVG}title")
    }


@pytest.mark.parametrize("svg", [scatter(POINTS, **LABELS), bars([("a", 0.2), ("b", -0.1)], title="t", y_label="d")])
def test_nothing_in_it_needs_more_than_a_page_gives(svg: str) -> None:
    root = drawn(svg)
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in set("svg title desc g path use defs text clipPath rect".split())
        assert "style" not in element.attrib
        assert not [name for name in element.attrib if name.startswith("on")]
        assert element.get("href", "#").startswith("#")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\")", svg)
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg.replace('href="#', ""))) == set(
        re.findall(r"var\(--[a-z0-9-]+, (#[0-9a-f]{6})\)", svg)
    ), "every color is the page's, with the light theme's to fall back on"


def test_what_is_referred_to_is_there_and_ids_do_not_meet_those_of_another_figure() -> None:
    one, other = scatter(POINTS, **LABELS), scatter(POINTS, **{**LABELS, "title": "Quality against calls"})
    found = [[element.attrib["id"] for element in drawn(svg).iter() if "id" in element.attrib] for svg in (one, other)]
    assert len(set(found[0] + found[1])) == len(found[0]) + len(found[1])
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', one)) | set(drawn(one).attrib["aria-labelledby"].split())
    assert referred == set(found[0])


def test_names_are_text_whatever_they_hold() -> None:
    svg = scatter(POINTS, **LABELS)
    assert {"sliding", "blocks", "<script>ale…)</script>", "$x^2$ 中文 של…\\udcff\\x00"} <= set(texts(svg))
    assert "<script" not in svg
    assert drawn(svg).findtext(f"{SVG}title") == "Quality against tokens"
    assert "<script>alert(1)</script>: 20,000, 0.4500" in points(svg)


def test_the_same_data_gives_the_same_bytes_in_another_process_and_under_other_settings() -> None:
    code = (
        "import matplotlib; matplotlib.rcParams.update({'font.size': 30, 'axes.grid': True, 'svg.fonttype': 'path'})\n"
        "import sys; from rank_k.reports.figures import bars\n"
        "sys.stdout.write(bars([('a', 0.5), ('b', -0.25)], title='t', y_label='d'))\n"
        "assert matplotlib.rcParams['font.size'] == 30"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other == bars([("a", 0.5), ("b", -0.25)], title="t", y_label="d")


def test_the_pareto_set_is_filled_and_the_rest_hollow() -> None:
    assert pareto_set(POINTS) == [False, True, True, True]
    assert pareto_set([Point("a", 1, 1), Point("b", 1, 1), Point("c", 1, 0.5)]) == [True, True, False]
    dots = points(scatter(POINTS, **LABELS))
    filled = {
        said.partition(":")[0]: "--paper" not in ElementTree.tostring(dot, "unicode") for said, dot in dots.items()
    }
    assert filled == {
        point.name if point.name.isprintable() else truncate_label(point.name): best
        for point, best in zip(POINTS, pareto_set(POINTS), strict=True)
    }


@pytest.mark.parametrize("best", [[True, False, False, True], [False] * 4])
def test_the_pareto_set_may_be_that_of_more_points(best: list[bool]) -> None:
    dots = points(scatter(POINTS, **LABELS, best=best)).values()
    assert ["--paper" not in ElementTree.tostring(dot, "unicode") for dot in dots] == best


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_every_point_is_in_the_pareto_set_or_beaten_by_one_that_is(values: list[tuple[int, int]]) -> None:
    given_points = [Point("", x, y) for x, y in values]
    best = [point for point, is_best in zip(given_points, pareto_set(given_points), strict=True) if is_best]
    for point in given_points:
        assert (point in best) != any(
            other.x <= point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y) for other in best
        )


def test_costs_on_a_logarithmic_axis() -> None:
    assert {"20,000", "50,000", "100,000"} <= set(texts(scatter(POINTS, log_x=True, **LABELS)))
    with pytest.raises(InputError, match="logarithmic"):
        scatter([Point("free", 0, 0.5)], log_x=True, **LABELS)
    with pytest.raises(InputError, match="no points"):
        scatter([], **LABELS)


def test_bars_say_what_they_are_and_are_named_where_there_is_room() -> None:
    few = bars([("q1", 0.2), ("q2", 0.0), ("q3", -0.1)], title="t", y_label="d")
    assert set(points(few)) == {"q1: +0.2000", "q2: +0.0000", "q3: -0.1000"}
    assert {"q1", "q2", "q3", "0"} <= set(texts(few))
    many = bars([(f"q{n}", 0.1) for n in range(100)], title="t", y_label="d")
    assert len(points(many)) == 100
    assert "q1" not in texts(many)
    area = bars([(f"q{n}", 0.3 - n / 2000) for n in range(1200)], title="t", y_label="d")
    assert len(points(area)) == 0
    assert len(area) < 300_000
    with pytest.raises(InputError, match="no bars"):
        bars([], title="t", y_label="d")


def test_control_characters_are_shown_as_escapes() -> None:
    assert truncate_label("a\x00\x1b[31m\udcff\x85é中") == "a\\x00\\x1b[31m\\udcff\\x85é中"
