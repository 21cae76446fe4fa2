"""The index of passages: the same texts as a reading of the whole file, and never a wrong or incomplete one."""

from __future__ import annotations

import gzip
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rank_k.data import corpus_index, lines
from rank_k.data.corpus_index import SUFFIX, CorpusIndex, open_corpus_index
from rank_k.data.lines import is_json
from rank_k.data.passages import read_passages
from rank_k.errors import FormatError, InputError
from rank_k.types import Passage

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "gzip": gzip.compress, "zstd": zstd.compress}


def write_corpus(
    tmp_path: Path, count: int = 300, compress: Callable[[bytes], bytes] = bytes, name: str = "c.tsv"
) -> Path:
    path = tmp_path / name
    path.write_bytes(compress(b"".join(b"d%d\ttext of %d, %b\n" % (i, i, b"more " * (i % 97)) for i in range(count))))
    return path


def open_persistent(path: Path) -> closing[CorpusIndex]:
    return closing(open_corpus_index(path, persist_from_bytes=0))


def read_text(path: Path, doc_id: str) -> str:
    with open_persistent(path) as index:
        return index.get(doc_id).text


valid_ids = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0\ufeff"), min_size=1).filter(str.strip)
valid_texts = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(valid_ids, valid_texts), min_size=1),
    st.sampled_from(sorted(COMPRESSORS)),
    st.booleans(),
    st.booleans(),
)
@example([("{", ""), ("0", "")], "gzip", False, False)  # the column of a JSON error at the end of a line
@example([("{", ""), ("0", "")], "plain", True, True)
def test_corpus_index_returns_same_passages_as_read_passages(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], compression: str, crlf: bool, in_memory: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "corpus"
    line_end = b"\r\n" if crlf else b"\n"
    path.write_bytes(COMPRESSORS[compression](line_end.join(f"{doc_id}\t{text}".encode() for doc_id, text in rows)))
    if is_json(rows[0][0].encode()):  # read as JSON, which it is not
        with pytest.raises(FormatError) as error_info:
            list(read_passages(path))
        with pytest.raises(FormatError, match=re.escape(str(error_info.value))):
            open_corpus_index(path)
        return
    expected = list(read_passages(path))
    with closing(open_corpus_index(path, persist_from_bytes=2**60 if in_memory else 0)) as index:
        texts_by_id: dict[str, set[str]] = {}
        for passage in expected:
            texts_by_id.setdefault(passage.doc_id, set()).add(passage.text)
        for doc_id, texts in texts_by_id.items():
            if len(texts) == 1:
                assert {index.get(doc_id).text} == texts
            else:
                with pytest.raises(InputError, match="give different texts for document"):
                    index.get(doc_id)
        with pytest.raises(InputError, match="document no such id is not in"):
            index.get("no such id")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(), st.text()), min_size=1, unique_by=lambda row: row[0]))
@example([("\ud83d", "", ""), ("\udcff", "\0", "\ud800\0")])
def test_corpus_index_returns_any_text_of_json(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "corpus"
    lines = [json.dumps({"_id": doc_id, "title": title, "text": text}) for doc_id, title, text in rows]
    path.write_text("\n".join(lines))
    try:
        expected = list(read_passages(path))
    except FormatError as error:  # half a surrogate pair as an id
        with pytest.raises(FormatError, match=re.escape(str(error))):
            open_corpus_index(path)
        return
    with closing(open_corpus_index(path)) as index:
        assert [index.get(passage.doc_id) for passage in expected] == expected


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_corpus_index_reads_long_lines(tmp_path: Path, compression: str) -> None:
    path, long_text = tmp_path / "c.tsv", "é" * 50_000
    path.write_bytes(
        COMPRESSORS[compression]("".join(f"{i}\t{long_text if i % 5 == 0 else i}\n" for i in range(40)).encode())
    )
    with open_persistent(path) as index:
        assert index.get("35").text == long_text
        assert index.get("36").text == "36"
        assert index.get("39").text == "39"


def test_corpus_index_reads_all_jsonl_forms(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"_id": "a", "title": "T", "text": "one"}\n\n'
        b'{"text": "two", "id": 7}\n'
        b'{"id": "decoy", "text": "three", "_id": "c"}\n'
        b'{"id": "first", "text": "four", "id": "last"}\n'
        b'  {"docid": "\\u00e9\\"", "contents": "five"}'
    )
    with open_persistent(path) as index:
        texts = [index.get(doc_id).text for doc_id in ("a", "7", "c", "last", 'é"')]
        assert texts == ["T one", "two", "three", "four", "five"]
        for doc_id in ("decoy", "first"):
            with pytest.raises(InputError, match="is not in"):
                index.get(doc_id)
    assert [passage.doc_id for passage in read_passages(path)] == ["a", "7", "c", "last", 'é"']


