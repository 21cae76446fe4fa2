"""`make bench`: the figures of the documentation, one script after another.

    python -m benchmarks.run [NAME ...]

Each script can be run alone; what takes more than a few minutes says so and is left to be run by name.
`student_data` and `student` want arguments and are run alone only.
"""

from __future__ import annotations

import subprocess
import sys
import time

QUICK: dict[str, list[str]] = {
    "overhead": [],
    "serving": [],
    "http_clients": [],
    "token_estimate": [],
    "corpus_index": [],
    "auto_thinking": [],
}
LONG: dict[str, list[str]] = {
    "strategies": ["--seeds", "200"],
    "rounds": [],
    "calibrate_noise": [],
    "embedded": [],
    "embedded_answers": [],
}


def main() -> None:
    names = sys.argv[1:] or list(QUICK)
    unknown = [name for name in names if name not in QUICK | LONG]
    if unknown:
        raise SystemExit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(QUICK | LONG)}")
    for name in names:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *(QUICK | LONG)[name]], check=True)
        print(f"== {name}: {time.monotonic() - started:.0f} s\n", flush=True)
    if not sys.argv[1:]:
        print(f"left out, as they take long: {', '.join(LONG)}")


if __name__ == "__main__":
    main()
