"""TREC topics: queries whose fields stand between tags. Two families, told apart by the first tags.

    classic   <top> <num> Number: 301 <title> ... <desc> Description: ... <narr> Narrative: ... </top>
              (a field ends where the next begins; "&" and "<" need no escaping)
    XML       <topics> <topic number="1"> <query>...</query> <question>...</question> </topic> </topics>
              (children of the root, whatever they are called; the number as attribute or element; a topic
              that has no elements is all `text`)

Pure: bytes in, fields out. `rank_k.data.queries` opens the file and composes the queries.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from rank_k.errors import FormatError

_CLASSIC_FORMAT = "<top> <num> Number: 301 <title> ... <desc> Description: ... </top>"
_XML_FORMAT = '<topic number="1"> elements with its texts </topic>'

_TAG = re.compile(r"<(/?)([A-Za-z][\w-]*)>")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FULL_FIELD_NAMES = {"desc": "description", "narr": "narrative", "smry": "summary", "dom": "domain", "con": "concepts"}
_FIELD_LABELS = {
    "num": "Number",
    "title": "Topic",
    "desc": "Description",
    "narr": "Narrative",
    "smry": "Summary",
    "dom": "Domain",
    "con": "Concept(s)",
}
"""What repeats the tag at the beginning of a classic field, before a colon."""
_NUMBER_KEYS = ("number", "num", "id", "identifier", "qid")


class Topic(NamedTuple):
    """`fields` by name, in the file's order; `desc`, `narr` and their kin under their full names."""

    line: int
    query_id: str
    fields: dict[str, str]


def read_topics(path: Path, content: bytes) -> list[Topic]:
    """The topics in `content`, the bytes of the file at `path`. Raises `FormatError`."""
    text = content.decode("utf-8", "replace")
    text = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)  # lines keep their numbers
    first_tag = _TAG.search(text)
    if first_tag and first_tag[2].lower() == "top" and not text.lstrip().startswith("<?"):
        return _read_classic_topics(path, text)
    return _read_xml_topics(path, content)


def _read_classic_topics(path: Path, text: str) -> list[Topic]:
    topics: list[Topic] = []
    fields: dict[str, str] = {}
    start_line = 0  # of the open <top>; 0 where none is open
    open_field = ""
    line, last_end = 1, 0
    for tag in _TAG.finditer(text):
        text_between = text[last_end : tag.start()]
        if open_field:
            fields[open_field] += text_between
        elif text_between.strip():
            line += text_between[: len(text_between) - len(text_between.lstrip())].count("\n")
            raise FormatError(path, line, f"text outside all fields ({text_between.strip()[:40]!r})", _CLASSIC_FORMAT)
        line += text_between.count("\n")
        last_end = tag.end()
        is_closing, element = bool(tag[1]), tag[2].lower()
        if element == "top" and is_closing == (not start_line):
            problem = f"the topic of line {start_line} has no end" if start_line else "no topic is open"
            raise FormatError(path, line, f"{tag[0]} where {problem}", _CLASSIC_FORMAT)
        if element == "top" and not is_closing:
            start_line, open_field, fields = line, "", {}
        elif element == "top":
            topics.append(_make_classic_topic(path, start_line, fields))
            start_line, open_field = 0, ""
        elif not start_line or (is_closing and element != open_field) or (not is_closing and element in fields):
            location = f"in the topic of line {start_line}" if start_line else "outside <top>"
            problem = "again" if start_line and not is_closing else "unexpected"
            raise FormatError(path, line, f"{tag[0]} {problem} {location}", _CLASSIC_FORMAT)
        elif is_closing:
            open_field = ""
        else:
            open_field = element
            fields[open_field] = ""
    if start_line:
        raise FormatError(path, start_line, "a topic without </top>", _CLASSIC_FORMAT)
    if text[last_end:].strip():
        raise FormatError(path, line, f"text after the last topic ({text[last_end:].strip()[:40]!r})", _CLASSIC_FORMAT)
    return topics


def _make_classic_topic(path: Path, line: int, fields: dict[str, str]) -> Topic:
    named_fields = {}
    for name, text in fields.items():
        text = unescape(text).strip()
        if name in _FIELD_LABELS:
            text = re.sub(rf"\A{re.escape(_FIELD_LABELS[name])}\s*:\s*", "", text, flags=re.IGNORECASE)
        named_fields[_FULL_FIELD_NAMES.get(name, name)] = text
    return Topic(line, _checked_number(path, line, named_fields.pop("num", ""), _CLASSIC_FORMAT), named_fields)


def _read_xml_topics(path: Path, content: bytes) -> list[Topic]:
    """Every child of the root is a topic, its children are the fields, whatever they are called."""
    topics: list[Topic] = []
    open_elements: list[str] = []
    numbers: list[str] = []
    parts: dict[str, list[str]] = {}
    topic_text: list[str] = []  # text of a topic outside its elements
    start_line = 0
    parser = expat.ParserCreate()

    def start(element: str, attributes: dict[str, str]) -> None:
        nonlocal start_line
        open_elements.append(element)
        if len(open_elements) == 2:
            start_line = parser.CurrentLineNumber
            parts.clear()
            topic_text.clear()
            numbers[:] = [attributes[key] for key in _NUMBER_KEYS if key in attributes]
        elif len(open_elements) == 3:
            parts.setdefault(element, []).append("")

    def text(data: str) -> None:
        if len(open_elements) >= 3:
            parts[open_elements[2]][-1] += data
        elif len(open_elements) == 2:
            topic_text.append(data)
        elif data.strip():
            raise FormatError(
                path, parser.CurrentLineNumber, f"text outside all topics ({data.strip()[:40]!r})", _XML_FORMAT
            )

    def close(_: str) -> None:
        open_elements.pop()
        if len(open_elements) == 1:
            fields = {key: "\n".join(value.strip() for value in values) for key, values in parts.items()}
            topic_ids = [*numbers, *(fields.pop(key) for key in _NUMBER_KEYS if key in fields)]
            query_id = _checked_number(path, start_line, topic_ids[0].strip() if topic_ids else "", _XML_FORMAT)
            if text_outside := "".join(topic_text).strip():
                if fields:
                    raise FormatError(path, start_line, f"text outside all fields ({text_outside[:40]!r})", _XML_FORMAT)
                fields["text"] = text_outside
            topics.append(
                Topic(start_line, query_id, {_FULL_FIELD_NAMES.get(key, key): value for key, value in fields.items()})
            )

    def refuse(*_: object) -> None:
        raise FormatError(path, parser.CurrentLineNumber, "a document type with declarations", "plain XML without one")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, close, text
    parser.EntityDeclHandler = refuse  # entities can blow up, or name other files
    parser.buffer_text = True
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        problem = f"bad XML ({expat.ErrorString(error.code)} at column {error.offset})"
        raise FormatError(path, error.lineno, problem, f"{_XML_FORMAT}, or {_CLASSIC_FORMAT}") from error
    except (LookupError, ValueError) as error:  # an encoding that Python does not know
        raise FormatError(path, 1, f"XML that cannot be read ({error})", "UTF-8") from error
    if not topics:
        raise FormatError(path, 0, "XML without topics", _XML_FORMAT)
    return topics


def _checked_number(path: Path, line: int, number: str, expected: str) -> str:
    if not number or len(number.split()) > 1:
        problem = f"number {number!r}" if number else "a topic without a number"
        raise FormatError(path, line, problem, expected)
    return number
