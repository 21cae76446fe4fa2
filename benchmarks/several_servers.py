"""What several servers are worth: calls per second with four of them, compared with four times those of one.

    python -m benchmarks.several_servers

Each server answers 16 requests at a time in 0.2 s + 2 ms per token, so that latency and not the server's processor
limits the throughput. 160 queries x 100 passages, strategy blocks. The exit status is 1 if four servers reach less than
0.95 of four times the throughput of one.
"""

from __future__ import annotations

import sys

from benchmarks.overhead import Cost, measure

SERVERS = 4
CONCURRENCY_PER_SERVER = 16
QUERIES_PER_SERVER = 40
LIMIT = 0.95


def calls_per_second(cost: Cost) -> float:
    """Return the throughput between the start of the first call and the end of the last one."""
    return cost.calls / cost.first_to_last


def main() -> int:
    print("servers  queries  calls  first to last  calls/s  CPU/call  ratio")
    one_server_rate = 0.0
    ratio = 0.0
    for count in (1, SERVERS):
        cost = measure(
            CONCURRENCY_PER_SERVER * count,
            0.05,
            QUERIES_PER_SERVER * count,
            *("--strategy", "blocks"),
            server_count=count,
        )
        rate = calls_per_second(cost)
        one_server_rate = one_server_rate or rate
        ratio = rate / (count * one_server_rate)
        print(
            f"{count:>7}  {QUERIES_PER_SERVER * count:>7}  {cost.calls:>5}  {cost.first_to_last:>11.2f} s"
            f"  {rate:>7.2f}  {cost.cpu_ms:>5.2f} ms  {ratio:.3f}",
            flush=True,
        )
    return 0 if ratio >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
