"""What a fake model server records of each request."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class RecordedRequest:
    """One request. Times are of `time.monotonic`, which all processes of a machine share."""

    path: str
    start: float
    end: float | None = None
    status: int = 0
    window: str = ""
    n_messages: int = 0
    stream: bool = False
    authorization: str = ""
    fault: str = ""
    cancelled: bool = False  # the client went away before the end
    body: Any = None


def peak_concurrency(spans: Iterable[tuple[float, float]]) -> int:
    """How many of the (start, end) overlapped at most; one may start the moment another ends."""
    span_list = list(spans)
    events = sorted([(start, 1) for start, _ in span_list] + [(end, -1) for _, end in span_list])
    return max(itertools.accumulate(step for _, step in events), default=0)
