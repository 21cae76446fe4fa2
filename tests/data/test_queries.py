"""Queries made of fields, TREC topics in their two families, and that no long query is cut unnoticed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.cli import main
from rank_k.data.collections.beir import load_beir
from rank_k.data.passages import read_passages
from rank_k.data.queries import read_queries
from rank_k.data.topics import read_topics
from rank_k.data.trec import read_qrels, read_run
from rank_k.errors import FormatError, InputError, QueryTooLong
from rank_k.evaluation.measures import evaluate
from rank_k.reranker import Reranker
from rank_k.types import Candidate, Passage, Query
from rank_k.window.sanitize import sanitize
from tests.fakes.recording_model import RecordingModel
from tests.paths import SHARED

pytestmark = pytest.mark.integration

FLAG_QUERY = {"_id": "1", "title": "flags", "description": "Why two?", "narrative": "Not ships.", "ht": "Flaggen"}

CLASSIC = """\
<top>

<num> Number: 301
<title> Rust & paint < 5%

<desc> Description:
How is rust
kept off?

<narr> Narrative:
Paint alone is not relevant.

</top>
<!-- <top> a comment
of two lines </top> -->
<top><num> Number: 302 <title> Topic: AT&amp;T <desc> Description: Who owns it? <narr> Narrative: Any year. </top>
<top><num>303</num><title>Closed tags</title><desc></desc><narr>No.</narr></top>
"""

XML = """\
<?xml version="1.0" encoding="ISO-8859-1"?>
<topics task="x">
  <topic number="1" type="faceted">
    <query>d\xe9j\xe0 vu</query>
    <question>what is <i>it</i>?</question>
    <subtopic number="1">cause</subtopic><subtopic number="2">cure</subtopic>
    <narrative><![CDATA[a < b]]> &amp; more</narrative>
  </topic>
  <topic><number> 2 </number><query>rain</query></topic>
  <topic number="3">
    A patient of 50 &lt;years&gt;
  </topic>
</topics>
"""


def best_rankings(
    run: Mapping[str, Sequence[Candidate]], qrels: Mapping[str, Mapping[str, int]]
) -> dict[str, tuple[str, ...]]:
    """The run's candidates in the order of their grades."""
    return {
        query_id: tuple(
            sorted((candidate.doc_id for candidate in candidates), key=lambda doc_id: -qrels[query_id].get(doc_id, 0))
        )
        for query_id, candidates in run.items()
    }


def mean_ndcg(qrels: Mapping[str, Mapping[str, int]], rankings: Mapping[str, Sequence[str]]) -> float:
    """nDCG@10 over the queries with judgments."""
    run = {q: [Candidate(doc_id, -rank) for rank, doc_id in enumerate(ids)] for q, ids in rankings.items()}
    return evaluate(qrels, run, ["nDCG@10"]).means["nDCG@10"]


def write_queries(folder: Path, content: str | bytes) -> Path:
    path = folder / "queries"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- fields ---


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ("title", "flags"),
        ("ht", "Flaggen"),
        ("title,description", "flags\nWhy two?"),
        (" narrative , title ", "Not ships.\nflags"),
        ("desc,narr", "Why two?\nNot ships."),
    ],
)
def test_read_queries_joins_requested_fields(tmp_path: Path, fields: str, text: str) -> None:
    path = write_queries(tmp_path, json.dumps(FLAG_QUERY))
    assert read_queries(path, fields) == {"1": Query("1", text)}


def test_read_queries_accepts_field_synonyms(tmp_path: Path) -> None:
    path = write_queries(
        tmp_path, '{"_id": "1", "query": "why", "narrative": "n"}\n{"_id": "2", "text": "how", "narr": "m"}'
    )
    assert [query.text for query in read_queries(path, "text,narrative").values()] == ["why\nn", "how\nm"]


def test_read_queries_omits_empty_fields_and_rejects_empty_queries(tmp_path: Path) -> None:
    path = write_queries(
        tmp_path, '{"_id": "1", "title": "a", "narrative": null}\n{"_id": "2", "title": "", "narrative": " "}'
    )
    with pytest.raises(FormatError, match="no text in title, narrative") as error_info:
        read_queries(path, "title,narrative")
    assert error_info.value.line == 2
    path = write_queries(tmp_path, '{"_id": "1", "title": "a", "narrative": null}')
    assert read_queries(path, "narrative,title")["1"].text == "a"


@pytest.mark.parametrize(
    ("content", "fields", "line", "problem"),
    [
        ('{"_id": "1", "title": "a"}\n{"_id": "2", "text": "b"}', "title", 2, "no field title"),
        ('{"_id": "1", "title": 7}', "title", 1, "the field title is 7"),
        ("1\twhy\n", "title", 1, "TSV"),
    ],
)
def test_read_queries_reports_missing_field_with_line(
    tmp_path: Path, content: str, fields: str, line: int, problem: str
) -> None:
    with pytest.raises(FormatError, match=problem) as error_info:
        read_queries(write_queries(tmp_path, content), fields)
    assert error_info.value.line == line


