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
from rank_k.models.simulated import PRESETS, Grades, Noise, SimulatedModel
from rank_k.simulation.noise_file import noise_by_name, noise_to_json, read_noise
from rank_k.simulation.noise_fit import DEFAULT, NoiseFit, fit_noise
from rank_k.simulation.observations import Observation, observations_of
from rank_k.simulation.replay import simulate
from rank_k.strategies import make_strategy
from rank_k.types import Candidate, Passage, Query, Window, WindowRanking

pytestmark = pytest.mark.slow

pytest.importorskip("scipy")

DOCS = [f"d{i:02d}" for i in range(60)]


def _collection(queries: int) -> tuple[dict[str, dict[str, int]], dict[str, list[Candidate]]]:
    """Judgments of which two fifths are relevant, and a first stage that knows a little."""
    random = Random(11)
    grades, run = {}, {}
    for n in range(queries):
        query_grades = {doc_id: random.choices((0, 1, 2, 3), (6, 2, 1, 1))[0] for doc_id in DOCS}
        grades[f"q{n}"] = query_grades
        best_first = sorted(DOCS, key=lambda doc_id: random.gauss(0, 2) - query_grades[doc_id])
        run[f"q{n}"] = [Candidate(doc_id, -i) for i, doc_id in enumerate(best_first)]
    return grades, run


GRADES, RUN = _collection(60)


def record_observations(
    noise: Noise,
    path: Path,
    *,
    strategy: str = "blocks",
    window: int = 20,
    partitions: int = 1,
    samples: int = 3,
    grades: Grades = GRADES,
) -> list[Observation]:
    """Return the observations in the journal of a whole run."""
    queries = {query_id: Query(query_id, "?") for query_id in RUN}
    plan = make_strategy(strategy, window=window, partitions=partitions)
    judge = SimulatedModel(grades, noise, seed=4)
    with Reranker(judge, strategy=plan, samples=samples, journal=path, reasoning="off") as reranker:
        run = reranker.journal.begin_run({"noise": asdict(noise)})
        for _ in reranker.rerank(RUN, queries, {doc_id: Passage(doc_id, "text") for doc_id in DOCS}, run_name=run):
            pass
    with closing(Journal(path, read_only=True)) as journal:
        return observations_of(journal.windows())


TRUE_NOISE = {
    "strong": PRESETS["strong"],
    "weak": PRESETS["weak"],
    "company": Noise(1.0, 0.5, 0.3, 0.2, 0.3, 0.2, 0.2, 0.1, 0.05, 0.3),
    "nothing else": Noise(0.7, 1.0, query_spread=0.3),
}


@pytest.fixture(scope="module", params=TRUE_NOISE)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Noise, NoiseFit]:
    noise = TRUE_NOISE[request.param]
    return noise, fit_noise(record_observations(noise, tmp_path_factory.mktemp("j") / "j.sqlite", partitions=2), GRADES)


def test_fit_noise_recovers_the_noise(fitted: tuple[Noise, NoiseFit]) -> None:
    noise, fit = fitted
    assert fit.noise.sd == pytest.approx(noise.sd, rel=0.12)
    assert fit.noise.fresh == pytest.approx(noise.fresh, abs=0.03)
    assert fit.noise.persistent == pytest.approx(noise.persistent, abs=0.06)
    assert fit.noise.composition == pytest.approx(noise.composition, abs=0.06)
    assert fit.noise.position_bias == pytest.approx(noise.position_bias, abs=0.12)
    assert fit.noise.middle == pytest.approx(noise.middle, abs=0.12)
    assert fit.noise.tie_gap == pytest.approx(noise.tie_gap, abs=0.02)
    assert fit.noise.malformed == pytest.approx(noise.malformed, abs=0.02)
    assert fit.noise.persistent + fit.noise.composition + fit.noise.fresh == pytest.approx(1)


