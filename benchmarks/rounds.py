"""What fewer rounds are worth: wall time of `blocks` beside that of the sliding window, measured from end to end.

    python -m benchmarks.rounds

40 queries x 100 passages against a server on loopback that takes 0.2 s + 2 ms per token. With 64 slots the sliding
window keeps 40 of them busy, one a query; `blocks` asks five windows of a query at once, then two. The bound is what a
client without any work of its own would need (`benchmarks.ideal`). The exit status is 1 if `blocks` takes more than .65
of the sliding window's time at 64 slots, or more than .5 at 200.
"""

from __future__ import annotations

import sys

from benchmarks.overhead import measure

LIMITS = {64: 0.65, 200: 0.5}
"""Slots -> the part of the sliding window's time that `blocks` may take."""


def main() -> int:
    kept = True
    print("slots  strategy  calls  first to last  bound    ratio to sliding (bound)  limit")
    for slots, limit in LIMITS.items():
        sliding, blocks = (measure(slots, 0.05, 40, "--strategy", strategy) for strategy in ("sliding", "blocks"))
        ratio, bound = blocks.first_to_last / sliding.first_to_last, blocks.bound / sliding.bound
        kept = kept and ratio <= limit and sliding.perfect and blocks.perfect
        for name, cost, told in (("sliding", sliding, ""), ("blocks", blocks, f"{ratio:.3f} ({bound:.3f})")):
            of = f"{limit:5}" if told else ""
            print(
                f"{slots:>5}  {name:8}  {cost.calls:>5}  {cost.first_to_last:>10.2f} s  {cost.bound:>5.2f} s"
                f"  {told:>24}  {of}".rstrip(),
                flush=True,
            )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
