"""Candidate sets: drawn as told, the same ones every time, whole on disk whatever happens; near texts found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rank_k.cli import main
from rank_k.data.corpus_index import CorpusIndex, open_corpus_index
from rank_k.distill.candidate_sets import (
    CandidateSet,
    encode_json_line,
    read_candidate_sets,
    read_license,
)
from rank_k.distill.near_duplicates import (
    CONTAMINATION_SIMILARITY,
    DUPLICATE_SIMILARITY,
    NearDuplicateIndex,
    normalize_text,
)
from rank_k.distill.sample import Sampler, Sampling, draw_set, write_samples
from rank_k.errors import FormatError, InputError
from rank_k.retrieval.fusion import RRF_K, FusedRuns, reciprocal_rank_fusion
from rank_k.types import Candidate, Passage, PassageSource, Query
from tests.support.commands import run_command

RANKING = [f"d{rank}" for rank in range(1, 51)]
doc_id_lists = st.lists(st.sampled_from(RANKING), unique=True)


class NoTexts:
    """A corpus of empty passages."""

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        return Passage(doc_id, "")


# --- fusing ----------------------------------------------------------------------------------------


@given(st.lists(doc_id_lists, max_size=4))
def test_reciprocal_rank_fusion_sums_reciprocal_ranks(rankings: list[list[str]]) -> None:
    fused = reciprocal_rank_fusion(rankings)
    assert Counter(fused) == Counter({doc_id for ranking in rankings for doc_id in ranking})
    scores = [
        sum(1 / (RRF_K + ranking.index(doc_id) + 1) for ranking in rankings if doc_id in ranking) for doc_id in fused
    ]
    assert all(before >= after - 1e-12 for before, after in pairwise(scores))


def test_fused_runs_fuses_queries_in_any_order() -> None:
    first_run = {"q1": ["a", "b"], "q2": ["c"]}
    second_run = {"q2": ["d", "c"], "q1": ["b"], "q3": ["e", "f", "g"]}
    runs = [
        [
            (query_id, tuple(Candidate(doc_id, -n) for n, doc_id in enumerate(doc_ids)))
            for query_id, doc_ids in run.items()
        ]
        for run in (first_run, second_run)
    ]
    fused = FusedRuns(runs, depth=2)
    assert [fused.ranking(q) for q in ("q1", "q2", "q3", "q4")] == [["b", "a"], ["c", "d"], ["e", "f"], []]
    fused.close()


@pytest.mark.parametrize(
    ("provenance", "license"),
    [
        ("Texts of 2024. License of the data: **MIT; Wikipedia text CC BY-SA**\n", "MIT; Wikipedia text CC BY-SA"),
        ("- License: MIT, for code\n\nLicense of the data: CC BY 4.0.", "CC BY 4.0"),
        ("- Source: somewhere @ 577bd37b96. License CC BY-SA 4.0. 400 queries.", "CC BY-SA 4.0"),
        ("- License: none stated; see LICENSE.txt for code", "none stated; see LICENSE.txt for code"),
        ("Nobody knows.", None),
    ],
)
def test_license_of_reads_provenance(tmp_path: Path, provenance: str, license: str | None) -> None:
    assert read_license(tmp_path) is None
    (tmp_path / "PROVENANCE.md").write_text(provenance, encoding="utf-8")
    assert read_license(tmp_path) == license


# --- drawing ---------------------------------------------------------------------------------------


def test_draw_set_follows_the_paper_by_default() -> None:
    sizes: Counter[int] = Counter()
    for query in range(300):
        first, second = (draw_set(f"q{query}", RANKING, None, number, Sampling()) for number in (0, 1))
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
def test_draw_set_includes_the_requested_number_of_relevant_passages(
    ranking: list[str],
    grades: dict[str, int],
    sizes: tuple[int, int],
    positives: tuple[int, int],
    none: float,
    skip_negatives: int,
) -> None:
    sampling = Sampling(sizes, ((1, 15),), 1, positives, none, skip_negatives)
    doc_ids = draw_set("q", ranking, grades, 0, sampling)
    assert doc_ids == draw_set("q", ranking, grades, 0, sampling)
    relevant = {doc_id: grade for doc_id, grade in grades.items() if grade > 0}
    if isinstance(doc_ids, str):
        assert doc_ids in ("no_positives", "too_few")
        assert (doc_ids == "no_positives") == (not relevant)
        return
    assert sizes[0] <= len(doc_ids) == len(set(doc_ids)) <= sizes[1]
    relevant_ids = [doc_id for doc_id in doc_ids if doc_id in relevant]
    best = max(relevant.values())
    if none == 1:
        assert all(relevant[doc_id] < best for doc_id in relevant_ids)
    if none == 0:
        assert min(positives[0], len(relevant), sizes[0]) <= len(relevant_ids)
        assert not relevant_ids or max(relevant[doc_id] for doc_id in relevant_ids) == best
    assert len(relevant_ids) <= positives[1]
    irrelevant_ids = set(doc_ids) - set(relevant_ids)
    assert irrelevant_ids <= set(ranking[:15])
    unjudged = [doc_id for doc_id in ranking if doc_id not in grades]
    assert not irrelevant_ids & set(unjudged[:skip_negatives])


def test_draw_set_ignores_the_order_of_judgments() -> None:
    sampling = Sampling((4, 8), ((1, 15),), 1, (1, 3))
    grades = {f"d{rank}": 1 + rank % 2 for rank in range(1, 40, 3)}
    reversed_grades = dict(reversed(grades.items()))
    for query in map(str, range(50)):
        assert draw_set(query, RANKING, grades, 0, sampling) == draw_set(query, RANKING, reversed_grades, 0, sampling)


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
def test_sampling_rejects_invalid_values(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Sampling(**options)


QUERIES = {f"q{n}": Query(f"q{n}", f"what of {n} and {n * 7}") for n in range(30)}


def make_sampler(
    queries: Mapping[str, Query] = QUERIES,
    store: PassageSource = NoTexts(),  # noqa: B008
    license: str | None = None,
    **options: Any,
) -> Sampler:
    return Sampler(lambda query_id: RANKING, queries, store, Sampling(**options), "source", license)


def test_sampler_sets_do_not_depend_on_other_queries() -> None:
    before = {sampled.set_id: sampled for sampled in make_sampler().sample_sets()}
    after = {sampled.set_id: sampled for sampled in make_sampler({**QUERIES, "new": Query("new", "x")}).sample_sets()}
    assert len(before) == 60
    assert before.items() < after.items()
    assert {after[name].query_id for name in after.keys() - before.keys()} == {"new"}


def test_sampler_extends_the_same_order_and_depends_on_the_seed() -> None:
    first_sets, all_sets = list(make_sampler().sample_sets(7)), list(make_sampler().sample_sets())
    assert len(first_sets) == 14
    assert all_sets[:14] == first_sets
    assert {sampled.set_id for sampled in make_sampler(seed=1).sample_sets()}.isdisjoint(
        {sampled.set_id for sampled in all_sets}
    )


def test_sampler_counts_skipped_queries_and_sets() -> None:
    queries = {
        query_id: Query(query_id, text)
        for query_id, text in (("a", "Who was Ada Lovelace?"), ("b", "short"), ("c", "unranked"))
    }
    excluded = NearDuplicateIndex(CONTAMINATION_SIMILARITY)
    excluded.add("who was ada  lovelace", "evaluation")
    rankings = {"a": RANKING, "b": RANKING[:10]}
    excluding_sampler = Sampler(
        lambda query_id: rankings.get(query_id, ()), queries, NoTexts(), Sampling(), "s", excluded_queries=excluded
    )
    assert len(list(excluding_sampler.sample_sets())) == 1
    assert excluding_sampler.counts == Counter(
        contaminated=1, not_ranked=1, too_few=1, queries=1, sets=1, passages=10
    )  # ranks 10 to 30 of ten are one passage


# --- on disk ---------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CorpusIndex]:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": doc_id, "text": f"text é of {doc_id}"}) + "\n" for doc_id in RANKING))
    with closing(open_corpus_index(path)) as index:
        yield index


def test_write_samples_continues_a_file_of_fewer_sets(tmp_path: Path, store: CorpusIndex) -> None:
    output = tmp_path / "sets.jsonl"
    assert write_samples(make_sampler(store=store, license="CC0"), output, 3) == 0
    content = output.read_bytes()
    rows = list(read_candidate_sets(output))
    assert len(rows) == 6
    assert all(row.passages == tuple(f"text é of {doc_id}" for doc_id in row.doc_ids) for row in rows)
    lines = content.splitlines(keepends=True)
    for count in range(7):
        output.write_bytes(b"".join(lines[:count]))
        assert write_samples(make_sampler(store=store, license="CC0"), output, 3) == count
        assert output.read_bytes() == content


def test_write_samples_writes_no_incomplete_file(tmp_path: Path, store: CorpusIndex) -> None:
    class Interrupted(NoTexts):
        def get(self, doc_id: str, query_id: str | None = None) -> Passage:
            if query_id not in first_queries:
                raise KeyboardInterrupt
            return store.get(doc_id, query_id)

    output = tmp_path / "sets.jsonl"
    write_samples(make_sampler(store=store), output, 2)
    content = output.read_bytes()
    first_queries = {row.query_id for row in read_candidate_sets(output)}
    with pytest.raises(KeyboardInterrupt):
        write_samples(make_sampler(store=Interrupted()), output, 3)
    assert output.read_bytes() == content
    assert write_samples(make_sampler(store=store), output, 3) == 4


def test_write_samples_rejects_sets_made_with_other_options(tmp_path: Path, store: CorpusIndex) -> None:
    output = tmp_path / "sets.jsonl"
    write_samples(make_sampler(store=store), output, 3)
    content = output.read_bytes()
    with pytest.raises(InputError, match=r"sets\.jsonl:1: set source/.* differs .* \(set_id, query_id, "):
        write_samples(make_sampler(store=store, seed=1), output, 3)
    with pytest.raises(InputError, match=r"sets\.jsonl:5: set source/.* differs"):
        write_samples(make_sampler(store=store), output, 2)
    judged_sampler = make_sampler(store=store)
    judged_sampler.grades = {query_id: {"d1": 1} for query_id in QUERIES}
    with pytest.raises(InputError, match=r"sets\.jsonl:1: .* \(grades\)"):
        write_samples(judged_sampler, output, 3)
    with pytest.raises(InputError, match=r"sets\.jsonl:1: .* \(license\)"):
        write_samples(make_sampler(store=store, license="CC0"), output, 3)
    with pytest.raises(InputError, match=r"sets\.jsonl:1: .* \(passages\)"):
        write_samples(make_sampler(), output, 3)
    assert output.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8b compressed\nand more", b"q1 Q0 d1 1 1.0 bm25\nq1 Q0", b'{"_id": "d1"}', b"{}"],
)
def test_write_samples_leaves_other_files_unchanged(tmp_path: Path, store: CorpusIndex, content: bytes) -> None:
    output = tmp_path / "mine"
    output.write_bytes(content)
    with pytest.raises(InputError, match=r"mine\b"):
        write_samples(make_sampler(store=store), output, 3)
    assert output.read_bytes() == content


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=2, unique_by=lambda p: p[0]), ANY_TEXT, st.none() | ANY_TEXT)
def test_read_candidate_sets_round_trips(
    tmp_path_factory: pytest.TempPathFactory, passages_by_id: list[tuple[str, str]], text: str, license: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "one.jsonl"
    doc_ids, passages = zip(*passages_by_id, strict=True)
    candidate_set = CandidateSet("set", "q\udcff", text, doc_ids, passages, {doc_ids[0]: 2}, "source", license)
    path.write_bytes(encode_json_line(asdict(candidate_set)))
    assert list(read_candidate_sets(path)) == [candidate_set]


VALID_SET = {
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
def test_read_candidate_sets_names_the_invalid_line(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "sets.jsonl"
    path.write_bytes(encode_json_line(VALID_SET) + encode_json_line({**VALID_SET, **change}))
    rows = read_candidate_sets(path)
    assert next(rows).set_id == "s"
    with pytest.raises(FormatError, match=r"sets\.jsonl:2: "):
        next(rows)


# --- near texts ------------------------------------------------------------------------------------


def trigrams(text: str) -> set[str]:
    text = f" {normalize_text(text)} "
    return {text[i : i + 3] for i in range(max(len(text) - 2, 1))}


def trigram_similarity(first: str, second: str) -> float:
    return len(trigrams(first) & trigrams(second)) / len(trigrams(first) | trigrams(second))


word_lists = st.lists(
    st.sampled_from("who what is was the of in tide moon Ada ada? 月 亮 潮汐 1998".split()), max_size=7
)


@given(
    st.lists(word_lists.map(" ".join), max_size=12),
    word_lists.map(" ".join),
    st.sampled_from([CONTAMINATION_SIMILARITY, DUPLICATE_SIMILARITY, 0.5]),
)
@example(["", "a"], "", 0.75)
def test_near_duplicate_index_finds_the_first_near_text(texts: list[str], text: str, threshold: float) -> None:
    index = NearDuplicateIndex(threshold)
    for number, known in enumerate(texts):
        index.add(known, str(number))
    expected = next((str(n) for n, known in enumerate(texts) if trigram_similarity(text, known) >= threshold), None)
    assert index.find(text) == expected


@pytest.mark.parametrize(
    ("known", "query", "is_near"),
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
def test_near_duplicate_index_contamination_examples(known: str, query: str, is_near: bool) -> None:
    index = NearDuplicateIndex(CONTAMINATION_SIMILARITY)
    index.add(known, "known")
    assert (index.find(query) == "known") == is_near


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tides"
    folder.mkdir()
    lines: dict[str, list[str]] = {"corpus.jsonl": [], "queries.jsonl": [], "qrels.trec": [], "run.trec": []}
    for number in range(12):
        lines["corpus.jsonl"].append(json.dumps({"_id": f"d{number}", "title": "", "text": f"passage {number}"}))
    for query_id, text in (("q1", "what moves the tides"), ("q2", "why is the sky blue")):
        lines["queries.jsonl"].append(json.dumps({"_id": query_id, "text": text}))
        lines["qrels.trec"].append(f"{query_id} 0 d7 1")
        lines["run.trec"] += [f"{query_id} Q0 d{number} {number + 1} {12 - number} bm25" for number in range(12)]
    for name, rows in lines.items():
        (folder / name).write_text("\n".join(rows) + "\n")
    (folder / "PROVENANCE.md").write_text("# Tides\n\nTraining data. License of the data: **CC BY 4.0**\n")
    (folder / "eval.jsonl").write_text(json.dumps({"_id": "e", "text": "Why is the sky blue?"}) + "\n")
    monkeypatch.chdir(folder)
    return folder


SAMPLE = ("distill", "sample", "--dataset", "beir:.", "--runs", "run.trec", "--sizes", "3-5", "--ranks", "1-10")


def test_distill_sample_writes_sets_and_counts(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--positives", "1", "--skip-negatives", "1", "--exclude-queries", "eval.jsonl", "--sets-per-query", "1")
    assert main([*SAMPLE, *options, "--output", "sets.jsonl"]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "sets.jsonl: 1 set, " in output.err
    assert "number of relevant passages: 1 in 100% of the sets" in output.err
    assert "1 query left out: identical or similar to one of --exclude-queries" in output.err
    (row,) = read_candidate_sets("sets.jsonl")
    assert (row.query_id, row.source, row.license, row.grades) == ("q1", "tides", "CC BY 4.0", {"d7": 1})
    assert "d0" not in row.doc_ids
    assert set(row.doc_ids) <= {f"d{n}" for n in range(10)}
    assert row.passages[row.doc_ids.index("d7")] == "passage 7"


def test_distill_sample_resumes_and_reports_existing_sets(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count, existing_note in (("1", ""), ("2", ", 2 of them from an earlier command")):
        assert main([*SAMPLE, "--queries-count", count, "--output", "sets.jsonl"]) == 0
        assert f"sets.jsonl: {2 * int(count)} sets{existing_note}, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sizes", "many"), "'many' is not a range such as 10-20"),
        (("--ranks", "1-20,x"), "'x' is not a range such as 10-20"),
        (("--none", "0.1"), "rank-k distill sample: none and skip_negatives can only be used with positives"),
        (("--nothing",), "rank-k distill sample: there is no option --nothing; see rank-k distill sample --help"),
    ],
)
def test_distill_sample_reports_errors_in_one_line(
    collection: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert message in run_command(capsys, *SAMPLE, *options, "--output", "sets.jsonl", code=2).err