def test_corpus_index_finds_undecodable_ids(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_bytes(b"\xff\xfe\tone\n")
    with open_persistent(path) as index:
        assert index.get("\udcff\udcfe") == Passage("\udcff\udcfe", "one")
        with pytest.raises(InputError, match="is not in"):
            index.get("\ud800")  # half a surrogate pair: no file can hold it


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"a\tone\nno tab\n", 2, "no tab"),
        (b'{"_id": "a", "text": ""}\n\n{"text": "x"}\n', 3, "no id"),
        (b'{"_id": "a", "text": ""}\n{"_id": "b"', 2, "invalid JSON"),
        (b'{"_id": "a", "text": ""}\n{"_id": "b", "text": 7}', 2, "the text or title is 7"),
        (b"a\tone\nb\0\ttwo\n", 2, "NUL"),
        (b"", 0, "empty"),
    ],
)
def test_corpus_index_reports_malformed_line_number(tmp_path: Path, content: bytes, line: int, problem: str) -> None:
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=problem) as error_info:
        open_persistent(path)
    assert error_info.value.line == line
    assert not [leftover for leftover in tmp_path.iterdir() if leftover.suffix == ".part"]


def test_open_corpus_index_rebuilds_only_when_file_changes(tmp_path: Path) -> None:
    path, progress = write_corpus(tmp_path), list[tuple[int, int]]()
    for _ in range(2):
        open_corpus_index(path, lambda *at: progress.append(at), persist_from_bytes=0).close()
        assert (tmp_path / (path.name + SUFFIX)).is_file()
    size = path.stat().st_size
    assert progress == [(size, size)]
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"text of 7,", b"news of 7,"))  # as long as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert read_text(path, "d7").startswith("news of 7,")
    path.write_bytes(b"d7\tshort\n")
    assert read_text(path, "d7") == "short"


def test_open_corpus_index_reports_progress_up_to_file_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_PROGRESS_EVERY_LINES", 50)
    for name, compress in COMPRESSORS.items():
        path, progress = write_corpus(tmp_path, compress=compress, name=name), list[tuple[int, int]]()

        def record(done: int, total: int, progress: list[tuple[int, int]] = progress) -> None:
            progress.append((done, total))

        open_corpus_index(path, record, persist_from_bytes=0).close()
        assert len(progress) == 7
        assert [done for done, _ in progress] == sorted(done for done, _ in progress)
        assert progress[-1] == (path.stat().st_size,) * 2


def test_open_corpus_index_rebuilds_index_of_other_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_corpus(tmp_path, compress=gzip.compress)
    open_corpus_index(path, persist_from_bytes=0).close()
    with sqlite3.connect(tmp_path / (path.name + SUFFIX)) as db:
        db.execute("UPDATE passages SET text = 'of the old format'")
    db.close()
    assert read_text(path, "d299") == "of the old format"
    monkeypatch.setattr(corpus_index, "FORMAT_VERSION", corpus_index.FORMAT_VERSION + 1)
    assert read_text(path, "d299").startswith("text of 299")


@pytest.mark.parametrize("content", [b"", b"rubbish", b"SQLite format 3\0" + b"\0" * 200])
def test_open_corpus_index_replaces_file_that_is_not_an_index(tmp_path: Path, content: bytes) -> None:
    path = write_corpus(tmp_path)
    (tmp_path / (path.name + SUFFIX)).write_bytes(content)
    assert read_text(path, "d5").startswith("text of 5")


def test_open_corpus_index_replaces_foreign_database(tmp_path: Path) -> None:
    path = write_corpus(tmp_path)
    with sqlite3.connect(tmp_path / (path.name + SUFFIX)) as db:
        db.execute("CREATE TABLE source (format, size, changed)")
    db.close()
    assert read_text(path, "d5").startswith("text of 5")


