"""Tables of TOML become dataclasses, and a mistake is named by its key's path."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from rank_k.data.toml_tables import TableReader, read_toml
from rank_k.errors import FormatError, InputError
from rank_k.option_values import number
from rank_k.options import option


@dataclass(frozen=True)
class Fruit:
    name: str
    weight: float = option(1.0, "weight in kilograms", number(exclusive=True))
    file: Path | None = None


@dataclass(frozen=True)
class Basket:
    title: str
    fruits: tuple[Fruit, ...]
    best: Fruit | None = None
    kind: Literal["round", "square"] = "round"
    labels: str | list[str] = "none"
    limit: int | None = None
    full: bool = False
    grids: Sequence[Mapping[str, Sequence[Any]]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


READER = TableReader(Path("basket.toml"), Path("/data"), {"fruits": "fruit"})


def read(text: str) -> Basket:
    return READER.read(Basket, tomllib.loads(text))


def test_read_converts_nested_tables() -> None:
    basket = read(
        """
        title = "mine"
        labels = ["a", "b"]
        kind = "square"
        limit = 3
        full = true
        [best]
        name = "pear"
        [[fruit]]
        name = "apple"
        weight = 2
        file = "sub/apple.txt"
        [[fruit]]
        name = "plum"
        file = "/elsewhere"
        [[grids]]
        depth = [1, "x"]
        [extra]
        any = { thing = 1 }
        """
    )
    apple, plum = Fruit("apple", 2.0, Path("/data/sub/apple.txt")), Fruit("plum", 1.0, Path("/elsewhere"))
    assert basket == Basket(
        "mine",
        (apple, plum),
        Fruit("pear"),
        "square",
        ["a", "b"],
        3,
        True,
        [{"depth": [1, "x"]}],
        {"any": {"thing": 1}},
    )
    assert isinstance(basket.fruits[0].weight, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel = 'x'", r"^basket\.toml: unknown key titel \(did you mean title\?\); expected one of title, fruit, "),
        ("title = 'x'", "fruit is missing; expected a list"),
        ("title = 'x'\n[[fruit]]\nweight = 1", r"fruit\[0\]\.name is missing; expected text"),
        ("title = 'x'\nfruit = []\n[best]\nnam = 'y'", r"unknown key best\.nam \(did you mean name\?\)"),
        ("title = 1\nfruit = []", "title = 1; expected text"),
        ("title = 'x'\nfruit = 1", "fruit = 1; expected a list"),
        ("title = 'x'\nfruit = [1]", r"fruit\[0\] = 1; expected a table"),
        ("title = 'x'\n[[fruit]]\nname = 'a'\nweight = '2'", r"fruit\[0\]\.weight = '2'; expected a number"),
        ("title = 'x'\n[[fruit]]\nname = 'a'\nweight = -2", r"fruit\[0\]\.weight = -2; expected a number above 0"),
        ("title = 'x'\nfruit = []\nfull = 1", "full = 1; expected true or false"),
        ("title = 'x'\nfruit = []\nlimit = true", "limit = True; expected a whole number"),
        ("title = 'x'\nfruit = []\nlimit = 1.5", "limit = 1.5; expected a whole number"),
        ("title = 'x'\nfruit = []\nkind = 'oval'", "kind = 'oval'; expected one of 'round', 'square'"),
        ("title = 'x'\nfruit = []\nlabels = [1]", r"labels = \[1\]; expected text or a list"),
        ("title = 'x'\nfruit = []\nbest = 'pear'", "best = 'pear'; expected a table"),
        ("title = 'x'\nfruit = []\n[[grids]]\ndepth = 1", r"grids\[0\]\.depth = 1; expected a list"),
    ],
)
def test_read_names_the_key_of_a_mistake(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(text)


def test_read_toml_reports_unreadable_files(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    with pytest.raises(InputError, match="No such file"):
        read_toml(file)
    file.write_bytes(b"title = '\xff'")
    with pytest.raises(InputError, match="not UTF-8"):
        read_toml(file)
    file.write_text("title = ")
    with pytest.raises(FormatError, match="expected TOML"):
        read_toml(file)
    file.write_text("title = 'x'")
    assert read_toml(file) == {"title": "x"}
