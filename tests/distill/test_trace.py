"""Tracing: every set asked about once, in its own order, whatever happens in between; then all of it together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rank_k.cli import main
from rank_k.distill.candidate_sets import CandidateSet, encode_json_line, read_candidate_sets
from rank_k.distill.trace import MAX_SET_SIZE, SINGLE_WINDOW, ActiveSets, trace_sets
from rank_k.errors import InputError, RequestRejected
from rank_k.journal import Journal
from rank_k.models.mock import ScriptedModel
from rank_k.reranker import Reranker
from rank_k.types import Request
from tests.conftest import StartLoopback
from tests.fakes.model_server.running import FakeModelServer


def make_sets(count: int, size: int = 4) -> list[CandidateSet]:
    """Their passages carry the marks by which the loopback server ranks, the last one the best."""
    sets = []
    for query_number in range(count):
        doc_ids = tuple(f"q{query_number}-d{i}" for i in range(size))
        passages = tuple(f"mark:{doc_id}-G{i} some text" for i, doc_id in enumerate(doc_ids))
        grades = {doc_id: i for i, doc_id in enumerate(doc_ids)}
        sets.append(
            CandidateSet(
                f"s/q{query_number}/0",
                f"q{query_number}",
                f"query {query_number}",
                doc_ids,
                passages,
                grades,
                "s",
                "CC0",
            )
        )
    return sets


def count_new_calls(model: Any, sets: list[CandidateSet], journal: Path, **options: Any) -> int:
    """How many calls were made."""
    active_sets = ActiveSets()
    with Reranker(model, strategy=SINGLE_WINDOW, depth=MAX_SET_SIZE, journal=journal, **options) as reranker:
        assert list(trace_sets(reranker, sets, active_sets)) == [candidate_set.set_id for candidate_set in sets]
        assert not active_sets.queries
        return reranker.stats.new_calls


def rank_last_first(request: Request) -> str:
    return " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1))


def test_trace_sets_ranks_each_set_as_one_window(tmp_path: Path) -> None:
    sets, model = make_sets(5, size=25), ScriptedModel(rank_last_first)
    assert count_new_calls(model, sets, tmp_path / "j") == 5
    assert sorted(request.context.doc_ids for request in model.history) == sorted(row.doc_ids for row in sets)
    content = model.history[0].messages[0].content
    assert content.index("[1] mark:") < content.index("[2] mark:") < content.index("[25] mark:")


def test_traced_sets_returns_sets_and_calls_in_order(tmp_path: Path) -> None:
    sets = make_sets(5)
    count_new_calls(ScriptedModel(rank_last_first), sets, tmp_path / "j", samples=3)
    journal = Journal(tmp_path / "j", read_only=True)
    traced = list(journal.sets_with_calls())
    assert [metadata["set_id"] for metadata, _ in traced] == [candidate_set.set_id for candidate_set in sets]
    for (_, keys), candidate_set in zip(traced, sets, strict=True):
        orders = [call.doc_ids for key in keys if (call := journal.find_call(key))]
        assert len(orders) == 3
        assert orders[0] == candidate_set.doc_ids
        assert all(sorted(order) == sorted(candidate_set.doc_ids) for order in orders)
    journal.close()


def test_trace_sets_resumes_with_unfinished_sets_only(tmp_path: Path) -> None:
    sets = make_sets(9)
    request_count = 0

    def fail_after_four(request: Request) -> str | Exception:
        nonlocal request_count
        request_count += 1
        return RequestRejected("enough") if request_count > 4 else rank_last_first(request)

    with pytest.raises(RequestRejected):
        count_new_calls(ScriptedModel(fail_after_four), sets, tmp_path / "j", concurrency=1)
    assert count_new_calls(ScriptedModel(rank_last_first), sets, tmp_path / "j") == 5
    assert count_new_calls(ScriptedModel([]), sets, tmp_path / "j") == 0
    journal = Journal(tmp_path / "j", read_only=True)
    assert [len(keys) for _, keys in journal.sets_with_calls()] == [1] * 9
    journal.close()


def test_trace_sets_reads_sets_lazily(tmp_path: Path) -> None:
    """What is under way bounds what is in memory, not the number of sets."""
    active_sets, max_active = ActiveSets(), 0

    def read_sets() -> Iterator[CandidateSet]:
        nonlocal max_active
        for row in make_sets(400):
            max_active = max(max_active, len(active_sets.queries))
            yield row

    with Reranker(
        ScriptedModel(rank_last_first), strategy=SINGLE_WINDOW, depth=MAX_SET_SIZE, concurrency=2
    ) as reranker:
        assert len(list(trace_sets(reranker, read_sets(), active_sets))) == 400
    assert max_active < 150  # twice the engine's look-ahead


def test_trace_sets_rejects_a_reranker_with_small_windows() -> None:
    with Reranker(ScriptedModel([])) as reranker, pytest.raises(InputError, match="ranks a set as one window"):
        list(trace_sets(reranker, [], ActiveSets()))


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture
def sets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("sets.jsonl").write_bytes(
        b"".join(encode_json_line({**row.metadata, "passages": row.passages}) for row in make_sets(6))
    )
    qrels = (
        f"{row.query_id} 0 {doc_id} {grade}\n" for row in make_sets(6) for doc_id, grade in (row.grades or {}).items()
    )
    Path("qrels.trec").write_text("".join(qrels))
    assert list(read_candidate_sets("sets.jsonl")) == make_sets(6)
    return tmp_path


TRACE = ("distill", "trace", "--sets", "sets.jsonl", "--journal", "traces.sqlite")
SELECT = ("distill", "select", "--journal", "traces.sqlite", "--output", "sft.jsonl")


def server_options(server: FakeModelServer) -> tuple[str, ...]:
    return ("--server", server.url, "--model", "oracle")


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("sft.jsonl").read_text().splitlines()]


def test_distill_trace_and_select_with_a_server(
    sets_folder: Path, capsys: pytest.CaptureFixture[str], loopback: StartLoopback
) -> None:
    server = loopback()
    assert main([*TRACE, *server_options(server), "--samples", "3", "--price-in", "1", "--price-out", "2"]) == 0
    stderr = capsys.readouterr().err
    assert "6 sets, 6 rounds, " in stderr
    assert "cost: 0.0" in stderr
    assert main([*SELECT, "--rule", "all", "--min-ndcg", "1"]) == 0
    training_rows = read_rows()
    assert len(training_rows) == 18  # also where the first samples agree
    first = training_rows[0]
    assert first.keys() == {
        "prompt", "completion", "set_id", "query_id", "query", "doc_ids", "teacher", "rule", "ndcg", "source", "license"
    }  # fmt: skip
    assert (first["teacher"], first["rule"], first["ndcg"]) == ("oracle", "all", 1.0)
    assert (first["source"], first["license"], first["query_id"]) == ("s", "CC0", "q0")
    (prompt,), (completion,) = first["prompt"], first["completion"]
    assert (prompt["role"], completion["role"]) == ("user", "assistant")
    assert first["query"] in prompt["content"]
    assert completion["content"].startswith("<think>\n")
    assert completion["content"].endswith("\n</think>\n\n[4] > [3] > [2] > [1]")
    for row in training_rows:
        lines = row["prompt"][0]["content"].splitlines()[-4:]
        assert [f"[{n}] mark:{d}-" for n, d in enumerate(row["doc_ids"], 1)] == [
            line.partition("G")[0] for line in lines
        ]


def test_distill_select_skips_truncated_reasoning(
    sets_folder: Path, capsys: pytest.CaptureFixture[str], loopback: StartLoopback
) -> None:
    assert main([*TRACE, *server_options(loopback(cut=1.0)), "--samples", "1"]) == 0
    assert main([*SELECT]) == 0
    stderr = capsys.readouterr().err
    assert "6 traces left out: truncated by a token limit" in stderr
    assert "6 sets without a usable trace" in stderr
    assert read_rows() == []


def test_distill_trace_with_a_simulated_model(sets_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRACE, "--simulate", "qrels.trec", "--noise", "none", "--samples", "2", "--prompt", "compact"]) == 0
    assert main([*SELECT, "--rule", "best"]) == 0
    training_rows = read_rows()
    assert [row["ndcg"] for row in training_rows] == [1.0] * 6
    assert all(row["prompt"][0]["content"].endswith("Which passages answer the query?") for row in training_rows)
    assert {row["teacher"] for row in training_rows} == {"simulated"}


def test_distill_trace_reads_noise_from_a_file(sets_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose error is all fresh: asked eight times, it does not say the same; without noise it does."""
    Path("noise.json").write_text('{"sd": 3, "persistent": 0, "fresh": 1, "how": "by hand"}')
    distinct_counts = {}
    for noise in ("none", "noise.json"):
        journal = f"{noise}.sqlite"
        options = ("--simulate", "qrels.trec", "--noise", noise, "--samples", "8", "--journal", journal)
        assert main([*TRACE, *options, "--quiet"]) == 0
        with closing(Journal(journal, read_only=True)) as saved_journal:
            tiers_by_set = [[order.tiers for order in record.rankings] for record in saved_journal.windows()]
        assert all(len(tiers) == 8 for tiers in tiers_by_set)
        distinct_counts[noise] = [len(set(tiers)) for tiers in tiers_by_set]
    assert distinct_counts["none"] == [1] * 6
    assert all(distinct_count > 1 for distinct_count in distinct_counts["noise.json"])


