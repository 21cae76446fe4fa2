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
from rank_k.distill.candidate_sets import CandidateSet, json_line, read_sets
from rank_k.distill.trace import LARGEST, WHOLE_SET, ActiveSets, traced
from rank_k.errors import InputError, RequestRejected
from rank_k.journal import Journal
from rank_k.models.mock import ScriptedModel
from rank_k.reranker import Reranker
from rank_k.types import Request
from tests.conftest import StartLoopback
from tests.fakes.loopback import Loopback


def some_sets(count: int, size: int = 4) -> list[CandidateSet]:
    """Their passages carry the marks by which the loopback server ranks, the last one the best."""
    rows = []
    for n in range(count):
        doc_ids = tuple(f"q{n}-d{i}" for i in range(size))
        passages = tuple(f"mark:{doc_id}-G{i} some text" for i, doc_id in enumerate(doc_ids))
        grades = {doc_id: i for i, doc_id in enumerate(doc_ids)}
        rows.append(CandidateSet(f"s/q{n}/0", f"q{n}", f"query {n}", doc_ids, passages, grades, "s", "CC0"))
    return rows


def trace(model: Any, sets: list[CandidateSet], journal: Path, **options: Any) -> int:
    """How many calls were made."""
    under_way = ActiveSets()
    with Reranker(model, strategy=WHOLE_SET, depth=LARGEST, journal=journal, **options) as reranker:
        assert list(traced(reranker, sets, under_way)) == [row.set_id for row in sets]
        assert not under_way
        return reranker.stats.new_calls


def best_last(request: Request) -> str:
    return " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1))


def test_each_set_is_one_window_in_its_own_order(tmp_path: Path) -> None:
    sets, model = some_sets(5, size=25), ScriptedModel(best_last)
    assert trace(model, sets, tmp_path / "j") == 5
    assert sorted(request.context.doc_ids for request in model.history) == sorted(row.doc_ids for row in sets)
    content = model.history[0].messages[0].content
    assert content.index("[1] mark:") < content.index("[2] mark:") < content.index("[25] mark:")


def test_the_journal_gives_back_sets_and_calls_in_order(tmp_path: Path) -> None:
    sets = some_sets(5)
    trace(ScriptedModel(best_last), sets, tmp_path / "j", samples=3)
    journal = Journal(tmp_path / "j", read_only=True)
    found = list(journal.traced_sets())
    assert [facts["set_id"] for facts, _ in found] == [row.set_id for row in sets]
    for (_, keys), row in zip(found, sets, strict=True):
        shown = [call.doc_ids for key in keys if (call := journal.call(key))]
        assert len(shown) == 3
        assert shown[0] == row.doc_ids
        assert all(sorted(order) == sorted(row.doc_ids) for order in shown)
    journal.close()


def test_after_an_interruption_only_the_rest_is_asked(tmp_path: Path) -> None:
    sets = some_sets(9)
    asked = 0

    def breaks_off(request: Request) -> str | Exception:
        nonlocal asked
        asked += 1
        return RequestRejected("enough") if asked > 4 else best_last(request)

    with pytest.raises(RequestRejected):
        trace(ScriptedModel(breaks_off), sets, tmp_path / "j", concurrency=1)
    assert trace(ScriptedModel(best_last), sets, tmp_path / "j") == 5
    assert trace(ScriptedModel([]), sets, tmp_path / "j") == 0
    journal = Journal(tmp_path / "j", read_only=True)
    assert [len(keys) for _, keys in journal.traced_sets()] == [1] * 9
    journal.close()


def test_sets_are_read_as_they_are_needed(tmp_path: Path) -> None:
    """What is under way bounds what is in memory, not the number of sets."""
    under_way, most = ActiveSets(), 0

    def endless() -> Iterator[CandidateSet]:
        nonlocal most
        for row in some_sets(400):
            most = max(most, len(under_way))
            yield row

    with Reranker(ScriptedModel(best_last), strategy=WHOLE_SET, depth=LARGEST, concurrency=2) as reranker:
        assert len(list(traced(reranker, endless(), under_way))) == 400
    assert most < 150  # twice the engine's look-ahead


def test_a_reranker_that_would_cut_sets_up_is_refused() -> None:
    with Reranker(ScriptedModel([])) as reranker, pytest.raises(InputError, match="a set is one window"):
        list(traced(reranker, [], ActiveSets()))


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("sets.jsonl").write_bytes(b"".join(json_line({**row.facts, "passages": row.passages}) for row in some_sets(6)))
    qrels = (f"{row.query_id} 0 {d} {g}\n" for row in some_sets(6) for d, g in (row.grades or {}).items())
    Path("qrels.trec").write_text("".join(qrels))
    assert list(read_sets("sets.jsonl")) == some_sets(6)
    return tmp_path


TRACE = ("distill", "trace", "--sets", "sets.jsonl", "--journal", "traces.sqlite")
SELECT = ("distill", "select", "--journal", "traces.sqlite", "--output", "sft.jsonl")


def at(server: Loopback) -> tuple[str, ...]:
    return ("--server", server.url, "--model", "oracle")


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("sft.jsonl").read_text().splitlines()]