def test_fit_noise_standard_errors_cover_the_deviation(fitted: tuple[Noise, NoiseFit]) -> None:
    noise, fit = fitted
    assert set(fit.errors) == {"sd", "position_bias", "middle", "persistent", "composition", "fresh"}
    for name in ("sd", "position_bias", "middle", "fresh"):
        deviation = abs(getattr(fit.noise, name) - getattr(noise, name))
        assert deviation < 4 * fit.errors[name] + 0.01, name
    assert 0.01 * noise.sd < fit.errors["sd"] < 0.12 * noise.sd


def test_fit_noise_names_assumed_fields(fitted: tuple[Noise, NoiseFit]) -> None:
    _, fit = fitted
    assert set(fit.assumed) == {"growth", "query_spread"}
    assert (fit.noise.growth, fit.noise.query_spread) == (DEFAULT.growth, DEFAULT.query_spread)
    fitted_names = {*fit.assumed, *fit.errors, "tie_gap", "malformed", "highest_grade"}
    assert fitted_names == {field.name for field in fields(Noise)}


def test_fit_noise_of_binary_judgments_is_not_scaled_again(tmp_path: Path) -> None:
    """The preset is scaled when the answers are made; the fitted noise is in the grades of the same judgments."""
    binary = {
        query_id: {doc_id: int(grade >= 2) for doc_id, grade in known.items()} for query_id, known in GRADES.items()
    }
    fit = fit_noise(record_observations(PRESETS["strong"], tmp_path / "j.sqlite", grades=binary), binary)
    assert fit.noise.sd == pytest.approx(0.94 / 3, rel=0.15)
    assert fit.noise.highest_grade == 1
    (tmp_path / "noise.json").write_text(noise_to_json(fit.noise, {}))
    assert SimulatedModel(binary, read_noise(tmp_path / "noise.json")).noise == fit.noise


def test_simulate_gives_equal_quality_with_fitted_noise(fitted: tuple[Noise, NoiseFit]) -> None:
    noise, fit = fitted
    strategies = {name: make_strategy(name) for name in ("single", "sliding", "blocks")}
    cells = simulate({"": RUN}, GRADES, strategies, {"true": noise, "fitted": fit.noise}, seed=9)
    quality = {(cell.noise, cell.strategy): totals.quality.mean for cell, totals in cells.items()}
    for name in strategies:
        assert quality["fitted", name] == pytest.approx(quality["true", name], abs=0.03)
    for better in ("sliding", "blocks"):
        gain, true_gain = (quality[kind, better] - quality[kind, "single"] for kind in ("fitted", "true"))
        assert gain == pytest.approx(true_gain, abs=0.03)


def test_fit_noise_of_single_samples_assumes_the_shares(tmp_path: Path) -> None:
    fit = fit_noise(record_observations(PRESETS["weak"], tmp_path / "j.sqlite", strategy="sliding", samples=1), GRADES)
    assert fit.noise.sd == pytest.approx(1.6, rel=0.2)
    assert fit.noise.fresh == DEFAULT.fresh
    assert "--samples" in fit.assumed["fresh"]
    assert "thorough" in fit.assumed["composition"]
    assert set(fit.errors) == {"sd", "position_bias", "middle"}


def test_fit_noise_of_samples_fits_the_fresh_share(tmp_path: Path) -> None:
    fit = fit_noise(record_observations(PRESETS["weak"], tmp_path / "j.sqlite", strategy="sliding"), GRADES)
    assert fit.noise.fresh == pytest.approx(0.3, abs=0.05)
    assert fit.noise.composition / fit.noise.persistent == pytest.approx(DEFAULT.composition / DEFAULT.persistent, 0.02)
    assert set(fit.assumed) == {"growth", "query_spread", "composition"}


def test_fit_noise_of_small_windows_fits_the_shares(tmp_path: Path) -> None:
    noise = Noise(1.0, 0.6, 0.2, 0.2, 0.3, query_spread=0.3)
    observations = record_observations(noise, tmp_path / "j.sqlite", window=4, partitions=2)
    third_samples = sum(observation.sample == 2 for observation in observations)
    assert third_samples < 0.6 * sum(observation.sample == 0 for observation in observations), (
        "where the first two disagreed"
    )
    fit = fit_noise(observations, GRADES).noise
    assert fit.fresh == pytest.approx(noise.fresh, abs=0.03)
    assert fit.composition == pytest.approx(noise.composition, abs=0.06)


