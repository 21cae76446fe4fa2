"""Plans of studies: grids into cells, their names, the questions that come ready."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import InputError
from rank_k.study.grid import (
    Cell,
    Collection,
    FirstStage,
    ModelPlan,
    Study,
    cells_of,
    parse_setting,
    restrict_grid,
    select_cells,
    strategy_of,
)
from rank_k.study.questions import QUESTIONS
from tests.paths import ROOT
from tests.support.study_data import a_study
from tests.support.study_data import bench as bench  # a fixture


def settings_of(study: Study) -> list[str]:
    return [cell.setting for cell in cells_of(study)]


def test_every_combination_is_a_cell_once() -> None:
    grid: dict[str, list[Any]] = {"strategy": ["sliding", "blocks"], "reasoning": ["off", "2k"], "samples": ["1", 3]}
    assert settings_of(a_study(grid, grid)) == [
        *("sliding-off", "sliding-off-x3", "sliding-2000", "sliding-2000-x3"),
        *("blocks-off", "blocks-off-x3", "blocks-2000", "blocks-2000-x3"),
    ]
    assert cells_of(a_study(grid))[0].name == "c.bm25.m.sliding-off"


def test_what_a_strategy_has_no_use_for_makes_no_cells() -> None:
    grid: dict[str, list[Any]] = {
        "strategy": ["sliding", "blocks", "setwise"],
        "stride": [5, 10],
        "first_stage_weight": [0, 1],
    }
    assert settings_of(a_study(grid)) == [
        *("sliding-full-s5", "sliding-full", "blocks-full-a0", "blocks-full", "setwise-full"),
    ]


def test_a_preset_is_a_strategy_and_differs_from_it() -> None:
    fast, blocks = (Cell("c", "f", "m", strategy=name) for name in ("fast", "blocks"))
    assert type(strategy_of(fast)) is type(strategy_of(blocks))
    assert strategy_of(fast) != strategy_of(blocks)
    assert strategy_of(replace(blocks, strategy="balanced")) == strategy_of(blocks)
    assert strategy_of(replace(blocks, strategy="paper")) == strategy_of(replace(blocks, strategy="sliding"))


def test_a_model_keeps_its_own_settings_whatever_the_grid_says() -> None:
    zephyr = ModelPlan("zephyr", settings={"reasoning": "off", "temperature": 0, "constrained": "off"})
    study = a_study({"reasoning": ["500", "full"]}, models=(ModelPlan("m"), zephyr))
    assert [cell.setting for cell in cells_of(study) if cell.model == "m"] == ["sliding-500", "sliding-full"]
    [cell] = [cell for cell in cells_of(study) if cell.model == "zephyr"]
    assert (cell.reasoning, cell.temperature, cell.constrained) == ("off", 0.0, False)
    assert cell.setting == "sliding-off-t0-free"


@pytest.mark.parametrize(
    ("axis", "value"),
    [
        *(
            ("reasoning", "maybe"),
            ("reasoning", "0"),
            ("samples", 0),
            ("samples", 1.5),
            ("samples", True),
            ("depth", "many"),
        ),
        *(
            ("first_stage_weight", -1),
            ("first_stage_weight", "nan"),
            ("maxp_tokens", "225;50"),
            ("temperature", "hot"),
            ("constrained", "maybe"),
            ("reasonin", "off"),
        ),
        ("max_tokens", 0),
    ],
)
def test_a_value_that_cannot_be_is_told(axis: str, value: object) -> None:
    with pytest.raises(InputError):
        parse_setting(axis, value)


@pytest.mark.parametrize(
    "grid", [{"strategy": ["slidng"]}, {"window": [1]}, {"maxp_tokens": ["500"]}, {"maxp_tokens": ["100:80"]}, {"stride": [30]}]
)
def test_a_cell_that_cannot_be_is_told_before_anything_is_asked(grid: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        cells_of(a_study(grid))


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.sampled_from(["sliding", "blocks", "fast", "single", "setwise"]),
        "reasoning": st.sampled_from(["off", "auto", "full", "500", "2k"]),
        "samples": st.integers(1, 5),
        "depth": st.sampled_from([20, 50, 100, 1000]),
        "window": st.integers(10, 30),
        "stride": st.integers(1, 10),
        "first_stage_weight": st.sampled_from([0, 0.5, 1, 2]),
        "maxp_tokens": st.sampled_from(["none", "100", "225:50", "225:50:4"]),
        "temperature": st.sampled_from([None, 0, 0.5, 0.75]),
    },
)


@given(st.lists(SETTINGS, min_size=1, max_size=12))
def test_cells_that_differ_have_names_that_differ_and_fit_a_file(grids: list[dict[str, Any]]) -> None:
    cells = cells_of(a_study(*({axis: [value] for axis, value in grid.items()} for grid in grids)))
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert "/" not in cell.name
        assert " " not in cell.name
        assert Cell(**asdict(cell)) == cell


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_is_a_grid_that_can_be_asked(name: str) -> None:
    question = QUESTIONS[name]
    cells = cells_of(a_study(*question.grids))
    assert cells
    assert question.varies
    assert question.holds
    assert question.read.endswith(".")
    assert question.read.count(".") == 1, "one sentence"


def test_the_documentation_says_of_every_question_what_it_is() -> None:
    page = " ".join((ROOT / "docs" / "studies.md").read_text(encoding="utf-8").split())
    for name, question in QUESTIONS.items():
        told = (
            f"**`{name}`** {question.title} - Varies: {question.varies}. - Holds: {question.holds}. - {question.read}"
        )
        assert told in page


def test_names_choose_cells_by_kind() -> None:
    runs = (FirstStage("bm25"), FirstStage("splade"))
    study = a_study(
        {"reasoning": ["off", "full"]},
        collections=(Collection("dl19", runs), Collection("dl20", runs)),
        models=(ModelPlan("big"), ModelPlan("small")),
    )
    cells = cells_of(study)
    assert select_cells(cells, ()) == cells
    assert len(select_cells(cells, ["dl19"])) == len(cells) // 2
    assert len(select_cells(cells, ["dl19", "dl20", "big"])) == len(cells) // 2
    some = select_cells(cells, ["dl20", "splade", "small", "*-off"])
    assert [cell.name for cell in some] == ["dl20.splade.small.sliding-off"]
    left = restrict_grid(study, some)
    assert [(c.name, [f.name for f in c.first_stages]) for c in left.collections] == [("dl20", ["splade"])]
    assert [model.name for model in left.models] == ["small"]
    with pytest.raises(InputError, match="'dl21'"):
        select_cells(cells, ["dl21"])
    with pytest.raises(InputError, match="fits all"):
        select_cells(cells, ["dl19", "dl20.*"])
