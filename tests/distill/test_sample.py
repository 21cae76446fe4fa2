"""Candidate sets: drawn as told, the same ones every time, whole on disk whatever happens; near texts found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rank_k.cli import main
from rank_k.data.collections.base import PassageStore
from rank_k.distill.candidate_sets import AppendedSets, CandidateSet, json_line, license_of, read_sets
from rank_k.distill.near_duplicates import CONTAMINATED, REPEATED, NearDuplicateIndex, normalized
from rank_k.distill.sample import Sampler, Sampling, draw, write_samples
from rank_k.errors import FormatError, InputError
from rank_k.retrieval.fusion import FusedRuns, K, reciprocal_rank_fusion
from rank_k.types import Candidate, Query

RANKING = [f"d{rank}" for rank in range(1, 51)]
ids = st.lists(st.sampled_from(RANKING), unique=True)


class Rankings(dict[str, list[str]]):
    def ranking(self, query_id: str) -> Sequence[str]:
        return self.get(query_id, ())


# --- fusing ----------------------------------------------------------------------------------------


@given(st.lists(ids, max_size=4))
def test_fusing_ranks_all_candidates_by_the_sum_of_their_reciprocal_ranks(rankings: list[list[str]]) -> None:
    found = reciprocal_rank_fusion(rankings)
    assert Counter(found) == Counter({doc_id for ranking in rankings for doc_id in ranking})
    scores = [sum(1 / (K + r.index(doc_id) + 1) for r in rankings if doc_id in r) for doc_id in found]
    assert all(before >= after - 1e-12 for before, after in pairwise(scores))


def test_runs_are_fused_by_query_whatever_order_their_queries_are_in() -> None:
    one = {"q1": ["a", "b"], "q2": ["c"]}
    other = {"q2": ["d", "c"], "q1": ["b"], "q3": ["e", "f", "g"]}
    runs = [
        [(query_id, tuple(Candidate(d, -n) for n, d in enumerate(found))) for query_id, found in run.items()]
        for run in (one, other)
    ]
    both = FusedRuns(runs, depth=2)
    assert [both.ranking(q) for q in ("q1", "q2", "q3", "q4")] == [["b", "a"], ["c", "d"], ["e", "f"], []]
    both.close()


@pytest.mark.parametrize(
    ("told", "license"),
    [
        ("Texts of 2024. License of the data: **MIT; Wikipedia text CC BY-SA**\n", "MIT; Wikipedia text CC BY-SA"),
        ("- License: MIT, for code\n\nLicense of the data: CC BY 4.0.", "CC BY 4.0"),
        ("- Source: somewhere @ 577bd37b96. License CC BY-SA 4.0. 400 queries.", "CC BY-SA 4.0"),
        ("- License: none stated; see LICENSE.txt for code", "none stated; see LICENSE.txt for code"),
        ("Nobody knows.", None),
    ],
)
def test_a_collection_says_its_license(tmp_path: Path, told: str, license: str | None) -> None:
    assert license_of(tmp_path) is None
    (tmp_path / "PROVENANCE.md").write_text(told, encoding="utf-8")
    assert license_of(tmp_path) == license


# --- drawing ---------------------------------------------------------------------------------------


def test_by_default_sets_are_drawn_as_in_the_paper() -> None:
    sizes: Counter[int] = Counter()
    for query in range(300):
        first, second = (draw(f"q{query}", RANKING, None, number, Sampling()) for number in (0, 1))
        assert set(first) <= set(RANKING[:20])
        assert set(second) <= set(RANKING[9:30])
        assert list(first) != sorted(first, key=RANKING.index)
        sizes.update([len(first), len(second)])
    assert set(sizes) == set(range(10, 21))


@given(
    st.lists(st.sampled_from(RANKING[:25]), unique=True),
    st.dictionaries(st.sampled_from([*RANKING, "unranked"]), st.integers(-1, 3)),
    st.tuples(st.integers(2, 6), st.integers(0, 6)).map(lambda pair: (pair[0], sum(pair))),
    st.tuples(st.integers(0, 3), st.integers(0, 3)).map(lambda pair: (pair[0], sum(pair))),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 3),
)
def test_a_set_holds_as_many_relevant_passages_as_were_asked_for(
    ranking: list[str],
    grades: dict[str, int],
    sizes: tuple[int, int],
    positives: tuple[int, int],
    none: float,
    skip: int,
) -> None:
    how = Sampling(sizes, ((1, 15),), 1, positives, none, skip)
    found = draw("q", ranking, grades, 0, how)
    assert found == draw("q", ranking, grades, 0, how)
    relevant = {doc_id: grade for doc_id, grade in grades.items() if grade > 0}
    if isinstance(found, str):
        assert found in ("no_positives", "too_few")
        assert (found == "no_positives") == (not relevant)
        return
    assert sizes[0] <= len(found) == len(set(found)) <= sizes[1]
    inside = [doc_id for doc_id in found if doc_id in relevant]
    best = max(relevant.values())
    if none == 1:
        assert all(relevant[doc_id] < best for doc_id in inside)
    if none == 0:
        assert min(positives[0], len(relevant), sizes[0]) <= len(inside)
        assert not inside or max(relevant[doc_id] for doc_id in inside) == best
    assert len(inside) <= positives[1]
    others = set(found) - set(inside)
    assert others <= set(ranking[:15])
    unjudged = [doc_id for doc_id in ranking if doc_id not in grades]
    assert not others & set(unjudged[:skip])


def test_it_does_not_matter_in_what_order_judgments_were_written_down() -> None:
    how = Sampling((4, 8), ((1, 15),), 1, (1, 3))
    known = {f"d{rank}": 1 + rank % 2 for rank in range(1, 40, 3)}
    turned = dict(reversed(known.items()))
    for query in map(str, range(50)):
        assert draw(query, RANKING, known, 0, how) == draw(query, RANKING, turned, 0, how)


@pytest.mark.parametrize(
    "options",
    [
        {"sizes": (1, 5)},
        {"sizes": (6, 5)},
        {"ranks": ()},
        {"ranks": ((0, 5),)},
        {"ranks": ((7, 5),)},
        {"positives": (3, 1)},
        {"none": 0.5},
        {"skip_negatives": 1},
        {"positives": (0, 1), "skip_negatives": -1},
        {"positives": (0, 1), "none": 1.5},
    ],
)
def test_impossible_numbers_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Sampling(**options)


QUERIES = {f"q{n}": Query(f"q{n}", f"what of {n} and {n * 7}") for n in range(30)}


def sampler(queries: Mapping[str, Query] = QUERIES, **options: Any) -> Sampler:
    ranked = Rankings(dict.fromkeys(queries, RANKING))
    return Sampler(ranked, queries, Sampling(**options), "source")


def test_another_query_changes_no_other_set() -> None:
    before = {drawn.set_id: drawn for drawn in sampler().drawn()}
    after = {drawn.set_id: drawn for drawn in sampler({**QUERIES, "new": Query("new", "x")}).drawn()}
    assert len(before) == 60
    assert before.items() < after.items()
    assert {after[name].query.query_id for name in after.keys() - before.keys()} == {"new"}


def test_more_queries_go_on_where_fewer_ended_and_another_seed_draws_others() -> None:
    few, all_of_them = list(sampler().drawn(7)), list(sampler().drawn())
    assert len(few) == 14
    assert all_of_them[:14] == few
    assert {d.set_id for d in sampler(seed=1).drawn()}.isdisjoint({d.set_id for d in all_of_them})


def test_what_is_left_out_is_counted() -> None:
    queries = {q: Query(q, t) for q, t in (("a", "Who was Ada Lovelace?"), ("b", "short"), ("c", "unranked"))}
    excluded = NearDuplicateIndex(CONTAMINATED)
    excluded.add("who was ada  lovelace", "evaluation")
    found = Sampler(Rankings(a=RANKING, b=RANKING[:10]), queries, Sampling(), "s", None, excluded)
    assert len(list(found.drawn())) == 1
    assert found.counts == Counter(
        contaminated=1, not_ranked=1, too_few=1, queries=1, sets=1, passages=10
    )  # ranks 10 to 30 of ten are one passage


# --- on disk ---------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PassageStore]:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": d, "text": f"text é of {d}"}) + "\n" for d in RANKING))
    with PassageStore.of_file(path) as found:
        yield found


def test_a_file_cut_anywhere_is_finished_to_the_same_bytes(tmp_path: Path, store: PassageStore) -> None:
    output = tmp_path / "sets.jsonl"
    assert write_samples(sampler(), store, output, 3, "CC0") == 0
    whole = output.read_bytes()
    rows = list(read_sets(output))
    assert len(rows) == 6
    assert all(row.passages == tuple(f"text é of {d}" for d in row.doc_ids) for row in rows)
    for length in {*range(0, len(whole), 997), len(whole) - 1, len(whole)}:
        output.write_bytes(whole[:length])
        assert write_samples(sampler(), store, output, 3, "CC0") == whole[:length].count(b"\n")
        assert output.read_bytes() == whole


def test_sets_of_other_options_are_not_mixed(tmp_path: Path, store: PassageStore) -> None:
    output = tmp_path / "sets.jsonl"
    write_samples(sampler(), store, output, 3)
    whole = output.read_bytes()
    with pytest.raises(InputError, match=r"sets\.jsonl:1: .* \(source/.* does\)"):
        write_samples(sampler(seed=1), store, output, 3)
    with pytest.raises(InputError, match=r"sets\.jsonl:5: .* \(nothing more does\)"):
        write_samples(sampler(), store, output, 2)
    judged = sampler()
    judged.grades = {query_id: {"d1": 1} for query_id in QUERIES}
    with pytest.raises(InputError, match=r"sets\.jsonl:1: .* \(another grades\)"):
        write_samples(judged, store, output, 3)
    with pytest.raises(InputError, match=r"sets\.jsonl:1: .* \(another license\)"):
        write_samples(sampler(), store, output, 3, "CC0")
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(f'{{"_id": "{doc_id}", "text": "another"}}\n' for doc_id in RANKING), encoding="utf-8")
    with pytest.raises(InputError, match=r"sets\.jsonl:1: .* \(another passages\)"):
        write_samples(sampler(), PassageStore.of_file(changed), output, 3)
    assert output.read_bytes() == whole


@pytest.mark.parametrize("content", [b"\x1f\x8b compressed\nand more", b"q1 Q0 d1 1 1.0 bm25\nq1 Q0", b'{"_id": "d1"}'])
def test_a_file_of_anything_else_is_left_as_it_is(tmp_path: Path, store: PassageStore, content: bytes) -> None:
    output = tmp_path / "mine"
    output.write_bytes(content)
    with pytest.raises(FormatError, match=r"mine:1: .* expected a file of sets to go on with"):
        write_samples(sampler(), store, output, 3)
    assert output.read_bytes() == content


HARD = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.tuples(HARD, HARD), min_size=2, unique_by=lambda p: p[0]), HARD, st.none() | HARD)
def test_a_set_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, shown: list[tuple[str, str]], text: str, license: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "one.jsonl"
    path.unlink(missing_ok=True)
    doc_ids, passages = zip(*shown, strict=True)
    row = CandidateSet("set", "q\udcff", text, doc_ids, passages, {doc_ids[0]: 2}, "source", license)
    with AppendedSets(path) as file:
        file.write(row)
    assert list(read_sets(path)) == [row]


GOOD = {
    "set_id": "s", "query_id": "q", "query": "t", "doc_ids": ["a", "b"], "passages": ["x", "y"], "grades": {"a": 1},
    "source": "s", "license": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"set_id": 3},
        {"query": None},
        {"doc_ids": "ab"},
        {"doc_ids": ["a"], "passages": ["x"]},
        {"doc_ids": ["a", "a"]},
        {"passages": ["x"]},
        {"passages": ["x", 1]},
        {"grades": {"a": "1"}},
        {"grades": [1]},
        {"license": 1},
    ],
)
def test_a_line_that_is_no_set_is_told_with_its_number(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "sets.jsonl"
    path.write_bytes(json_line(GOOD) + json_line({**GOOD, **change}))
    rows = read_sets(path)
    assert next(rows).set_id == "s"
    with pytest.raises(FormatError, match=r"sets\.jsonl:2: "):
        next(rows)


# --- near texts ------------------------------------------------------------------------------------


def trigrams(text: str) -> set[str]:
    text = f" {normalized(text)} "
    return {text[i : i + 3] for i in range(max(len(text) - 2, 1))}


def likeness(one: str, other: str) -> float:
    return len(trigrams(one) & trigrams(other)) / len(trigrams(one) | trigrams(other))


words = st.lists(st.sampled_from("who what is was the of in tide moon Ada ada? 月 亮 潮汐 1998".split()), max_size=7)


@given(st.lists(words.map(" ".join), max_size=12), words.map(" ".join), st.sampled_from([CONTAMINATED, REPEATED, 0.5]))
@example(["", "a"], "", 0.75)
def test_the_first_near_text_is_found_and_no_other(texts: list[str], text: str, threshold: float) -> None:
    near = NearDuplicateIndex(threshold)
    for number, known in enumerate(texts):
        near.add(known, str(number))
    expected = next((str(n) for n, known in enumerate(texts) if likeness(text, known) >= threshold), None)
    assert near.find(text) == expected


@pytest.mark.parametrize(
    ("known", "asked", "is_near"),
    [
        ("Who invented the telephone?", "who invented the  TELEPHONE", True),
        ("who invented the telephone", "who invented telephones", True),
        ("who invented the telephone", "who invented the television", False),
        ("what is the capital of France", "what is the capital of Spain", False),
        ("今天北京的天氣怎麼樣", "今天北京的天氣怎麼樣？", True),
        ("今天北京的天氣怎麼樣", "誰發明了電話", False),
        ("Ｆｕｌｌ width", "full-width", True),
    ],
)
def test_what_counts_as_contaminated(known: str, asked: str, is_near: bool) -> None:
    near = NearDuplicateIndex(CONTAMINATED)
    near.add(known, "known")
    assert (near.find(asked) == "known") == is_near


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tides"
    folder.mkdir()
    lines: dict[str, list[str]] = {"corpus.jsonl": [], "queries.jsonl": [], "qrels.trec": [], "run.trec": []}
    for n in range(12):
        lines["corpus.jsonl"].append(json.dumps({"_id": f"d{n}", "title": "", "text": f"passage {n}"}))
    for q, text in (("q1", "what moves the tides"), ("q2", "why is the sky blue")):
        lines["queries.jsonl"].append(json.dumps({"_id": q, "text": text}))
        lines["qrels.trec"].append(f"{q} 0 d7 1")
        lines["run.trec"] += [f"{q} Q0 d{n} {n + 1} {12 - n} bm25" for n in range(12)]
    for name, found in lines.items():
        (folder / name).write_text("\n".join(found) + "\n")
    (folder / "PROVENANCE.md").write_text("# Tides\n\nTraining data. License of the data: **CC BY 4.0**\n")
    (folder / "eval.jsonl").write_text(json.dumps({"_id": "e", "text": "Why is the sky blue?"}) + "\n")
    monkeypatch.chdir(folder)
    return folder


SAMPLE = ("distill", "sample", "--dataset", "beir:.", "--runs", "run.trec", "--sizes", "3-5", "--ranks", "1-10")


def test_the_command_draws_and_counts(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--positives", "1", "--skip-negatives", "1", "--exclude-queries", "eval.jsonl", "--sets-per-query", "1")
    assert main([*SAMPLE, *options, "--output", "sets.jsonl"]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "sets.jsonl: 1 sets, " in told.err
    assert "relevant passages in a set: 1 in 100%" in told.err
    assert "1 queries left out: the same or nearly the same as one of --exclude-queries" in told.err
    (row,) = read_sets("sets.jsonl")
    assert (row.query_id, row.source, row.license, row.grades) == ("q1", "tides", "CC BY 4.0", {"d7": 1})
    assert "d0" not in row.doc_ids
    assert set(row.doc_ids) <= {f"d{n}" for n in range(10)}
    assert row.passages[row.doc_ids.index("d7")] == "passage 7"


def test_the_command_goes_on_and_says_so(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count, there in (("1", ""), ("2", ", 2 of them there already")):
        assert main([*SAMPLE, "--queries-count", count, "--output", "sets.jsonl"]) == 0
        assert f"sets.jsonl: {2 * int(count)} sets{there}, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sizes", "many"), "'many' is no range such as 10-20"),
        (("--ranks", "1-20,x"), "'x' is no range such as 10-20"),
        (("--none", "0.1"), "rank-k distill sample: positives are not asked for"),
        (("--nothing",), "rank-k distill sample: there is no option --nothing; see rank-k distill sample --help"),
    ],
)
def test_mistakes_are_one_line(
    collection: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    try:
        code = main([*SAMPLE, *options, "--output", "sets.jsonl"])
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr().err
    assert (code, told.count("\n")) == (2, 1)
    assert said in told
