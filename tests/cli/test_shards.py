"""`rank-k rerank --shard` and `rank-k merge`: processes that are killed, and the run that comes out."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from benchmarks.overhead import write_dataset

from rank_k.journal import Journal
from tests.cli.helpers import RERANK, SIMULATE, RankK
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import make_dataset
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.integration

SHARDS = 4
SLOW: dict[str, Any] = {"first_token": 0.05, "per_token": 0.0001, "flush": 0.02, "cut": 0.2}


def test_shards_killed_and_restarted_merge_into_the_unsharded_run(loopback: StartLoopback, tmp_path: Path) -> None:
    """No finished call is repeated, and the merged journal replays the run without any call."""
    data = make_dataset(24, 30, strict=True)
    files = write_dataset(data, tmp_path)
    files = files[: files.index("--output")]
    server = loopback(**SLOW)

    def command(output: str, *options: str) -> list[str]:
        model = ["--server", server.url, "--model", "oracle", "--concurrency", "4", "--quiet"]
        return [
            sys.executable,
            "-m",
            "rank_k.cli",
            "rerank",
            *files,
            "--output",
            str(tmp_path / output),
            *model,
            *options,
        ]

    for number in range(1, SHARDS + 1):
        shard_command = command("part.trec", "--shard", f"{number}/{SHARDS}")
        if number in (1, 3):
            calls = len(server.calls)
            with subprocess.Popen(shard_command) as child:
                wait_until(lambda: len(server.calls) >= calls + 6 or child.poll() is not None, "no call arrives")  # noqa: B023
                child.kill()
                child.wait(PATIENCE)
        subprocess.run(shard_command, check=True)
    sharded_calls = [(call.window, call.n_messages) for call in server.calls if call.window and not call.cancelled]
    parts = sorted(tmp_path.glob("part.*of4.trec"))
    merge = [sys.executable, "-m", "rank_k.cli", "merge", str(tmp_path / "merged.trec"), *map(str, parts)]
    for _ in range(2):
        subprocess.run(merge, check=True)
    calls = len(server.calls)
    journal = ("--journal", str(tmp_path / "merged.trec.journal.sqlite"))
    subprocess.run(command("replayed.trec", *journal), check=True)
    assert not [call for call in server.calls[calls:] if call.window], "the journal has every call"
    subprocess.run(command("whole.trec"), check=True)
    whole = (tmp_path / "whole.trec").read_bytes()
    assert (tmp_path / "merged.trec").read_bytes() == whole
    assert (tmp_path / "replayed.trec").read_bytes() == whole
    with closing(Journal(tmp_path / "merged.trec.journal.sqlite", read_only=True)) as merged:
        stored_calls = sum(calls for _, purpose, calls, _, _ in merged.usage_totals() if purpose != "probe")
    assert len(sharded_calls) <= stored_calls + 2 * 4, "only calls in flight are repeated"


def test_rerank_names_the_outputs_of_a_shard(collection_folder: Path, rank_k: RankK) -> None:
    result = rank_k(
        *RERANK, *SIMULATE, "--shard", "1/2", "--report", "report.json", "--journal", "calls.sqlite", code=0
    )
    assert {path.name for path in collection_folder.iterdir()} >= {
        "out.1of2.trec",
        "report.1of2.json",
        "calls.1of2.sqlite",
    }
    assert "shard 1/2: " in result.err
    assert "--max-seconds and --token-budget apply to this shard only" in result.err


def test_merge_and_rerank_report_errors_of_shards_in_one_line(
    collection_folder: Path, rank_k: RankK, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ID", "COUNT", "MIN"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{variable}", raising=False)
    assert "the shard is '5/4'" in rank_k(*RERANK, *SIMULATE, "--shard", "5/4", code=2).err
    assert "not a task of a Slurm job array" in rank_k(*RERANK, *SIMULATE, "--shard", "slurm", code=2).err
    rank_k(*RERANK, *SIMULATE, "--shard", "1/2", code=0)
    assert "shards are missing: 2/2" in rank_k("merge", "all.trec", "out.1of2.trec", code=2).err
    assert "out.2of2.trec does not exist" in rank_k("merge", "all.trec", "out.1of2.trec", "out.2of2.trec", code=2).err
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    rank_k(*RERANK, *SIMULATE, "--shard", "slurm", code=0)
    rank_k(*RERANK, *SIMULATE, code=0)
    rank_k("merge", "all.trec", "out.1of2.trec", "out.2of2.trec", code=0)
    assert Path("all.trec").read_bytes() == Path("out.trec").read_bytes()
    cost = rank_k("journal", "cost", "out.1of2.trec.journal.sqlite", "out.2of2.trec.journal.sqlite", code=0).out
    assert cost == rank_k("journal", "cost", "all.trec.journal.sqlite", code=0).out
    line = rank_k("journal", "show", "out.1of2.trec.journal.sqlite", "out.2of2.trec.journal.sqlite", code=2).err
    assert "show reads one journal (got 2)" in line


def test_journal_cost_applies_a_discount(collection_folder: Path, rank_k: RankK) -> None:
    rank_k(*RERANK, *SIMULATE, code=0)
    cost = ("journal", "cost", "out.trec.journal.sqlite", "--price-in", "1000", "--price-out", "1000")
    full, half = (
        float(rank_k(*cost, *options, code=0).out.splitlines()[-1].split()[-1].replace(",", ""))
        for options in ((), ("--discount", "0.5"))
    )
    assert half == pytest.approx(full / 2, abs=1e-4)
    assert "is not a number from 0 to 1" in rank_k(*cost, "--discount", "50", code=2).err
