"""Two rankings of a query side by side, and which one somebody would rather have: what is asked of whom, and what has
been said.

Judges must not know which system made which ranking. So `DisplayedPair`, which is what judges see, holds nothing of the
systems: no name, no score, no document id. Sides are random, but derived from the judge, the query, the systems and
both full rankings: they stay the same after a reload, after a restart and in whatever order the runs are named, and
they cannot be computed without the runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import combinations
from typing import Any

from rank_k.evaluation.preferences import UNDONE, Judgment, current_judgments
from rank_k.types import PassageSource, Query, Run

MAX_PASSAGE_CHARACTERS = 20_000
"""Of a passage, as it is shown."""


@dataclass(frozen=True, slots=True)
class PairwiseItem:
    """What is asked: two rankings, each cut to what is shown, and who made them. `digest`: stands for all of both."""

    query: Query
    translation: str | None
    systems: tuple[str, str]
    rankings: tuple[tuple[str, ...], tuple[str, ...]]
    digest: str

    def sides(self, judge: str) -> tuple[int, int]:
        """Which of the two this judge sees on the left, and which on the right."""
        return (1, 0) if _digest("sides", self.digest, judge, self.query.query_id, *self.systems)[0] % 2 else (0, 1)

    def displayed(self, judge: str) -> tuple[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
        """Return the systems and the document ids, each left and right, as this judge sees them."""
        left, right = self.sides(judge)
        return (self.systems[left], self.systems[right]), (self.rankings[left], self.rankings[right])

    def token(self, judge: str) -> str:
        """Return a name of what this judge sees, which reveals nothing. Other runs, or another depth, have another."""
        left, right = self.displayed(judge)[1]
        parts = (self.query.query_id, *self.systems, "left", *left, "right", *right)
        return _digest("shown", self.digest, judge, *parts).hex()[:32]


@dataclass(frozen=True, slots=True)
class PairwiseItems:
    """Everything that can be asked. `identical`: how often two systems show the same, so that there is nothing to ask;
    `lacking`: how often one of them has nothing for the query."""

    items: tuple[PairwiseItem, ...]
    depth: int
    identical: int = 0
    missing: int = 0


def pairwise_items(
    queries: Mapping[str, Query], translations: Mapping[str, str], runs: Mapping[str, Run], depth: int = 10
) -> PairwiseItems:
    """Every query with every two of `runs`, by their names: the first `depth` passages of each.

    In an order drawn by chance, the same for all judges: who stops early has then judged some of all kinds, and what
    others have judged too, which agreement needs.
    """
    items, identical, lacking = [], 0, 0
    for query in queries.values():
        for systems in combinations(sorted(runs), 2):
            full_rankings = [[candidate.doc_id for candidate in runs[name].get(query.query_id, ())] for name in systems]
            first, second = (tuple(doc_ids[:depth]) for doc_ids in full_rankings)
            if not (first and second):
                lacking += 1
            elif first == second:
                identical += 1
            else:
                digest = _digest(*full_rankings[0], "", *full_rankings[1]).hex()
                translation = translations.get(query.query_id)
                items.append(PairwiseItem(query, translation, (systems[0], systems[1]), (first, second), digest))
    items.sort(key=lambda item: _digest("order", item.query.query_id, *item.systems))
    return PairwiseItems(tuple(items), depth, identical, lacking)


def displayed_pair(item: PairwiseItem, judge: str, store: PassageSource) -> dict[str, Any]:
    """Return what a judge sees of an item, as JSON values. Reading the passages may take a while.

    A passage that is on both sides has the same number there. `truncated`: only its beginning is shown.

    Raises:
        InputError: If `store` lacks a passage.
    """
    passages: dict[str, Any] = {}
    left, right = item.displayed(judge)[1]
    for number, doc_id in enumerate(dict.fromkeys(left + right), 1):
        text = store.get(doc_id, item.query.query_id).text
        truncated = len(text) > MAX_PASSAGE_CHARACTERS
        passages[doc_id] = {"number": number, "text": text[:MAX_PASSAGE_CHARACTERS], "truncated": truncated}
    return {
        "token": item.token(judge),
        "query": item.query.text,
        "translation": item.translation,
        "left": [passages[doc_id] for doc_id in left],
        "right": [passages[doc_id] for doc_id in right],
    }


class JudgingSession:
    """One judge's way through the questions. `rows` are what was said before, by anybody, about anything: only this
    judge's count, and only those about what would be shown again."""

    def __init__(self, name: str, items: PairwiseItems, rows: Iterable[Judgment]) -> None:
        self.name = name
        self._items = items
        self._judgments: dict[str, Judgment] = {}
        rows = [row for row in rows if row.judge == name]
        for row in current_judgments(rows).judgments:
            item = self._by_item.get((row.query_id, row.pair))
            judged = (row.left, row.right), (row.left_doc_ids, row.right_doc_ids)
            if item is not None and judged == item.displayed(name):
                self._judgments[item.token(name)] = row
        self._last_time = max((row.time for row in rows), default=datetime.min.replace(tzinfo=UTC))

    @property
    def done(self) -> int:
        return len(self._judgments)

    @property
    def total(self) -> int:
        return len(self._items.items)

    def next_item(self) -> PairwiseItem | None:
        """The first that has not been judged; None at the end."""
        return next((item for token, item in self._by_token.items() if token not in self._judgments), None)

    def find_item(self, token: str) -> PairwiseItem | None:
        return self._by_token.get(token)

    def choice_for(self, token: str) -> str | None:
        row = self._judgments.get(token)
        return None if row is None else row.choice

    def last_judged(self) -> PairwiseItem | None:
        """What was judged last, and has not been taken back."""
        row = max(self._judgments.values(), key=lambda row: row.time, default=None)
        return None if row is None else self._by_item[row.query_id, row.pair]

    def judgment(self, item: PairwiseItem, choice: str, seconds: float | None, now: datetime) -> Judgment:
        """The row that says so. Rows of a judge are told apart by time: each is later than the one before."""
        (left, right), (left_ids, right_ids) = item.displayed(self.name)
        return Judgment(
            judge=self.name,
            query_id=item.query.query_id,
            left=left,
            right=right,
            choice=choice,
            time=max(now, self._last_time + timedelta(microseconds=1)),
            seconds=seconds,
            depth=self._items.depth,
            blind=True,
            query=item.query.text,
            translation=item.translation,
            left_doc_ids=left_ids,
            right_doc_ids=right_ids,
        )

    def apply(self, row: Judgment) -> None:
        """A row of `judgment` counts from now on."""
        token = self._by_item[row.query_id, row.pair].token(self.name)
        self._last_time = row.time
        if row.choice == UNDONE:
            self._judgments.pop(token, None)
        else:
            self._judgments[token] = row

    @cached_property
    def _by_token(self) -> dict[str, PairwiseItem]:
        return {item.token(self.name): item for item in self._items.items}

    @cached_property
    def _by_item(self) -> dict[tuple[str, tuple[str, str]], PairwiseItem]:
        return {(item.query.query_id, item.systems): item for item in self._items.items}


def _digest(*parts: str) -> bytes:
    """Of texts, each told apart from the next."""
    joined = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).digest()


def system_names(paths: Sequence[str]) -> dict[str, str]:
    """Names of systems, by path: without folders, where that is enough to tell them apart."""
    base_names = [path.replace("\\", "/").rpartition("/")[2] for path in paths]
    return {path: name if base_names.count(name) == 1 else path for path, name in zip(paths, base_names, strict=True)}