@pytest.mark.parametrize("fields", ["", ",", "title,", "title,title"])
def test_read_queries_rejects_empty_or_repeated_field_names(tmp_path: Path, fields: str) -> None:
    with pytest.raises(InputError, match="empty or repeated"):
        read_queries(write_queries(tmp_path, json.dumps(FLAG_QUERY)), fields)


# --- TREC topics ---


@pytest.mark.parametrize("compressed", [False, True])
def test_read_queries_reads_classic_trec_topics(tmp_path: Path, compressed: bool) -> None:
    content = b"\xef\xbb\xbf\r\n" + CLASSIC.replace("\n", "\r\n").encode()
    path = write_queries(tmp_path, gzip.compress(content) if compressed else content)
    assert {name: query.text for name, query in read_queries(path).items()} == {
        "301": "Rust & paint < 5%",
        "302": "AT&T",
        "303": "Closed tags",
    }
    first = read_queries(path, "title,description,narrative")["301"].text
    assert first.split() == "Rust & paint < 5% How is rust kept off? Paint alone is not relevant.".split()
    assert read_queries(path, "title,desc")["302"].text == "AT&T\nWho owns it?"
    assert read_queries(path, "title,desc")["303"].text == "Closed tags"
    assert [line for line, _, _ in read_topics(path, content[3:])] == [2, 17, 18]


def test_read_queries_reads_xml_topics(tmp_path: Path) -> None:
    path = write_queries(tmp_path, XML.encode("latin-1"))
    assert {name: query.text for name, query in read_queries(path).items()} == {
        "1": "déjà vu",
        "2": "rain",
        "3": "A patient of 50 <years>",
    }
    topics = read_topics(path, XML.encode("latin-1"))
    assert topics[0][2] == {
        "query": "déjà vu",
        "question": "what is it?",
        "subtopic": "cause\ncure",
        "narrative": "a < b & more",
    }
    assert [line for line, _, _ in topics] == [3, 9, 10]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("<top>\n<num> 1 <title> a\n<top>\n<num> 2 </top>", 1, "without </top>"),
        ("<top>\n<num> 1 <title> a\n", 1, "without </top>"),
        ("<top>\n<num> 1 <title> a </top>\n</top>", 3, "text outside all fields"),
        ("<top>\n<title> a </top>", 1, "without a number"),
        ("<top>\n<num> Number: 1 2 <title> a </top>", 1, "number '1 2'"),
        ("<top>\n<num> 1\n<title> a\n<title> b </top>", 4, "<title> appears again"),
        ("<top>\n<num> 1 </num>\n\nlost\n<title> a </top>", 4, "text outside all fields"),
        ("<top>\n<num> 1 <title> a\n</desc></top>", 3, "text outside all fields ('</desc>')"),
        ("<top><num> 1 <title> a </top>\n<title> b", 2, "text outside all fields ('<title> b')"),
        ("<top><num> 1 <title> a </top>\nmore", 2, "text outside all fields"),
        ("<top 1>\n<top><num> 1 <title> a </top>", 1, "text outside all fields"),
        ("<top><num> 1 <title> a </top>\n<top><num> 1 <title> b </top>", 2, "appears again with a different text"),
        ("<top><num> 1 <desc> a </top>", 1, "no field title"),
        ("<top><num> 1 <title>  </top>", 1, "no text in title"),
        ("<topics>\n<topic number='1'>\n<query>a</topic></topics>", 3, "bad XML"),
        ("<topics>\n<topic><query>a</query></topic></topics>", 2, "without a number"),
        ("<topics>\nlost<topic number='1'>a</topic></topics>", 2, "text outside all topics"),
        ("<topics>\n<topic number='1'>a <b>bold</b> man</topic></topics>", 2, "text outside all fields"),
        ("<topics></topics>", 0, "XML without topics"),
        ("<topics>", 1, "bad XML"),
        ("<?xml version='1.0' encoding='klingon'?>\n<topics/>", 1, "XML"),
        ("<!DOCTYPE t [\n<!ENTITY a 'x'>]>\n<t><topic number='1'>&a;</topic></t>", 2, "declarations"),
        ("<q>\twhy", 1, "bad XML"),
    ],
)
def test_read_queries_reports_malformed_topics_with_line(tmp_path: Path, content: str, line: int, problem: str) -> None:
    path = write_queries(tmp_path, content)
    with pytest.raises(FormatError) as error_info:
        read_queries(path)
    assert problem in str(error_info.value)
    assert error_info.value.line == line
    assert error_info.value.expected
    assert str(path) in str(error_info.value)


CLASSIC_PARTS = [
    "<top>",
    "</top>",
    "<num>",
    "<title>",
    "<desc>",
    "</title>",
    "1",
    "a b",
    "&",
    "<",
    "\n",
    "\0",
    "\udc80",
]
XML_PARTS = ["<t>", "</t>", "<topic number='1'>", "</topic>", "<query>", "</query>", "x", "&amp;", "&b;", "<!--", "\n"]


