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
    collapse,
    document_id,
    expand,
    passage_id,
)
from rank_k.data.token_estimate import estimate_tokens
from rank_k.errors import InputError
from rank_k.types import Candidate, Passage, Ranking

words = st.text("ab.é ß\n。中文字สวัสดีक्ष👩‍🚀🇩🇪e\u0301\t!?x", max_size=400)
long_words = st.integers(0, 3000).map(lambda count: "abcdefgh" * count)
texts = st.one_of(words, st.text(max_size=300), st.lists(st.one_of(words, long_words), max_size=4).map(" ".join))
splits = st.integers(MIN_PASSAGE_TOKENS, 60).flatmap(
    lambda tokens: st.builds(PassageSplit, st.just(tokens), st.integers(0, tokens // 2))
)
    lambda n: st.builds(PassageSplit, st.just(n), st.integers(0, n // 2))
)


@given(texts, splits)
@example("???????\U0001f1e9 ??\U0001f1e9\U0001f1e9\U0001f1e9", PassageSplit(16))
def test_every_character_is_in_some_passage(text: str, split: PassageSplit) -> None:
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


@given(texts, splits)
def test_passages_are_about_full(text: str, split: PassageSplit) -> None:
    """So that there are not many more of them than there must be."""
    for passage in list(split.passages(text))[:-1]:
        assert estimate_tokens(passage) > (split.tokens + split.overlap) // 2 - max(8, split.tokens // 16)


def test_they_end_with_sentences_words_or_characters_in_this_order() -> None:
    sentences = "One two three four five six seven. " * 9
    assert all(passage.endswith(". ") for passage in PassageSplit(30).passages(sentences))
    assert all(passage.endswith(" ") for passage in PassageSplit(30).passages("one two three " * 40))
    assert all(passage.endswith("。") for passage in PassageSplit(30).passages("一二三四五六七八九十。" * 20))
    graphemes = "e\u0301" * 200 + "🇩🇪" * 60 + "👩‍🚀" * 60
    for passage in PassageSplit(30).passages(graphemes):
        assert not unicodedata.combining(passage[0])
        assert passage[0] not in "\u200d🚀"
        assert passage.count("🇩") == passage.count("🇪")


def test_overlap_repeats_the_end_and_begins_with_a_word() -> None:
    text = " ".join(f"word{i}" for i in range(200))
    for (_, end), (start, _) in pairwise(PassageSplit(40, 10).spans(text)):
        assert 0 < estimate_tokens(text[start:end]) <= 10
        assert text[start:].startswith("word")


def test_only_the_first_passages_are_made() -> None:
    text = "a few words here. " * 1000
    assert list(PassageSplit(20, 4, most=3).passages(text)) == list(PassageSplit(20, 4).passages(text))[:3]
    assert list(PassageSplit(20).passages("")) == [""]


def test_a_megabyte_without_a_blank_is_cut_in_time() -> None:
    assert len(list(PassageSplit(400).passages("字" * 1_000_000))) > 2400
    assert len(list(PassageSplit(400).passages(" " * 1_000_000))) == 1


@pytest.mark.parametrize("numbers", [(15,), (0,), (20, -1), (20, 11), (20, 0, 0)])
def test_numbers_that_cannot_be(numbers: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        PassageSplit(*numbers)


ids = st.text(st.sampled_from("ab#01"), min_size=1, max_size=5)


@given(st.tuples(ids, st.integers(0, 99)), st.tuples(ids, st.integers(0, 99)))
def test_passage_ids_never_collide(one: tuple[str, int], other: tuple[str, int]) -> None:
    assert (passage_id(*one) == passage_id(*other)) == (one == other)
    assert document_id(passage_id(*one)) == one[0]


runs = st.lists(ids, unique=True, max_size=8).flatmap(
    lambda docs: st.tuples(st.just(docs), st.lists(st.integers(1, 5), min_size=len(docs), max_size=len(docs)))
)


def ranking_of(tiers: Sequence[Sequence[str]]) -> Ranking:
    tied = [place > 0 for tier in tiers for place in range(len(tier))]
    return Ranking(tuple(chain.from_iterable(tiers)), tuple(tied))


@given(runs, st.data())
def test_collapsed_documents_stand_where_their_best_passage_does(
    run: tuple[list[str], list[int]], data: st.DataObject
) -> None:
    doc_ids, counts = run
    count = dict(zip(doc_ids, counts, strict=True))
    candidates = [Candidate(doc_id, -place) for place, doc_id in enumerate(doc_ids)]
    passages = [candidate.doc_id for candidate in expand(candidates, count.__getitem__)]
    assert passages == [passage_id(doc_id, number) for doc_id in doc_ids for number in range(count[doc_id])]
    assert list(collapse(Ranking.of(passages)).doc_ids) == doc_ids, "the first stage's order is kept"

    shuffled = data.draw(st.permutations(passages))
    cuts = data.draw(st.lists(st.booleans(), min_size=len(shuffled), max_size=len(shuffled)))
    tiers: list[list[str]] = []
    for passage, cut in zip(shuffled, cuts, strict=True):
        if cut or not tiers:
            tiers.append([])
        tiers[-1].append(passage)
    tier_of = {passage: number for number, tier in enumerate(tiers) for passage in tier}
    best = {doc_id: min(tier_of[passage_id(doc_id, n)] for n in range(count[doc_id])) for doc_id in doc_ids}
    whole = collapse(ranking_of(tiers))
    assert sorted(whole.doc_ids) == sorted(doc_ids)
    assert [best[doc_id] for doc_id in whole.doc_ids] == sorted(best.values())
    for before, after, tied in zip(whole.doc_ids, whole.doc_ids[1:], whole.tied[1:], strict=False):
        assert tied == (best[before] == best[after])
    assert not whole.tied or not whole.tied[0]


class Texts(dict[str, str]):
    """A store that counts how often it is asked."""

    asked = 0

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:  # type: ignore[override]
        self.asked += 1
        if doc_id not in self:
            raise InputError(f"document {doc_id} of query {query_id} is not there", "")
        return Passage(doc_id, self[doc_id])


def test_a_run_there_and_back() -> None:
    store = Texts({"d": "word. " * 30, "e": "", "f#1": "two sentences. " * 10, "t": "tail"})
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
            found = [passages.get(passage).text for passage in expanded["q"] if document_id(passage) == doc_id]
            assert len(found) > 1
            assert "".join(found) == store[doc_id]
    assert store.asked == 4, "a document is read and cut once for each query that has it"
    assert expanded["empty"] == []
    assert expanded["r"] == ["e#0"]

    def rankings() -> Iterator[tuple[str, Ranking]]:
        for query_id, passage_ids in expanded.items():
            yield query_id, Ranking.of(reversed(passage_ids))

    assert {query_id: ranking.doc_ids for query_id, ranking in passages.collapsed(rankings())} == {
        "q": ("f#1", "e", "d", "t", "u"),
        "empty": (),
        "r": ("e",),
    }


def test_a_document_that_is_not_there_is_told_with_its_query() -> None:
    passages = SplitRun({"q": (Candidate("gone", 1.0),)}.items(), Texts(), PassageSplit(20))
    with pytest.raises(InputError, match="document gone of query q"):
        list(passages)


def test_grades_of_documents_answer_for_passages() -> None:
    grades = DocumentGrades({"d": 3, "e#1": 2})
    assert [grades.get(name, 0) for name in ("d#0", "d#12", "e#1#0", "e#1", "x#0")] == [3, 3, 2, 0, 0]
