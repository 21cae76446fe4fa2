"""TREC topics: queries whose fields stand between tags. Two families, told apart by the first tags.

    classic   <top> <num> Number: 301 <title> ... <desc> Description: ... <narr> Narrative: ... </top>
              (a field ends where the next begins; "&" and "<" need no escaping)
    XML       <topics> <topic number="1"> <query>...</query> <question>...</question> </topic> </topics>
              (children of the root, whatever they are called; the number as attribute or element; a topic
              that has no elements is all `text`)

Pure: bytes in, fields out. `rank_k.data.files` opens the file and composes the queries.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from rank_k.errors import FormatError

_CLASSIC = "<top> <num> Number: 301 <title> ... <desc> Description: ... </top>"
_XML = '<topic number="1"> elements with its texts </topic>'

_TAG = re.compile(r"<(/?)([A-Za-z][\w-]*)>")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FULL_NAMES = {"desc": "description", "narr": "narrative", "smry": "summary", "dom": "domain", "con": "concepts"}
_LABELS = {
    "num": "Number",
    "title": "Topic",
    "desc": "Description",
    "narr": "Narrative",
    "smry": "Summary",
    "dom": "Domain",
    "con": "Concept(s)",
}
"""What repeats the tag at the beginning of a classic field, before a colon."""
_NUMBERS = ("number", "num", "id", "identifier", "qid")


class Topic(NamedTuple):
    """`fields` by name, in the file's order; `desc`, `narr` and their kin under their full names."""

    line: int
    query_id: str
    fields: dict[str, str]


def read_topics(path: Path, content: bytes) -> list[Topic]:
    """The topics in `content`, the bytes of the file at `path`. Raises `FormatError`."""
    text = content.decode("utf-8", "replace")
    text = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)  # lines keep their numbers
    first = _TAG.search(text)
    if first and first[2].lower() == "top" and not text.lstrip().startswith("<?"):
        return _classic_topics(path, text)
    return _xml_topics(path, content)


def _classic_topics(path: Path, text: str) -> list[Topic]:
    topics: list[Topic] = []
    fields: dict[str, str] = {}
    began = 0  # line of the <top> that is open
    name = ""  # of the field that is open
    line, end = 1, 0
    for tag in _TAG.finditer(text):
        between = text[end : tag.start()]
        if name:
            fields[name] += between
        elif between.strip():
            line += between[: len(between) - len(between.lstrip())].count("\n")
            raise FormatError(path, line, f"text outside all fields ({between.strip()[:40]!r})", _CLASSIC)
        line += between.count("\n")
        end = tag.end()
        closing, element = bool(tag[1]), tag[2].lower()
        if element == "top" and closing == (not began):
            what = f"the topic of line {began} has no end" if began else "no topic is open"
            raise FormatError(path, line, f"{tag[0]} where {what}", _CLASSIC)
        if element == "top" and not closing:
            began, name, fields = line, "", {}
        elif element == "top":
            topics.append(_classic_topic(path, began, fields))
            began, name = 0, ""
        elif not began or (closing and element != name) or (not closing and element in fields):
            where = f"in the topic of line {began}" if began else "outside <top>"
            what = "again" if began and not closing else "unexpected"
            raise FormatError(path, line, f"{tag[0]} {what} {where}", _CLASSIC)
        elif closing:
            name = ""
        else:
            name = element
            fields[name] = ""
    if began:
        raise FormatError(path, began, "a topic without </top>", _CLASSIC)
    if text[end:].strip():
        raise FormatError(path, line, f"text after the last topic ({text[end:].strip()[:40]!r})", _CLASSIC)
    return topics


def _classic_topic(path: Path, line: int, fields: dict[str, str]) -> Topic:
    mended = {}
    for name, text in fields.items():
        text = unescape(text).strip()
        if name in _LABELS:
            text = re.sub(rf"\A{re.escape(_LABELS[name])}\s*:\s*", "", text, flags=re.IGNORECASE)
        mended[_FULL_NAMES.get(name, name)] = text
    return Topic(line, _number(path, line, mended.pop("num", ""), _CLASSIC), mended)


def _xml_topics(path: Path, content: bytes) -> list[Topic]:
    """Every child of the root is a topic, its children are the fields, whatever they are called."""
    topics: list[Topic] = []
    open_elements: list[str] = []
    numbers: list[str] = []
    parts: dict[str, list[str]] = {}
    bare: list[str] = []  # text of a topic outside its elements
    began = 0
    parser = expat.ParserCreate()

    def start(element: str, attributes: dict[str, str]) -> None:
        nonlocal began
        open_elements.append(element)
        if len(open_elements) == 2:
            began = parser.CurrentLineNumber
            parts.clear()
            bare.clear()
            numbers[:] = [attributes[key] for key in _NUMBERS if key in attributes]
        elif len(open_elements) == 3:
            parts.setdefault(element, []).append("")

    def text(data: str) -> None:
        if len(open_elements) >= 3:
            parts[open_elements[2]][-1] += data
        elif len(open_elements) == 2:
            bare.append(data)
        elif data.strip():
            raise FormatError(path, parser.CurrentLineNumber, f"text outside all topics ({data.strip()[:40]!r})", _XML)

    def close(_: str) -> None:
        open_elements.pop()
        if len(open_elements) == 1:
            fields = {key: "\n".join(value.strip() for value in values) for key, values in parts.items()}
            found = [*numbers, *(fields.pop(key) for key in _NUMBERS if key in fields)]
            query_id = _number(path, began, found[0].strip() if found else "", _XML)
            if outside := "".join(bare).strip():
                if fields:
                    raise FormatError(path, began, f"text outside all fields ({outside[:40]!r})", _XML)
                fields["text"] = outside
            topics.append(Topic(began, query_id, {_FULL_NAMES.get(key, key): value for key, value in fields.items()}))

    def refuse(*_: object) -> None:
        raise FormatError(path, parser.CurrentLineNumber, "a document type with declarations", "plain XML without one")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, close, text
    parser.EntityDeclHandler = refuse  # entities can blow up, or name other files
    parser.buffer_text = True
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        found = f"bad XML ({expat.ErrorString(error.code)} at column {error.offset})"
        raise FormatError(path, error.lineno, found, f"{_XML}, or {_CLASSIC}") from error
    except (LookupError, ValueError) as error:  # an encoding that Python does not know
        raise FormatError(path, 1, f"XML that cannot be read ({error})", "UTF-8") from error
    if not topics:
        raise FormatError(path, 0, "XML without topics", _XML)
    return topics


def _number(path: Path, line: int, number: str, expected: str) -> str:
    if not number or len(number.split()) > 1:
        found = f"number {number!r}" if number else "a topic without a number"
        raise FormatError(path, line, found, expected)
    return number
