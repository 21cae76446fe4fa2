"""Long documents: every character in some passage, and a ranking of passages brought back to documents."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rank_k.data.long_documents import (
    MIN_PASSAGE_TOKENS,
    DocumentGrades,
    PassageSplit,
    SplitRun,
    collapse_to_documents,
    document_id,
    passage_id,
)
from rank_k.data.token_estimate import estimate_tokens
from rank_k.errors import InputError
from rank_k.types import Candidate, Passage, Ranking

short_texts = st.text("ab.é ß\n。中文字สวัสดีक्ष👩‍🚀🇩🇪e\u0301\t!?x", max_size=400)
long_words = st.integers(0, 3000).map(lambda count: "abcdefgh" * count)
any_texts = st.one_of(
    short_texts, st.text(max_size=300), st.lists(st.one_of(short_texts, long_words), max_size=4).map(" ".join)
)
any_splits = st.integers(MIN_PASSAGE_TOKENS, 60).flatmap(
    lambda tokens: st.builds(PassageSplit, st.just(tokens), st.integers(0, tokens // 2))
)


@given(any_texts, any_splits)
@example("???????\U0001f1e9 ??\U0001f1e9\U0001f1e9\U0001f1e9", PassageSplit(16))
def test_passage_split_covers_every_character(text: str, split: PassageSplit) -> None:
    spans = list(split.spans(text))
    assert (spans[0][0], spans[-1][1]) == (0, len(text))
    for start, end in spans:
        assert estimate_tokens(text[start:end]) <= split.tokens
    for (start, end), (next_start, next_end) in pairwise(spans):
        assert start < next_start <= end < next_end, "no gap, and always further"
        assert estimate_tokens(text[next_start:end]) <= split.overlap
    passages = list(split.passages(text))
    assert passages == [text[start:end] for start, end in spans]
    if not split.overlap:
        assert "".join(passages) == text


@given(any_texts, any_splits)
def test_passage_split_fills_passages(text: str, split: PassageSplit) -> None:
    """So that there are not many more of them than there must be."""
    for passage in list(split.passages(text))[:-1]:
        assert estimate_tokens(passage) > (split.tokens + split.overlap) // 2 - max(8, split.tokens // 16)


def test_passage_split_prefers_sentence_then_word_then_grapheme_ends() -> None:
    sentences = "One two three four five six seven. " * 9
    assert all(passage.endswith(". ") for passage in PassageSplit(30).passages(sentences))
    assert all(passage.endswith(" ") for passage in PassageSplit(30).passages("one two three " * 40))
    assert all(passage.endswith("。") for passage in PassageSplit(30).passages("一二三四五六七八九十。" * 20))
    graphemes = "e\u0301" * 200 + "🇩🇪" * 60 + "👩‍🚀" * 60
    for passage in PassageSplit(30).passages(graphemes):
        assert not unicodedata.combining(passage[0])
        assert passage[0] not in "\u200d🚀"
        assert passage.count("🇩") == passage.count("🇪")


def test_passage_split_overlap_begins_with_a_word() -> None:
    text = " ".join(f"word{i}" for i in range(200))
    for (_, end), (start, _) in pairwise(PassageSplit(40, 10).spans(text)):
        assert 0 < estimate_tokens(text[start:end]) <= 10
        assert text[start:].startswith("word")


def test_passage_split_limits_number_of_passages() -> None:
    text = "a few words here. " * 1000
    assert list(PassageSplit(20, 4, max_passages=3).passages(text)) == list(PassageSplit(20, 4).passages(text))[:3]
    assert list(PassageSplit(20).passages("")) == [""]


def test_passage_split_handles_long_text_without_spaces() -> None:
    assert len(list(PassageSplit(400).passages("字" * 1_000_000))) > 2400
    assert len(list(PassageSplit(400).passages(" " * 1_000_000))) == 1


@pytest.mark.parametrize("numbers", [(15,), (0,), (20, -1), (20, 11), (20, 0, 0)])
def test_passage_split_rejects_invalid_numbers(numbers: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        PassageSplit(*numbers)


any_ids = st.text(st.sampled_from("ab#01"), min_size=1, max_size=5)


@given(st.tuples(any_ids, st.integers(0, 99)), st.tuples(any_ids, st.integers(0, 99)))
def test_passage_id_is_unique_and_reversible(first: tuple[str, int], second: tuple[str, int]) -> None:
    assert (passage_id(*first) == passage_id(*second)) == (first == second)
    assert document_id(passage_id(*first)) == first[0]


documents_with_counts = st.lists(any_ids, unique=True, max_size=8).flatmap(
    lambda docs: st.tuples(st.just(docs), st.lists(st.integers(1, 5), min_size=len(docs), max_size=len(docs)))
)


def make_ranking(tiers: Sequence[Sequence[str]]) -> Ranking:
    tied = [position > 0 for tier in tiers for position in range(len(tier))]
    return Ranking(tuple(chain.from_iterable(tiers)), tuple(tied))


@given(documents_with_counts, st.data())
def test_collapse_ranks_documents_by_best_passage(run: tuple[list[str], list[int]], data: st.DataObject) -> None:
    doc_ids, counts = run
    count = dict(zip(doc_ids, counts, strict=True))
    passages = [passage_id(doc_id, number) for doc_id in doc_ids for number in range(count[doc_id])]
    assert list(collapse_to_documents(Ranking.untied(passages)).doc_ids) == doc_ids, "the first stage's order is kept"

    shuffled = data.draw(st.permutations(passages))
    tier_starts = data.draw(st.lists(st.booleans(), min_size=len(shuffled), max_size=len(shuffled)))
    tiers: list[list[str]] = []
    for passage, starts_tier in zip(shuffled, tier_starts, strict=True):
        if starts_tier or not tiers:
            tiers.append([])
        tiers[-1].append(passage)
    tier_of = {passage: number for number, tier in enumerate(tiers) for passage in tier}
    best_tiers = {doc_id: min(tier_of[passage_id(doc_id, n)] for n in range(count[doc_id])) for doc_id in doc_ids}
    document_ranking = collapse_to_documents(make_ranking(tiers))
    assert collapse_to_documents(make_ranking([passages])).doc_ids == tuple(doc_ids), "ties keep the order"
    assert sorted(document_ranking.doc_ids) == sorted(doc_ids)
    assert [best_tiers[doc_id] for doc_id in document_ranking.doc_ids] == sorted(best_tiers.values())
    for before, after, is_tied in zip(
        document_ranking.doc_ids, document_ranking.doc_ids[1:], document_ranking.tied[1:], strict=False
    ):
        assert is_tied == (best_tiers[before] == best_tiers[after])
    assert not document_ranking.tied or not document_ranking.tied[0]


class CountingStore(dict[str, str]):
    """A store that counts how often it is asked."""

    get_count = 0

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:  # type: ignore[override]
        self.get_count += 1
        if doc_id not in self:
            raise InputError(f"document {doc_id} of query {query_id} is not there", "")
        return Passage(doc_id, self[doc_id])


def test_split_run_expands_and_collapses_rankings() -> None:
    store = CountingStore({"d": "word. " * 30, "e": "", "f#1": "two sentences. " * 10, "t": "tail"})
    run = {
        "q": tuple(Candidate(doc_id, 1.0) for doc_id in ("d", "e", "f#1", "t", "u")),
        "empty": (),
        "r": (Candidate("e", 1.0),),
    }
    passages = SplitRun(run.items(), store, PassageSplit(20), depth=3)
    expanded = {}
    for query_id, candidates in passages:
        expanded[query_id] = [candidate.doc_id for candidate in candidates]
        for doc_id in ("d", "f#1") if query_id == "q" else ():
            texts = [passages.get(passage).text for passage in expanded["q"] if document_id(passage) == doc_id]
            assert len(texts) > 1
            assert "".join(texts) == store[doc_id]
    assert store.get_count == 4, "a document is read and cut once for each query that has it"
    assert expanded["q"] == ["d#0", "d#1", "d#2", "e#0", "f#1#0", "f#1#1"]
    assert expanded["empty"] == []
    assert expanded["r"] == ["e#0"]

    def rankings() -> Iterator[tuple[str, Ranking]]:
        for query_id, passage_ids in expanded.items():
            yield query_id, Ranking.untied(reversed(passage_ids))

    assert {query_id: ranking.doc_ids for query_id, ranking in passages.document_rankings(rankings())} == {
        "q": ("f#1", "e", "d", "t", "u"),
        "empty": (),
        "r": ("e",),
    }


def test_split_run_reports_missing_document_with_its_query() -> None:
    passages = SplitRun({"q": (Candidate("gone", 1.0),)}.items(), CountingStore(), PassageSplit(20))
    with pytest.raises(InputError, match="document gone of query q"):
        list(passages)


def test_document_grades_apply_to_passages() -> None:
    grades = DocumentGrades({"d": 3, "e#1": 2})
    assert [grades.get(name, 0) for name in ("d#0", "d#12", "e#1#0", "e#1", "x#0")] == [3, 3, 2, 0, 0]
