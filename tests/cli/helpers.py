"""Files, options and results that the tests of the commands share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

from tests.fakes.model_server.running import FakeModelServer
from tests.support.commands import CommandResult

KEY = "sk-loopback-0123456789"
DEPTH = 6
TOPICS = {
    "q1": ("why is the sky blue", "sky blue"),
    "q2": ("how do bees make honey", "bees honey"),
    "q3": ("what moves the tides", "moves tides"),
}
GRADES = (0, 2, 1, 0, 3, 0)  # of a topic's six documents, in the order in which BM25 finds them


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


class RankK(Protocol):
    def __call__(self, *arguments: str | Path, code: int | None = None) -> CommandResult: ...


BASE = ("rerank", "--run", "run.trec", "--queries", "queries.jsonl", "--documents", "corpus.jsonl")
RERANK = (*BASE, "--output", "out.trec")
SIMULATE = ("--simulate", "qrels.trec", "--noise", "none")


def server_options(server: FakeModelServer) -> tuple[str, ...]:
    return ("--server", server.url, "--model", "oracle")


def read_ranking(path: str | Path) -> dict[str, list[str]]:
    """The run in a file; checks that ranks count from 1 and that scores fall strictly."""
    ranking: dict[str, list[str]] = {}
    scores: dict[str, float] = {}
    for line in Path(path).read_bytes().decode("utf-8", "surrogateescape").splitlines():
        query_id, _, doc_id, rank, score, _ = line.split(" ")
        ranking.setdefault(query_id, []).append(doc_id)
        assert int(rank) == len(ranking[query_id])
        assert float(score) < scores.get(query_id, 2)
        scores[query_id] = float(score)
    return ranking


FIRST_STAGE_RANKING = {query_id: [f"{query_id}-d{i}" for i in range(DEPTH)] for query_id in TOPICS}
BEST_RANKING = {query_id: [f"{query_id}-d{i}" for i in (4, 1, 2, 0, 3, 5)] for query_id in TOPICS}


def error_line(result: CommandResult, verb: str) -> str:
    assert (result.code, result.out) == (2, "")
    [line] = result.lines
    assert line.startswith(f"rank-k {verb}: ")
    assert "; " in line, "a problem without a remedy"
    return line
