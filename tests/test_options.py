"""The options: layers, sources, bounds, and that every view is derived from the definition."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k import options
from rank_k.cli.model_options import add_options, given_options
from rank_k.errors import InputError
from rank_k.models.mock import ScriptedModel
from rank_k.option_values import STRATEGY_NAMES, ReasoningMode
from rank_k.options import OPTIONS, PRESETS, PUBLIC_OPTIONS, parse_option, resolve
from rank_k.reranker import Reranker
from rank_k.strategies import PRESETS as STRATEGY_PRESETS
from rank_k.strategies import STRATEGIES
from tests.package.reranker_stub import STUB, stub_text


def test_resolve_layers_default_student_preset_user() -> None:
    student = {"strategy": "blocks", "window": 8, "stride": 4, "temperature": 0.0}
    resolved = resolve({"temperature": None, "depth": 30}, preset="fast", student=student, embedded=True)
    assert (resolved.strategy, resolved.window, resolved.depth, resolved.temperature) == ("fast", 20, 30, None)
    assert (resolved.max_tokens, resolved.concurrency) == (512, 1)
    sources = {name: resolved.sources[name] for name in ("strategy", "temperature", "depth", "max_tokens")}
    assert sources == {"strategy": "preset", "temperature": "user", "depth": "user", "max_tokens": "default"}
    assert resolve({}, student=student).sources["temperature"] == "student"


def test_resolve_ignores_none_where_it_is_not_a_value() -> None:
    resolved = resolve({"window": None, "reasoning": None, "temperature": None})
    assert (resolved.window, resolved.reasoning, resolved.temperature) == (20, "full", None)
    assert resolved.sources["window"] == "default"


def test_resolve_paper_preset_equals_the_defaults_of_a_server() -> None:
    settings = resolve({}).settings()
    assert {name: settings[name] for name in PRESETS["paper"]} == PRESETS["paper"]
    assert resolve({}, preset="paper", student={"window": 8}).window == 20


@pytest.mark.parametrize(
    ("given", "preset", "message"),
    [
        ({"window": 10}, "fast", "preset fast and window 10 exclude each other"),
        ({"method": "likelihood", "strategy": "single"}, None, "does not use the option strategy"),
        ({"method": "likelihood"}, "fast", "does not use the option strategy"),
        ({}, "quick", "no preset 'quick'"),
        ({"depth": 0}, None, "depth is 0; give a whole number of 1 or more"),
        ({"top_p": 1.5}, None, "top_p is 1.5; give a number from 0 to 1"),
        ({"min_p": -0.1}, None, "min_p is -0.1"),
        ({"seed": -1}, None, "seed is -1"),
        ({"reasoning": "some"}, None, "reasoning is 'some'; write full, off, auto"),
    ],
)
def test_resolve_rejects(given: dict[str, Any], preset: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(given, preset=preset)


def test_resolve_names_a_misspelled_option() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'windw'; did you mean 'window'"):
        resolve({"windw": 3})


def test_resolve_method_of_the_model_unless_a_listwise_option_is_given() -> None:
    assert resolve({}, default_method="likelihood").method == "likelihood"
    assert resolve({"reasoning": "off"}, default_method="likelihood").method == "listwise"
    assert resolve({"samples": 1}, default_method="likelihood").method == "likelihood"
    assert resolve({}, default_method="likelihood", student={"method": "combined"}).method == "combined"
    assert resolve({}, default_method="likelihood").settings() == {
        "method": "likelihood",
        "depth": 100,
        "passage_tokens": 64,
    }


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "window": st.integers(1, 99),
            "samples": st.integers(1, 9),
            "temperature": st.one_of(st.none(), st.floats(0, 2)),
            "min_p": st.one_of(st.none(), st.floats(0, 1)),
            "seed": st.integers(0, 2**31),
            "reasoning": st.sampled_from(["full", "off", "auto", "2k", 500]),
            "constrained": st.booleans(),
        },
    )
)
def test_flags_and_keywords_give_the_same_options(given: dict[str, Any]) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, OPTIONS.values())
    words = {"None": "none", "True": "auto", "False": "off"}
    texts = {name: words.get(str(value), str(value)) for name, value in given.items()}
    line = [part for name, text in texts.items() for part in (OPTIONS[name].flag, text)]
    assert resolve(given_options(parser.parse_args(line))) == resolve(given)


def test_reasoning_mode_round_trip() -> None:
    for text, normalized in {"full": "full", "OFF": "off", " auto ": "auto", "2k": "2000", "7": "7"}.items():
        assert str(ReasoningMode.parse(text)) == normalized
        assert ReasoningMode.parse(ReasoningMode.parse(normalized)) == ReasoningMode.parse(text)


def test_strategy_names_equal_the_strategies() -> None:
    assert tuple(STRATEGIES) == STRATEGY_NAMES
    assert set(STRATEGY_PRESETS) == set(PRESETS)


def test_public_options_are_few_and_harmless() -> None:
    assert set(PUBLIC_OPTIONS) == {"strategy", "reasoning"}


def test_reranker_stub_is_up_to_date() -> None:
    assert STUB.read_text(encoding="utf-8") == stub_text(), "run: python -m tests.package.reranker_stub"


def test_requests_have_the_sampling_options() -> None:
    seeds = []
    for seed in (0, 5):
        model = ScriptedModel(["[2] > [1]"])
        with Reranker(model, seed=seed, min_p=0.05, top_p=0.9, reasoning="off") as reranker:
            reranker.rank("q", ["a", "b"])
        [request] = model.history[-1:]
        assert (request.min_p, request.top_p) == (0.05, 0.9)
        seeds.append(request.seed or 0)
    assert seeds[1] - seeds[0] == 5


_ADDED_OPTION = """
    top_k: int | None = option(
        None, "sample from the K likeliest tokens", whole_number(1), metavar="K", public=True, student=True, prefix="k"
    )
"""


def test_an_additional_option_is_in_every_derived_view(tmp_path: Path) -> None:
    """One field more in `options.py`, and nothing else, in a process of its own."""
    source = Path(options.__file__).read_text(encoding="utf-8")
    changed = source.replace("    seed: int = option(", f"{_ADDED_OPTION.lstrip(chr(10))}    seed: int = option(", 1)
    assert changed.count("top_k") == 1
    (tmp_path / "options.py").write_text(changed, encoding="utf-8")
    command = [sys.executable, "-m", "tests.views_of_an_added_option", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        *("flags", "keyword", "stub", "study", "toml", "student", "recipe", "journal", "http", "mcp"),
    ]


def test_parse_option_reads_text_and_values() -> None:
    assert parse_option("min_p", "0.1") == parse_option("min_p", 0.1) == 0.1
    assert parse_option("min_p", "none") is None
    with pytest.raises(InputError, match="window is True"):
        parse_option("window", True)
    with pytest.raises(InputError, match="no option 'min_q'; did you mean min_p"):
        parse_option("min_q", 0.1)
