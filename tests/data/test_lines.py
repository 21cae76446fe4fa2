"""What all readers of files share: compression, byte order marks, blank lines, damaged files, pipes."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.data.queries import read_queries
from rank_k.data.trec import read_qrels, read_run
from rank_k.errors import FormatError, InputError, RankKError
from tests.data.file_helpers import read_all_passages, without_health_checks, write_file

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
    "passages": (read_all_passages, PASSAGES),
    "passages tsv": (read_all_passages, "1\tis blue\n"),
}
every_reader = pytest.mark.parametrize(("read", "content"), READERS.values(), ids=READERS)


# All of them


@every_reader
def test_readers_ignore_gzip_bom_crlf_and_blank_lines(
    tmp_path: Path, read: Callable[[Path], Any], content: str
) -> None:
    expected = read(write_file(tmp_path, content))
    assert expected
    raw = b"\xef\xbb\xbf" + content.replace("\n", "\r\n\r\n").encode()
    for variant in (raw, gzip.compress(raw), gzip.compress(raw[:9]) + gzip.compress(raw[9:])):
        assert read(write_file(tmp_path, variant, "file.txt")) == expected


@every_reader
def test_readers_reject_files_that_are_not_text(tmp_path: Path, read: Callable[[Path], Any], content: str) -> None:
    compressed = gzip.compress(content.encode())
    for name, raw, problem in [
        ("empty", b"", "an empty file"),
        ("blank", b"\n \r\n", "an empty file"),
        ("gzipped nothing", gzip.compress(b""), "an empty file"),
        ("utf16", content.encode("utf-16"), "NUL"),
        ("cut", compressed[:-12], "damaged gzip"),
        ("altered", compressed[:-8] + b"\0\0\0\0" + compressed[-4:], "damaged gzip"),
        ("garbled", compressed[:10] + b"\xff" + compressed[11:], "damaged gzip"),
    ]:
        with pytest.raises(FormatError) as error_info:
            read(write_file(tmp_path, raw, name))
        assert problem in str(error_info.value)
    with pytest.raises(FormatError, match="a directory"):
        read(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "absent")


@every_reader
@without_health_checks
@given(data=st.data())
def test_readers_raise_only_rank_k_errors_for_damaged_files(
    tmp_path: Path, read: Callable[[Path], Any], content: str, data: st.DataObject
) -> None:
    raw = content.encode()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
    path = write_file(tmp_path, raw[:start] + data.draw(st.binary(max_size=6)) + raw[end:])
    try:
        read(path)
    except RankKError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("read", [read_all_passages, read_queries])
def test_record_readers_accept_a_pipe(tmp_path: Path, read: Callable[[Path], Sequence[Any]]) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, gzip.compress(b"1\tx\n"))
    os.close(write_end)
    try:
        assert len(read(Path(f"/dev/fd/{read_end}"))) == 1
    finally:
        os.close(read_end)