# --- looks -----------------------------------------------------------------------------------------


def make_record(round_number: int, ids: tuple[str, ...], answers: int = 1, **repairs: int) -> WindowRecord:
    ranking = WindowRanking(tuple((doc_id,) for doc_id in ids), frozenset(ids), True)
    return WindowRecord("q", round_number, 0, Window(ids, (1, 9)), (), (ranking,) * answers, Counter(repairs))


def test_observations_of_marks_passages_of_earlier_rounds_as_seen() -> None:
    observations = observations_of(
        [make_record(0, ("a", "b")), make_record(0, ("b", "c"), answers=2), make_record(1, ("c", "d", "e"))]
    )
    assert [observation.unseen for observation in observations] == [{"a", "b"}, {"b", "c"}, {"b", "c"}, {"d", "e"}]
    assert [observation.sample for observation in observations] == [0, 0, 1, 0]
    assert sorted(observations[2].doc_ids) == ["b", "c"]


def test_observations_of_skips_likelihood_windows() -> None:
    likelihood_record = make_record(0, ("a", "b", "c"))
    likelihood_record = replace(likelihood_record, window=replace(likelihood_record.window, method="likelihood"))
    [observation] = observations_of([likelihood_record, make_record(1, ("b", "a"))])
    assert set(observation.doc_ids) == observation.unseen == {"a", "b"}


def test_observations_of_uses_the_first_of_two_answers() -> None:
    assert len(observations_of([make_record(0, ("a", "b"), answers=3, windows_reasoned=2)])) == 1


def test_fit_noise_rejects_answers_without_judgments() -> None:
    observations = observations_of([make_record(0, ("a", "b", "c"))])
    with pytest.raises(InputError, match="judged query"):
        fit_noise(observations, {"other": {"a": 1}})
    with pytest.raises(InputError, match="different grades"):
        fit_noise(observations, {"q": {"a": 1, "b": 1, "c": 1}})
    with pytest.raises(InputError, match="unrelated to the judgments"):
        fit_noise(observations, {"q": {"c": 2, "b": 1}})  # the worst comes first


# --- files -----------------------------------------------------------------------------------------


def test_noise_to_json_round_trips(tmp_path: Path) -> None:
    file = tmp_path / "noise.json"
    for noise in (*PRESETS.values(), replace(PRESETS["weak"], position_bias=0.1)):
        file.write_text(noise_to_json(noise, {"journal": "j"}))
        assert noise_by_name(str(file)) == noise
    assert json.loads(file.read_text())["how"] == {"journal": "j"}


def test_noise_by_name_finds_presets_and_files(tmp_path: Path) -> None:
    assert noise_by_name("weak") == PRESETS["weak"]
    (tmp_path / "n.json").write_text('{"sd": 1, "persistent": 0.75, "fresh": 0.25}')
    assert read_noise(tmp_path / "n.json") == Noise(1.0, 0.75, 0.0, 0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid JSON"),
        ("[1]", "not an object"),
        ('{"std": 1}', "unknown key std (did you mean sd?)"),
        ('{"sd": -1}', "sd = -1"),
        ('{"sd": "1"}', "sd = '1'"),
        ('{"sd": true}', "sd = True"),
        ('{"sd": NaN}', "sd = nan"),
        ('{"malformed": 2}', "malformed = 2"),
        ('{"fresh": 0.2}', "= 1.2; expected shares that sum to 1"),
        ('{"persistent": 0.5}', "fresh = 0.5"),
    ],
)
def test_read_noise_rejects_invalid_files_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(FormatError) as error_info:
        read_noise(tmp_path / "n.json")
    assert message in str(error_info.value)
    assert "\n" not in str(error_info.value)


def test_noise_by_name_suggests_a_similar_name() -> None:
    with pytest.raises(InputError, match="did you mean strong"):
        noise_by_name("strnog")
