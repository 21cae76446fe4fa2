"""What fewer rounds are worth: wall time of `blocks` beside that of the sliding window, measured from end to end.

    python -m benchmarks.rounds

40 queries x 100 passages against a server on loopback that takes 0.2 s + 2 ms per token. At a concurrency of 64 the
sliding window keeps 40 calls in flight, one per query; `blocks` asks five windows of a query at once, then two. The
bound is what a client without any work of its own would need (`benchmarks.ideal`). The exit status is 1 if `blocks`
takes more than .65 of the sliding window's time at a concurrency of 64, or more than .5 at 200.
"""

from __future__ import annotations

import sys

from benchmarks.overhead import measure

LIMITS = {64: 0.65, 200: 0.5}
"""Concurrency -> the part of the sliding window's time that `blocks` may take."""


def main() -> int:
    is_within_limits = True
    print("concurrency  strategy  calls  first to last  bound    ratio to sliding (bound)  limit")
    for concurrency, limit in LIMITS.items():
        sliding, blocks = (measure(concurrency, 0.05, 40, "--strategy", strategy) for strategy in ("sliding", "blocks"))
        ratio, bound = blocks.first_to_last / sliding.first_to_last, blocks.bound / sliding.bound
        is_within_limits = is_within_limits and ratio <= limit and sliding.perfect and blocks.perfect
        for name, cost, ratio_text in (("sliding", sliding, ""), ("blocks", blocks, f"{ratio:.3f} ({bound:.3f})")):
            limit_text = f"{limit:5}" if ratio_text else ""
            print(
                f"{concurrency:>11}  {name:8}  {cost.calls:>5}  {cost.first_to_last:>10.2f} s  {cost.bound:>5.2f} s"
                f"  {ratio_text:>24}  {limit_text}".rstrip(),
                flush=True,
            )
    return 0 if is_within_limits else 1


if __name__ == "__main__":
    sys.exit(main())
