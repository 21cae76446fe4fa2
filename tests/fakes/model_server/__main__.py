"""`python -m tests.fakes.model_server`: serve until standard input is closed."""

from __future__ import annotations

from tests.fakes.model_server.running import main

if __name__ == "__main__":
    main()