@given(st.one_of(*(st.lists(st.sampled_from(parts), max_size=14).map("".join) for parts in (CLASSIC_PARTS, XML_PARTS))))
def test_read_topics_returns_topics_or_format_error_for_any_content(text: str) -> None:
    topics = []
    with suppress(FormatError):
        topics = read_topics(Path("topics"), text.encode("utf-8", "surrogateescape"))
    assert all(query_id and line >= 1 for line, query_id, _ in topics)
    assert len(topics) <= text.lower().count("<top")


FIELD_TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="<>&", exclude_categories=("Cc", "Cs")), min_size=1
)


@given(st.dictionaries(st.integers(1, 999).map(str), st.tuples(FIELD_TEXTS, FIELD_TEXTS), min_size=1, max_size=4))
def test_read_topics_returns_written_fields(texts: dict[str, tuple[str, str]]) -> None:
    expected = {number: tuple(part.strip() for part in parts) for number, parts in texts.items()}
    classic = "".join(
        f"<top>\n<num> Number: {number}\n<title> {title}\n<desc> Description:\n{desc}\n</top>\n"
        for number, (title, desc) in texts.items()
    )
    xml = "".join(
        f"<topic number='{number}'><title>{title}</title><desc>{desc}</desc></topic>"
        for number, (title, desc) in texts.items()
    )
    for content in (classic, f"<topics>{xml}</topics>"):
        topics = read_topics(Path("topics"), content.encode())
        assert {query_id: (fields["title"], fields["description"]) for _, query_id, fields in topics} == expected


# --- long queries ---


@pytest.mark.parametrize("context_length", [8192, 32_768])
@pytest.mark.parametrize("name", ["birco-clinical-trial-dev", "birco-doris-mae-dev", "birco-wtb-dev"])
def test_reranker_keeps_long_queries_complete_and_reaches_best_ndcg(name: str, context_length: int) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs the collections in ../shared beside the checkout")
    files = load_beir(str(SHARED / name))
    assert files.qrels is not None
    queries, qrels, run = read_queries(files.queries), read_qrels(files.qrels), read_run(files.runs[0])
    passages = {passage.doc_id: passage for passage in read_passages(files.documents)}
    model = RecordingModel(qrels, context_length)
    with Reranker(model) as reranker:
        reranker.check(queries.values())
        reranked = {result.query_id: result.ranking.doc_ids for result in reranker.rerank(run, queries, passages)}
        stats = reranker.stats
    assert {prompt.query_id for prompt in model.prompts} == set(run)
    for prompt in model.prompts:
        assert sanitize(queries[prompt.query_id].text, markers=False) in prompt.text
    if context_length == 8192:  # 8,000 tokens for reasoning and answer do not fit: counted for every window
        assert stats.repairs["max_tokens_lowered"] == len(model.prompts)
    else:
        assert "max_tokens_lowered" not in stats.repairs
        assert "context_truncated" not in stats.repairs
    assert mean_ndcg(qrels, reranked) == pytest.approx(mean_ndcg(qrels, best_rankings(run, qrels)))


def test_reranker_check_rejects_query_longer_than_context() -> None:
    model = RecordingModel({"1": {"d0": 1}}, context_length=2048)
    queries = {"0": Query("0", "short"), "1": Query("1", "the words of a long story " * 400)}
    run = {query_id: [Candidate("d0", 1.0), Candidate("d1", 0.5)] for query_id in queries}
    with Reranker(model) as reranker:
        with pytest.raises(QueryTooLong, match=r"the words of a long story .*2048 tokens"):
            reranker.check(queries.values())
        texts = {doc_id: Passage(doc_id, "sky") for doc_id in ("d0", "d1")}
        with pytest.raises(QueryTooLong):
            list(reranker.rerank({"1": run["1"]}, queries, texts))
    assert not model.prompts


def test_query_fields_option_differs_between_retrieve_and_rerank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = "<top><num> 1 <title> sky <desc> Why is it blue? <narr> No paint. </top>"
    (tmp_path / "topics").write_text(topics)
    (tmp_path / "docs.tsv").write_text("d0\tgrass\nd1\tblue paint\nd2\tthe sky at noon\n")
    (tmp_path / "qrels").write_text("1 0 d1 1\n")
    model = RecordingModel({"1": {"d1": 1}})
    monkeypatch.setattr("rank_k.cli.rerank.SimulatedModel", lambda *_, **__: model)
    monkeypatch.chdir(tmp_path)
    files = ["--queries", "topics", "--documents", "docs.tsv"]
    retrieved_ids = []
    for fields in ([], ["--query-fields", "title,desc"]):
        assert main(["retrieve", *files, "--output", "bm25.trec", *fields]) == 0
        retrieved_ids.append({candidate.doc_id for candidate in read_run("bm25.trec")["1"]})
    assert retrieved_ids == [{"d2"}, {"d1", "d2"}]
    command = ["rerank", "--run", "bm25.trec", *files, "--simulate", "qrels", "--noise", "none", "--output", "out.trec"]
    assert main([*command, "--query-fields", "description,narrative"]) == 0
    assert [candidate.doc_id for candidate in read_run("out.trec")["1"]] == ["d1", "d2"]
    [prompt] = model.prompts
    assert "Query: Why is it blue? No paint.\n" in prompt.text
    assert main([*command, "--query-fields", "ht"]) == 2
