"""Plans of studies: grids into cells, their names, the questions that come ready."""

from __future__ import annotations

import re
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
    expand_cells,
    parse_setting,
    restrict_study,
    select_cells,
)
from rank_k.study.questions import QUESTIONS
from tests.paths import ROOT
from tests.support.study_data import bench as bench  # a fixture
from tests.support.study_data import make_study


def cell_settings(study: Study) -> list[str]:
    return [cell.setting for cell in expand_cells(study)]


def test_cells_of_expands_every_combination_once() -> None:
    grid: dict[str, list[Any]] = {"strategy": ["sliding", "blocks"], "reasoning": ["off", "2k"], "samples": ["1", 3]}
    assert cell_settings(make_study(grid, grid)) == [
        *("sliding-off", "sliding-off-x3", "sliding-2000", "sliding-2000-x3"),
        *("blocks-off", "blocks-off-x3", "blocks-2000", "blocks-2000-x3"),
    ]
    assert expand_cells(make_study(grid))[0].name == "c.bm25.m.sliding-off"


def test_cells_of_ignores_settings_unused_by_strategy() -> None:
    grid: dict[str, list[Any]] = {
        "strategy": ["sliding", "blocks", "setwise"],
        "stride": [5, 10],
        "first_stage_weight": [0, 1],
    }
    assert cell_settings(make_study(grid)) == [
        *("sliding-full-s5", "sliding-full", "blocks-full-a0", "blocks-full", "setwise-full"),
    ]


def test_make_strategy_distinguishes_presets() -> None:
    fast, blocks = (Cell("c", "f", "m", strategy=name) for name in ("fast", "blocks"))
    assert type(fast.make_strategy()) is type(blocks.make_strategy())
    assert fast.make_strategy() != blocks.make_strategy()
    assert replace(blocks, strategy="balanced").make_strategy() == blocks.make_strategy()
    assert replace(blocks, strategy="paper").make_strategy() == replace(blocks, strategy="sliding").make_strategy()


def test_cells_of_prefers_model_settings_over_grid() -> None:
    zephyr = ModelPlan("zephyr", settings={"reasoning": "off", "temperature": 0, "constrained": "off"})
    study = make_study({"reasoning": ["500", "full"]}, models=(ModelPlan("m"), zephyr))
    assert [cell.setting for cell in expand_cells(study) if cell.model == "m"] == ["sliding-500", "sliding-full"]
    [cell] = [cell for cell in expand_cells(study) if cell.model == "zephyr"]
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
def test_parse_setting_rejects_invalid_value(axis: str, value: object) -> None:
    with pytest.raises(InputError):
        parse_setting(axis, value)


@pytest.mark.parametrize(
    "grid",
    [
        {"strategy": ["slidng"]},
        {"window": [1]},
        {"maxp_tokens": ["500"]},
        {"maxp_tokens": [100], "maxp_overlap": [80]},
        {"stride": [30]},
    ],
)
def test_cells_of_rejects_invalid_grid(grid: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        expand_cells(make_study(grid))


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
        "maxp_tokens": st.sampled_from(["none", "100", 225]),
        "maxp_overlap": st.sampled_from([None, 50]),
        "maxp_passages": st.sampled_from(["none", 4]),
        "temperature": st.sampled_from([None, 0, 0.5, 0.75]),
    },
)


@given(st.lists(SETTINGS, min_size=1, max_size=12))
def test_cell_names_are_unique_and_valid_file_names(grids: list[dict[str, Any]]) -> None:
    cells = expand_cells(make_study(*({axis: [value] for axis, value in grid.items()} for grid in grids)))
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert "/" not in cell.name
        assert " " not in cell.name
        assert Cell(**asdict(cell)) == cell


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_expand_to_cells(name: str) -> None:
    question = QUESTIONS[name]
    cells = expand_cells(make_study(*question.grids))
    assert cells
    assert re.fullmatch(r"Varies: .+\. Holds: .+\. [^.]+\.", question.about), "the last sentence says how to read it"


def test_study_page_lists_every_question() -> None:
    page = (ROOT / "docs" / "how-to" / "study.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| [^|]+\? \|", page, re.MULTILINE) == list(QUESTIONS)


def test_select_cells_filters_by_names_of_each_kind() -> None:
    runs = (FirstStage("bm25"), FirstStage("splade"))
    study = make_study(
        {"reasoning": ["off", "full"]},
        collections=(Collection("dl19", runs), Collection("dl20", runs)),
        models=(ModelPlan("big"), ModelPlan("small")),
    )
    cells = expand_cells(study)
    assert select_cells(cells, ()) == cells
    assert len(select_cells(cells, ["dl19"])) == len(cells) // 2
    assert len(select_cells(cells, ["dl19", "dl20", "big"])) == len(cells) // 2
    selected = select_cells(cells, ["dl20", "splade", "small", "*-off"])
    assert [cell.name for cell in selected] == ["dl20.splade.small.sliding-off"]
    restricted = restrict_study(study, selected)
    assert [(c.name, [f.name for f in c.first_stages]) for c in restricted.collections] == [("dl20", ["splade"])]
    assert [model.name for model in restricted.models] == ["small"]
    with pytest.raises(InputError, match="'dl21'"):
        select_cells(cells, ["dl21"])
    with pytest.raises(InputError, match="matches all"):
        select_cells(cells, ["dl19", "dl20.*"])
