"""The commands as a program: help, exit codes, custom strategies, `evaluate`, `journal` and `doctor`."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import sys
from contextlib import closing
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest

from rank_k.cli import VERBS
from rank_k.journal import Journal
from rank_k.optional_deps import BACKPORTS
from tests.cli.helpers import (
    BEST_RANKING,
    FIRST_STAGE_RANKING,
    KEY,
    RERANK,
    TOPICS,
    RankK,
    read_ranking,
    server_options,
)
from tests.conftest import StartLoopback

pytestmark = pytest.mark.integration


def test_help_examples_run_as_printed(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the server's address, which is another one here."""
    server = loopback(model="hltcoe/Rank-K-32B")
    (collection_folder / "corpus.jsonl.gz").write_bytes(
        gzip.compress((collection_folder / "corpus.jsonl").read_bytes())
    )
    for verb in ("retrieve", "rerank", "evaluate", "journal"):
        [example] = [line for line in help_of(verb, rank_k) if line.startswith("example: ")]
        arguments = shlex.split(example.removeprefix("example: ").replace("http://localhost:8000/v1", server.url))
        assert arguments[:2] == ["rank-k", verb]
        assert rank_k(*arguments[1:]).code == 0
    assert read_ranking("reranked.trec") == BEST_RANKING


def help_of(verb: str, rank_k: RankK) -> list[str]:
    os.environ["COLUMNS"] = "1000"  # each paragraph on one line
    try:
        result = rank_k(verb, "--help")
    finally:
        del os.environ["COLUMNS"]
    assert (result.code, result.err) == (0, "")
    return result.out.splitlines()


@pytest.mark.parametrize("verb", VERBS)
def test_help_describes_every_option_and_has_an_example(verb: str, rank_k: RankK) -> None:
    lines = help_of(verb, rank_k)
    assert lines[0].startswith(f"usage: rank-k {verb}")
    assert any(line.startswith(f"example: rank-k {verb}") for line in lines)
    for line, following in pairwise(lines):
        if line.startswith("  --"):
            assert len(line.split(maxsplit=2)) == 3 or following.startswith(" " * 20), f"not a word about {line}"


def test_rank_k_script_sets_exit_codes_and_streams(collection_folder: Path, loopback: StartLoopback) -> None:
    script = Path(sys.executable).with_name("rank-k")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "rank_k.cli"]
    completed = subprocess.run(
        [*program, *RERANK, *server_options(loopback())], capture_output=True, text=True, check=True
    )
    assert read_ranking("out.trec") == BEST_RANKING
    assert (completed.stdout, len(completed.stderr.splitlines())) == ("", 2)
    failed = subprocess.run([*program, "rerank", "--run", "none"], capture_output=True, text=True, check=False)
    assert (failed.returncode, len(failed.stderr.splitlines())) == (2, 1)
    version = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("rank-k ")


STRATEGY_MODULE = """
from dataclasses import dataclass

from colors import RED
from rank_k.types import Ranking

@dataclass(frozen=True)
class Backwards:
    window: int = 20

    def __call__(self, candidates, seed):
        yield from ()
        return Ranking.untied(c.doc_id for c in reversed(candidates))

class Failing:
    def __init__(self):
        raise OSError("no such luck")
"""


