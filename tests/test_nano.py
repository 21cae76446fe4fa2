"""The student that comes with the package: what it was made of, that it is found by its name, and what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rank_k import Reranker
from rank_k.models.student import SHIPPED, find_student
from rank_k.prompt import read_template
from tests.embedded import USER_CACHE, needs_weights
from tests.test_embedded import PASSAGES

ADAPTER = SHIPPED["rank-k-nano"]
CARD = ADAPTER.with_suffix(".md")
MOST_BYTES = 40_000_000

ALLOWED = {"CC BY 4.0", "CC BY-SA 3.0", "CC BY-SA 4.0", "CC BY-SA", "CC BY-SA 3.0 and 4.0", "Apache-2.0", "MIT"}
"""Licences under which a model trained on texts may be given away."""

KEPT_OUT = ("wikiqa", "parsinlu", "birco", "marco", "trec-dl", "noveleval", "cranfield", "vaswani", "xquad")
"""Collections whose licences do not allow that, or that are there to measure on."""


def sources() -> dict[str, str]:
    """Source -> licence, as the card says."""
    rows = re.findall(r"^\| ([\w-]+) \| [\d,]+ \| (.+) \|$", CARD.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def test_it_was_made_of_what_may_be_given_away() -> None:
    found = sources()
    assert len(found) == 6
    for source, licence in found.items():
        assert not any(name in source for name in KEPT_OUT), source
        parts = {part.strip() for part in re.split("[;,]", re.sub(r"\([^)]*\)", "", licence))}
        assert parts - {"", "StackExchange"} <= ALLOWED, licence
    assert re.search(r"sha256 of the data: `[0-9a-f]{64}`", CARD.read_text(encoding="utf-8"))


def test_it_is_small_and_asked_as_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ADAPTER.stat().st_size <= MOST_BYTES
    if USER_CACHE is None:
        pytest.skip("the embedded weights are not here: rank-k fetch")
    monkeypatch.setenv("RANK_K_CACHE", str(USER_CACHE))
    found = find_student("rank-k-nano")
    assert found is not None
    assert (found.name, found.adapter, found.verdicts) == ("rank-k-nano", ADAPTER, ("no", "partly", "yes"))
    assert found.template.messages("q", ["a", "b"]) == read_template("compact").messages("q", ["a", "b"])


@needs_weights
@pytest.mark.slow
def test_its_order_follows_from_its_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK_K_CACHE", str(USER_CACHE))
    with Reranker("rank-k-nano", by="comparison") as reranker:
        hits = reranker.rank("why is the sky blue", PASSAGES)
    [trace] = hits.traces
    said = dict(re.findall(r"^\[(\d+)\] (no|partly|yes)$", trace, re.MULTILINE))
    assert len(said) == len(PASSAGES), trace
    levels = [("no", "partly", "yes").index(said[str(hit.index + 1)]) for hit in hits]
    assert levels == sorted(levels, reverse=True)
    assert hits.repairs == {}


@needs_weights
@pytest.mark.slow
def test_it_knows_what_is_likely_as_its_weights_do_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK_K_CACHE", str(USER_CACHE))
    with Reranker("rank-k-nano") as reranker, Reranker(by="likelihood") as plain:
        assert reranker.by == "both"
        hits = reranker.rank("why is the sky blue", PASSAGES)
        told = {hit.index: hit.likelihood for hit in plain.rank("why is the sky blue", PASSAGES)}
    assert {hit.index: hit.likelihood for hit in hits} == told
    assert "yes" in hits.traces[0] or "no" in hits.traces[0]
