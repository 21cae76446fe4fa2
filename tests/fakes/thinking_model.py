"""A model that thinks aloud, for pages to show: it counts the words that a passage shares with the query, and says so.

    python -m tests.fakes.thinking_model [--port 8788] [--journal FILE]

serves it until interrupted, for people to look at.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from itertools import groupby
from pathlib import Path

from rank_k import Reranker
from rank_k.models.mock import ScriptedModel
from rank_k.types import OnChunk, Request, Response, StreamChunk, Usage
from rank_k.window.prompt import passages_in

_QUERY = re.compile(r"^Query: (.*)$", re.MULTILINE)


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w{3,}", text.lower()) if word not in ("the", "and", "for", "how")}


def thought(request: Request) -> tuple[str, str]:
    """Trace and answer."""
    content = request.messages[-1].content
    asked = _QUERY.findall(content)[0]
    passages = passages_in(content)
    shared = {n: _words(text) & _words(asked) for n, text in enumerate(passages, 1)}
    best = sorted(shared, key=lambda n: (-len(shared[n]), n))
    lines = [f"The query is “{asked}”. Let me look at what each passage says of that."]
    for n in best:
        said = ", ".join(sorted(shared[n]))
        lines.append(f"[{n}] speaks of {said}." if said else f"[{n}] has nothing to do with it.")
    lines.append(f"So [{best[0]}] comes before [{best[1]}]. Wait: is [{best[1]}] not as good? Hmm, I don't think so.")
    tiers = [list(tier) for _, tier in groupby(best, key=lambda n: len(shared[n]))]
    told = [tier[:3] for tier in tiers]  # of a crowd on one level, three are said to be
    order = " > ".join(
        " > ".join([" = ".join(f"[{n}]" for n in level), *(f"[{n}]" for n in tier[3:])])
        for level, tier in zip(told, tiers, strict=True)
    )
    return "\n".join(lines), order


class ThinkingAloud(ScriptedModel):
    """Says a word every `pause` seconds."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__([])
        self._pause = pause
        self.left = 0

    async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
        self.history.append(request)
        trace, answer = thought(request)
        started = time.monotonic()
        try:
            for kind, text in (("reasoning", trace), ("text", answer)):
                for piece in re.findall(r"\s*\S+", text):
                    await asyncio.sleep(self._pause)
                    if on_text is not None:
                        on_text(StreamChunk(piece, "") if kind == "reasoning" else StreamChunk("", piece))
        except asyncio.CancelledError:
            self.left += 1
            raise
        usage = Usage(len(request.messages[-1].content) // 4, len(trace + answer) // 4, len(trace) // 4)
        return Response(answer, trace, "stop", usage, time.monotonic() - started)


def main() -> None:
    from rank_k.server.config import AccessConfig
    from rank_k.server.run import serve
    from rank_k.server.service import RerankService

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8788)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--pause", type=float, default=0.03)
    args = parser.parse_args()
    with Reranker(ThinkingAloud(args.pause), journal=args.journal) as reranker:
        serve(RerankService(reranker), AccessConfig(), args.port, print)


if __name__ == "__main__":
    main()
