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
from rank_k.data.collections.base import CollectionFiles
from rank_k.data.collections.beir import load_beir
from rank_k.data.passages import read_passages
from rank_k.data.queries import read_queries
from rank_k.data.token_estimate import truncate_graphemes
from rank_k.data.trec import read_qrels, read_run
from rank_k.errors import InputError
from rank_k.evaluation.measures import evaluate
from rank_k.reranker import Reranker
from rank_k.retrieval import analyzers
from rank_k.retrieval.analyzers import LANGUAGES, analyzer_for
from rank_k.retrieval.bm25 import retrieve
from rank_k.types import Candidate, Passage, Query
from rank_k.window.parsing import parse_ranking
from rank_k.window.sanitize import sanitize
from tests.fakes.recording_model import RecordingModel
from tests.paths import SHARED

pytestmark = pytest.mark.integration


# --- analyzers ---


def test_analyzer_for_english() -> None:
    analyze = analyzer_for("en")
    assert analyze("The Wings, AND the winging of a wing") == ["wing", "wing", "wing"]
    assert analyze("vitamin C") == ["vitamin", "c"]
    assert analyze("Überraschung № 5") == ["überraschung", "5"]
    assert analyze("...") == []


@pytest.mark.parametrize(
    ("language", "text", "other_form"),
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
def test_analyzer_for_maps_word_forms_to_one_term(language: str, text: str, other_form: str) -> None:
    analyze = analyzer_for(language)
    assert analyze(text)
    assert [term for term in analyze(text) if len(term) > 1] == [term for term in analyze(other_form) if len(term) > 1]


@pytest.mark.parametrize("language", ["zh", "en", "und"])
def test_analyzer_for_splits_unspaced_scripts_into_characters_and_bigrams(language: str) -> None:
    analyze = analyzer_for(language)
    assert sorted(analyze("東京都、茶")) == sorted(["東", "京", "都", "東京", "京都", "茶"])
    assert sorted(analyze("NHKは2024年")) == sorted(["nhk", "は", "2024", "年"])
    assert sorted(analyze("ที่นี่")) == sorted(["ที่", "นี่", "ที่นี่"]), "vowel signs and tones stay with their letter"
    assert sorted(analyze("한국")) == sorted(["한", "국", "한국"])


def test_analyzer_for_keeps_combining_marks() -> None:
    assert analyzer_for("und")("हिन्दी भाषा") == ["हिन्दी", "भाषा"]


def test_analyzer_for_every_language_handles_every_script() -> None:
    text = "Wörter, слова كلمات کلمات शब्द 言葉 คำ 단어 λέξεις երկու 12"
    for language in LANGUAGES:
        assert len(analyzer_for(language)(text)) >= 12


def test_analyzers_stemmers_exist_in_snowball() -> None:
    stemmer = pytest.importorskip("Stemmer")
    assert set(analyzers._STEMMERS.values()) <= set(stemmer.algorithms())


@pytest.mark.parametrize("language", ["xx", "", "qq-QQ"])
def test_analyzer_for_lists_languages_for_unknown_one(language: str) -> None:
    with pytest.raises(InputError, match=rf"{language!r}; write one of ar, .* und is for other languages"):
        analyzer_for(language)


@pytest.mark.parametrize(
    ("language", "suggestion"),
    [
        ("persian", "fa"),
        ("Persian", "fa"),
        ("english", "en"),
        ("japanesse", "ja"),
        ("norwegian", "nb or nn or no"),
        ("zho", "zh"),
        ("en-US", "en"),
        ("pt_BR", "pt"),
    ],
)
def test_analyzer_for_suggests_code_for_language_name(language: str, suggestion: str) -> None:
    with pytest.raises(InputError, match=rf"{language!r}; did you mean {suggestion}\? write one of ar, "):
        analyzer_for(language)


def test_analyzer_for_reports_outdated_stemmer_library(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(version=lambda: "2.2.0", Stemmer=lambda name: {}[name])
    monkeypatch.setattr(analyzers, "load", lambda _: old)
    with pytest.raises(InputError, match=r"PyStemmer 2\.2\.0 has no persian stemmer; pip install"):
        analyzer_for("fa")


@given(text=st.text(), language=st.sampled_from(["en", "tr", "zh", "fa", "hi", "und"]))
def test_analyzer_for_any_text_returns_terms_without_spaces(text: str, language: str) -> None:
    for term in analyzer_for(language)(text + "\ud800"):
        assert term
        assert not any(char.isspace() for char in term)


def test_retrieve_finds_single_character_query() -> None:
    [(_, candidates)] = retrieve([Query("q", "茶")], [Passage("d0", "緑茶を飲む"), Passage("d1", "水を飲む")])
    assert [candidate.doc_id for candidate in candidates] == ["d0"]


# --- prompt and answer ---


@pytest.mark.parametrize(
    "response",
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
def test_parse_ranking_reads_any_language(response: str) -> None:
    assert parse_ranking(response, 3).tiers == ((3,), (1, 2))


def test_sanitize_keeps_right_to_left_text() -> None:
    text = "\u202bمی\u200cشود [۱]\u202c \u200fשלום\u200e \u0645\u064e"
    assert sanitize(text) == text.replace("[۱]", "(۱)")


# --- whole runs ---

RUN_CASES = {
    # language, query field, nDCG@10 of the collection's own BM25 run, nDCG@10 of `retrieve`
    "parsinlu-fa": ("fa", None, 0.7201, 0.7262),
    "drcd-zh": ("zh", None, 0.9497, 0.9596),
    "xquad-en-ru": ("ru", "ht", 0.9532, 0.9562),
}


def load_shared_collection(name: str) -> CollectionFiles:
    if not SHARED.is_dir():
        pytest.skip("needs the collections in ../shared beside the checkout")
    return load_beir(str(SHARED / name))


def mean_ndcg(qrels: Mapping[str, Mapping[str, int]], rankings: Mapping[str, Sequence[str]]) -> float:
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
def test_analyzer_for_reaches_published_ndcg(name: str, language: str, expected: float) -> None:
    files = load_shared_collection(name)
    assert files.qrels is not None
    queries = read_queries(files.queries).values()
    run = dict(retrieve(queries, read_passages(files.documents), analyzer=analyzer_for(language)))
    rankings = {query_id: [candidate.doc_id for candidate in candidates] for query_id, candidates in run.items()}
    assert round(mean_ndcg(read_qrels(files.qrels), rankings), 4) == expected


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RUN_CASES)
def test_retrieve_and_rerank_in_other_languages(name: str, step: int, tmp_path: Path) -> None:
    """BM25 is as good as the collection's run, a noiseless judge reaches the best nDCG, cuts fall between characters.

    Every `step`th query is reranked.
    """
    language, field, reference_ndcg, expected_ndcg = RUN_CASES[name]
    files = load_shared_collection(name)
    assert files.qrels is not None
    output = tmp_path / "bm25.trec"
    options = ["--language", language, *(["--query-fields", field] if field else [])]
    assert main(["retrieve", "--dataset", f"beir:{SHARED / name}", "--output", str(output), *options]) == 0
    run, qrels = read_run(output), read_qrels(files.qrels)
    retrieved_ndcg = mean_ndcg(
        qrels, {query_id: [c.doc_id for c in candidates] for query_id, candidates in run.items()}
    )
    assert retrieved_ndcg == pytest.approx(reference_ndcg, abs=0.01)
    assert round(retrieved_ndcg, 4) == expected_ndcg

    run = dict(list(run.items())[::step])
    qrels = {query_id: qrels[query_id] for query_id in run}
    passages = {passage.doc_id: passage for passage in read_passages(files.documents)}
    queries = read_queries(files.queries)
    model = RecordingModel(qrels)
    with Reranker(model, passage_tokens=64) as reranker:
        reranked = {result.query_id: result.ranking.doc_ids for result in reranker.rerank(run, queries, passages)}
    best_rankings = {
        query_id: sorted((c.doc_id for c in candidates), key=lambda doc_id: -qrels[query_id].get(doc_id, 0))
        for query_id, candidates in run.items()
    }
    assert mean_ndcg(qrels, reranked) == pytest.approx(mean_ndcg(qrels, best_rankings))
    assert {query_id: sorted(doc_ids) for query_id, doc_ids in reranked.items()} == {
        query_id: sorted(doc_ids) for query_id, doc_ids in best_rankings.items()
    }

    truncated_passages = set()
    for query_id, doc_ids, prompt in model.prompts:
        assert sanitize(queries[query_id].text, markers=False) in prompt, "the original, not the translation"
        passage_texts = prompt[prompt.index("\n[1] ") :].split("\n[")[1:]
        assert len(passage_texts) == len(doc_ids)
        for number, (doc_id, text) in enumerate(zip(doc_ids, passage_texts, strict=True), 1):
            truncated_passages.add((doc_id, text.removeprefix(f"{number}] ").rstrip("\n")))
    truncated_count = 0
    for doc_id, text in truncated_passages:
        original = sanitize(passages[doc_id].text)
        assert original.startswith(text)
        truncated_count += len(text) < len(original)
        assert_cut_between_characters(original, text)
    assert truncated_count > 200


def assert_cut_between_characters(original: str, cut: str) -> None:
    """`cut` and the rest hold no half character: joining them anew changes nothing, nor does what follows extend."""
    rest = original[len(cut) :]
    cut.encode("utf-8")
    for form in ("NFC", "NFD"):
        assert unicodedata.normalize(form, cut) + unicodedata.normalize(form, rest) == unicodedata.normalize(
            form, original
        )
    if rest:
        assert not unicodedata.category(rest[0]).startswith("M")
        assert "\u200d" not in (cut[-1:], rest[0])


def read_some_texts(name: str) -> Iterator[str]:
    for number, passage in enumerate(read_passages(load_shared_collection(name).documents)):
        if number % 10 == 0:
            yield sanitize(passage.text)


@pytest.mark.parametrize("name", [*RUN_CASES, "train/iapp-th", "train/arcd-ar"])
def test_truncate_graphemes_cuts_real_texts_between_characters(name: str) -> None:
    for text in read_some_texts(name):
        lengths = range(0, len(text), 7)
        for length in lengths:
            cut = truncate_graphemes(text, length)
            assert length - 40 < len(cut) <= length or not cut.strip(), "little is lost"
            assert text.startswith(cut)
            assert_cut_between_characters(text, cut)