def test_distill_trace_with_the_labels_teacher(sets_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRACE, "--teacher", "labels", "--prompt", "compact", "--quiet"]) == 0
    assert main([*SELECT]) == 0
    assert [row["completion"][0]["content"] for row in read_rows()] == [
        "<think>\n[1] no\n[2] partly\n[3] partly\n[4] yes\n</think>\n\n[4] > [2] = [3] > [1]"
    ] * 6
    assert {row["teacher"] for row in read_rows()} == {"labels"}


def test_distill_trace_labels_teacher_skips_unjudged_queries(
    sets_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [replace(row, grades=None if n < 2 else row.grades) for n, row in enumerate(make_sets(6))]
    Path("sets.jsonl").write_bytes(
        b"".join(encode_json_line({**row.metadata, "passages": row.passages}) for row in sets)
    )
    assert main([*TRACE, "--teacher", "labels"]) == 0
    assert "2 sets left out, because the query has no relevance judgments" in capsys.readouterr().err
    assert main([*SELECT]) == 0
    assert [row["query_id"] for row in read_rows()] == ["q2", "q3", "q4", "q5"]


def test_distill_trace_rejects_a_long_query_before_any_request(
    sets_folder: Path, capsys: pytest.CaptureFixture[str], loopback: StartLoopback
) -> None:
    *short, last = make_sets(6)
    sets = [*short, replace(last, query="word " * 40_000)]
    Path("sets.jsonl").write_bytes(
        b"".join(encode_json_line({**row.metadata, "passages": row.passages}) for row in sets)
    )
    server = loopback()
    assert main([*TRACE, *server_options(server)]) == 2
    assert "shorten the query" in capsys.readouterr().err
    with closing(Journal("traces.sqlite", read_only=True)) as journal:
        assert not [purpose for _, purpose, *_ in journal.usage_totals() if purpose != "probe"]


def test_distill_trace_stops_at_the_token_budget(
    sets_folder: Path, capsys: pytest.CaptureFixture[str], loopback: StartLoopback
) -> None:
    assert (
        main([*TRACE, *server_options(loopback()), "--samples", "1", "--concurrency", "1", "--token-budget", "300"])
        == 0
    )
    assert "unfinished, with the best ranking so far: " in capsys.readouterr().err
    assert main([*TRACE, *server_options(loopback()), "--samples", "1", "--concurrency", "1"]) == 0
    assert "6 sets, 6 rounds, 6 calls (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--teacher", "labels", "--server", "http://localhost:1/v1"), "--teacher labels does not use a model"),
        (("--form", "order", "--simulate", "qrels.trec"), "--form and --tokenizer are for --teacher labels"),
        (("--simulate", "qrels.trec", "--noise", "weka"), "there is no noise 'weka'; did you mean weak?"),
        (
            ("--simulate", "qrels.trec", "--reasoning", "auto"),
            "--reasoning auto would produce a mix of sets with and without reasoning",
        ),
        (("--sets", "unjudged.jsonl", "--teacher", "labels"), "no set has grades for --teacher labels"),
        (("--sets", "broken.jsonl", "--simulate", "qrels.trec"), "broken.jsonl:2: set_id is missing"),
    ],
)
def test_distill_trace_reports_errors_before_any_request(
    sets_folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    (first, *_) = Path("sets.jsonl").read_text().splitlines(keepends=True)
    Path("broken.jsonl").write_text(first + '{"query": 1}\n')
    Path("unjudged.jsonl").write_text(json.dumps(json.loads(first) | {"grades": None}))
    assert main([*TRACE, *options]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("rank-k distill trace: ")
    assert message in stderr
    assert not Path("traces.sqlite").exists()
