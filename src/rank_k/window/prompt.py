"""Prompt templates. A template turns a query and the passages of a window into the messages of a request.

This module does no I/O except for reading template files. The caller sanitizes all texts first
(`rank_k.window.sanitize`).
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rank_k.errors import InputError
from rank_k.types import Message

OFFICIAL_SHA256 = "075c6a7c2f8229976cb6154eabd39b7680bb5f3970171f1ba932d22b14f70541"
"""SHA-256 of the prompt string in the Rank-K authors' script. Rank-K-32B was trained with this prompt."""


_DEFAULT_PASSAGE = "[{i}] {text}"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A template for the messages about a window.

    Attributes:
        before: The text before the passages. Fields: {query} and {count} (or {num}).
        after: The text after the passages, with the same fields.
        passage: The text of one passage. Fields: {i} and {text} (or {rank} and {candidate}).
        between: The separator of passages.
        system: The system message. If it is empty, there is no system message.
        name: The template's name in messages to the user.
        sha256: The checksum of the template's text, stored in journals and reports.
    """

    before: str
    after: str
    passage: str = _DEFAULT_PASSAGE
    between: str = "\n"
    system: str = ""
    name: str = "rank-k"
    sha256: str = ""

    def messages(self, query: str, passages: Sequence[str]) -> tuple[Message, ...]:
        """Return the messages about `passages`, which are numbered 1, 2, ... in this order.

        `query` and `passages` must be sanitized (`rank_k.window.sanitize`).
        """
        passages_text = self.between.join(
            _fill_fields(self.passage, {"i": str(i), "rank": str(i), "text": text, "candidate": text})
            for i, text in enumerate(passages, 1)
        )
        values = {"query": query, "count": str(len(passages)), "num": str(len(passages))}
        content = _fill_fields(self.before, values) + passages_text + _fill_fields(self.after, values)
        user = Message("user", content)
        return (Message("system", self.system), user) if self.system else (user,)


_FIELD = re.compile(r"\{(\w+)\}")
_PASSAGE_LINE = re.compile(r"^.*\{i\}.*\{text\}.*$", re.MULTILINE)


def _fill_fields(template: str, values: dict[str, str]) -> str:
    """Return `template` with its fields replaced in one pass. Braces in the values are not treated as fields."""
    return _FIELD.sub(lambda m: values.get(m[1], m[0]), template)


_NUMBERED_LINE = re.compile(r"^\[(\d{1,6})\] (.+)$", re.MULTILINE)


def extract_passages(content: str) -> tuple[str, ...]:
    """Return the passages of a message that has them as lines `[1] ...`, `[2] ...`, as most templates do.

    If there are several such lists, the longest one is returned, because a short one may be an example. Sanitized
    passages cannot contain such a line.
    """
    longest: list[str] = []
    passages: list[str] = []
    for line in _NUMBERED_LINE.finditer(content):
        if line[1] == "1":
            passages = []
        if int(line[1]) == len(passages) + 1:
            passages.append(line[2].removesuffix(f" [{line[1]}]"))  # some templates repeat the number
        if len(passages) > len(longest):
            longest = passages
    return tuple(longest)


# --- Templates -------------------------------------------------------------------------------------


BUILTIN_TEMPLATES = {"listwise": "rank-k", "compact": "compact"}
"""Maps the file name of each built-in template to its name in reports. "listwise", the default, has the instructions of
the Rank-K paper in our words; "compact" is a short prompt for small distilled models."""


@cache
def builtin_template(name: str) -> PromptTemplate:
    """Return the built-in template called `name`, a key of `BUILTIN_TEMPLATES`."""
    text = (Path(__file__).parent / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    return _parse_text(text.rstrip("\n"), BUILTIN_TEMPLATES[name])


def default_template() -> PromptTemplate:
    """Return the default template: the instructions of the Rank-K paper in our words."""
    return builtin_template("listwise")


def template_of_student(name: str, texts: Mapping[str, str]) -> PromptTemplate:
    """Return the template of a distilled model, made of the `texts` in the model's file."""
    key = [texts[field] for field in ("before", "passage", "between", "after", "system")]
    return PromptTemplate(**texts, name=name, sha256=hashlib.sha256(json.dumps(key).encode()).hexdigest())


