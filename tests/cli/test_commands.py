"""The command line: from files to figures, what it says when all goes well, and one line when it does not."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import pytest

from rank_k.cli import VERBS, main
from rank_k.cli.model_options import api_key
from rank_k.journal import Journal
from tests.conftest import StartLoopback
from tests.fakes.loopback import Loopback

pytestmark = pytest.mark.integration

KEY = "sk-loopback-0123456789"
STUCK: dict[str, Any] = {"first_token": 60.0}
DEPTH = 6

TOPICS = {
    "q1": ("why is the sky blue", "sky blue"),
    "q2": ("how do bees make honey", "bees honey"),
    "q3": ("what moves the tides", "moves tides"),
}
GRADES = (0, 2, 1, 0, 3, 0)  # of a topic's six documents, in the order in which BM25 finds them


@dataclass(frozen=True)
class Told:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


class RankK(Protocol):
    def __call__(self, *arguments: str | Path) -> Told: ...


@pytest.fixture
def rank_k(capfd: pytest.CaptureFixture[str]) -> RankK:
    """`rank_k("rerank", "--run", ...)` runs the command in this process."""

    def run(*arguments: str | Path) -> Told:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse ends so
            code = end.code if isinstance(end.code, int) else 1
        return Told(code, *capfd.readouterr())

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small collection in a folder of its own, in which the command runs. BM25 finds the documents of a topic
    in the order of their ids, since each says less of it than the one before."""
    files: dict[str, list[str]] = {"queries.jsonl": [], "corpus.jsonl": [], "qrels.trec": [], "run.trec": []}
    for query_id, (text, words) in TOPICS.items():
        files["queries.jsonl"].append(json.dumps({"_id": query_id, "text": text}))
        for i, grade in enumerate(GRADES):
            doc_id = f"{query_id}-d{i}"
            said = f"mark:{doc_id}-G{grade} {words} " + "and so on for a while " * (i + 1)
            files["corpus.jsonl"].append(json.dumps({"_id": doc_id, "title": "", "text": said}))
            files["qrels.trec"].append(f"{query_id} 0 {doc_id} {grade}")
            files["run.trec"].append(f"{query_id} Q0 {doc_id} {i + 1} {DEPTH - i} bm25")
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


BASE = ("rerank", "--run", "run.trec", "--queries", "queries.jsonl", "--documents", "corpus.jsonl")
RERANK = (*BASE, "--output", "out.trec")


def at(server: Loopback) -> tuple[str, ...]:
    return ("--server", server.url, "--model", "oracle")


def ranking(path: str | Path) -> dict[str, list[str]]:
    """The run in a file; checks that ranks count from 1 and that scores fall strictly."""
    found: dict[str, list[str]] = {}
    scores: dict[str, float] = {}
    for line in Path(path).read_bytes().decode("utf-8", "surrogateescape").splitlines():
        query_id, _, doc_id, rank, score, _ = line.split(" ")
        found.setdefault(query_id, []).append(doc_id)
        assert int(rank) == len(found[query_id])
        assert float(score) < scores.get(query_id, 2)
        scores[query_id] = float(score)
    return found


BEFORE = {query_id: [f"{query_id}-d{i}" for i in range(DEPTH)] for query_id in TOPICS}
BEST = {query_id: [f"{query_id}-d{i}" for i in (4, 1, 2, 0, 3, 5)] for query_id in TOPICS}


# --- The main job ---


def test_from_documents_to_figures_with_a_simulated_judge(folder: Path, rank_k: RankK) -> None:
    files = ("--documents", "corpus.jsonl", "--queries", "queries.jsonl")
    told = rank_k("retrieve", *files, "--output", "bm25.trec")
    assert (told.code, told.out, told.err) == (0, "", "3 queries: bm25.trec\n")
    assert ranking("bm25.trec") == BEFORE

    told = rank_k("rerank", "--run", "bm25.trec", *files, "--output", "out.trec", "--simulate", "qrels.trec")
    assert (told.code, told.out) == (0, "")
    assert ranking("out.trec") == BEST

    told = rank_k("evaluate", "--qrels", "qrels.trec", "bm25.trec", "out.trec")
    means, cost = told.out.split("\n\n")
    assert cost.splitlines()[1].split()[:4] == ["out.trec", "3", "3", "1.0"], "its journal lies beside it"
    head, before, after = means.splitlines()
    assert head.split() == ["run", "nDCG@10", "nDCG@20", "AP", "RR@10", "R@100", "Judged@10"]
    assert after.split() == ["out.trec", *["1.0000"] * 6]
    assert before.split()[0] == "bm25.trec"
    assert float(before.split()[1]) < 0.8
    assert (told.code, told.err) == (0, "")


