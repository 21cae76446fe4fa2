"""Other languages than English: how BM25 analyzes them, how they are cut and shown, and whole runs in three."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.cli import main
from rank_k.data.collections.registry import CollectionFiles, load_collection
from rank_k.data.files import read_passages, read_qrels, read_queries, read_run
from rank_k.data.token_estimate import truncate_graphemes
from rank_k.errors import InputError
from rank_k.evaluation.measures import evaluate
from rank_k.models.simulated import SimulatedModel
from rank_k.reranker import Reranker
from rank_k.retrieval import analyzers
from rank_k.retrieval.analyzers import LANGUAGES, analyzer_for
from rank_k.retrieval.bm25 import retrieve
from rank_k.types import Candidate, OnChunk, Passage, Query, Request, Response
from rank_k.window.parsing import parse_ranking
from rank_k.window.sanitize import sanitize
from tests.paths import SHARED

pytestmark = pytest.mark.integration


# --- analyzers ---


def test_english() -> None:
    analyze = analyzer_for("en")
    assert analyze("The Wings, AND the winging of a wing") == ["wing", "wing", "wing"]
    assert analyze("vitamin C") == ["vitamin", "c"]
    assert analyze("Überraschung № 5") == ["überraschung", "5"]
    assert analyze("...") == []


@pytest.mark.parametrize(
    ("language", "text", "same"),
    [
        ("de", "Die Häuser", "häuser"),
        ("ru", "и очков", "очки"),
        ("fr", "l'élection", "élections"),
        ("fa", "کتاب‌ها", "كتاب ها"),  # a joiner or a blank before the plural; Persian or Arabic kaf
        ("ar", "الكِتاب", "كتاب"),
        ("tr", "IŞIK İSTANBUL", "ışık istanbul"),
        ("hi", "किताबें", "किताब"),
        ("FR", "CAFÉ", "cafe\u0301"),
        ("und", "ﬁne２", "FINE2"),
        ("und", "co\u00adoperate", "cooperate"),
    ],
)
def test_forms_that_are_one_term(language: str, text: str, same: str) -> None:
    analyze = analyzer_for(language)
    assert analyze(text)
    assert [term for term in analyze(text) if len(term) > 1] == [term for term in analyze(same) if len(term) > 1]


@pytest.mark.parametrize("language", ["zh", "en", "und"])
def test_scripts_without_blanks_are_characters_and_bigrams_in_every_language(language: str) -> None:
    analyze = analyzer_for(language)
    assert sorted(analyze("東京都、茶")) == sorted(["東", "京", "都", "東京", "京都", "茶"])
    assert sorted(analyze("NHKは2024年")) == sorted(["nhk", "は", "2024", "年"])
    assert sorted(analyze("ที่นี่")) == sorted(["ที่", "นี่", "ที่นี่"]), "vowel signs and tones stay with their letter"
    assert sorted(analyze("한국")) == sorted(["한", "국", "한국"])


def test_words_keep_their_marks() -> None:
    assert analyzer_for("und")("हिन्दी भाषा") == ["हिन्दी", "भाषा"]


def test_every_language_analyzes_every_script() -> None:
    text = "Wörter, слова كلمات کلمات शब्द 言葉 คำ 단어 λέξεις երկու 12"
    for language in LANGUAGES:
        assert len(analyzer_for(language)(text)) >= 12


def test_the_stemmers_of_the_list_are_snowballs() -> None:
    stemmer = pytest.importorskip("Stemmer")
    assert set(analyzers._STEMMERS.values()) <= set(stemmer.algorithms())


@pytest.mark.parametrize("language", ["xx", "", "english", "zho", "en-US"])
def test_an_unknown_language_is_one_error_that_lists_the_known(language: str) -> None:
    with pytest.raises(InputError, match=rf"{language!r}; give one of ar, .* und leaves"):
        analyzer_for(language)


def test_an_old_stemmer_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(version=lambda: "2.2.0", Stemmer=lambda name: {}[name])
    monkeypatch.setattr(analyzers, "load", lambda _: old)
    with pytest.raises(InputError, match=r"PyStemmer 2\.2\.0 has no persian stemmer; pip install"):
        analyzer_for("fa")


@given(text=st.text(), language=st.sampled_from(["en", "tr", "zh", "fa", "hi", "und"]))
def test_any_text_becomes_terms_that_hold_no_blanks(text: str, language: str) -> None:
    for term in analyzer_for(language)(text + "\ud800"):
        assert term
        assert not any(char.isspace() for char in term)


def test_one_character_is_found() -> None:
    [(_, found)] = retrieve([Query("q", "茶")], [Passage("d0", "緑茶を飲む"), Passage("d1", "水を飲む")])
    assert [candidate.doc_id for candidate in found] == ["d0"]


# --- prompt and answer ---


@pytest.mark.parametrize(
    "reply",
    [
        "ترتیب: [۳] > [۱] = [۲]",
        "الترتيب: [٣] > [١] = [٢]",
        "क्रम: [३] > [१] = [२]",
        "排名：【3】＞【1】＝【2】。",
        "順位は次の通りです。\n[３] > [１] = [２]",
        "Порядок: [3] > [1] = [2]",
        "ลำดับ: [3] > [1] = [2]",
    ],
)
def test_orders_are_read_in_any_language(reply: str) -> None:
    assert parse_ranking(reply, 3).tiers == ((3,), (1, 2))


def test_right_to_left_text_reaches_the_model_as_it_is() -> None:
    text = "\u202bمی\u200cشود [۱]\u202c \u200fשלום\u200e \u0645\u064e"
    assert sanitize(text) == text.replace("[۱]", "(۱)")


# --- whole runs ---

WHOLE = {
    # language, query field, figure of the collection's own BM25, ours
    "parsinlu-fa": ("fa", None, 0.7201, 0.7262),
    "drcd-zh": ("zh", None, 0.9497, 0.9596),
    "xquad-en-ru": ("ru", "ht", 0.9532, 0.9562),
}


class Onlooker(SimulatedModel):
    """The noiseless judge, keeping what it was shown."""

    def __init__(self, grades: Mapping[str, Mapping[str, int]]) -> None:
        super().__init__(grades)
        self.shown: list[tuple[str, tuple[str, ...], str]] = []

    async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
        self.shown.append((request.context.query_id, request.context.doc_ids, request.messages[-1].content))
        return await super().complete(request, on_text)


def files_of(name: str) -> CollectionFiles:
    if not SHARED.is_dir():
        pytest.skip("needs the collections in ../shared beside the checkout")
    return load_collection(f"beir:{SHARED / name}")


def ndcg(qrels: Mapping[str, Mapping[str, int]], rankings: Mapping[str, Sequence[str]]) -> float:
    """nDCG@10 over the queries with judgments."""
    run = {q: [Candidate(doc_id, -rank) for rank, doc_id in enumerate(ids)] for q, ids in rankings.items()}
    return evaluate(qrels, run, ["nDCG@10"]).means["nDCG@10"]


@pytest.mark.parametrize(
    ("name", "language", "expected"),
    [
        ("cranfield", "en", 0.4901),
        ("vaswani", "en", 0.4412),
        ("wikiqa", "en", 0.5082),
        ("noveleval", "en", 0.6883),
        ("train/arcd-ar", "ar", 0.8041),
    ],
)
def test_figures_that_the_analyzers_were_chosen_by(name: str, language: str, expected: float) -> None:
    files = files_of(name)
    assert files.qrels is not None
    queries = read_queries(files.queries).values()
    run = dict(retrieve(queries, read_passages(files.documents), analyzer=analyzer_for(language)))
    found = {query_id: [candidate.doc_id for candidate in candidates] for query_id, candidates in run.items()}
    assert round(ndcg(read_qrels(files.qrels), found), 4) == expected


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_runs_in_other_languages(name: str, step: int, tmp_path: Path) -> None:
    """BM25 as good as the collection's own, a noiseless judge that reaches the best value, cuts at characters.

    Every `step`th query is reranked.
    """
    language, field, theirs, ours = WHOLE[name]
    files = files_of(name)
    assert files.qrels is not None
    output = tmp_path / "bm25.trec"
    options = ["--language", language, *(["--query-field", field] if field else [])]
    assert main(["retrieve", "--dataset", f"beir:{SHARED / name}", "--output", str(output), *options]) == 0
    run, qrels = read_run(output), read_qrels(files.qrels)
    found = ndcg(qrels, {query_id: [c.doc_id for c in candidates] for query_id, candidates in run.items()})
    assert found == pytest.approx(theirs, abs=0.01)
    assert round(found, 4) == ours

    run = dict(list(run.items())[::step])
    qrels = {query_id: qrels[query_id] for query_id in run}
    passages = {passage.doc_id: passage for passage in read_passages(files.documents)}
    queries = read_queries(files.queries)
    judge = Onlooker(qrels)
    with Reranker(judge, passage_tokens=64) as reranker:
        reranked = {result.query_id: result.ranking.doc_ids for result in reranker.rerank(run, queries, passages)}
    best = {
        query_id: sorted((c.doc_id for c in candidates), key=lambda doc_id: -qrels[query_id].get(doc_id, 0))
        for query_id, candidates in run.items()
    }
    assert ndcg(qrels, reranked) == pytest.approx(ndcg(qrels, best))
    assert {query_id: sorted(doc_ids) for query_id, doc_ids in reranked.items()} == {
        q: sorted(d) for q, d in best.items()
    }

    cuts = set()
    for query_id, doc_ids, prompt in judge.shown:
        assert sanitize(queries[query_id].text, markers=False) in prompt, "the original, not the translation"
        shown = prompt[prompt.index("\n[1] ") :].split("\n[")[1:]
        assert len(shown) == len(doc_ids)
        for number, (doc_id, text) in enumerate(zip(doc_ids, shown, strict=True), 1):
            cuts.add((doc_id, text.removeprefix(f"{number}] ").rstrip("\n")))
    cut_short = 0
    for doc_id, text in cuts:
        whole = sanitize(passages[doc_id].text)
        assert whole.startswith(text)
        cut_short += len(text) < len(whole)
        assert_between_characters(whole, text)
    assert cut_short > 200


def assert_between_characters(whole: str, cut: str) -> None:
    """`cut` and the rest hold no half character: joining them anew changes nothing, nor does what follows extend."""
    rest = whole[len(cut) :]
    cut.encode("utf-8")
    for form in ("NFC", "NFD"):
        assert unicodedata.normalize(form, cut) + unicodedata.normalize(form, rest) == unicodedata.normalize(
            form, whole
        )
    if rest:
        assert not unicodedata.category(rest[0]).startswith("M")
        assert "\u200d" not in (cut[-1:], rest[0])


def texts_of(name: str) -> Iterator[str]:
    for number, passage in enumerate(read_passages(files_of(name).documents)):
        if number % 10 == 0:
            yield sanitize(passage.text)


@pytest.mark.parametrize("name", [*WHOLE, "train/iapp-th", "train/arcd-ar"])
def test_every_cut_of_real_texts_falls_between_characters(name: str) -> None:
    for text in texts_of(name):
        lengths = range(0, len(text), 7)
        for length in lengths:
            cut = truncate_graphemes(text, length)
            assert length - 40 < len(cut) <= length or not cut.strip(), "little is lost"
            assert text.startswith(cut)
            assert_between_characters(text, cut)