def test_from_a_server_to_rows(folder: Path, capsys: pytest.CaptureFixture[str], loopback: StartLoopback) -> None:
    server = loopback()
    assert main([*TRACE, *at(server), "--samples", "3", "--price-in", "1", "--price-out", "2"]) == 0
    told = capsys.readouterr().err
    assert "6 queries, 6 rounds, " in told
    assert "cost: 0.0" in told
    assert main([*SELECT, "--rule", "all", "--min-ndcg", "1"]) == 0
    found = rows()
    assert len(found) == 18  # also where the first samples agree
    first = found[0]
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
    for row in found:
        lines = row["prompt"][0]["content"].splitlines()[-4:]
        assert [f"[{n}] mark:{d}-" for n, d in enumerate(row["doc_ids"], 1)] == [
            line.partition("G")[0] for line in lines
        ]


def test_cut_thoughts_are_not_learnt(folder: Path, capsys: pytest.CaptureFixture[str], loopback: StartLoopback) -> None:
    assert main([*TRACE, *at(loopback(cut=1.0)), "--samples", "1"]) == 0
    assert main([*SELECT]) == 0
    told = capsys.readouterr().err
    assert "6 traces left out: thought or answer ended by a limit" in told
    assert "6 sets without a usable trace" in told
    assert rows() == []


def test_with_a_simulated_judge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRACE, "--simulate", "qrels.trec", "--samples", "2", "--prompt", "compact"]) == 0
    assert main([*SELECT, "--rule", "best"]) == 0
    found = rows()
    assert [row["ndcg"] for row in found] == [1.0] * 6
    assert all(row["prompt"][0]["content"].endswith("Which passages answer the query?") for row in found)
    assert {row["teacher"] for row in found} == {"simulated"}


def test_noise_from_a_file_is_that_of_the_judge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose error is all fresh: asked eight times, it does not say the same; without noise it does."""
    Path("noise.json").write_text('{"sd": 3, "persistent": 0, "fresh": 1, "how": "by hand"}')
    answers = {}
    for noise in ("none", "noise.json"):
        journal = f"{noise}.sqlite"
        given = ("--simulate", "qrels.trec", "--noise", noise, "--samples", "8", "--journal", journal)
        assert main([*TRACE, *given, "--quiet"]) == 0
        with closing(Journal(journal, read_only=True)) as kept:
            found = [[order.tiers for order in record.rankings] for record in kept.windows()]
        assert all(len(orders) == 8 for orders in found)
        answers[noise] = [len(set(orders)) for orders in found]
    assert answers["none"] == [1] * 6
    assert all(several > 1 for several in answers["noise.json"])


def test_with_the_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRACE, "--teacher", "labels", "--prompt", "compact", "--quiet"]) == 0
    assert main([*SELECT]) == 0
    assert [row["completion"][0]["content"] for row in rows()] == [
        "<think>\n[1] no\n[2] partly\n[3] partly\n[4] yes\n</think>\n\n[4] > [2] = [3] > [1]"
    ] * 6
    assert {row["teacher"] for row in rows()} == {"labels"}


def test_labels_say_nothing_of_queries_that_nobody_judged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [replace(row, grades=None if n < 2 else row.grades) for n, row in enumerate(some_sets(6))]
    Path("sets.jsonl").write_bytes(b"".join(json_line({**row.facts, "passages": row.passages}) for row in sets))
    assert main([*TRACE, "--teacher", "labels"]) == 0
    assert "2 sets left out: nothing is known of their queries" in capsys.readouterr().err
    assert main([*SELECT]) == 0
    assert [row["query_id"] for row in rows()] == ["q2", "q3", "q4", "q5"]


def test_a_query_that_is_too_long_is_told_before_anything_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], loopback: StartLoopback
) -> None:
    *short, last = some_sets(6)
    sets = [*short, replace(last, query="word " * 40_000)]
    Path("sets.jsonl").write_bytes(b"".join(json_line({**row.facts, "passages": row.passages}) for row in sets))
    server = loopback()
    assert main([*TRACE, *at(server)]) == 2
    assert "shorten the query" in capsys.readouterr().err
    with closing(Journal("traces.sqlite", read_only=True)) as journal:
        assert not [purpose for _, purpose, *_ in journal.totals() if purpose != "probe"]


def test_a_token_budget_ends_it(folder: Path, capsys: pytest.CaptureFixture[str], loopback: StartLoopback) -> None:
    assert main([*TRACE, *at(loopback()), "--samples", "1", "--concurrency", "1", "--token-budget", "300"]) == 0
    assert "unfinished, best so far: " in capsys.readouterr().err
    assert main([*TRACE, *at(loopback()), "--samples", "1", "--concurrency", "1"]) == 0
    assert "6 queries, 6 rounds, 6 calls (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--teacher", "labels", "--server", "http://localhost:1/v1"), "--teacher labels asks no model"),
        (("--form", "order", "--simulate", "qrels.trec"), "--form and --tokenizer are for --teacher labels"),
        (("--simulate", "qrels.trec", "--noise", "weka"), "there is no noise 'weka'; did you mean weak?"),
        (("--simulate", "qrels.trec", "--reasoning", "auto"), "--reasoning auto leaves some sets without a thought"),
        (("--sets", "unjudged.jsonl", "--teacher", "labels"), "no set has grades that labels could speak of"),
        (("--sets", "broken.jsonl", "--simulate", "qrels.trec"), "broken.jsonl:2: no set_id"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    (first, *_) = Path("sets.jsonl").read_text().splitlines(keepends=True)
    Path("broken.jsonl").write_text(first + '{"query": 1}\n')
    Path("unjudged.jsonl").write_text(json.dumps(json.loads(first) | {"grades": None}))
    assert main([*TRACE, *options]) == 2
    told = capsys.readouterr().err
    assert told.startswith("rank-k distill trace: ")
    assert said in told
    assert not Path("traces.sqlite").exists()