def test_against_a_server_the_summary_says_what_it_took(folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    server = loopback()
    told = rank_k(*RERANK, *at(server))
    assert (told.code, told.out) == (0, "")
    assert ranking("out.trec") == BEST
    assert told.lines[0].startswith("3 queries, 3 rounds, 3 calls (0 from the journal)")
    assert told.lines[1].startswith("tokens: ")
    assert len(told.lines) == 2, "nothing was mended, so nothing is said of it"
    assert len(server.calls) == 3

    told = rank_k(*RERANK, *at(server))
    assert told.lines[0].startswith("3 queries, 3 rounds, 3 calls (3 from the journal)")
    assert len(server.calls) == 3
    assert rank_k(*RERANK, *at(server), "--quiet").err == ""


def test_the_examples_of_the_help_run_as_printed(
    folder: Path, rank_k: RankK, loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the server's address, which is another one here."""
    server = loopback(model="hltcoe/Rank-K-32B")
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress((folder / "corpus.jsonl").read_bytes()))
    for verb in ("retrieve", "rerank", "evaluate", "journal"):
        [example] = [line for line in help_of(verb, rank_k) if line.startswith("example: ")]
        arguments = shlex.split(example.removeprefix("example: ").replace("http://localhost:8000/v1", server.url))
        assert arguments[:2] == ["rank-k", verb]
        assert rank_k(*arguments[1:]).code == 0
    assert ranking("reranked.trec") == BEST


def help_of(verb: str, rank_k: RankK) -> list[str]:
    os.environ["COLUMNS"] = "1000"  # each paragraph on one line
    try:
        told = rank_k(verb, "--help")
    finally:
        del os.environ["COLUMNS"]
    assert (told.code, told.err) == (0, "")
    return told.out.splitlines()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, rank_k: RankK) -> None:
    lines = help_of(verb, rank_k)
    assert lines[0].startswith(f"usage: rank-k {verb}")
    assert any(line.startswith(f"example: rank-k {verb}") for line in lines)
    for line, following in pairwise(lines):
        if line.startswith("  --"):
            assert len(line.split(maxsplit=2)) == 3 or following.startswith(" " * 20), f"not a word about {line}"


def test_as_a_program_of_its_own(folder: Path, loopback: StartLoopback) -> None:
    script = Path(sys.executable).with_name("rank-k")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "rank_k.cli"]
    done = subprocess.run([*program, *RERANK, *at(loopback())], capture_output=True, text=True, check=True)
    assert ranking("out.trec") == BEST
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 2)
    failed = subprocess.run([*program, "rerank", "--run", "none"], capture_output=True, text=True, check=False)
    assert (failed.returncode, len(failed.stderr.splitlines())) == (2, 1)
    version = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("rank-k ")


OWN = """
from dataclasses import dataclass

from colors import RED
from rank_k.types import Ranking

@dataclass(frozen=True)
class Backwards:
    window: int = 20

    def __call__(self, candidates, seed):
        yield from ()
        return Ranking.of(c.doc_id for c in reversed(candidates))

class Failing:
    def __init__(self):
        raise OSError("no such luck")
"""


def test_a_strategy_of_ones_own_lies_in_the_current_folder(folder: Path) -> None:
    script = Path(sys.executable).with_name("rank-k")
    if not script.exists():
        pytest.skip("needs the installed command, whose Python does not look in the current folder")
    for name, content in (("own", OWN), ("colors", "RED = 1"), ("broken", "class A("), ("failing", "1 / 0")):
        (folder / f"{name}.py").write_text(content)
    judged = (*RERANK, "--simulate", "qrels.trec")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(script), *arguments], capture_output=True, text=True, check=False)

    done = run(*judged, "--strategy", "own:Backwards")
    assert done.returncode == 0, done.stderr
    assert ranking("out.trec") == {query_id: ids[::-1] for query_id, ids in BEFORE.items()}
    grid = ("study", *RERANK[1:-2], "--qrels", "qrels.trec", "--simulate", "--strategies", "own:Backwards")
    assert run(*grid, "--output", "study").returncode == 0
    for name, told in {
        "own:Failing": "cannot be made: no such luck",
        "own:Backward": "cannot be imported: module 'own' has no attribute 'Backward'",
        "broken:A": "cannot be imported: '(' was never closed",
        "failing:A": "cannot be imported: division by zero",
        "missing:A": "cannot be imported: No module named 'missing'",
    }.items():
        done = run(*judged, "--strategy", name)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert f"strategy '{name}' {told}" in done.stderr


# --- Input in all its forms ---


