"""Studies: grids into cells, what cells cost, how they are compared; one journal, nothing asked twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.overhead import write_dataset
from hypothesis import given
from hypothesis import strategies as st

from rank_k.data.files import read_run
from rank_k.errors import InputError, JournalError
from rank_k.evaluation.comparison import paired
from rank_k.evaluation.measures import evaluate
from rank_k.evaluation.studies.answer import Answer
from rank_k.evaluation.studies.answers import average_overlap, thirds
from rank_k.evaluation.studies.costs import makespan, rankings_by_round, seed_of, spent_in, window_seconds
from rank_k.evaluation.studies.folder import StudyFolder
from rank_k.evaluation.studies.opened import Opened, missing, reachable
from rank_k.evaluation.studies.plan import (
    Average,
    Cell,
    Collection,
    FirstStage,
    ModelPlan,
    Study,
    cells_of,
    chosen,
    restricted,
    setting,
    strategy_of,
)
from rank_k.evaluation.studies.questions import QUESTIONS
from rank_k.evaluation.studies.running import rerank_cell
from rank_k.evaluation.studies.table import averages_of, compared, labels_of, published_for, write_cells
from rank_k.journal import Journal, WindowRecord
from rank_k.records import Candidate, Order, Outcome
from tests.loopback import make_queries

DATA = make_queries(9, 60)


def a_study(*grids: Mapping[str, Sequence[Any]], **more: Any) -> Study:
    first_stages = (FirstStage("bm25"),)
    values: dict[str, Any] = {"collections": (Collection("c", first_stages),), "models": (ModelPlan("m"),)} | more
    return Study("a study", grids=grids or ({},), **values)


def settings_of(study: Study) -> list[str]:
    return [cell.setting for cell in cells_of(study)]


# --- grids -----------------------------------------------------------------------------------------


def test_every_combination_is_a_cell_once() -> None:
    grid: dict[str, list[Any]] = {"strategy": ["sliding", "blocks"], "think": ["off", "2k"], "samples": ["1", 3]}
    assert settings_of(a_study(grid, grid)) == [
        *("sliding-off", "sliding-off-x3", "sliding-2000", "sliding-2000-x3"),
        *("blocks-off", "blocks-off-x3", "blocks-2000", "blocks-2000-x3"),
    ]
    assert cells_of(a_study(grid))[0].name == "c.bm25.m.sliding-off"


def test_what_a_strategy_has_no_use_for_makes_no_cells() -> None:
    grid: dict[str, list[Any]] = {"strategy": ["sliding", "blocks", "setwise"], "stride": [5, 10], "fuse": [0, 1]}
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
    zephyr = ModelPlan("zephyr", settings={"think": "off", "temperature": 0, "constrain": "off"})
    study = a_study({"think": ["500", "full"]}, models=(ModelPlan("m"), zephyr))
    assert [cell.setting for cell in cells_of(study) if cell.model == "m"] == ["sliding-500", "sliding-full"]
    [cell] = [cell for cell in cells_of(study) if cell.model == "zephyr"]
    assert (cell.think, cell.temperature, cell.constrain) == ("off", 0.0, False)
    assert cell.setting == "sliding-off-t0-free"


@pytest.mark.parametrize(
    ("axis", "value"),
    [
        *(("think", "maybe"), ("think", "0"), ("samples", 0), ("samples", 1.5), ("samples", True), ("depth", "many")),
        *(
            ("fuse", -1),
            ("fuse", "nan"),
            ("split", "225;50"),
            ("temperature", "hot"),
            ("constrain", "maybe"),
            ("thnk", "off"),
        ),
        ("max_tokens", 0),
    ],
)
def test_a_value_that_cannot_be_is_told(axis: str, value: object) -> None:
    with pytest.raises(InputError):
        setting(axis, value)


@pytest.mark.parametrize(
    "grid", [{"strategy": ["slidng"]}, {"window": [1]}, {"split": ["500"]}, {"split": ["100:80"]}, {"stride": [30]}]
)
def test_a_cell_that_cannot_be_is_told_before_anything_is_asked(grid: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        cells_of(a_study(grid))


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.sampled_from(["sliding", "blocks", "fast", "single", "setwise"]),
        "think": st.sampled_from(["off", "auto", "full", "500", "2k"]),
        "samples": st.integers(1, 5),
        "depth": st.sampled_from([20, 50, 100, 1000]),
        "window": st.integers(10, 30),
        "stride": st.integers(1, 10),
        "fuse": st.sampled_from([0, 0.5, 1, 2]),
        "split": st.sampled_from(["none", "100", "225:50", "225:50:4"]),
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
    page = " ".join((Path(__file__).parents[1] / "docs" / "studies.md").read_text(encoding="utf-8").split())
    for name, question in QUESTIONS.items():
        told = (
            f"**`{name}`** {question.title} - Varies: {question.varies}. - Holds: {question.holds}. - {question.read}"
        )
        assert told in page


def test_names_choose_cells_by_kind() -> None:
    runs = (FirstStage("bm25"), FirstStage("splade"))
    study = a_study(
        {"think": ["off", "full"]},
        collections=(Collection("dl19", runs), Collection("dl20", runs)),
        models=(ModelPlan("big"), ModelPlan("small")),
    )
    cells = cells_of(study)
    assert chosen(cells, ()) == cells
    assert len(chosen(cells, ["dl19"])) == len(cells) // 2
    assert len(chosen(cells, ["dl19", "dl20", "big"])) == len(cells) // 2
    some = chosen(cells, ["dl20", "splade", "small", "*-off"])
    assert [cell.name for cell in some] == ["dl20.splade.small.sliding-off"]
    left = restricted(study, some)
    assert [(c.name, [f.name for f in c.first_stages]) for c in left.collections] == [("dl20", ["splade"])]
    assert [model.name for model in left.models] == ["small"]
    with pytest.raises(InputError, match="'dl21'"):
        chosen(cells, ["dl21"])
    with pytest.raises(InputError, match="fits all"):
        chosen(cells, ["dl19", "dl20.*"])


# --- seconds ---------------------------------------------------------------------------------------


def test_calls_of_a_sample_wait_for_each_other_and_samples_do_not() -> None:
    assert window_seconds([]) == 0
    assert window_seconds([(0, 2.0), (0, 1.0)]) == 3
    assert window_seconds([(0, 2.0), (1, 1.0), (1, 0.5)]) == 2
    assert window_seconds([(0, 2.0), (1, 1.0), (2, 4.0), (3, 3.0)]) == 6, "the first two, then the others"


def test_slots_are_taken_as_they_come_free() -> None:
    assert makespan([]) == 0
    assert makespan([3.0, 1.0, 2.0]) == 3
    assert makespan([3.0, 1.0, 2.0], 1) == 6
    assert makespan([3.0, 1.0, 2.0], 2) == 3
    assert makespan([1.0, 1.0, 3.0], 2) == 4


@given(st.lists(st.floats(0.1, 10), max_size=12), st.integers(1, 12))
def test_more_slots_take_between_the_longest_and_the_sum(seconds: list[float], slots: int) -> None:
    found = makespan(seconds, slots)
    assert max(seconds, default=0) - 1e-9 <= found <= sum(seconds) + 1e-9
    assert found >= sum(seconds) / slots - 1e-9


# --- difficulty ------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(min_size=1), st.sampled_from([0.0, 0.1, 0.5, 1.0]), max_size=20))
def test_thirds_hold_every_query_once_the_lowest_first(values: dict[str, float]) -> None:
    parts = thirds(values)
    assert len(parts) == 3
    assert sorted(id_ for part in parts for id_ in part) == sorted(values)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    in_order = [values[id_] for part in parts for id_ in part]
    assert in_order == sorted(in_order)


def test_average_overlap() -> None:
    assert average_overlap(list("abcdefghij"), list("abcdefghij")) == 1
    assert average_overlap(list("abcdefghij"), list("klmnopqrst")) == 0
    assert average_overlap(list("ab"), list("ba"), depth=2) == 0.5
    assert average_overlap([], []) == 1


# --- a study on disk -------------------------------------------------------------------------------


class Bench:
    """A small collection, and a folder in which cells can be run by a simulated judge."""

    def __init__(self, path: Path, noise: str = "weak", name: str = "c") -> None:
        path.mkdir(exist_ok=True)
        write_dataset(DATA, path)
        lines = [f"{q} 0 {d} {grade}\n" for q, grades in DATA.qrels.items() for d, grade in grades.items()]
        (path / "qrels.trec").write_text("".join(lines))
        self.collection = Collection(
            name,
            (FirstStage("bm25", path / "run.trec"),),
            None,
            path / "queries.jsonl",
            path / "corpus.jsonl",
            path / "qrels.trec",
        )
        self.model = ModelPlan("judge", simulate=noise)
        self.folder = StudyFolder(path / "study")
        self.asked: list[tuple[int, int]] = []

    def study(self, *grids: Mapping[str, Sequence[Any]], **more: Any) -> Study:
        return a_study(*grids, collections=(self.collection,), models=(self.model,), **more)

    @contextmanager
    def opened(self) -> Iterator[dict[str, Opened]]:
        with Opened(self.collection) as opened:
            yield {self.collection.name: opened}

    def run(self, *cells: Cell) -> list[tuple[int, int]]:
        """(calls, of these asked now) of each cell."""
        found = []
        with self.opened() as opened:
            self.folder.admit({name: of.fingerprints for name, of in opened.items()}, [self.model], cells)
            for cell in cells:
                tally = rerank_cell(
                    cell, opened[self.collection.name], self.model, {}, self.folder, lambda *_: nullcontext()
                )
                found.append((tally.calls, tally.asked))
        return found

    def answer(self, study: Study) -> Answer:
        with self.opened() as opened, self.journal() as journal:
            return Answer.of(study, cells_of(study), opened, self.folder, journal)

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        journal = Journal(self.folder.journal)
        yield journal
        journal.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


def test_cells_share_calls_and_a_second_run_asks_nothing(bench: Bench) -> None:
    one, three, off, auto = (
        replace(Cell("c", "bm25", "judge"), samples=samples, think=think)
        for samples, think in ((1, "full"), (3, "full"), (1, "off"), (1, "auto"))
    )
    [(calls, asked)] = bench.run(one)
    assert calls == asked > 0
    [(calls, asked)] = bench.run(three)
    assert calls - asked >= len(DATA.queries), "the first sample of the first window of every query at least"
    [(direct, asked)] = bench.run(off)
    assert direct == asked, "asked not to think, it is another question"
    [(calls, asked)] = bench.run(auto)
    assert calls - asked >= len(DATA.queries), "the direct answers to the first windows"
    again = bench.run(one, three, off, auto)
    assert [asked for _, asked in again] == [0] * 4


def test_the_same_windows_asked_twice_cost_once(bench: Bench) -> None:
    """`fast` is `blocks` without its last window: all its questions are among those of `blocks`."""
    blocks, fast = (Cell("c", "bm25", "judge", strategy=name) for name in ("blocks", "fast"))
    bench.run(blocks)
    [(calls, asked)] = bench.run(fast)
    assert calls > 0
    assert asked == 0


def test_a_table_says_what_each_cell_is_worth_and_costs(bench: Bench, tmp_path: Path) -> None:
    study = bench.study({"strategy": ["sliding", "blocks"], "samples": [1, 3]}, measures=("nDCG@10", "AP"))
    cells = cells_of(study)
    bench.run(*cells)
    answer = bench.answer(study)
    first, *rows = answer.rows
    assert first.cell is None
    assert first.quality["nDCG@10"].mean == evaluate(DATA.qrels, DATA.run, ["nDCG@10"]).means["nDCG@10"]
    assert [row.cell for row in rows] == list(cells)
    base = rows[0]
    assert base.against is None
    assert base.baseline == base.name
    for row in rows:
        found = evaluate(DATA.qrels, read_run(bench.folder.output(row.cell or cells[0])), ["nDCG@10"])
        assert row.values["nDCG@10"] == found.per_query["nDCG@10"]
        assert set(row.quality) == {"nDCG@10", "AP"}
        assert row.quality["nDCG@10"].low <= row.quality["nDCG@10"].mean <= row.quality["nDCG@10"].high
        assert row.cost.rounds == pytest.approx(5 if row.setting.startswith("sliding") else 3)
        if row is not base:
            assert row.against == paired(row.values["nDCG@10"], base.values["nDCG@10"])
            assert row.p >= row.against.randomisation_p if row.against else False
        assert row.on_set <= {"tokens", "rounds"}, "a simulated judge takes no time"
    assert rows[1].cost.calls > rows[0].cost.calls
    assert any("rounds" in row.on_set for row in rows)
    write_cells(tmp_path / "cells.csv", answer.rows)
    lines = (tmp_path / "cells.csv").read_text().splitlines()
    assert len(lines) == 6
    assert labels_of(answer.rows)[base.name] == "sliding-full"


def test_costs_are_the_journals_whether_asked_now_or_found_there(bench: Bench) -> None:
    cell = Cell("c", "bm25", "judge", strategy="blocks", samples=3)
    bench.run(cell)
    with bench.journal() as journal:
        before = list(spent_in(journal, bench.folder.run(cell)))
    assert bench.run(cell)[0][1] == 0
    with bench.journal() as journal:
        assert list(spent_in(journal, bench.folder.run(cell))) == before
    assert sum(query.calls for query in before) == bench.run(cell)[0][0]
    assert {len(query.rounds) for query in before} == {3}


def test_differences_are_paired_with_the_baseline_that_is_named(bench: Bench) -> None:
    study = bench.study({"think": ["off", "full"]}, baseline="sliding-full")
    bench.run(*cells_of(study))
    rows = bench.answer(study).rows
    assert [row.against is None for row in rows] == [True, False, True]
    against_first = compared(rows, "first stage")
    assert [row.baseline for row in against_first] == ["c.bm25"] * 3
    with pytest.raises(InputError, match="no cell is called 'x'"):
        compared(rows, "x")


def test_reasoning_by_thirds_adds_up_to_the_whole(bench: Bench) -> None:
    study = bench.study(*QUESTIONS["reasoning"].grids, by_difficulty=True)
    bench.run(*cells_of(study))
    answer = bench.answer(study)
    assert {one.third for one in answer.difficulty} == {"hard", "middling", "easy"}
    assert len({one.by for one in answer.difficulty}) == 2
    whole = answer.rows[-1].quality["nDCG@10"].mean
    for by in {one.by for one in answer.difficulty}:
        some = [one for one in answer.difficulty if one.by == by]
        assert sum(one.quality * one.against.queries for one in some) / len(DATA.queries) == pytest.approx(whole)
        assert [one.low for one in some] == sorted(one.low for one in some)
    assert all(one.against.mean == 0 for one in answer.difficulty), "this judge answers alike, thought or not"


def test_quality_by_round_is_read_off_the_journal(bench: Bench) -> None:
    study = bench.study({"strategy": ["sliding", "blocks", "topdown", "setwise"]}, by_round=True)
    cells = cells_of(study)
    bench.run(*cells)
    answer = bench.answer(study)
    for row in answer.rows[1:]:
        some = [one for one in answer.rounds if one.name == row.name]
        assert [one.rounds for one in some] == list(range(max(len(query.rounds) for query in row.spent) + 1))
        assert some[0].quality.mean == pytest.approx(answer.rows[0].quality["nDCG@10"].mean)
        assert some[-1].quality.mean == pytest.approx(row.quality["nDCG@10"].mean)
    assert [one.slots for one in answer.slots if one.name == cells[0].name] == [1, 4, 16, None]


def test_a_replay_of_other_windows_is_refused() -> None:
    candidates = [Candidate(f"d{n}", 1.0) for n in range(30)]
    cell = Cell("c", "f", "m", depth=30)
    steps = strategy_of(cell)(candidates, seed_of("q"))
    step = next(steps)
    order = Order.unranked(step.windows[0])
    good = WindowRecord("q", 0, 0, step.windows[0], (), (order,), {})
    with pytest.raises(JournalError, match="in the midst"):
        rankings_by_round(strategy_of(cell), candidates, seed_of("q"), [good])
    with pytest.raises(JournalError, match="not those of this cell"):
        rankings_by_round(strategy_of(replace(cell, window=10)), candidates, seed_of("q"), [good])
    assert rankings_by_round(strategy_of(cell), candidates[:1], 0, [])[0].doc_ids == ("d0",)
    steps.send([Outcome(step.windows[0], (order,))])


def test_documents_can_be_split(bench: Bench) -> None:
    whole, split = Cell("c", "bm25", "judge"), Cell("c", "bm25", "judge", split="32:8:2")
    bench.run(whole, split)
    one, other = (read_run(bench.folder.output(cell)) for cell in (whole, split))
    assert {query: {c.doc_id for c in found} for query, found in one.items()} == {
        query: {c.doc_id for c in found} for query, found in other.items()
    }
    answer = bench.answer(bench.study({"split": ["none", "32:8:2"]}))
    assert answer.rows[2].cost.windows > answer.rows[1].cost.windows


# --- the folder ------------------------------------------------------------------------------------


def test_a_folder_takes_more_cells_and_no_other_data(bench: Bench) -> None:
    one, other = Cell("c", "bm25", "judge"), Cell("c", "bm25", "judge", think="off")
    bench.run(one)
    bench.run(other)
    again = StudyFolder(bench.folder.path)
    assert again.cells == (one, other)
    with bench.journal() as journal:
        assert again.is_finished(one, journal)
        assert not again.is_finished(replace(one, depth=20), journal)
    assert bench.collection.qrels is not None
    bench.collection.qrels.write_text(bench.collection.qrels.read_text() + "Q00 0 other 1\n")
    with pytest.raises(InputError, match="another judgments for c"):
        bench.run(one)


def test_a_cell_is_finished_when_its_output_and_its_windows_are_there(bench: Bench) -> None:
    cell = Cell("c", "bm25", "judge")
    bench.run(cell)
    run = bench.folder.run(cell)
    with bench.journal() as journal:
        [first, *_] = journal.windows(run)
        journal.keep_window(run, replace(first, repairs={"gave_up": 1}))
        assert not bench.folder.is_finished(cell, journal), "a window that was given up is asked about again"
    assert bench.run(cell)[0][1] == 0
    with bench.journal() as journal:
        assert bench.folder.is_finished(cell, journal)
        bench.folder.output(cell).rename(bench.folder.path / "away")
        assert not bench.folder.is_finished(cell, journal)
    (bench.folder.path / "away").rename(bench.folder.output(cell))
    for file in bench.folder.path.glob("journal.sqlite*"):
        file.unlink()
    with bench.journal() as journal:
        assert not bench.folder.is_finished(cell, journal), "its cost is not known any more"


def test_a_cell_done_anew_and_killed_is_not_finished(bench: Bench) -> None:
    cell = Cell("c", "bm25", "judge")
    bench.run(cell)

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    with bench.opened() as opened, pytest.raises(KeyboardInterrupt):
        rerank_cell(cell, opened["c"], bench.model, {}, bench.folder, interrupted)
    with bench.journal() as journal:
        assert not bench.folder.is_finished(cell, journal)


def test_a_model_that_is_not_the_one_it_was_is_refused(bench: Bench) -> None:
    bench.folder.identify("m", "weights 1")
    bench.folder.identify("m", "weights 1")
    with pytest.raises(InputError, match="identity for m: weights 1, now weights 2; name another --output"):
        StudyFolder(bench.folder.path).identify("m", "weights 2")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 99, "collections": {}, "models": {}, "cells": {}}'])
def test_a_folder_that_is_no_study_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match="name another --output"):
        StudyFolder(tmp_path)


# --- collections -----------------------------------------------------------------------------------


def test_all_that_is_missing_is_told_at_once(bench: Bench, tmp_path: Path) -> None:
    gone = FirstStage("splade", tmp_path / "splade.trec", "run splade")
    collections = (
        replace(bench.collection, first_stages=(*bench.collection.first_stages, gone)),
        Collection("far", (FirstStage("own"),), f"beir:{tmp_path}/nowhere", get="download it"),
        Collection("near", (FirstStage("own"),), None, bench.collection.queries, bench.collection.documents),
    )
    prompted = ModelPlan("m", prompt=tmp_path / "prompt.txt", get="write it")
    found = missing(Study("s", collections, (prompted,), ({},)))
    assert [(lack.owner, lack.get) for lack in found] == [
        ("c", "run splade"),
        ("far", "download it"),
        ("near", "name a file of judgments, or a data set that has them"),
        ("m", "write it"),
    ]


def test_depths_beyond_the_run_are_left_out(bench: Bench) -> None:
    cells = cells_of(bench.study({"depth": [20, 50, 100, 200]}))
    with bench.opened() as opened:
        assert [cell.depth for cell in reachable(cells, opened)] == [20, 50, 100]


def test_queries_that_nobody_judged_are_not_paid_for(bench: Bench) -> None:
    assert bench.collection.qrels is not None
    lines = bench.collection.qrels.read_text().splitlines(keepends=True)
    bench.collection.qrels.write_text("".join(line for line in lines if not line.startswith("Q00 ")))
    cell = Cell("c", "bm25", "judge")
    bench.run(cell)
    assert set(read_run(bench.folder.output(cell))) == {query.query_id for query in DATA.queries} - {"Q00"}


def test_a_text_that_is_not_there_is_found_before_the_first_call(bench: Bench) -> None:
    assert bench.collection.documents is not None
    lines = bench.collection.documents.read_text().splitlines(keepends=True)
    bench.collection.documents.write_text("".join(lines[:-1]))
    with bench.opened() as opened, pytest.raises(InputError, match="is not in"):
        opened["c"].check_texts("bm25", 100)


def test_averages_need_all_their_collections(bench: Bench) -> None:
    study = bench.study({})
    bench.run(*cells_of(study))
    rows = bench.answer(study).rows
    [first, cell] = averages_of(rows, [Average("all", ("c",))])
    assert (first.setting, cell.setting) == ("first stage", "sliding-full")
    assert cell.mean == rows[1].quality["nDCG@10"].mean
    assert cell.error == pytest.approx(rows[1].quality["nDCG@10"].error)
    assert averages_of(rows, [Average("all", ("c", "d"))]) == []
    assert published_for(rows[0], ()) is None
