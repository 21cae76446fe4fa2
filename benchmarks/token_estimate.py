"""How far `estimate_tokens` is from a real tokenizer, by language, and whether `max_token_bound` bounds it.

By default the tokenizer is that of the embedded weights, whose 49,152 entries were learnt from English and code:
for other languages it says what the worst vocabulary does. A multilingual one is measured with --tokenizer (a
tokenizer.json) or --server (whatever it serves, by its /tokenize).

    python -m benchmarks.token_estimate --data ../shared/data
    python -m benchmarks.token_estimate --tokenizer qwen/tokenizer.json

Each row: characters per token, and estimated / real tokens over all passages together, of the passage at the 5th
percentile (the risk: more real tokens than estimated) and at the 95th.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from statistics import quantiles
from typing import Protocol

from rank_k.data.passages import read_passages
from rank_k.data.token_estimate import estimate_tokens, max_token_bound
from rank_k.models.embedded import EmbeddedModel
from rank_k.models.http import HttpModel
from rank_k.optional_deps import load
from rank_k.window.sanitize import sanitize

COLLECTIONS = {
    "en": "trec-dl19",
    "en, science": "birco-doris-mae-dev",
    "fr": "train/piaf-fr",
    "it": "train/squad-it",
    "ru": "xquad-en-ru",
    "ar": "train/arcd-ar",
    "fa": "parsinlu-fa",
    "th": "train/iapp-th",
    "zh": "drcd-zh",
    "ja": "train/jaquad-ja",
}


class Counter(Protocol):
    async def prepare(self) -> None: ...
    async def count_tokens(self, text: str) -> int | None: ...
    async def close(self) -> None: ...


class TokenizerFile:
    """The tokenizer in a tokenizer.json."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = load("tokenizers").Tokenizer.from_file(str(path))

    async def prepare(self) -> None:
        """Nothing to find out."""

    async def count_tokens(self, text: str) -> int | None:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    async def close(self) -> None:
        """Nothing to free."""


async def table_row(counter: Counter, texts: Iterable[str]) -> str:
    """One line of the table. Raises `AssertionError` for a text with more tokens than `max_token_bound` allows."""
    characters = 0
    pairs: list[tuple[int, int]] = []
    for text in texts:
        real = await counter.count_tokens(text)
        assert real is not None, "this model does not tell how many tokens a text has"
        assert real <= max_token_bound(text), f"{real} tokens, more than max_token_bound allows: {text[:80]!r}"
        characters += len(text)
        pairs.append((estimate_tokens(text), max(real, 1)))
    ratios = quantiles([estimated / real for estimated, real in pairs], n=20)
    estimated, real = (sum(numbers) for numbers in zip(*pairs, strict=True))
    return f"{len(pairs):8d}{characters / real:13.2f}{estimated / real:11.2f}{ratios[0]:8.2f}{ratios[-1]:8.2f}"


async def table(counter: Counter, data: Path, size: int) -> None:
    await counter.prepare()
    try:
        print(f"{'collection':28}passages  chars/token  est./real      5%     95%")
        for language, name in COLLECTIONS.items():
            passages = read_passages(data / name / "corpus.jsonl.gz")
            texts = islice(filter(None, (sanitize(passage.text) for passage in passages)), size)
            print(f"{name + ' (' + language + ')':28}{await table_row(counter, texts)}", flush=True)
    finally:
        await counter.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of BEIR collections")
    parser.add_argument("--size", type=int, default=200, help="passages of each")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json")
    parser.add_argument("--server", metavar="URL")
    parser.add_argument("--model")
    args = parser.parse_args()
    counter: Counter
    if args.tokenizer:
        counter = TokenizerFile(args.tokenizer)
    elif args.server:
        counter = HttpModel(args.server, args.model)
    else:
        counter = EmbeddedModel(threads=1)
    asyncio.run(table(counter, args.data, args.size))


if __name__ == "__main__":
    main()
