"""Queries and passages in JSONL and TSV: accepted keys, titles, encodings and malformed lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rank_k.data.queries import read_queries
from rank_k.errors import FormatError
from rank_k.types import Passage, Query
from tests.data.file_helpers import read_all_passages, write_file

PASSAGES = '{"_id": "1", "title": "Sky", "text": "is blue"}\n'

# Queries and passages


@pytest.mark.parametrize("id_key", ["_id", "id", "query_id", "qid"])
@pytest.mark.parametrize("text_key", ["text", "query"])
def test_read_queries_accepts_all_keys(tmp_path: Path, id_key: str, text_key: str) -> None:
    path = write_file(tmp_path, json.dumps({"lang": "en", id_key: "7", text_key: "why"}))
    assert read_queries(path) == {"7": Query("7", "why")}


@pytest.mark.parametrize("id_key", ["_id", "id", "doc_id", "docid"])
@pytest.mark.parametrize("text_key", ["text", "contents", "content"])
def test_read_passages_accepts_all_keys(tmp_path: Path, id_key: str, text_key: str) -> None:
    path = write_file(tmp_path, json.dumps({id_key: "7", text_key: "blue"}))
    assert read_all_passages(path) == [Passage("7", "blue")]


def test_read_passages_prefers_first_accepted_key(tmp_path: Path) -> None:
    path = write_file(tmp_path, '{"id": "second", "contents": "c", "_id": "first", "text": "t"}')
    assert read_all_passages(path) == [Passage("first", "t")]


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
def test_read_passages_prepends_title(tmp_path: Path, title: str | None, text: str, expected: str) -> None:
    path = write_file(tmp_path, json.dumps({"_id": "1", "title": title, "text": text}))
    assert read_all_passages(path) == [Passage("1", expected)]


def test_read_passages_accepts_numeric_ids(tmp_path: Path) -> None:
    assert read_all_passages(write_file(tmp_path, '{"id": 12, "contents": "x"}')) == [Passage("12", "x")]


def test_read_passages_keeps_tabs_in_tsv_text(tmp_path: Path) -> None:
    path = write_file(tmp_path, "1\ta\tb \r\n2\t\n")
    assert read_all_passages(path) == [Passage("1", "a\tb "), Passage("2", "")]


def test_read_passages_keeps_undecodable_ids_and_replaces_them_in_text(tmp_path: Path) -> None:
    expected = [Passage("d\udcff", "caf\ufffd")]
    assert read_all_passages(write_file(tmp_path, b'{"_id": "d\xff", "text": "caf\xe9"}')) == expected
    assert read_all_passages(write_file(tmp_path, b"d\xff\tcaf\xe9\n")) == expected
    assert read_all_passages(write_file(tmp_path, '{"_id": "d", "text": "\\ud800 \\ud83d\\ude00"}')) == [
        Passage("d", "\ufffd \U0001f600")
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"_id": "2", "text": "x"', "invalid JSON"),
        ("2\tx", "invalid JSON"),
        ("[1]", "not an object"),
        ('{"text": "x"}', "no id (keys: 'text')"),
        ('{"_id": "2", "body": "x"}', "no text (keys: '_id, body')"),
        ('{"_id": "2", "text": null}', "text or title is None"),
        ('{"_id": "2", "text": "x", "title": 3}', "text or title is 3"),
        ('{"_id": "", "text": "x"}', "id ''"),
        ('{"_id": null, "text": "x"}', "id None"),
        ('{"_id": true, "text": "x"}', "id True"),
        ('{"_id": "\\udc00\\ud800", "text": "x"}', "id '\\udc00\\ud800'"),
        ("{}", "no id (keys: '')"),
    ],
)
def test_readers_reject_malformed_jsonl(tmp_path: Path, line: str, problem: str) -> None:
    path = write_file(tmp_path, f"{PASSAGES}{line}\n")
    for read in (read_all_passages, read_queries):
        with pytest.raises(FormatError) as error_info:
            read(path)
        assert error_info.value.line == 2
        assert problem in str(error_info.value)
        assert "\n" not in str(error_info.value)


@pytest.mark.parametrize(("line", "problem"), [("no tab here", "no tab"), ("\ttext", "no id")])
def test_read_passages_rejects_malformed_tsv(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(FormatError, match=f"file:2: {problem}"):
        read_all_passages(write_file(tmp_path, f"1\tx\n{line}\n"))


def test_read_queries_rejects_id_with_two_texts(tmp_path: Path) -> None:
    assert len(read_queries(write_file(tmp_path, "1\twhy\n1\twhy\n"))) == 1
    with pytest.raises(FormatError, match="file:2: query 1 appears again"):
        read_queries(write_file(tmp_path, "1\twhy\n1\twhat\n"))
