"""Print the classes that a `rank-k rerank` call passes through, from the command to the HTTP request.

    python -m benchmarks.call_path [--method combined]

The command reranks one query through a fake server while a profiler notes every class of the package whose methods
run. Values (frozen dataclasses and named tuples), exceptions, private classes, and the classes that read files and
print (`rank_k.data`, `rank_k.cli`) are left out: what remains are the classes that a reader has to follow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fakes.model_server.fault_plan import FaultPlan
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.running import run_in_thread

from rank_k.cli import main as rank_k

METHODS = ("listwise", "likelihood", "combined")


class ClassTrace:
    """Notes the classes of the package whose methods are called, in the order of their first call."""

    def __init__(self) -> None:
        self._classes: dict[type, None] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_argcount and code.co_varnames[0] == "self":
            kind = type(frame.f_locals.get("self"))
            if kind.__module__.startswith("rank_k."):
                self._classes.setdefault(kind)

    @property
    def names(self) -> list[str]:
        return [f"{kind.__module__}.{kind.__qualname__}" for kind in self._classes if _is_followed(kind)]


def _is_followed(kind: type) -> bool:
    is_value = issubclass(kind, tuple | Exception) or (
        dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    )
    return not (is_value or kind.__name__.startswith("_")) and kind.__module__.split(".")[1] not in ("data", "cli")


def trace_classes(method: str) -> list[str]:
    """Return the classes behind `rank-k rerank --method METHOD`, as dotted names."""
    collection = make_dataset(1, 25)
    with tempfile.TemporaryDirectory() as folder, run_in_thread(_server_plan()) as server:
        files = _write_collection(Path(folder), collection)
        server_options = ["--server", server.url, "--model", "oracle", "--server-type", "llamacpp", "--method", method]
        trace = ClassTrace()
        threading.setprofile(trace)
        sys.setprofile(trace)
        try:
            status = rank_k(["rerank", *files, *server_options, "--quiet"])
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    if status:
        raise SystemExit(f"rank-k rerank --method {method} exited with status {status}")
    return trace.names


def _server_plan() -> FaultPlan:
    return FaultPlan().changed(
        {"owned_by": "llamacpp", "capabilities": "raw grammar logprobs spell", "first_token": 0.0, "per_token": 0.0}
    )


def _write_collection(folder: Path, collection: Any) -> list[str]:
    """Write the collection's files and return the options that name them."""
    run = [(q, c.doc_id, rank) for q, candidates in collection.run.items() for rank, c in enumerate(candidates, 1)]
    lines = {
        "run": [f"{q} Q0 {doc_id} {rank} {1 / rank} bm25" for q, doc_id, rank in run],
        "queries": [json.dumps({"_id": query.query_id, "text": query.text}) for query in collection.queries],
        "documents": [
            json.dumps({"_id": passage.doc_id, "text": passage.text}) for passage in collection.passages.values()
        ],
    }
    for name, rows in lines.items():
        (folder / name).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    files = [word for name in lines for word in (f"--{name}", str(folder / name))]
    return [*files, "--output", str(folder / "output")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.call_path", description=__doc__)
    parser.add_argument("--method", choices=METHODS, help="trace this scoring method (default: all of them)")
    args = parser.parse_args()
    for method in [args.method] if args.method else METHODS:
        names = trace_classes(method)
        print(f"{method}: {len(names)} classes")
        print("".join(f"  {name}\n" for name in names))


if __name__ == "__main__":
    main()
