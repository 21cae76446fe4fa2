"""What `rank-k distill train` prints while it trains."""

from __future__ import annotations

from typing import Any

import pytest

from rank_k.cli.distill.train import ProgressPrinter


def printed_lines(
    capsys: pytest.CaptureFixture[str], records: list[dict[str, Any]], time_limit: float | None = None
) -> list[str]:
    print_record = ProgressPrinter(time_limit)
    for record in records:
        print_record(record)
    return capsys.readouterr().err.splitlines()


def step(number: int, seconds: float) -> dict[str, Any]:
    return {"step": number, "seconds": seconds, "loss": 2.5, "learning_rate": 1e-3, "grad_norm": 1.0}


def test_progress_has_loss_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    records: list[dict[str, Any]] = [{"step": 0, "seconds": 10.0, "steps": 80}, step(1, 29.0), step(2, 48.0)]
    assert printed_lines(capsys, records) == [
        "training: 80 steps",
        "step 1/80, loss 2.5000, 19.0 s/step, 25 min 01 s left",
        "step 2/80, loss 2.5000, 19.0 s/step, 24 min 42 s left",
    ]


def test_progress_skips_fast_steps_but_not_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"step": 0, "seconds": 0.0, "steps": 1000}, *(step(n, n / 10) for n in range(1, 1001))]
    lines = printed_lines(capsys, records)
    assert len(lines) == 1 + 1 + 20
    assert lines[1].startswith("step 1/1,000, ")
    assert lines[-1] == "step 1,000/1,000, loss 2.5000, 0.1 s/step, 0 s left"


def test_progress_of_a_resumed_run_counts_its_own_steps(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed_lines(capsys, [{"step": 40, "seconds": 500.0, "steps": 80}, step(41, 510.0)])
    assert lines == ["training: 40 steps", "step 41/80, loss 2.5000, 10.0 s/step, 6 min 30 s left"]


def test_progress_respects_the_time_limit(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed_lines(capsys, [{"step": 0, "seconds": 0.0, "steps": 80}, step(1, 20.0)], time_limit=100)
    assert lines[-1].endswith("20.0 s/step, 1 min 20 s left")


def test_progress_announces_float32_and_held_out_measures(capsys: pytest.CaptureFixture[str]) -> None:
    records: list[dict[str, Any]] = [
        {"bf16": False, "bf16_requested": True},
        {"step": 5, "seconds": 9.0, "heldout": {"auc": 0.5, "rows": 4}},
    ]
    assert printed_lines(capsys, records) == [
        "training in float32 instead of bfloat16, which the recipe requests but is slow on this machine",
        "step 5, held-out rows: auc 0.500",
    ]
