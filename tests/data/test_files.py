"""Reading and writing: every accepted form, every malformed line, ids byte for byte."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rank_k.data.passages import read_passages
from rank_k.data.queries import read_queries
from rank_k.data.trec import RunFile, RunWriter, read_qrels, read_run
from rank_k.errors import FormatError, InputError, RankKError
from rank_k.types import Candidate, Passage, Query

quiet = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def file_of(tmp_path: Path, content: str | bytes, name: str = "file") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def passages_of(path: Path) -> list[Passage]:
    return list(read_passages(path))


RUN = "q1 Q0 a 1 2.5 t\nq1 Q0 b 2 1e-3 t\nq0 Q0 a 1 -7 t\n"
QRELS = "q1 0 a 2\nq1 0 b -1\n"
QUERIES = '{"_id": "1", "text": "why"}\n'
PASSAGES = '{"_id": "1", "title": "Sky", "text": "is blue"}\n'

READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "run": (read_run, RUN),
    "score.json": (read_run, '{"q1": {"a": 2.5, "b": 1}}'),
    "qrels": (read_qrels, QRELS),
    "beir qrels": (read_qrels, "query-id\tcorpus-id\tscore\nq1\ta b\t2\n"),
    "queries": (read_queries, QUERIES),
    "queries tsv": (read_queries, "1\twhy\n"),
    "passages": (passages_of, PASSAGES),
    "passages tsv": (passages_of, "1\tis blue\n"),
}
every_reader = pytest.mark.parametrize(("read", "content"), READERS.values(), ids=READERS)


# Runs


def test_run_keeps_query_order_and_sorts_by_score_not_by_rank(tmp_path: Path) -> None:
    run = RunFile(
        file_of(
            tmp_path, "q2 Q0 low 1 1 t\nq2 Q0 x 2 3 t\nq2 Q0 y 3 3 t\nq1 Q0 d - nonsense t\n".replace("nonsense", "0")
        )
    )
    assert run.query_ids == ("q2", "q1")
    assert len(run) == 2
    expected = [
        ("q2", (Candidate("x", 3.0), Candidate("y", 3.0), Candidate("low", 1.0))),
        ("q1", (Candidate("d", 0.0),)),
    ]
    assert list(run) == expected
    assert list(run) == expected, "a second iteration reads the same"


@pytest.mark.parametrize(
    "content",
    [
        "q1 Q0 a 1 1 t\nq1 Q0 a 2 5 t\nq1 Q0 b 3 3 t\nq2 Q0 a 1 1 t\n",
        "q1 Q0 a 1 1 t\nq2 Q0 a 1 1 t\nq1 Q0 a 2 5 t\nq1 Q0 b 3 3 t\n",
        '{"q1": {"a": 1, "a": 5.0, "b": 3}, "q2": {"a": 1}}',
        '\ufeff\n{"q1": {"a": 1}, "q2": {"a": 1}, "q1": {"a": 5, "b": 3}}',
    ],
    ids=["together", "scattered", "json", "json with a query twice"],
)
def test_repeated_documents_are_kept_once_at_their_best_and_counted(tmp_path: Path, content: str) -> None:
    run = RunFile(file_of(tmp_path, content))
    assert run.duplicates == 1
    assert run.query_ids == ("q1", "q2")
    assert dict(iter(run)) == {
        "q1": (Candidate("a", 5.0), Candidate("b", 3.0)),
        "q2": (Candidate("a", 1.0),),
    }


ROWS = st.lists(
    st.tuples(st.sampled_from("pqr"), st.sampled_from("abcdef"), st.sampled_from([-1.5, 0.0, 1.0, 1.25, 2.0]))
)


@quiet
@given(rows=ROWS.filter(bool), form=st.sampled_from(["as it comes", "by query"]))
def test_run_is_the_stable_best_first_order_of_each_query(
    tmp_path: Path, rows: list[tuple[str, str, float]], form: str
) -> None:
    if form == "by query":
        rows = sorted(rows, key=lambda row: row[0])
    run = RunFile(file_of(tmp_path, "".join(f"{q} Q0 {d} 1 {s} t\n" for q, d, s in rows)))
    assert run.query_ids == tuple(dict.fromkeys(q for q, _, _ in rows))
    kept = 0
    for query_id, candidates in run:
        mine = [(d, s) for q, d, s in rows if q == query_id]
        best = {d: max(s for other, s in mine if other == d) for d, _ in mine}
        first = {d: next(i for i, row in enumerate(mine) if row == (d, best[d])) for d in best}
        assert [(c.doc_id, c.score) for c in candidates] == sorted(
            best.items(), key=lambda item: (-item[1], first[item[0]])
        )
        kept += len(candidates)
    assert run.duplicates == len(rows) - kept


def test_run_memory_does_not_grow_with_the_number_of_queries(tmp_path: Path) -> None:
    def peak(queries: int) -> int:
        path = tmp_path / str(queries)
        with path.open("w") as file:
            for query in range(queries):
                file.writelines(f"{query} Q0 doc{i} {i} {-i} t\n" for i in range(200))
        tracemalloc.start()
        assert sum(len(candidates) for _, candidates in RunFile(path)) == 200 * queries
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(100) < peak(10) + 50_000, "90 queries more would hold at least 90 * 200 * 100 bytes"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("q1 Q0 d 2 1", "5 columns"),
        ("q1", "1 column ("),
        ("q1 Q0 doc one 2 1 t", "7 columns"),
        ("q1 Q0 d 2 high t", "'high'"),
        ("q1 Q0 d 2 nan t", "'nan'"),
        ("q1 Q0 d 2 -inf t", "'-inf'"),
        ("q1 Q0 d 2 1e999 t", "'1e999'"),
        ("q1 Q0 d 2 1_0 t", "'1_0'"),
        ("q1 Q0 d\0 2 1 t", "NUL"),
    ],
)
def test_bad_run_line_is_named_before_anything_is_yielded(tmp_path: Path, line: str, found: str) -> None:
    path = file_of(tmp_path, f"q1 Q0 a 1 2 t\n\n{line}\n")
    with pytest.raises(FormatError) as caught:
        RunFile(path)
    message = str(caught.value)
    assert caught.value.line == 3
    assert message.startswith(f"{path}:3: ")
    assert found in message
    assert "; expected " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{}", "without queries"),
        ('{"q1": {"a": 1}', "invalid JSON"),
        ('{"q1": 3}', "'q1' with 3"),
        ('{"q1": {"a": "1"}}', "score '1'"),
        ('{"q1": {"a": true}}', "score True"),
        ('{"q1": {"a": null}}', "score None"),
        ('{"q1": {"a": [1]}}', "score [1]"),
        ('{"q1": {"a": NaN}}', "score nan"),
        ('{"q1": {"a": 1' + "0" * 400 + "}}", "score 1000"),
        ('{"q1": {"a": ' + "1" * 5000 + "}}", "overlong number"),
        ('{"q1": {"a b": 1}}', "'a b'"),
        ('{"": {"a": 1}}', "id ''"),
        ('{"q1": {"\\ud800": 1}}', "id '\\ud800'"),
        ('{"q1": ' * 100_000, "nested too deeply"),
    ],
)
def test_bad_score_json(tmp_path: Path, content: str, found: str) -> None:
    with pytest.raises(FormatError) as caught:
        RunFile(file_of(tmp_path, content))
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_invalid_json_names_its_own_line(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="file:3: invalid JSON"):
        RunFile(file_of(tmp_path, '{"q1": {\n"a": 1,\n"b"}}'))


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="pipe"):
        RunFile(pipe)


# Writing


def test_written_run_is_trec_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "out.trec"
    with RunWriter(path, tag="mine") as run:
        run.write("q1", ["b", "a", "c"])
        run.write("q2", [])
        run.write("q3", ["z"])
    assert path.read_text().splitlines() == [
        "q1 Q0 b 1 1.000000000000 mine",
        "q1 Q0 a 2 0.500000000000 mine",
        "q1 Q0 c 3 0.333333333333 mine",
        "q3 Q0 z 1 1.000000000000 mine",
    ]
    assert [left.name for left in tmp_path.iterdir()] == ["out.trec"]
    assert [[c.doc_id for c in candidates] for _, candidates in RunFile(path)] == [["b", "a", "c"], ["z"]]


def test_scores_decrease_strictly_as_text_and_as_32_bit_floats(tmp_path: Path) -> None:
    import numpy as np

    with RunWriter(tmp_path / "long") as run:
        run.write("q", [str(i) for i in range(100_000)])
    scores = [line.split()[4] for line in (tmp_path / "long").read_text().splitlines()]
    assert len(scores) == 100_000
    assert all(before > after for before, after in pairwise(scores))
    assert (np.diff(np.array(scores, dtype=np.float32)) < 0).all(), "trec_eval keeps scores in 32 bits"


def test_after_an_error_the_old_output_stands_and_the_part_stays(tmp_path: Path) -> None:
    path = file_of(tmp_path, "old")

    def interrupted() -> None:
        with RunWriter(path) as run:
            run.write("q1", ["a"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert (tmp_path / "file.part").read_text() == "q1 Q0 a 1 1.000000000000 rank-k\n"


def test_finished_queries_are_on_disk_before_the_end(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "out") as run:
        run.write("q1", ["a"])
        assert (tmp_path / "out.part").read_text().startswith("q1 ")
        assert not (tmp_path / "out").exists()


def test_a_link_is_followed(tmp_path: Path) -> None:
    target = file_of(tmp_path, "old", "target")
    (tmp_path / "link").symlink_to(target)
    with RunWriter(tmp_path / "link") as run:
        run.write("q1", ["a"])
    assert (tmp_path / "link").is_symlink()
    assert target.read_text().startswith("q1 ")


@pytest.mark.parametrize("bad", ["", "a b", "a\tb", "a\nb", "a\0b", "\ud800"])
def test_ids_that_trec_cannot_hold_are_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(InputError, match="cannot stand in a TREC run"), RunWriter(tmp_path / "1") as run:
        run.write(bad, ["a"])
    with pytest.raises(InputError, match="cannot stand in a TREC run"), RunWriter(tmp_path / "2") as run:
        run.write("q", ["a", bad])
    assert (tmp_path / "2.part").read_bytes() == b"", "a query is written whole or not at all"
    with pytest.raises(InputError, match="cannot stand in a TREC run"):
        RunWriter(tmp_path / "3", tag=bad)


@pytest.mark.parametrize("place", ["/dev/null", "folder", "absent/out"])
def test_places_that_cannot_be_written_are_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as caught, RunWriter(tmp_path / place):
        pass
    assert place in str(caught.value)


MAGIC = (b"{", b"\xef\xbb\xbf", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # JSON, a byte order mark, gzip, Zstandard
IDS = st.binary(min_size=1, max_size=12).filter(
    lambda raw: not set(raw) & set(b" \t\n\r\v\f\0") and not raw.startswith(MAGIC)
)


@quiet
@given(query=IDS, docs=st.lists(IDS, unique=True, min_size=1))
def test_ids_go_through_byte_for_byte(tmp_path: Path, query: bytes, docs: list[bytes]) -> None:
    path = file_of(tmp_path, b"".join(b"%b Q0 %b 1 %d t\n" % (query, doc, -i) for i, doc in enumerate(docs)))
    with RunWriter(tmp_path / "out") as out:
        for query_id, candidates in RunFile(path):
            out.write(query_id, [candidate.doc_id for candidate in candidates])
    fields = [line.split(b" ") for line in (tmp_path / "out").read_bytes().split(b"\n")[:-1]]
    assert [(line[0], line[2]) for line in fields] == [(query, doc) for doc in docs]


# Judgments


def test_qrels_of_trec_and_beir(tmp_path: Path) -> None:
    assert read_qrels(file_of(tmp_path, "1 0 a 2\n1\t0\tb -1\n2 0 a +0\n1 0 a 2\n")) == {
        "1": {"a": 2, "b": -1},
        "2": {"a": 0},
    }
    assert read_qrels(file_of(tmp_path, "query-id\tcorpus-id\tscore\r\n1\tdoc one\t2\r\n1\tb\t0\r\n")) == {
        "1": {"doc one": 2, "b": 0}
    }


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        ("1 0 a 2\n1 0 a\n", 2, "3 columns"),
        ("1 0 a 2 x\n", 1, "5 columns"),
        ("1\ta\t2\n", 1, "3 columns"),
        ("1 0 a high\n", 1, "grade 'high'"),
        ("1 0 a 1.5\n", 1, "grade '1.5'"),
        ("1 0 a 1_0\n", 1, "grade '1_0'"),
        ("1 0 a 99999999999\n", 1, "grade '99999999999'"),
        ("1 0 a 2\n1 0 a 1\n", 2, "judged 1 here and 2 before"),
        ("query-id\tcorpus-id\tscore\n1\ta\n", 2, "2 columns"),
        ("query-id\tcorpus-id\tscore\n1\t\t1\n", 2, "3 columns"),
        ("query-id\tcorpus-id\tscore\n", 0, "nothing below"),
    ],
)
def test_bad_qrels(tmp_path: Path, content: str, line: int, found: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_qrels(file_of(tmp_path, content))
    assert caught.value.line == line
    assert found in str(caught.value)


# Queries and passages


@pytest.mark.parametrize("id_key", ["_id", "id", "query_id", "qid"])
@pytest.mark.parametrize("text_key", ["text", "query"])
def test_query_keys(tmp_path: Path, id_key: str, text_key: str) -> None:
    path = file_of(tmp_path, json.dumps({"lang": "en", id_key: "7", text_key: "why"}))
    assert read_queries(path) == {"7": Query("7", "why")}


@pytest.mark.parametrize("id_key", ["_id", "id", "doc_id", "docid"])
@pytest.mark.parametrize("text_key", ["text", "contents", "content"])
def test_passage_keys(tmp_path: Path, id_key: str, text_key: str) -> None:
    path = file_of(tmp_path, json.dumps({id_key: "7", text_key: "blue"}))
    assert passages_of(path) == [Passage("7", "blue")]


def test_the_first_key_of_the_list_counts(tmp_path: Path) -> None:
    path = file_of(tmp_path, '{"id": "second", "contents": "c", "_id": "first", "text": "t"}')
    assert passages_of(path) == [Passage("first", "t")]
    assert list(read_passages(path, {"first"})) == [Passage("first", "t")]
    assert list(read_passages(path, {"second"})) == []


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Sky", "is blue", "Sky is blue"),
        ("Sky", "Sky is blue", "Sky is blue"),
        ("", "is blue", "is blue"),
        (None, "is blue", "is blue"),
        ("Sky", "", "Sky"),
        ("", "", ""),
    ],
)
def test_title_leads_the_text(tmp_path: Path, title: str | None, text: str, expected: str) -> None:
    path = file_of(tmp_path, json.dumps({"_id": "1", "title": title, "text": text}))
    assert passages_of(path) == [Passage("1", expected)]


def test_numbers_as_ids(tmp_path: Path) -> None:
    assert passages_of(file_of(tmp_path, '{"id": 12, "contents": "x"}')) == [Passage("12", "x")]


def test_tsv_keeps_further_tabs(tmp_path: Path) -> None:
    path = file_of(tmp_path, "1\ta\tb \r\n2\t\n")
    assert passages_of(path) == [Passage("1", "a\tb "), Passage("2", "")]


def test_wanted_passages_only(tmp_path: Path) -> None:
    content = "".join(f'{{"_id": "d{i}", "text": "t{i}"}}\n' for i in range(9))
    expected = [Passage("d7", "t7")]
    assert list(read_passages(file_of(tmp_path, content), ["d7", "absent"])) == expected
    assert list(read_passages(file_of(tmp_path, "d6\tt6\nd7\tt7\n"), ["d7"])) == expected
    escaped = '{"_id": "d\\u0037", "text": "t7"}'
    assert list(read_passages(file_of(tmp_path, escaped), ["d7"])) == expected


def test_undecodable_bytes_stay_in_ids_and_become_replacement_characters_in_text(tmp_path: Path) -> None:
    expected = [Passage("d\udcff", "caf\ufffd")]
    assert passages_of(file_of(tmp_path, b'{"_id": "d\xff", "text": "caf\xe9"}')) == expected
    assert passages_of(file_of(tmp_path, b"d\xff\tcaf\xe9\n")) == expected
    assert passages_of(file_of(tmp_path, '{"_id": "d", "text": "\\ud800 \\ud83d\\ude00"}')) == [
        Passage("d", "\ufffd \U0001f600")
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"_id": "2", "text": "x"', "invalid JSON"),
        ("2\tx", "invalid JSON"),
        ("[1]", "no object"),
        ('{"text": "x"}', "no id (keys: 'text')"),
        ('{"_id": "2", "body": "x"}', "no text (keys: '_id, body')"),
        ('{"_id": "2", "text": null}', "None as text"),
        ('{"_id": "2", "text": "x", "title": 3}', "3 as text or title"),
        ('{"_id": "", "text": "x"}', "id ''"),
        ('{"_id": null, "text": "x"}', "id None"),
        ('{"_id": true, "text": "x"}', "id True"),
        ('{"_id": "\\udc00\\ud800", "text": "x"}', "id '\\udc00\\ud800'"),
        ("{}", "no id (keys: '')"),
    ],
)
def test_bad_jsonl(tmp_path: Path, line: str, found: str) -> None:
    path = file_of(tmp_path, f"{PASSAGES}{line}\n")
    for read in (passages_of, read_queries):
        with pytest.raises(FormatError) as caught:
            read(path)
        assert caught.value.line == 2
        assert found in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("line", "found"), [("no tab here", "no tab"), ("\ttext", "no id")])
def test_bad_tsv(tmp_path: Path, line: str, found: str) -> None:
    with pytest.raises(FormatError, match=f"file:2: {found}"):
        passages_of(file_of(tmp_path, f"1\tx\n{line}\n"))


def test_one_query_id_with_two_texts(tmp_path: Path) -> None:
    assert len(read_queries(file_of(tmp_path, "1\twhy\n1\twhy\n"))) == 1
    with pytest.raises(FormatError, match="file:2: query 1 again"):
        read_queries(file_of(tmp_path, "1\twhy\n1\twhat\n"))


# All of them


@every_reader
def test_gzip_bom_crlf_and_blank_lines_change_nothing(
    tmp_path: Path, read: Callable[[Path], Any], content: str
) -> None:
    plain = read(file_of(tmp_path, content))
    assert plain
    raw = b"\xef\xbb\xbf" + content.replace("\n", "\r\n\r\n").encode()
    for disguised in (raw, gzip.compress(raw), gzip.compress(raw[:9]) + gzip.compress(raw[9:])):
        assert read(file_of(tmp_path, disguised, "file.txt")) == plain


@every_reader
def test_files_that_are_no_text(tmp_path: Path, read: Callable[[Path], Any], content: str) -> None:
    compressed = gzip.compress(content.encode())
    for name, raw, found in [
        ("empty", b"", "an empty file"),
        ("blank", b"\n \r\n", "an empty file"),
        ("gzipped nothing", gzip.compress(b""), "an empty file"),
        ("utf16", content.encode("utf-16"), "NUL"),
        ("cut", compressed[:-12], "damaged gzip"),
        ("altered", compressed[:-8] + b"\0\0\0\0" + compressed[-4:], "damaged gzip"),
        ("garbled", compressed[:10] + b"\xff" + compressed[11:], "damaged gzip"),
    ]:
        with pytest.raises(FormatError) as caught:
            read(file_of(tmp_path, raw, name))
        assert found in str(caught.value)
    with pytest.raises(FormatError, match="a directory"):
        read(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "absent")


@every_reader
@quiet
@given(data=st.data())
def test_damage_anywhere_is_an_error_of_ours_or_none(
    tmp_path: Path, read: Callable[[Path], Any], content: str, data: st.DataObject
) -> None:
    raw = content.encode()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
    path = file_of(tmp_path, raw[:start] + data.draw(st.binary(max_size=6)) + raw[end:])
    try:
        read(path)
    except RankKError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("read", [passages_of, read_queries])
def test_records_stream_from_a_pipe(tmp_path: Path, read: Callable[[Path], Sequence[Any]]) -> None:
    source, sink = os.pipe()
    os.write(sink, gzip.compress(b"1\tx\n"))
    os.close(sink)
    try:
        assert len(read(Path(f"/dev/fd/{source}"))) == 1
    finally:
        os.close(source)