def test_strategy_module_is_imported_from_the_current_folder(collection_folder: Path) -> None:
    script = Path(sys.executable).with_name("rank-k")
    if not script.exists():
        pytest.skip("needs the installed command, whose Python does not look in the current folder")
    for name, content in (
        ("own", STRATEGY_MODULE),
        ("colors", "RED = 1"),
        ("broken", "class A("),
        ("failing", "1 / 0"),
    ):
        (collection_folder / f"{name}.py").write_text(content)
    rerank_command = (*RERANK, "--simulate", "qrels.trec")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(script), *arguments], capture_output=True, text=True, check=False)

    completed = run(*rerank_command, "--strategy", "own:Backwards")
    assert completed.returncode == 0, completed.stderr
    assert read_ranking("out.trec") == {query_id: ids[::-1] for query_id, ids in FIRST_STAGE_RANKING.items()}
    study_command = ("study", *RERANK[1:-2], "--qrels", "qrels.trec", "--simulate", "--strategy", "own:Backwards")
    assert run(*study_command, "--output", "study").returncode == 0
    for name, result in {
        "own:Failing": "cannot be created: no such luck",
        "own:Backward": "cannot be imported: module 'own' has no attribute 'Backward'",
        "broken:A": "cannot be imported: '(' was never closed",
        "failing:A": "cannot be imported: division by zero",
        "missing:A": "cannot be imported: No module named 'missing'",
    }.items():
        completed = run(*rerank_command, "--strategy", name)
        assert (completed.returncode, len(completed.stderr.splitlines())) == (2, 1), completed.stderr
        assert f"strategy '{name}' {result}" in completed.stderr


def test_evaluate_json_has_every_query_and_lists_missing_ones(collection_folder: Path, rank_k: RankK) -> None:
    lines = [line for line in Path("run.trec").read_text().splitlines() if not line.startswith("q2")]
    Path("part.trec").write_text("\n".join([*lines, "q9 Q0 d 1 1 x"]) + "\n")
    result = rank_k(
        "evaluate", "--qrels", "qrels.trec", "--json", "run.trec", "part.trec", "--measures", "RR@10", "P@2"
    )
    assert result.code == 0
    full_run, partial_run = (json.loads(result.out)[name] for name in ("run.trec", "part.trec"))
    assert full_run["mean"] == {"RR@10": 0.5, "P@2": 0.5}
    assert full_run["per_query"]["RR@10"] == dict.fromkeys(TOPICS, 0.5)
    assert partial_run["per_query"]["RR@10"] == {"q1": 0.5, "q2": 0.0, "q3": 0.5}
    assert partial_run["mean"]["RR@10"] == pytest.approx(1 / 3)
    assert (partial_run["missing"], partial_run["unjudged"]) == (["q2"], ["q9"])
    assert result.lines == [
        "part.trec: 1 judged query missing, counted as 0: q2 (--common-queries leaves them out)",
        "part.trec: 1 query without judgments, not counted",
    ]


