"""The student that comes with the package: what it was made of, that it is found by its name, and what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.student_data import COLLECTIONS, EVALUATED_COLLECTIONS

from rank_k import Reranker
from rank_k.distill.candidate_sets import read_license
from rank_k.models.student import SHIPPED_STUDENTS, find_student
from rank_k.window.prompt import read_template, template_of_student
from tests.models.test_embedded import PASSAGES
from tests.paths import SHARED
from tests.support.embedded import USER_CACHE, needs_weights

pytestmark = pytest.mark.embedded

ADAPTER = SHIPPED_STUDENTS["rank-k-nano"]
CARD = ADAPTER.with_suffix(".md")
MAX_BYTES = 40_000_000

ALLOWED_LICENSES = re.compile(r"CC BY(-SA)?( [34]\.0)?|Apache-2\.0|MIT|GFDL")
"""Licenses under which a model trained on texts may be given away. Wikipedia's may be had under CC BY-SA or GFDL."""

FORBIDDEN_LICENSES = re.compile(r"NC|non-?commercial|research|none", re.IGNORECASE)

EXTRA_TRAINING_PARTS = ("medquad-train", "drcd-zh")
"""Collections that a model which is given away may be trained on, beside those in the folder `train`."""


def card_licenses() -> dict[str, str]:
    """Source -> license, as the card says."""
    rows = re.findall(r"^\| ([\w-]+) \| [\d,]+ \| (.+) \|$", CARD.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def test_card_lists_only_redistributable_sources() -> None:
    licenses = card_licenses()
    assert len(licenses) == 6
    for source, license in licenses.items():
        assert ALLOWED_LICENSES.search(license), (source, license)
        assert not FORBIDDEN_LICENSES.search(license), (source, license)
    assert re.search(r"sha256 of the data: `[0-9a-f]{64}`", CARD.read_text(encoding="utf-8"))


def test_card_licenses_match_the_collections() -> None:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared beside the checkout")
    assert card_licenses() == {collection.name: collection.license(SHARED) for collection in COLLECTIONS}
    for part in (part for collection in COLLECTIONS for part in collection.parts):
        assert part.startswith("train/") or part in EXTRA_TRAINING_PARTS, part
        license = read_license(SHARED / part)
        assert license is not None
        assert all(ALLOWED_LICENSES.search(each) for each in license.split(";")), (part, license)
    assert not {part for collection in COLLECTIONS for part in collection.parts} & set(EVALUATED_COLLECTIONS)


def test_adapter_is_small_and_keeps_its_training_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ADAPTER.stat().st_size <= MAX_BYTES
    if USER_CACHE is None:
        pytest.skip("the embedded weights are not here: rank-k fetch")
    monkeypatch.setenv("RANK_K_CACHE", str(USER_CACHE))
    student = find_student("rank-k-nano")
    assert student is not None
    assert (student.name, student.adapter, student.verdicts) == ("rank-k-nano", ADAPTER, ("no", "partly", "yes"))
    assert template_of_student(student.name, student.prompt).messages("q", ["a", "b"]) == read_template(
        "compact"
    ).messages("q", ["a", "b"])


@needs_weights
@pytest.mark.slow
def test_rank_orders_by_relevance_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK_K_CACHE", str(USER_CACHE))
    with Reranker("rank-k-nano", method="listwise") as reranker:
        hits = reranker.rank("why is the sky blue", PASSAGES)
    [trace] = hits.traces
    labels = dict(re.findall(r"^\[(\d+)\] (no|partly|yes)$", trace, re.MULTILINE))
    assert len(labels) == len(PASSAGES), trace
    label_ranks = [("no", "partly", "yes").index(labels[str(hit.index + 1)]) for hit in hits]
    assert label_ranks == sorted(label_ranks, reverse=True)
    assert hits.repairs == {}


@needs_weights
@pytest.mark.slow
def test_rank_likelihoods_equal_those_of_the_base_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK_K_CACHE", str(USER_CACHE))
    with Reranker("rank-k-nano") as reranker, Reranker(method="likelihood") as likelihood_reranker:
        assert reranker.method == "combined"
        hits = reranker.rank("why is the sky blue", PASSAGES)
        likelihoods = {hit.index: hit.likelihood for hit in likelihood_reranker.rank("why is the sky blue", PASSAGES)}
    assert {hit.index: hit.likelihood for hit in hits} == likelihoods
    assert "yes" in hits.traces[0] or "no" in hits.traces[0]
