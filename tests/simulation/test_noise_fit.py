"""Noise that is put in comes out again: journals of judges whose errors are known, fitted."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from dataclasses import asdict, fields, replace
from pathlib import Path
from random import Random

import pytest

from rank_k import Reranker
from rank_k.errors import FormatError, InputError
from rank_k.journal import Journal, WindowRecord
from rank_k.models.simulated import PRESETS, Noise, SimulatedModel
from rank_k.simulation.noise_file import noise_by_name, noise_to_json, read_noise
from rank_k.simulation.noise_fit import DEFAULT, NoiseFit, fit_noise
from rank_k.simulation.observations import Observation, observations_of
from rank_k.simulation.replay import simulate
from rank_k.strategies import make
from rank_k.types import Candidate, Passage, Query, Window, WindowRanking

pytest.importorskip("numpy")

DOCS = [f"d{i:02d}" for i in range(60)]


def _collection(queries: int) -> tuple[dict[str, dict[str, int]], dict[str, list[Candidate]]]:
    """Judgments of which two fifths are relevant, and a first stage that knows a little."""
    random = Random(11)
    grades, run = {}, {}
    for n in range(queries):
        of_query = {doc_id: random.choices((0, 1, 2, 3), (6, 2, 1, 1))[0] for doc_id in DOCS}
        grades[f"q{n}"] = of_query
        best_first = sorted(DOCS, key=lambda doc_id: random.gauss(0, 2) - of_query[doc_id])
        run[f"q{n}"] = [Candidate(doc_id, -i) for i, doc_id in enumerate(best_first)]
    return grades, run


GRADES, RUN = _collection(60)


def asked(
    noise: Noise, path: Path, *, strategy: str = "blocks", window: int = 20, partitions: int = 1, samples: int = 3
) -> list[Observation]:
    """The looks in the journal of a whole run."""
    queries = {query_id: Query(query_id, "?") for query_id in RUN}
    plan = make(strategy, window=window, partitions=partitions)
    judge = SimulatedModel(GRADES, noise, seed=4)
    with Reranker(judge, strategy=plan, samples=samples, journal=path, reasoning="off") as reranker:
        run = reranker.journal.begin_run({"noise": asdict(noise)})
        for _ in reranker.rerank(RUN, queries, {doc_id: Passage(doc_id, "text") for doc_id in DOCS}, run_name=run):
            pass
    with closing(Journal(path, read_only=True)) as journal:
        return observations_of(journal.windows())


TRUE = {
    "strong": PRESETS["strong"],
    "weak": PRESETS["weak"],
    "company": Noise(1.0, 0.5, 0.3, 0.2, 0.3, 0.2, 0.2, 0.1, 0.05, 0.3),
    "nothing else": Noise(0.7, 1.0, query_spread=0.3),
}


@pytest.fixture(scope="module", params=TRUE)
def recovered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Noise, NoiseFit]:
    noise = TRUE[request.param]
    return noise, fit_noise(asked(noise, tmp_path_factory.mktemp("j") / "j.sqlite", partitions=2), GRADES)


@pytest.mark.slow
def test_noise_is_recovered(recovered: tuple[Noise, NoiseFit]) -> None:
    noise, found = recovered
    assert found.noise.sd == pytest.approx(noise.sd, rel=0.12)
    assert found.noise.fresh == pytest.approx(noise.fresh, abs=0.03)
    assert found.noise.persistent == pytest.approx(noise.persistent, abs=0.06)
    assert found.noise.composition == pytest.approx(noise.composition, abs=0.06)
    assert found.noise.position_bias == pytest.approx(noise.position_bias, abs=0.12)
    assert found.noise.middle == pytest.approx(noise.middle, abs=0.12)
    assert found.noise.tie_gap == pytest.approx(noise.tie_gap, abs=0.02)
    assert found.noise.malformed == pytest.approx(noise.malformed, abs=0.02)
    assert found.noise.persistent + found.noise.composition + found.noise.fresh == pytest.approx(1)


@pytest.mark.slow
def test_standard_errors_say_how_far_off_it_may_be(recovered: tuple[Noise, NoiseFit]) -> None:
    noise, found = recovered
    assert set(found.errors) == {"sd", "position_bias", "middle", "persistent", "composition", "fresh"}
    for name in ("sd", "position_bias", "middle", "fresh"):
        off = abs(getattr(found.noise, name) - getattr(noise, name))
        assert off < 4 * found.errors[name] + 0.01, name
    assert 0.01 * noise.sd < found.errors["sd"] < 0.12 * noise.sd


def test_what_is_not_told_is_named(recovered: tuple[Noise, NoiseFit]) -> None:
    _, found = recovered
    assert set(found.assumed) == {"growth", "query_spread"}
    assert (found.noise.growth, found.noise.query_spread) == (DEFAULT.growth, DEFAULT.query_spread)
    assert {*found.assumed, *found.errors, "tie_gap", "malformed"} == {field.name for field in fields(Noise)}


def test_strategies_fare_before_the_fitted_judge_as_before_the_true_one(recovered: tuple[Noise, NoiseFit]) -> None:
    noise, found = recovered
    plans = {name: make(name) for name in ("single", "sliding", "blocks")}
    cells = simulate({"": RUN}, GRADES, plans, {"true": noise, "fitted": found.noise}, seed=9)
    quality = {(cell.noise, cell.strategy): sums.quality.mean for cell, sums in cells.items()}
    for name in plans:
        assert quality["fitted", name] == pytest.approx(quality["true", name], abs=0.03)
    for better in ("sliding", "blocks"):
        gain, true = (quality[kind, better] - quality[kind, "single"] for kind in ("fitted", "true"))
        assert gain == pytest.approx(true, abs=0.03)


def test_a_sliding_window_asked_once_tells_the_level_but_not_the_shares(tmp_path: Path) -> None:
    found = fit_noise(asked(PRESETS["weak"], tmp_path / "j.sqlite", strategy="sliding", samples=1), GRADES)
    assert found.noise.sd == pytest.approx(1.6, rel=0.2)
    assert found.noise.fresh == DEFAULT.fresh
    assert "--samples" in found.assumed["fresh"]
    assert "thorough" in found.assumed["composition"]
    assert set(found.errors) == {"sd", "position_bias", "middle"}


def test_samples_tell_the_fresh_share_with_any_strategy(tmp_path: Path) -> None:
    found = fit_noise(asked(PRESETS["weak"], tmp_path / "j.sqlite", strategy="sliding"), GRADES)
    assert found.noise.fresh == pytest.approx(0.3, abs=0.05)
    assert found.noise.composition / found.noise.persistent == pytest.approx(
        DEFAULT.composition / DEFAULT.persistent, 0.02
    )
    assert set(found.assumed) == {"growth", "query_spread", "composition"}


@pytest.mark.slow
def test_small_windows_in_which_most_samples_agree_tell_the_shares_too(tmp_path: Path) -> None:
    noise = Noise(1.0, 0.6, 0.2, 0.2, 0.3, query_spread=0.3)
    looks = asked(noise, tmp_path / "j.sqlite", window=4, partitions=2)
    thirds = sum(look.sample == 2 for look in looks)
    assert thirds < 0.6 * sum(look.sample == 0 for look in looks), "where the first two disagreed"
    found = fit_noise(looks, GRADES).noise
    assert found.fresh == pytest.approx(noise.fresh, abs=0.03)
    assert found.composition == pytest.approx(noise.composition, abs=0.06)


# --- looks -----------------------------------------------------------------------------------------


def record(number: int, ids: tuple[str, ...], orders: int = 1, **repairs: int) -> WindowRecord:
    order = WindowRanking(tuple((doc_id,) for doc_id in ids), frozenset(ids), True)
    return WindowRecord("q", number, 0, Window(ids, (1, 9)), (), (order,) * orders, Counter(repairs))


def test_what_an_earlier_round_showed_is_not_unseen_and_what_this_one_showed_is() -> None:
    looks = observations_of([record(0, ("a", "b")), record(0, ("b", "c"), orders=2), record(1, ("c", "d", "e"))])
    assert [look.unseen for look in looks] == [{"a", "b"}, {"b", "c"}, {"b", "c"}, {"d", "e"}]
    assert [look.sample for look in looks] == [0, 0, 1, 0]
    assert sorted(looks[2].shown) == ["b", "c"]


def test_what_was_looked_at_by_likelihood_is_no_look_and_was_not_seen() -> None:
    alone = record(0, ("a", "b", "c"))
    alone = replace(alone, window=replace(alone.window, method="likelihood"))
    [look] = observations_of([alone, record(1, ("b", "a"))])
    assert set(look.shown) == look.unseen == {"a", "b"}


def test_of_two_answers_to_one_look_the_first_counts() -> None:
    assert len(observations_of([record(0, ("a", "b"), orders=3, windows_reasoned=2)])) == 1


def test_answers_without_judgments_tell_nothing() -> None:
    looks = observations_of([record(0, ("a", "b", "c"))])
    with pytest.raises(InputError, match="judged query"):
        fit_noise(looks, {"other": {"a": 1}})
    with pytest.raises(InputError, match="different grades"):
        fit_noise(looks, {"q": {"a": 1, "b": 1, "c": 1}})
    with pytest.raises(InputError, match="nothing to do with the judgments"):
        fit_noise(looks, {"q": {"c": 2, "b": 1}})  # the worst comes first


# --- files -----------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "noise.json"
    for noise in (*PRESETS.values(), replace(PRESETS["weak"], position_bias=0.1)):
        file.write_text(noise_to_json(noise, {"journal": "j"}))
        assert noise_by_name(str(file)) == noise
    assert json.loads(file.read_text())["how"] == {"journal": "j"}


def test_presets_go_by_name_and_what_is_left_out_is_nothing(tmp_path: Path) -> None:
    assert noise_by_name("weak") == PRESETS["weak"]
    (tmp_path / "n.json").write_text('{"sd": 1, "persistent": 0.75, "fresh": 0.25}')
    assert read_noise(tmp_path / "n.json") == Noise(1.0, 0.75, 0.0, 0.25)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no JSON"),
        ("[1]", "a list"),
        ('{"std": 1}', "'std'; expected sd"),
        ('{"sd": -1}', "sd is -1"),
        ('{"sd": "1"}', "sd is '1'"),
        ('{"sd": true}', "sd is True"),
        ('{"sd": NaN}', "sd is nan"),
        ('{"malformed": 2}', "malformed is 2"),
        ('{"fresh": 0.2}', "1.2 together; expected shares that sum to 1"),
        ('{"persistent": 0.5}', "0.5 together"),
    ],
)
def test_a_file_that_is_no_noise_is_refused_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(FormatError) as caught:
        read_noise(tmp_path / "n.json")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_neither_preset_nor_file_is_told() -> None:
    with pytest.raises(InputError, match="did you mean strong"):
        noise_by_name("strnog")