def test_journal_show_export_and_cost_agree_with_the_report(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    rank_k(*RERANK, *server_options(loopback()), "--report", "report.json")
    report, journal = json.loads(Path("report.json").read_text()), "out.trec.journal.sqlite"
    assert Path(journal).stat().st_mode & 0o777 == 0o600

    output = rank_k("journal", "show", journal, "--query", "q2").out
    assert output.startswith(f"== query q2, round 1, window 1\nquery: {TOPICS['q2'][0]}\n")
    assert "<think>" in output, "the trace"
    assert "-> q2-d4 > q2-d1 > q2-d2 > q2-d0 = q2-d3 = q2-d5" in output
    assert "q1" not in output

    records = [json.loads(line) for line in rank_k("journal", "export", journal).out.splitlines()]
    assert [record["query_id"] for record in records] == list(TOPICS)
    assert {(record["round"], record["window"]) for record in records} == {(1, 1)}
    assert records[0]["doc_ids"] == FIRST_STAGE_RANKING["q1"]
    assert records[0]["orders"][0]["tiers"] == [["q1-d4"], ["q1-d1"], ["q1-d2"], ["q1-d0", "q1-d3", "q1-d5"]]
    [call] = records[0]["calls"]
    assert "mark:q1-d0" in call["request"]["messages"][-1]["content"]
    assert call["finish_reason"] == "stop"

    cost_lines = rank_k("journal", "cost", journal, "--price-in", "2", "--price-out", "10").out.splitlines()
    cells = cost_lines[1].split()
    assert cells[:3] == ["oracle", "ask", "3"]
    assert cells[3] == f"{report['prompt_tokens']:,}"
    cost = (2 * report["prompt_tokens"] + 10 * report["completion_tokens"]) / 1e6
    assert float(cells[-1]) == pytest.approx(cost, abs=1e-4)
    assert "cost" not in rank_k("journal", "cost", journal).out
    assert [path.name for path in Path().glob(f"{journal}*")] == [journal], "readers leave no files"

    rank_k(*RERANK, *server_options(loopback()), "--depth", "3")
    cost_of_all, cost_of_query = rank_k("journal", "cost", journal), rank_k("journal", "cost", journal, "--query", "q2")
    assert [result.out.splitlines()[1].split()[2] for result in (cost_of_all, cost_of_query)] == ["6", "2"]
    with closing(Journal(Path(journal), read_only=True)) as journal_reader:
        last_run, first_run = journal_reader.runs()
    assert rank_k("journal", "cost", journal, "--run", first_run.run).out.splitlines()[1].split() == cells[:-1]
    last_run_cells = (
        rank_k("journal", "cost", journal, "--run", last_run.run, "--query", "q2").out.splitlines()[1].split()
    )
    assert last_run_cells[:3] == ["oracle", "ask", "1"]
    assert int(last_run_cells[3]) < report["prompt_tokens"] / 3


def test_journal_show_ignores_a_closed_pipe(collection_folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    rank_k(*RERANK, *server_options(loopback()))
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
def test_doctor_detects_the_server_type_and_probes_it(
    rank_k: RankK, loopback: StartLoopback, owned_by: str, server_type: str
) -> None:
    server = loopback(owned_by=owned_by, quirk="reasoning", max_model_len=0 if owned_by == "me" else 40960)
    result = rank_k("doctor", "--server", server.url)
    assert (result.code, result.err) == (0, "")
    assert f"{server.url}, server type {server_type}" in result.out
    assert "oracle responds" in result.out
    assert server.calls == [], "without --probe nothing is asked"
    assert ("assumed" in result.out) == (owned_by in ("me", "llamacpp"))  # whose context stands elsewhere

    result = rank_k("doctor", "--server", server.url, "--probe")
    assert result.code == 0
    lines_by_label = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert "in a separate field" in lines_by_label["order"]
    assert "[1]" in lines_by_label["order"]
    assert len(server.calls) >= 2


def test_doctor_probe_exits_1_if_the_ranking_is_unusable(rank_k: RankK, loopback: StartLoopback) -> None:
    result = rank_k("doctor", "--server", loopback(garbage=1.0).url, "--probe")
    assert (result.code, result.err) == (1, "")
    [order] = [line for line in result.out.splitlines() if line.startswith("order ")]
    assert "no usable ranking" in order


def test_journal_suggests_the_journal_of_a_run(collection_folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    rank_k(*RERANK, *server_options(loopback()))
    assert "did you mean out.trec.journal.sqlite?" in rank_k("journal", "cost", "out.trec").err
    assert "; give the journal of a run, such as " in rank_k("journal", "cost", "run.trec").err


def test_doctor_reports_what_fails(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last_line(*options: str) -> str:
        result = rank_k("doctor", *options)
        assert (result.code, result.err) == (1, "")
        return result.out.splitlines()[-1]

    assert "no server responds at http://127.0.0.1:9/v1" in last_line("--server", "http://127.0.0.1:9")
    assert "refused the key (401)" in last_line("--server", loopback(api_key=KEY).url)
    assert "has no model 'other'; it has: oracle" in last_line("--server", loopback().url, "--model", "other")
    assert "rank-k fetch" in last_line(), "the embedded model's weights are not there"
    [data_line] = [line for line in rank_k("doctor").out.splitlines() if line.startswith("[data]")]
    for name in (*BACKPORTS, "bm25s", "ir_datasets", "PyStemmer", "PyYAML"):
        assert f"{name} {version(name)}" in data_line
