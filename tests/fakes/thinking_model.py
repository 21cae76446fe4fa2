"""The former name of the fake reasoning model, for tests that still import it from here."""

from __future__ import annotations

from tests.fakes.reasoning_model import ReasoningModel as ThinkingAloud
from tests.fakes.reasoning_model import main

__all__ = ["ThinkingAloud"]

if __name__ == "__main__":
    main()