def test_score_json_gzip_tsv_and_folders_say_the_same(folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    server = loopback()
    rank_k(*RERANK, *at(server))
    wanted, asked = Path("out.trec").read_bytes(), len(server.calls)

    scores = {query_id: {d: DEPTH - i for i, d in enumerate(ids)} for query_id, ids in BEFORE.items()}
    Path("score.json").write_text(json.dumps(scores))
    for name in ("run.trec", "queries.jsonl", "corpus.jsonl"):
        Path(f"{name}.gz").write_bytes(gzip.compress(Path(name).read_bytes()))
    for name in ("queries", "corpus"):
        records = map(json.loads, Path(f"{name}.jsonl").read_text().splitlines())
        Path(f"{name}.tsv").write_text("".join(f"{record['_id']}\t{record['text']}\n" for record in records))
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    for name in ("queries.jsonl", "corpus.jsonl"):
        (beir / name).write_bytes(Path(name).read_bytes())
    judged = [line.split() for line in Path("qrels.trec").read_text().splitlines()]
    lines = ["query-id\tcorpus-id\tscore", *(f"{q}\t{d}\t{grade}" for q, _, d, grade in judged)]
    (beir / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")

    for run, *files in (
        ("score.json", "--queries", "queries.jsonl", "--documents", "corpus.jsonl"),
        ("run.trec.gz", "--queries", "queries.jsonl.gz", "--documents", "corpus.jsonl.gz"),
        ("run.trec", "--queries", "queries.tsv", "--documents", "corpus.tsv"),
        ("run.trec", "--dataset", "beir:beir"),
    ):
        told = rank_k("rerank", "--run", run, *files, "--output", "again.trec", *at(server), "--journal", "j.sqlite")
        assert (told.code, Path("again.trec").read_bytes()) == (0, wanted)
    assert len(server.calls) == 2 * asked, "the same questions, found in the journal"
    assert rank_k("evaluate", "--dataset", "beir:beir", "out.trec").out.splitlines()[1].split()[1] == "1.0000"
    assert rank_k("retrieve", "--dataset", "beir:beir", "--output", "bm25.trec").code == 0
    assert ranking("bm25.trec") == BEFORE


def test_bytes_that_are_no_utf8_come_out_as_they_went_in(folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    ids = [b"d\xff", b"\xc3\xa9", b"d\xfe\xfe"]
    Path("run.trec").write_bytes(b"".join(b"q\xe9 Q0 %b %d %d x\n" % (d, i, -i) for i, d in enumerate(ids)))
    Path("queries.tsv").write_bytes(b"q\xe9\twhy \xff is that\n")
    Path("corpus.tsv").write_bytes(b"".join(b"%b\tmark:x%d-G%d \xff text\n" % (d, i, i) for i, d in enumerate(ids)))
    files = ("--run", "run.trec", "--queries", "queries.tsv", "--documents", "corpus.tsv", "--output", "out.trec")
    told = rank_k("rerank", *files, *at(loopback()), "--report", "report.json")
    assert told.code == 0
    assert [line.split()[2] for line in Path("out.trec").read_bytes().splitlines()] == ids[::-1]
    assert {line.split()[0] for line in Path("out.trec").read_bytes().splitlines()} == {b"q\xe9"}
    assert json.loads(Path("report.json").read_text())["queries"] == 1

    assert "d\\udcff" in rank_k("journal", "show", "out.trec.journal.sqlite").out
    query = b"q\xe9".decode("utf-8", "surrogateescape")
    assert rank_k("journal", "show", "out.trec.journal.sqlite", "--query", query).code == 0
    assert rank_k("journal", "export", "out.trec.journal.sqlite").code == 0
    Path("qrels.trec").write_bytes(b"q\xe9 0 d\xfe\xfe 1\n")
    told = rank_k("evaluate", "--qrels", "qrels.trec", "--measures", "RR@10", "--json", "--", "out.trec")
    assert json.loads(told.out)["out.trec"]["mean"] == {"RR@10": 1.0}


def test_a_document_twice_in_the_run_is_kept_once_and_counted(
    folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    with Path("run.trec").open("a") as run:
        run.write("q3 Q0 q3-d5 7 0.5 bm25\nq3 Q0 q3-d0 8 99 bm25\n")
    told = rank_k(*RERANK, *at(loopback()), "--report", "report.json")
    assert told.code == 0
    assert ranking("out.trec") == BEST
    assert "repairs: 2 candidates that stood in the run twice, best kept" in told.lines
    assert json.loads(Path("report.json").read_text())["repairs"] == {"duplicates": 2}


@pytest.mark.parametrize(
    ("strategy", "depth", "window", "stride", "calls_a_query"),
    [
        ("sliding", 100, 20, 10, 1),
        ("sliding", 6, 4, 2, 2),
        ("sliding", 6, 5, 5, 2),
        ("sliding", 5, 3, 1, 3),
        ("sliding", 4, 4, 1, 1),
        ("sliding", 6, 2, 1, 5),
        ("sliding", 1, 20, 10, 0),
        ("single", 6, 3, 1, 1),
        ("topdown", 6, 20, 10, 1),
    ],
)
def test_depth_window_and_stride(
    folder: Path,
    rank_k: RankK,
    loopback: StartLoopback,
    strategy: str,
    depth: int,
    window: int,
    stride: int,
    calls_a_query: int,
) -> None:
    server = loopback(bodies=True)
    options = {"--strategy": strategy, "--depth": depth, "--window": window, "--stride": stride}
    told = rank_k(*RERANK, *at(server), *(str(part) for pair in options.items() for part in pair))
    assert told.code == 0
    found = ranking("out.trec")
    for query_id, before in BEFORE.items():
        assert sorted(found[query_id]) == before
        assert found[query_id][depth:] == before[depth:], "what lies beyond the depth stays as it is"
    assert len(server.calls) == calls_a_query * len(TOPICS)
    shown = [call.body["messages"][-1]["content"].count("mark:") for call in server.calls]
    assert all(2 <= passages <= window for passages in shown)


def test_think_off_asks_for_the_answer_at_once(folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    server = loopback(bodies=True)
    assert rank_k(*RERANK, *at(server), "--reasoning", "off", "--report", "report.json").code == 0
    assert ranking("out.trec") == BEST
    assert all(call.body["chat_template_kwargs"]["enable_thinking"] is False for call in server.calls)
    assert json.loads(Path("report.json").read_text())["reasoning_tokens"] == 0


def test_sampling_options_reach_the_server(folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    server = loopback(bodies=True)
    rank_k(*RERANK, *at(server), "--temperature", "0.2", "--top-p", "0.9", "--max-tokens", "3000")
    assert {(c.body["temperature"], c.body["top_p"], c.body["max_tokens"]) for c in server.calls} == {(0.2, 0.9, 3000)}
    server.forget()
    rank_k(*RERANK, *at(server), "--temperature", "none")
    assert not any("temperature" in call.body or "top_p" in call.body for call in server.calls)
    server.forget()
    assert rank_k(*RERANK, *at(server), "--preset", "paper").code == 0
    assert {(call.body["temperature"], call.body["max_tokens"]) for call in server.calls} == {(0.5, 8000)}


def test_a_prompt_of_the_users_own(folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    Path("prompt.txt").write_text("Sort for {query}:\n{passages}\nOnly the order.")
    server = loopback(bodies=True)
    assert rank_k(*RERANK, *at(server), "--prompt", "prompt.txt").code == 0
    assert ranking("out.trec") == BEST
    assert server.calls[0].body["messages"][0]["content"].startswith("Sort for why is the sky blue:\n[1] mark:")


# --- What it says of what went wrong ---


def test_windows_left_in_input_order_are_named_and_strict_makes_them_count(
    folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    server = loopback(garbage=1.0)
    told = rank_k(*RERANK, *at(server), "--report", "report.json")
    assert told.code == 0
    assert ranking("out.trec") == BEFORE
    [line] = [line for line in told.lines if line.startswith("left in input order: 3 of 3 windows: ")]
    assert all(f"{query_id} (round 1)" in line for query_id in TOPICS)
    report = json.loads(Path("report.json").read_text())
    assert report["unranked_windows"] == 3
    assert sorted((left["query_id"], left["round"]) for left in report["unranked"]) == [(q, 1) for q in TOPICS]
    assert rank_k(*RERANK, *at(server), "--strict").code == 3
    assert ranking("out.trec") == BEFORE
    server.change(garbage=0)
    assert rank_k(*RERANK, *at(server), "--strict", "--journal", "another.sqlite").code == 0


def test_when_time_is_up_the_run_is_whole_and_the_unfinished_are_named(
    folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    told = rank_k(*RERANK, *at(loopback(**STUCK)), "--max-seconds", "0.3", "--report", "report.json")
    assert told.code == 0
    assert ranking("out.trec") == BEFORE
    assert "unfinished, best so far: 3 queries: q1, q2, q3" in told.lines
    assert json.loads(Path("report.json").read_text())["unfinished"] == list(TOPICS)


def test_the_report_tells_programs_what_the_summary_tells_people(
    folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    server = loopback(cut=1.0)
    told = rank_k(*RERANK, *at(server), "--report", "report.json")
    report = json.loads(Path("report.json").read_text())
    assert (report["queries"], report["rounds"], report["windows"], report["calls"]) == (3, 3, 3, 6)
    about_windows = (
        sum(call.window != "" for call in server.calls) - 1
    )  # one probe stands in the journal alone: whether grammars are taken
    assert report["calls"] == report["new_calls"] == about_windows
    assert report["repairs"]["forced_answers"] == 3
    assert report["settings"]["depth"] == 100
    assert report["settings"]["run"] == "run.trec"
    assert f"tokens: {report['prompt_tokens']:,} in" in told.err
    assert f"{report['completion_tokens']:,} out, of these {report['reasoning_tokens']:,} reasoning" in told.err
    assert any(line.startswith("repairs: 3 cut thoughts closed") for line in told.lines)


# --- Evaluate, journal, doctor ---


def test_evaluate_as_json_holds_every_query_and_names_the_missing(folder: Path, rank_k: RankK) -> None:
    kept = [line for line in Path("run.trec").read_text().splitlines() if not line.startswith("q2")]
    Path("part.trec").write_text("\n".join([*kept, "q9 Q0 d 1 1 x"]) + "\n")
    told = rank_k("evaluate", "--qrels", "qrels.trec", "--json", "run.trec", "part.trec", "--measures", "RR@10", "P@2")
    assert told.code == 0
    whole, part = (json.loads(told.out)[name] for name in ("run.trec", "part.trec"))
    assert whole["mean"] == {"RR@10": 0.5, "P@2": 0.5}
    assert whole["per_query"]["RR@10"] == dict.fromkeys(TOPICS, 0.5)
    assert part["per_query"]["RR@10"] == {"q1": 0.5, "q2": 0.0, "q3": 0.5}
    assert part["mean"]["RR@10"] == pytest.approx(1 / 3)
    assert (part["missing"], part["unjudged"]) == (["q2"], ["q9"])
    assert told.lines == [
        "part.trec: 1 judged queries missing, counted as 0: q2",
        "part.trec: 1 queries without judgments, not counted",
    ]


def test_the_journal_shows_exports_and_adds_up(folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    rank_k(*RERANK, *at(loopback()), "--report", "report.json")
    report, journal = json.loads(Path("report.json").read_text()), "out.trec.journal.sqlite"
    assert Path(journal).stat().st_mode & 0o777 == 0o600

    shown = rank_k("journal", "show", journal, "--query", "q2").out
    assert shown.startswith("== query q2, round 1, window 1\n")
    assert "<think>" in shown, "the trace"
    assert "-> q2-d4 > q2-d1 > q2-d2 > q2-d0 = q2-d3 = q2-d5" in shown
    assert "q1" not in shown

    records = [json.loads(line) for line in rank_k("journal", "export", journal).out.splitlines()]
    assert [record["query_id"] for record in records] == list(TOPICS)
    assert records[0]["doc_ids"] == BEFORE["q1"]
    assert records[0]["orders"][0]["tiers"] == [["q1-d4"], ["q1-d1"], ["q1-d2"], ["q1-d0", "q1-d3", "q1-d5"]]
    [call] = records[0]["calls"]
    assert "mark:q1-d0" in call["request"]["messages"][-1]["content"]
    assert call["finish_reason"] == "stop"

    priced = rank_k("journal", "cost", journal, "--price-in", "2", "--price-out", "10").out.splitlines()
    cells = priced[1].split()
    assert cells[:3] == ["oracle", "ask", "3"]
    assert cells[3] == f"{report['prompt_tokens']:,}"
    cost = (2 * report["prompt_tokens"] + 10 * report["completion_tokens"]) / 1e6
    assert float(cells[-1]) == pytest.approx(cost, abs=1e-4)
    assert "cost" not in rank_k("journal", "cost", journal).out

    rank_k(*RERANK, *at(loopback()), "--depth", "3")
    of_all, of_two = rank_k("journal", "cost", journal), rank_k("journal", "cost", journal, "--query", "q2")
    assert [found.out.splitlines()[1].split()[2] for found in (of_all, of_two)] == ["6", "2"]
    with closing(Journal(Path(journal), read_only=True)) as kept:
        last, first = kept.runs()
    assert rank_k("journal", "cost", journal, "--run", first.run).out.splitlines()[1].split() == cells[:-1]
    of_last = rank_k("journal", "cost", journal, "--run", last.run, "--query", "q2").out.splitlines()[1].split()
    assert of_last[:3] == ["oracle", "ask", "1"]
    assert int(of_last[3]) < report["prompt_tokens"] / 3


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    rank_k(*RERANK, *at(loopback()))
    command = [sys.executable, "-m", "rank_k.cli", "journal", "show", "out.trec.journal.sqlite"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 0


@pytest.mark.parametrize(
    ("owned_by", "server_type"), [("vllm", "vllm"), ("llamacpp", "llamacpp"), ("sglang", "sglang"), ("me", "plain")]
)
def test_doctor_recognizes_the_server_and_probes_it(
    rank_k: RankK, loopback: StartLoopback, owned_by: str, server_type: str
) -> None:
    server = loopback(owned_by=owned_by, quirk="reasoning", max_model_len=0 if owned_by == "me" else 40960)
    told = rank_k("doctor", "--server", server.url)
    assert (told.code, told.err) == (0, "")
    assert f"{server.url}, dialect {server_type}" in told.out
    assert "oracle answers" in told.out
    assert server.calls == [], "without --probe nothing is asked"
    assert ("assumed" in told.out) == (owned_by in ("me", "llamacpp"))  # whose context stands elsewhere

    told = rank_k("doctor", "--server", server.url, "--probe")
    assert told.code == 0
    found = {line.split("  ")[0]: line for line in told.out.splitlines()}
    assert "in a field of its own" in found["order"]
    assert "[1]" in found["order"]
    assert len(server.calls) >= 2


def test_doctor_says_what_fails(
    folder: Path, rank_k: RankK, loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last_line(*options: str) -> str:
        told = rank_k("doctor", *options)
        assert (told.code, told.err) == (1, "")
        return told.out.splitlines()[-1]

    assert "nobody answers at http://127.0.0.1:9/v1" in last_line("--server", "http://127.0.0.1:9")
    assert "refused the key (401)" in last_line("--server", loopback(api_key=KEY).url)
    assert "has no model 'other'; it has: oracle" in last_line("--server", loopback().url, "--model", "other")
    assert "rank-k fetch" in last_line(), "the embedded model's weights are not there"
    assert "[data]" in rank_k("doctor").out


# --- Keys ---


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("variable", "option"), [("RANK_K_API_KEY", ()), ("MY_KEY", ("--api-key-env", "MY_KEY"))])
def test_the_key_goes_to_the_server_and_nowhere_else(
    folder: Path,
    rank_k: RankK,
    loopback: StartLoopback,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    option: Sequence[str],
) -> None:
    server = loopback(api_key=KEY, cut=0.5)
    monkeypatch.setenv(variable, f"{KEY}\r\n")  # as files from elsewhere end
    told = rank_k(*RERANK, *at(server), *option, "--report", "report.json")
    assert told.code == 0
    assert {seen.authorization for seen in server.requests} == {f"Bearer {KEY}"}
    said = told.out + told.err + rank_k("journal", "export", "out.trec.journal.sqlite").out
    assert KEY not in said
    assert KEY.encode() not in everything_in(folder)

    server.change(api_key="another")
    told = rank_k(*RERANK, *at(server), *option, "--journal", "new.sqlite")
    assert (told.code, len(told.lines)) == (2, 1)
    assert KEY not in told.err


def test_the_openai_key_goes_to_openai_only(
    folder: Path, rank_k: RankK, loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = loopback()
    assert rank_k(*RERANK, *at(server)).code == 0
    assert {seen.authorization for seen in server.requests} == {""}
    assert api_key("https://api.openai.com/v1", None) == KEY
    for other in (
        "http://api.openai.com/v1",  # for all on the way to read
        "https://api.openai.com.example.org/v1",
        "https://example.org/api.openai.com",
        "https://openai.com/v1",
        None,
    ):
        assert api_key(other, None) is None
    monkeypatch.setenv("RANK_K_API_KEY", "mine")
    assert api_key("https://api.openai.com/v1", None) == "mine"


def test_a_redirect_is_named_and_not_followed(
    folder: Path, rank_k: RankK, loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK_K_API_KEY", KEY)
    elsewhere = loopback()
    told = rank_k(*RERANK, *at(loopback(redirect=elsewhere.url)))
    assert one_line(told, "rerank").endswith(f"redirects to {elsewhere.url}/models; give that address with --server")
    assert elsewhere.requests == []


def test_a_key_on_the_command_line_is_not_repeated(folder: Path, rank_k: RankK) -> None:
    for option in (("--api-key", KEY), (f"--api-key={KEY}",), ("--api-key-env", KEY)):
        line = one_line(rank_k(*RERANK, "--server", "http://127.0.0.1:9", *option), "rerank")
        assert KEY not in line
        assert "--api-key" in line
    line = one_line(rank_k(*RERANK, "--server", f"http://127.0.0.1:9/v1?api_key={KEY}"), "rerank")
    assert KEY not in line
    line = one_line(rank_k(*RERANK, "--server", f"http://user:{KEY}@127.0.0.1:9/v1"), "rerank")
    assert KEY not in line


# --- Mistakes: one line that names the thing and the remedy ---


def one_line(told: Told, verb: str) -> str:
    assert (told.code, told.out) == (2, "")
    [line] = told.lines
    assert line.startswith(f"rank-k {verb}: ")
    assert "; " in line, "a problem without a remedy"
    return line


Spoil = Callable[[Path], None]


def nothing(folder: Path) -> None:
    """The files are as they should be."""


def without(name: str, line_with: str) -> Spoil:
    def spoil(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(line for line in lines if line_with not in line))

    return spoil


def with_file(name: str, content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


def with_line(name: str, line: str) -> Spoil:
    def spoil(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(line + "\n")

    return spoil


def with_folder(folder: Path) -> None:
    (folder / "sub").mkdir()


def with_long_query(folder: Path) -> None:
    """The last one, so that the others could be asked about before it is noticed."""
    with_line("queries.jsonl", json.dumps({"_id": "q4", "text": "why " * 41_000}))(folder)
    with_line("run.trec", "q4 Q0 q1-d1 1 1 x\nq4 Q0 q1-d2 2 0 x")(folder)


def with_database(folder: Path) -> None:
    with sqlite3.connect(folder / "other.sqlite") as other:
        other.execute("CREATE TABLE precious (thing)")
    other.close()


MISTAKES: dict[str, tuple[Spoil, tuple[str, ...], tuple[str, ...]]] = {
    # files that are read
    "no run": (nothing, ("--run", "none.trec"), ("none.trec: no such file",)),
    "no queries": (nothing, ("--queries", "none.jsonl"), ("none.jsonl: no such file",)),
    "no documents": (nothing, ("--documents", "none.jsonl"), ("none.jsonl: no such file",)),
    "run is a folder": (with_folder, ("--run", "sub"), ("sub", "directory")),
    "empty run": (with_file("run.trec", b""), (), ("run.trec", "empty")),
    "five columns": (with_line("run.trec", "q1 Q0 d 1 x"), (), ("run.trec:19", "5 columns")),
    "score is no number": (with_line("run.trec", "q1 Q0 d 1 high x"), (), ("run.trec:19", "'high'")),
    "query without text": (without("queries.jsonl", "q2"), (), ("q2", "queries.jsonl")),
    "document without text": (without("corpus.jsonl", "q2-d3"), (), ("q2-d3", "q2", "corpus.jsonl")),
    "other documents": (with_file("corpus.jsonl", b'{"_id": "x", "text": "y"}\n'), (), ("q1-d0", "corpus.jsonl")),
    "broken JSON": (with_line("queries.jsonl", '{"_id": '), (), ("queries.jsonl:4", "JSON")),
    "query twice": (with_line("queries.jsonl", '{"_id": "q1", "text": "x"}'), (), ("queries.jsonl:4", "q1")),
    "damaged gzip": (with_file("run.trec", b"\x1f\x8b\x08\x00 no"), (), ("run.trec", "gzip")),
    "unknown dataset": (nothing, ("--dataset", "bier:x"), ("bier:x", "beir:DIR")),
    "no such dataset": (nothing, ("--dataset", "beir:none"), ("none",)),
    # options
    "depth": (nothing, ("--depth", "-5"), ("--depth", "-5")),
    "depth 0": (nothing, ("--depth", "0"), ("--depth", "'0'")),
    "window": (nothing, ("--window", "1"), ("window is 1",)),
    "stride": (nothing, ("--window", "5", "--stride", "6"), ("stride is 6", "1 to 5")),
    "no number": (nothing, ("--window", "many"), ("--window", "'many'")),
    "max-tokens 0": (nothing, ("--max-tokens", "0"), ("--max-tokens",)),
    "concurrency 0": (nothing, ("--concurrency", "0"), ("--concurrency",)),
    "temperature": (nothing, ("--temperature", "nan"), ("--temperature", "nan")),
    "max-seconds": (nothing, ("--max-seconds", "0"), ("--max-seconds", "more than 0")),
    "strategy": (nothing, ("--strategy", "slding"), ("slding", "did you mean sliding")),
    "strategy's module": (nothing, ("--strategy", "nowhere:Best"), ("nowhere",)),
    "strategy that is none": (nothing, ("--strategy", "json:dumps"), ("json:dumps",)),
    "value of an option": (nothing, ("--reasoning", "maybe"), ("reasoning", "maybe", "full")),
    "option": (nothing, ("--windw", "3"), ("--windw", "--help")),
    "shortened option": (nothing, ("--wind", "3"), ("--wind", "--help")),
    "server_type": (nothing, ("--server-type", "esperanto"), ("esperanto", "vllm")),
    "preset": (nothing, ("--preset", "paper", "--window", "10"), ("--preset paper", "--window 10")),
    "tag": (nothing, ("--tag", "two words"), ("two words",)),
    "two judges": (nothing, ("--simulate", "qrels.trec"), ("--simulate", "--server")),
    "key's variable": (nothing, ("--api-key-env", "NO_KEY"), ("NO_KEY", "export")),
    "no prompt": (nothing, ("--prompt", "none.txt"), ("none.txt",)),
    "prompt without query": (with_file("p.txt", b"{passages}"), ("--prompt", "p.txt"), ("p.txt", "{query}")),
    "prompt without passages": (with_file("p.txt", b"{query}"), ("--prompt", "p.txt"), ("p.txt", "{passages}")),
    "binary prompt": (with_file("p.txt", b"\xff\xfe\x00"), ("--prompt", "p.txt"), ("p.txt", "UTF-8")),
    # files that are written
    "output's folder": (nothing, ("--output", "none/out.trec"), ("none/out.trec", "folder none")),
    "output is a folder": (with_folder, ("--output", "sub"), ("sub", "directory")),
    "output is the run": (nothing, ("--output", "run.trec"), ("run.trec", "replace")),
    "output is the documents": (nothing, ("--output", "./corpus.jsonl"), ("corpus.jsonl", "replace")),
    "report's folder": (nothing, ("--report", "none/r.json"), ("none/r.json", "folder none")),
    "report is a folder": (with_folder, ("--report", "sub"), ("sub", "directory")),
    "report is the output": (nothing, ("--report", "out.trec"), ("out.trec", "replace")),
    "journal is a text": (nothing, ("--journal", "run.trec"), ("run.trec", "--journal")),
    "journal is a database": (with_database, ("--journal", "other.sqlite"), ("other.sqlite", "no journal")),
    "journal is a folder": (with_folder, ("--journal", "sub"), ("sub", "--journal")),
    "journal's folder": (nothing, ("--journal", "none/j.sqlite"), ("none/j.sqlite", "--journal")),
    # the server
    "model": (nothing, ("--model", "orakel"), ("orakel", "it has: oracle")),
    "query too long": (with_long_query, (), ("why why", "40960", "shorten the query")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_paid(
    folder: Path, rank_k: RankK, loopback: StartLoopback, mistake: str
) -> None:
    spoil, options, words = MISTAKES[mistake]
    Path("out.trec").write_text("the run of yesterday\n")
    spoil(folder)
    files = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    server = loopback()
    given = BASE[:3] if "--dataset" in options else BASE
    line = one_line(rank_k(*given, "--output", "out.trec", *at(server), *options), "rerank")
    for word in words:
        assert word in line
    assert server.calls == []
    assert {path: path.read_bytes() for path in files} == files, "a file of the user's was changed"


def test_a_server_that_cannot_be_used_is_one_line(
    folder: Path, rank_k: RankK, loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(*options: str) -> str:
        return one_line(rank_k(*RERANK, *options), "rerank")

    assert "nobody answers at http://127.0.0.1:9/v1" in line("--server", "http://127.0.0.1:9/v1")
    assert "--server" in line("--server", "http://127.0.0.1:9/v1")
    names = [f"http://{name}/v1" for name in ("host:99999", "host:port", "a..b", "a" * 64)]
    for address in ("ftp://host/v1", "http://", "http://[::1", *names):
        assert f"{address}' is no server address" in line("--server", address)
    for bad, name in ((f"{KEY}\nX-Evil: 1", "RANK_K_API_KEY"), ("schlüssel", "RANK_K_API_KEY")):
        monkeypatch.setenv(name, bad)
        assert name in line(*at(loopback()))
        assert bad not in line(*at(loopback()))
        monkeypatch.delenv(name)
    assert "refused the key (401)" in line(*at(loopback(api_key=KEY)))
    assert "--api-key-env" in line(*at(loopback(api_key=KEY)))
    assert "(403)" in line(*at(loopback(refuse=403)))
    assert "(404)" in line(*at(loopback(refuse=404)))
    assert "(400)" in line(*at(loopback(refuse=400)))


def test_mistakes_of_the_other_verbs(folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    rank_k(*RERANK, *at(loopback()))
    journal = Path("out.trec.journal.sqlite")
    Path("garbage.sqlite").write_bytes(journal.read_bytes()[:4096] + b"\xff" * 40_000)
    corpus = ("--documents", "corpus.jsonl")
    for arguments, words in (
        (("evaluate", "run.trec"), ("--qrels",)),
        (("evaluate", "--qrels", "none", "run.trec"), ("none",)),
        (("evaluate", "--qrels", "qrels.trec", "none.trec"), ("none.trec",)),
        (("evaluate", "--qrels", "run.trec", "run.trec"), ("run.trec:1", "6 columns")),
        (("evaluate", "--qrels", "qrels.trec", "run.trec", "--measures", "nDGC@10"), ("nDGC@10", "nDCG@10")),
        (("evaluate", "--qrels", "qrels.trec"), ("no run", "--preferences")),
        (("retrieve", *corpus, "--output", "o"), ("--queries",)),
        (("retrieve", *corpus, "--queries", "none", "--output", "o"), ("none",)),
        (("retrieve", *corpus, "--queries", "queries.jsonl", "--output", "none/o"), ("none/o",)),
        (("retrieve", *corpus, "--queries", "queries.jsonl", "--output", "o", "--depth", "0"), ("--depth",)),
        (("journal", "show", "none.sqlite"), ("none.sqlite",)),
        (("journal", "cost", "run.trec"), ("run.trec",)),
        (("journal", "show", "garbage.sqlite"), ("journal",)),
        (("journal", "show", str(journal), "--query", "q7"), ("q7",)),
        (("journal", "cost", str(journal), "--query", "q7"), ("q7",)),
        (("journal", "burn", str(journal)), ("burn", "show")),
        (("doctor", "--prompt", "none.txt"), ("none.txt",)),
        (("demo", "--depth", "x"), ("--depth",)),
    ):
        line = one_line(without_out(rank_k(*arguments)), arguments[0])
        for word in words:
            assert word in line


def without_out(told: Told) -> Told:
    """Doctor has said what is installed before it meets the mistake."""
    return Told(told.code, "", told.err)


def test_no_verb_and_a_wrong_one(rank_k: RankK) -> None:
    told = rank_k()
    assert told.code == 2
    assert all(verb in told.out for verb in VERBS)
    told = rank_k("reorder")
    assert (told.code, told.out, len(told.lines)) == (2, "", 1)
    assert "reorder" in told.err
    assert "rerank" in told.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_one_line(folder: Path, rank_k: RankK) -> None:
    told = rank_k(*RERANK, "--simulate", "qrels.trec", "--quiet", "--report", "/dev/full")
    assert (told.code, told.err) == (2, "rank-k rerank: the system: No space left on device\n")
    assert ranking("out.trec") == BEST, "the run itself is there"


@pytest.mark.parametrize(("preset", "windows", "rounds"), [("fast", 6, 2), ("balanced", 7, 2), ("thorough", 12, 2)])
def test_presets_choose_the_strategy(tmp_path: Path, rank_k: RankK, preset: str, windows: int, rounds: int) -> None:
    """100 candidates, one query, a noiseless judge: windows and rounds as docs/strategies.md says."""
    ids = [f"d{i}" for i in range(100)]
    (tmp_path / "run.trec").write_text("".join(f"q1 Q0 {d} {n + 1} {100 - n} x\n" for n, d in enumerate(ids)))
    (tmp_path / "queries.tsv").write_text("q1\twhy\n")
    (tmp_path / "documents.tsv").write_text("".join(f"{d}\ttext of {d}\n" for d in ids))
    (tmp_path / "qrels.trec").write_text("".join(f"q1 0 {d} {n % 4}\n" for n, d in enumerate(ids)))
    named = {name: str(tmp_path / name) for name in ("run.trec", "queries.tsv", "documents.tsv", "qrels.trec")}
    given = ["--run", named["run.trec"], "--queries", named["queries.tsv"], "--documents", named["documents.tsv"]]
    report = tmp_path / "report.json"
    told = rank_k(
        *("rerank", *given, "--simulate", named["qrels.trec"], "--preset", preset),
        *("--output", str(tmp_path / "out.trec"), "--report", str(report)),
    )
    assert told.code == 0
    found = json.loads(report.read_text())
    assert (found["windows"], found["rounds"]) == (windows, rounds)
    [query] = found["per_query"]
    assert (query["query_id"], query["windows"], query["rounds"]) == ("q1", windows, rounds)


def test_a_preset_and_a_strategy_exclude_each_other(folder: Path, rank_k: RankK) -> None:
    told = rank_k(*RERANK, "--simulate", "qrels.trec", "--preset", "fast", "--strategy", "topdown")
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "--preset fast and --strategy exclude each other" in told.err


def test_prices_and_budgets(folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    server = loopback()
    Path("prices.json").write_text(json.dumps({"oracle": {"in": 1.0, "out": 2.0, "cached": 0.1}}))
    told = rank_k(*RERANK, *at(server), "--price-file", "prices.json", "--report", "report.json")
    assert told.code == 0
    found = json.loads(Path("report.json").read_text())
    assert found["cost"] == pytest.approx((found["prompt_tokens"] + 2 * found["completion_tokens"]) / 1e6, abs=1e-6)
    assert sum(query["calls"] for query in found["per_query"]) == found["calls"]
    assert sum(query["reasoning_tokens"] for query in found["per_query"]) == found["reasoning_tokens"]
    again = rank_k(*RERANK, *at(server), "--token-budget", "1", "--concurrency", "1")
    assert again.code == 0
    assert any(line.startswith("unfinished, best so far:") for line in again.lines)
    wrong = rank_k(*RERANK, *at(server), "--price-file", "nothing.json")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