def test_open_corpus_index_reports_or_rebuilds_truncated_index(tmp_path: Path) -> None:
    path = write_corpus(tmp_path, 3000)
    open_corpus_index(path, persist_from_bytes=0).close()
    index_file = tmp_path / (path.name + SUFFIX)
    index_bytes = index_file.read_bytes()
    for length in (len(index_bytes) // 2, 5000, 100):
        index_file.write_bytes(index_bytes[:length])
        try:
            text_or_remedy = read_text(path, "d2999")
        except InputError as error:
            text_or_remedy = error.remedy
        assert text_or_remedy.startswith(("text of 2999", f"delete {index_file}"))


def test_open_corpus_index_uses_cache_when_folder_is_read_only(
    tmp_path: Path, isolated_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_corpus(tmp_path)

    def fail_in_corpus_folder(
        index_path: Path, *arguments: object, write_index: Callable[..., None] = corpus_index._write_index
    ) -> None:
        if index_path.parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        write_index(index_path, *arguments)

    monkeypatch.setattr(
        corpus_index, "_write_index", fail_in_corpus_folder
    )  # the tests may run as root, whom no permission stops
    with open_persistent(path) as index:
        assert index.get("d5").text.startswith("text of 5")
    assert list(tmp_path.iterdir()) == [path]
    assert len(list((isolated_environment / ".cache" / "rank-k" / "corpus_index").iterdir())) == 1
    monkeypatch.setattr(corpus_index, "_write_index", None)  # it is there: nothing is made again
    assert read_text(path, "d6").startswith("text of 6")


def test_open_corpus_index_reports_when_no_folder_is_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(corpus_index, "_write_index", fail)
    with pytest.raises(InputError, match="Permission denied") as error_info:
        open_persistent(write_corpus(tmp_path))
    assert "RANK_K_CACHE" in error_info.value.remedy


def test_open_corpus_index_rejects_file_changed_while_read(tmp_path: Path) -> None:
    path = write_corpus(tmp_path)

    def append_line(done: int, total: int) -> None:
        with path.open("ab") as file:
            file.write(b"new\tline\n")

    with pytest.raises(InputError, match="changed while it was read"):
        open_corpus_index(path, append_line, persist_from_bytes=0)
    assert list(tmp_path.iterdir()) == [path]


def test_corpus_index_reads_original_after_file_is_changed_and_indexed_again(tmp_path: Path) -> None:
    path = write_corpus(tmp_path)
    with open_persistent(path) as index:
        write_corpus(tmp_path, 5)
        with open_persistent(path) as new_index, pytest.raises(InputError, match="document d250 is not in"):
            new_index.get("d250")
        assert index.get("d250").text.startswith("text of 250")


def test_open_corpus_index_rejects_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe"):
        open_corpus_index(tmp_path / "pipe")


def test_open_corpus_index_removes_stale_part_files(tmp_path: Path) -> None:
    path = write_corpus(tmp_path)
    old, new = (tmp_path / f".{path.name}{SUFFIX}-{number}.part" for number in (1, 2))
    for leftover in (old, new):
        leftover.touch()
    os.utime(old, (0, time.time() - 90_000))
    open_corpus_index(path, persist_from_bytes=0).close()
    assert not old.exists()
    assert new.exists()


def test_corpus_index_is_shared_by_threads(tmp_path: Path) -> None:
    for name, compress in COMPRESSORS.items():
        with (
            open_persistent(write_corpus(tmp_path, compress=compress, name=name)) as index,
            ThreadPoolExecutor(8) as pool,
        ):
            texts = pool.map(lambda i, index=index: index.get(f"d{i % 300}").text, range(3000))
            assert all(text.startswith(f"text of {i % 300},") for i, text in enumerate(texts))


READER = """
    import sys
    from contextlib import closing
    from rank_k.data.corpus_index import open_corpus_index
    with closing(open_corpus_index(sys.argv[1], persist_from_bytes=0)) as index:
        print(index.get("d19999").text[:13])
"""


def test_open_corpus_index_is_safe_with_concurrent_and_killed_processes(tmp_path: Path) -> None:
    path = write_corpus(tmp_path, 20_000)
    command = [sys.executable, "-c", dedent(READER), str(path)]
    killed_process = subprocess.Popen(command)
    while killed_process.poll() is None and not list(tmp_path.glob(f".*{SUFFIX}-*.part")):
        time.sleep(0.002)
    killed_process.kill()
    killed_process.wait()
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["text of 19999\n"] * 3
    assert len(list(tmp_path.glob(f".*{SUFFIX}-*.part"))) <= 1  # the killed one's