def read_template(path: str | Path) -> PromptTemplate:
    """Return the built-in template called `path` (a key of `BUILTIN_TEMPLATES`), or the template in the file `path`.

    Three kinds of files can be read:

    - plain text with `{query}` and `{passages}` (or `{docs}`), or with `{query}` and one line that has `{i}` and
      `{text}`, the template of a passage;
    - the Rank-K authors' `rerank.py`: the string `rank_k_prompt` is read from its source, which is not executed;
    - a rank_llm prompt template (YAML) of the method `singleturn_listwise`.

    Raises:
        InputError: If the file cannot be read, or lacks a field.
    """
    path = Path(path)
    if str(path) in BUILTIN_TEMPLATES:
        return builtin_template(str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(
            f"prompt {path} cannot be read: {reason}",
            f"give --prompt a text file, or one of {', '.join(BUILTIN_TEMPLATES)}",
        ) from error
    if path.suffix == ".py":
        return _parse_script(text, path)
    if path.suffix in (".yaml", ".yml"):
        return _parse_yaml(text, path)
    return _parse_text(text, path.name, path)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _parse_text(text: str, name: str, path: Path | None = None, between: str = "\n") -> PromptTemplate:
    source = path or name
    passage = _DEFAULT_PASSAGE
    if (passage_line := _PASSAGE_LINE.search(text)) is not None:
        passage, text = passage_line[0], f"{text[: passage_line.start()]}{{passages}}{text[passage_line.end() :]}"
    before, *after = re.split(r"\{(?:passages|docs)\}", text)
    if len(after) != 1:
        raise InputError(
            f"prompt {source} has {len(after) or 'no'} {{passages}} fields", "write {passages} (or {docs}) once"
        )
    if "{query}" not in text:
        raise InputError(f"prompt {source} has no {{query}} field", "write {query} where the query belongs")
    sha256 = _sha256(text)
    if sha256 == OFFICIAL_SHA256:
        name, between = "Rank-K official", "\n\n"
    return PromptTemplate(before, after[0], passage, between, name=name, sha256=sha256)


def _parse_script(source: str, path: Path) -> PromptTemplate:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user cannot act on warnings about the script
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"prompt {path} is not Python source", "give the authors' rerank.py") from error
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "rank_k_prompt" for target in node.targets)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            return _parse_text(node.value.value, path.name, path, between="\n\n")
    raise InputError(f"prompt {path} assigns no string to rank_k_prompt", "give the authors' rerank.py")


def _parse_yaml(text: str, path: Path) -> PromptTemplate:
    from rank_k.optional_deps import load

    yaml = load("yaml")
    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"prompt {path} is not YAML", "give a rank_llm prompt template") from error
    parts = ("method", "system_message", "prefix", "body", "suffix")
    if not isinstance(fields, dict) or not all(isinstance(fields.get(part) or "", str) for part in parts):
        raise InputError(f"prompt {path} is not a rank_llm prompt template", f"write {', '.join(parts)} as texts")
    method, system, prefix, body, suffix = (fields.get(part) or "" for part in parts)
    if method != "singleturn_listwise":
        raise InputError(
            f"prompt template {path} uses the method {method!r}, which is not supported",
            "use one whose method is singleturn_listwise",
        )
    if "{candidate}" not in body or "{rank}" not in body:
        raise InputError(f"the body of prompt {path} lacks a field", "write both {rank} and {candidate} in the body")
    if "{query}" not in prefix + suffix:
        raise InputError(f"prompt {path} has no {{query}} field", "write {query} in its prefix or suffix")
    known_fields = {"prefix": ("query", "num"), "body": ("rank", "candidate"), "suffix": ("query", "num")}
    for part, names in known_fields.items():
        # rank_llm fills its templates with `str.format`: everything that this replaces must be a known field.
        for placeholder in re.findall(r"\{\{|\}\}|\{.*?\}", fields.get(part) or ""):
            if placeholder[1:-1] not in names:
                raise InputError(
                    f"the {part} of prompt {path} has the unknown field {placeholder}",
                    f"use only {{{'}, {'.join(names)}}}",
                )
    return PromptTemplate(prefix, suffix, body, between="", system=system, name=path.name, sha256=_sha256(text))
