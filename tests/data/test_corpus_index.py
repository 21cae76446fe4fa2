"""The index of where passages lie: the same texts as a reading of the whole file, and never a wrong or half one."""

from __future__ import annotations

import gzip
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rank_k.data import corpus_index
from rank_k.data.corpus_index import PART_BYTES, SUFFIX, CorpusIndex, open_corpus_index
from rank_k.data.passages import read_passages
from rank_k.data.records import is_jsonl
from rank_k.errors import FormatError, InputError
from rank_k.types import Passage

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKS: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "gzip": gzip.compress, "zstd": zstd.compress}


def corpus(tmp_path: Path, count: int = 300, pack: Callable[[bytes], bytes] = bytes, name: str = "c.tsv") -> Path:
    path = tmp_path / name
    path.write_bytes(pack(b"".join(b"d%d\ttext of %d, %b\n" % (i, i, b"more " * (i % 97)) for i in range(count))))
    return path


def kept(path: Path) -> CorpusIndex:
    return open_corpus_index(path, kept_from=0)


def text_of(path: Path, doc_id: str) -> list[str]:
    with kept(path) as index:
        return [passage.text for passage in index.passages(doc_id)]


ids = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0\ufeff"), min_size=1).filter(str.strip)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"))


@settings(max_examples=60)
@given(st.lists(st.tuples(ids, texts), min_size=1), st.sampled_from(sorted(PACKS)), st.booleans(), st.booleans())
@example([("{", ""), ("0", "")], "gzip", False, False)  # the column of a JSON error at the end of a line
@example([("{", ""), ("0", "")], "plain", True, True)
def test_any_passage_is_what_reading_the_file_finds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], pack: str, crlf: bool, in_memory: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "corpus"
    end = b"\r\n" if crlf else b"\n"
    path.write_bytes(PACKS[pack](end.join(f"{doc_id}\t{text}".encode() for doc_id, text in rows)))
    if is_jsonl(rows[0][0].encode()):  # read as JSON, which it is not
        with pytest.raises(FormatError) as caught:
            list(read_passages(path))
        with pytest.raises(FormatError, match=re.escape(str(caught.value))):
            open_corpus_index(path)
        return
    expected = list(read_passages(path))
    with open_corpus_index(path, kept_from=2**60 if in_memory else 0) as index:
        assert len(index) == len(expected)
        for doc_id in {passage.doc_id for passage in expected}:
            assert index.passages(doc_id) == [passage for passage in expected if passage.doc_id == doc_id]
        assert index.passages("no such id") == []


@pytest.mark.parametrize("pack", PACKS)
def test_lines_longer_than_a_part_and_across_parts(tmp_path: Path, pack: str) -> None:
    path, long = tmp_path / "c.tsv", "é" * (3 * PART_BYTES)
    path.write_bytes(PACKS[pack]("".join(f"{i}\t{long if i % 5 == 0 else i}\n" for i in range(40)).encode()))
    with kept(path) as index:
        assert index.passages("35")[0].text == long
        assert index.passages("36")[0].text == "36"
        assert index.passages("39")[0].text == "39"


def test_jsonl_in_all_its_shapes(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"_id": "a", "title": "T", "text": "one"}\n\n'
        b'{"text": "two", "id": 7}\n'
        b'{"id": "decoy", "text": "three", "_id": "c"}\n'
        b'{"id": "first", "text": "four", "id": "last"}\n'
        b'  {"docid": "\\u00e9\\"", "contents": "five"}'
    )
    with kept(path) as index:
        found = [index.passages(doc_id)[0].text for doc_id in ("a", "7", "c", "last", 'é"')]
        assert found == ["T one", "two", "three", "four", "five"]
        assert index.passages("decoy") == index.passages("first") == []
    assert [passage.doc_id for passage in read_passages(path)] == ["a", "7", "c", "last", 'é"']


def test_ids_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_bytes(b"\xff\xfe\tone\n")
    with kept(path) as index:
        assert index.passages("\udcff\udcfe") == [Passage("\udcff\udcfe", "one")]
        assert index.passages("\ud800") == []  # half a surrogate pair: no file can hold it


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        (b"a\tone\nno tab\n", 2, "no tab"),
        (b'{"_id": "a", "text": ""}\n\n{"text": "x"}\n', 3, "no id"),
        (b'{"_id": "a", "text": ""}\n{"_id": "b"', 2, "invalid JSON"),
        (b"a\tone\nb\0\ttwo\n", 2, "NUL"),
        (b"", 0, "empty"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, content: bytes, line: int, found: str) -> None:
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=found) as caught, kept(path) as index:
        index.passages("b")
    assert caught.value.line == line
    assert not [left for left in tmp_path.iterdir() if left.suffix == ".part"]


def test_it_is_made_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path, told = corpus(tmp_path), list[tuple[int, int]]()
    for _ in range(2):
        with open_corpus_index(path, lambda *at: told.append(at), kept_from=0) as index:
            assert index.file == str(path) + SUFFIX
    size = path.stat().st_size
    assert told == [(size, size)]
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"text of 7,", b"news of 7,"))  # as long as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert text_of(path, "d7")[0].startswith("news of 7,")
    path.write_bytes(b"d7\tshort\n")
    assert text_of(path, "d7") == ["short"]


