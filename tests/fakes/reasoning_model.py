"""A fake reasoning model for web pages: its trace lists the words that each passage shares with the query.

    python -m tests.fakes.reasoning_model [--port 8788] [--journal FILE]

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
from rank_k.window.prompt import extract_passages

_QUERY_LINE = re.compile(r"^Query: (.*)$", re.MULTILINE)


def _content_words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w{3,}", text.lower()) if word not in ("the", "and", "for", "how")}


def reason_and_answer(request: Request) -> tuple[str, str]:
    """Trace and answer."""
    content = request.messages[-1].content
    query = _QUERY_LINE.findall(content)[0]
    passages = extract_passages(content)
    words_by_passage = {n: _content_words(text) & _content_words(query) for n, text in enumerate(passages, 1)}
    ranking = sorted(words_by_passage, key=lambda n: (-len(words_by_passage[n]), n))
    lines = [f"The query is “{query}”. Let me look at what each passage says of that."]
    for n in ranking:
        shared_words = ", ".join(sorted(words_by_passage[n]))
        lines.append(f"[{n}] speaks of {shared_words}." if shared_words else f"[{n}] has nothing to do with it.")
    lines.append(
        f"So [{ranking[0]}] comes before [{ranking[1]}]. Wait: is [{ranking[1]}] not as good? Hmm, I don't think so."
    )
    tiers = [list(tier) for _, tier in groupby(ranking, key=lambda n: len(words_by_passage[n]))]
    tied_heads = [tier[:3] for tier in tiers]  # of a crowd on one level, three are said to be
    order = " > ".join(
        " > ".join([" = ".join(f"[{n}]" for n in heads), *(f"[{n}]" for n in tier[3:])])
        for heads, tier in zip(tied_heads, tiers, strict=True)
    )
    return "\n".join(lines), order


class ReasoningModel(ScriptedModel):
    """Streams a word every `delay` seconds."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__([])
        self._delay = delay
        self.left = 0

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        self.history.append(request)
        trace, answer = reason_and_answer(request)
        started = time.monotonic()
        try:
            for kind, text in (("reasoning", trace), ("text", answer)):
                for piece in re.findall(r"\s*\S+", text):
                    await asyncio.sleep(self._delay)
                    if on_chunk is not None:
                        on_chunk(StreamChunk(piece, "") if kind == "reasoning" else StreamChunk("", piece))
        except asyncio.CancelledError:
            self.left += 1
            raise
        usage = Usage(len(request.messages[-1].content) // 4, len(trace + answer) // 4, len(trace) // 4)
        return Response(answer, trace, "stop", usage, time.monotonic() - started)


def main() -> None:
    from rank_k.server.app import make_app
    from rank_k.server.run import serve
    from rank_k.server.service import RerankService

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8788)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--pause", type=float, default=0.03)
    args = parser.parse_args()
    with Reranker(ReasoningModel(args.delay), journal=args.journal) as reranker:
        service = RerankService(reranker)
        serve(service, make_app(service), "127.0.0.1", args.port, print)


if __name__ == "__main__":
    main()
