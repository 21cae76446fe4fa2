"""The student that comes with the package: what it was made of, that it is found by its name, and what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.student_data import COLLECTIONS, EVALUATED

from rank_k import Reranker
from rank_k.distill.candidate_sets import license_of
from rank_k.models.student import SHIPPED_STUDENTS, find_student
from rank_k.window.prompt import read_template
from tests.models.test_embedded import PASSAGES
from tests.paths import SHARED
from tests.support.embedded import USER_CACHE, needs_weights

pytestmark = pytest.mark.embedded

ADAPTER = SHIPPED_STUDENTS["rank-k-nano"]
CARD = ADAPTER.with_suffix(".md")
MOST_BYTES = 40_000_000

ALLOWED = re.compile(r"CC BY(-SA)?( [34]\.0)?|Apache-2\.0|MIT|GFDL")
"""Licenses under which a model trained on texts may be given away. Wikipedia's may be had under CC BY-SA or GFDL."""

FORBIDDEN = re.compile(r"NC|non-?commercial|research|none", re.IGNORECASE)

TRAINING = ("medquad-train", "drcd-zh")
"""Collections that a model which is given away may be trained on, beside those in the folder `train`."""


def sources() -> dict[str, str]:
    """Source -> license, as the card says."""
    rows = re.findall(r"^\| ([\w-]+) \| [\d,]+ \| (.+) \|$", CARD.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def test_it_was_made_of_what_may_be_given_away() -> None:
    found = sources()
    assert len(found) == 6
    for source, license in found.items():
        assert ALLOWED.search(license), (source, license)
        assert not FORBIDDEN.search(license), (source, license)
    assert re.search(r"sha256 of the data: `[0-9a-f]{64}`", CARD.read_text(encoding="utf-8"))


def test_its_card_says_what_the_collections_say_of_themselves() -> None:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared beside the checkout")
    assert sources() == {collection.name: collection.license(SHARED) for collection in COLLECTIONS}
    for part in (part for collection in COLLECTIONS for part in collection.parts):
        assert part.startswith("train/") or part in TRAINING, part
        license = license_of(SHARED / part)
        assert license is not None
        assert all(ALLOWED.search(each) for each in license.split(";")), (part, license)
    assert not {part for collection in COLLECTIONS for part in collection.parts} & set(EVALUATED)


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
    with Reranker("rank-k-nano", method="listwise") as reranker:
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
    with Reranker("rank-k-nano") as reranker, Reranker(method="likelihood") as plain:
        assert reranker.method == "combined"
        hits = reranker.rank("why is the sky blue", PASSAGES)
        told = {hit.index: hit.likelihood for hit in plain.rank("why is the sky blue", PASSAGES)}
    assert {hit.index: hit.likelihood for hit in hits} == told
    assert "yes" in hits.traces[0] or "no" in hits.traces[0]