def test_progress_is_told_and_ends_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_index, "_PROGRESS_EVERY_LINES", 50)
    for name, pack in PACKS.items():
        path, told = corpus(tmp_path, pack=pack, name=name), list[tuple[int, int]]()
        open_corpus_index(path, lambda done, total, told=told: told.append((done, total)), kept_from=0).close()  # type: ignore[misc]
        assert len(told) == 7
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert told[-1] == (path.stat().st_size,) * 2


def test_another_format_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus(tmp_path, pack=gzip.compress)
    kept(path).close()
    monkeypatch.setattr(corpus_index, "PART_BYTES", 100)
    assert text_of(path, "d299")[0].startswith("text of 299")


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", b"SQLite format 3\0" + b"\0" * 200])
def test_what_is_no_index_is_replaced(tmp_path: Path, rubbish: bytes) -> None:
    path = corpus(tmp_path)
    (tmp_path / (path.name + SUFFIX)).write_bytes(rubbish)
    assert text_of(path, "d5")[0].startswith("text of 5")


def test_somebody_elses_database_is_replaced_only_under_our_name(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    with sqlite3.connect(tmp_path / (path.name + SUFFIX)) as db:
        db.execute("CREATE TABLE facts (name, value)")
    db.close()
    assert text_of(path, "d5")[0].startswith("text of 5")


def test_an_index_cut_short_is_told_or_made_anew(tmp_path: Path) -> None:
    path = corpus(tmp_path, 3000)
    kept(path).close()
    file = tmp_path / (path.name + SUFFIX)
    whole = file.read_bytes()
    for length in (len(whole) // 2, 5000, 100):
        file.write_bytes(whole[:length])
        try:
            told = text_of(path, "d2999")[0]
        except InputError as error:
            told = error.remedy
        assert told.startswith(("text of 2999", f"delete {file}"))


def test_a_folder_that_cannot_be_written_to_leaves_it_in_the_cache(
    tmp_path: Path, isolated_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus(tmp_path)

    def refuse(place: Path, *rest: object, make: Callable[..., None] = corpus_index._write_index) -> None:
        if place.parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        make(place, *rest)

    monkeypatch.setattr(corpus_index, "_write_index", refuse)  # the tests may run as root, whom no permission stops
    with kept(path) as index:
        assert index.passages("d5")[0].text.startswith("text of 5")
        assert Path(index.file).parent == isolated_environment / ".cache" / "rank-k" / "offsets"
    monkeypatch.setattr(corpus_index, "_write_index", None)  # it is there: nothing is made again
    assert text_of(path, "d6")[0].startswith("text of 6")


def test_nowhere_to_keep_it_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(corpus_index, "_write_index", refuse)
    with pytest.raises(InputError, match="Permission denied") as caught:
        kept(corpus(tmp_path))
    assert "RANK_K_CACHE" in caught.value.remedy


def test_a_file_that_changes_in_use_is_told(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    with kept(path) as index:
        with path.open("ab") as file:
            file.write(b"new\tline\n")
        with pytest.raises(InputError, match="changed while it was in use"):
            index.passages("d5")


def test_a_file_that_is_replaced_in_use_stays_readable(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    with kept(path) as index:
        corpus(tmp_path, 5, name="new").replace(path)
        assert index.passages("d250")[0].text.startswith("text of 250")
    assert text_of(path, "d250") == []


def test_a_pipe_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe"):
        open_corpus_index(tmp_path / "pipe")


def test_leftovers_of_the_dead_are_swept(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    old, new = tmp_path / f".other{SUFFIX}-1.part", tmp_path / f".other{SUFFIX}-2.part"
    for left in (old, new):
        left.touch()
    os.utime(old, (0, time.time() - 90_000))
    kept(path).close()
    assert not old.exists()
    assert new.exists()


def test_threads_share_it(tmp_path: Path) -> None:
    for name, pack in PACKS.items():
        with kept(corpus(tmp_path, pack=pack, name=name)) as index, ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda i, index=index: index.passages(f"d{i % 300}")[0].text, range(3000))
            assert all(text.startswith(f"text of {i % 300},") for i, text in enumerate(found))


READER = """
    import sys
    from rank_k.data.corpus_index import open_corpus_index
    with open_corpus_index(sys.argv[1], kept_from=0) as index:
        print(len(index), index.passages("d19999")[0].text[:13])
"""


def test_processes_at_once_and_killed_ones_leave_no_half(tmp_path: Path) -> None:
    path = corpus(tmp_path, 20_000)
    command = [sys.executable, "-c", dedent(READER), str(path)]
    killed = subprocess.Popen(command)
    while killed.poll() is None and not list(tmp_path.glob(f".*{SUFFIX}-*.part")):
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in racing] == ["20000 text of 19999\n"] * 3
    assert len(list(tmp_path.glob(f".*{SUFFIX}-*.part"))) <= 1  # the killed one's
