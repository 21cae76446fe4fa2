"""Dividing the queries of a run: every query belongs to one shard, whatever the order and the process."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import InputError
from rank_k.scale.shards import Shard, shard_number


@given(st.lists(st.text(max_size=12), unique=True, max_size=60), st.integers(1, 40))
def test_shards_partition_the_queries(query_ids: list[str], count: int) -> None:
    shards = [Shard(number, count) for number in range(1, count + 1)]
    for query_id in query_ids:
        assert [shard.number for shard in shards if shard.contains(query_id)] == [shard_number(query_id, count)]


def test_shards_are_of_similar_size() -> None:
    sizes = [sum(Shard(number, 16).contains(f"q{i}") for i in range(16_000)) for number in range(1, 17)]
    assert 850 < min(sizes) <= max(sizes) < 1150


def test_shard_number_does_not_depend_on_the_process() -> None:
    """Shards that were computed before an update of rank-k must fit those computed after it."""
    assert [shard_number(query_id, 1000) for query_id in ("156493", "1110199", "")] == [255, 215, 653]


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("1/1", {}, Shard(1, 1)),
        ("3/16", {}, Shard(3, 16)),
        ("slurm", {"ID": "0", "COUNT": "4", "MIN": "0"}, Shard(1, 4)),
        ("slurm", {"ID": "4", "COUNT": "4", "MIN": "1"}, Shard(4, 4)),
        ("slurm/16", {"ID": "7", "COUNT": "2", "MIN": "3"}, Shard(7, 16)),
    ],
)
def test_shard_parses_numbers_and_slurm_tasks(text: str, environment: dict[str, str], shard: Shard) -> None:
    assert Shard.parse(text, {f"SLURM_ARRAY_TASK_{name}": value for name, value in environment.items()}) == shard


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("0/4", {}),
        ("5/4", {}),
        ("-1/4", {}),
        ("1/0", {}),
        ("half", {}),
        ("1", {}),
        ("1/4/2", {}),
        ("slurm", {}),
        ("slurm", {"ID": "x", "COUNT": "4", "MIN": "0"}),
        ("slurm", {"ID": "7", "COUNT": "2", "MIN": "3"}),  # --array=3,7 without a fixed count
        ("slurm/4", {"ID": "7", "COUNT": "2", "MIN": "3"}),
        ("slurm/4", {"ID": "0", "COUNT": "4", "MIN": "0"}),
    ],
)
def test_shard_rejects_what_is_not_a_shard(text: str, environment: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"shard|Slurm"):
        Shard.parse(text, {f"SLURM_ARRAY_TASK_{name}": value for name, value in environment.items()})


def test_shard_path_sorts_by_number() -> None:
    paths = [str(Shard(number, 12).path(Path("out/reranked.trec"))) for number in (1, 2, 12)]
    assert paths == ["out/reranked.01of12.trec", "out/reranked.02of12.trec", "out/reranked.12of12.trec"]
