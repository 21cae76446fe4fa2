"""Measure what the index of a big corpus costs: time to make it, memory, disk, and the time to look a passage up.

    python -m benchmarks.corpus_index [--passages 200000] [--forms jsonl jsonl.gz tsv.zst] [--folder DIR]

The corpus is generated, with this number of passages, a half and a quarter of it: time should grow with the number,
memory should not. Passages are as long as MS MARCO's (about 340 characters). Their ids are random, which is the worst
case for a sorted index. A separate process makes each index and looks passages up; the peak memory is that of the whole
process. It looks up 10,000 random passages in a newly opened index that the system has cached.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles
from typing import IO, Any

from rank_k.data.corpus_index import SUFFIX, open_corpus_index
from rank_k.optional_deps import load

LOOKUPS = 10_000
FORMS = ("jsonl", "jsonl.gz", "jsonl.zst", "tsv", "tsv.gz", "tsv.zst")


def doc_id(number: int) -> str:
    """Random to the eye, the same in every process, no two alike: a multiplication modulo a power of two."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def corpus_lines(count: int, form: str) -> Iterator[bytes]:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(20_000)]
    sentences = [" ".join(rng.choices(vocabulary, k=14)) for _ in range(5_000)]
    for number in range(count):
        text = ". ".join(rng.choices(sentences, k=4))
        if form.startswith("tsv"):
            yield f"{doc_id(number)}\t{text}\n".encode()
        else:
            yield f'{{"_id": "{doc_id(number)}", "title": "", "text": "{text}"}}\n'.encode()


def open_for_writing(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "wb", 1)  # type: ignore[return-value]
    if path.suffix == ".zst":
        file: IO[bytes] = load("backports.zstd").open(path, "wb")
        return file
    return path.open("wb")


def measure(path: Path, count: int) -> dict[str, Any]:
    """In the process of its own."""
    wall, cpu = time.perf_counter(), time.process_time()
    open_corpus_index(path, persist_from_bytes=0).close()
    build_times = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)
    doc_ids = [doc_id(number) for number in random.Random(1).choices(range(count), k=LOOKUPS)]
    times = []
    with closing(open_corpus_index(path, persist_from_bytes=0)) as index:
        for lookup_id in doc_ids:
            lookup_started = time.perf_counter()
            passage = index.get(lookup_id)
            times.append(time.perf_counter() - lookup_started)
            assert passage.doc_id == lookup_id
    return build_times | {
        "peak_mb": peak,
        "median_us": median(times) * 1e6,
        "p99_us": quantiles(times, n=100)[98] * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--passages", type=int, default=200_000, help="in the largest corpus")
    parser.add_argument("--forms", nargs="+", default=["jsonl", "jsonl.gz"], choices=FORMS)
    parser.add_argument("--folder", type=Path, help="where the corpora are made, and removed again")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), int(args.measure[1]))))
        return
    print(
        f"{'form':10}{'passages':>10}{'file MB':>9}{'index MB':>10}{'made in s':>11}{'CPU s':>8}{'us each':>9}"
        f"{'peak MB':>9}{'lookup us':>11}{'99th %':>8}"
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for form in args.forms:
            for count in (args.passages // 4, args.passages // 2, args.passages):
                path = Path(folder, f"corpus.{form}")
                with open_for_writing(path) as file:
                    file.writelines(corpus_lines(count, form))
                command = [sys.executable, "-m", "benchmarks.corpus_index", "--measure", str(path), str(count)]
                costs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                index = path.with_name(path.name + SUFFIX)
                print(
                    f"{form:10}{count:10,}{path.stat().st_size / 1e6:9.0f}{index.stat().st_size / 1e6:10.1f}"
                    f"{costs['seconds']:11.1f}{costs['cpu_seconds']:8.1f}{costs['cpu_seconds'] / count * 1e6:9.1f}"
                    f"{costs['peak_mb']:9.0f}{costs['median_us']:11.0f}{costs['p99_us']:8.0f}",
                    flush=True,
                )
                index.unlink()
                path.unlink()


if __name__ == "__main__":
    main()
