"""TREC topics: queries whose fields are in tags. The first tag tells which of two formats a file has.

    classic   <top> <num> Number: 301 <title> ... <desc> Description: ... <narr> Narrative: ... </top>
              (a field ends where the next begins; "&" and "<" need no escaping)
    XML       <topics> <topic number="1"> <query>...</query> <question>...</question> </topic> </topics>
              (children of the root, whatever they are called; the number as attribute or element; a topic
              that has no elements is all `text`)

Pure: bytes in, fields out. `rank_k.data.queries` opens the file and composes the queries.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
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
"""Labels that repeat the tag at the beginning of a classic field, before a colon."""
_NUMBER_KEYS = ("number", "num", "id", "identifier", "qid")


Topic = tuple[int, str, dict[str, str]]
"""Line number, query id, and fields by name in the file's order; `desc`, `narr` and the like have their full names."""


def read_topics(path: Path, content: bytes) -> list[Topic]:
    """Return the topics in `content`, the bytes of the file at `path`. Raises `FormatError`."""
    text = content.decode("utf-8", "replace")
    text = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)  # lines keep their numbers
    first_tag = _TAG.search(text)
    if first_tag and first_tag[2].lower() == "top" and not text.lstrip().startswith("<?"):
        return _read_classic_topics(path, text)
    return _read_xml_topics(path, content)


def _read_classic_topics(path: Path, text: str) -> list[Topic]:
    """Return the topics. Each tag has the text up to the next tag: a field's content, or blanks."""

    def error(position: int, problem: str) -> FormatError:
        return FormatError(path, text.count("\n", 0, position) + 1, problem, _CLASSIC_FORMAT)

    topics: list[Topic] = []
    fields: dict[str, str] = {}
    start_line = 0  # of the open <top>; 0 if none is open
    open_field = ""
    tags = list(_TAG.finditer(text))
    if outside := text[: tags[0].start()].strip():
        raise error(tags[0].start(), f"text before the first topic ({outside[:40]!r})")
    for tag, content_end in zip(tags, [*(tag.start() for tag in tags[1:]), len(text)], strict=True):
        content = text[tag.end() : content_end]
        is_closing, element = bool(tag[1]), tag[2].lower()
        if element == "top":
            if is_closing != bool(start_line):
                problem = f"the topic of line {start_line} has no end" if start_line else "no topic is open"
                raise error(tag.start(), f"{tag[0]} where {problem}")
            if is_closing:
                topics.append(_make_classic_topic(path, start_line, fields))
            start_line = 0 if is_closing else text.count("\n", 0, tag.start()) + 1
            open_field, fields = "", {}
        elif not start_line or (element != open_field if is_closing else element in fields):
            location = f"in the topic of line {start_line}" if start_line else "outside <top>"
            problem = "again" if start_line and not is_closing else "unexpected"
            raise error(tag.start(), f"{tag[0]} {problem} {location}")
        else:
            open_field = "" if is_closing else element
        if open_field:
            fields[open_field] = content
        elif outside := content.strip():
            raise error(text.index(outside, tag.end()), f"text outside all fields ({outside[:40]!r})")
    if start_line:
        raise FormatError(path, start_line, "a topic without </top>", _CLASSIC_FORMAT)
    return topics


def _make_classic_topic(path: Path, line: int, fields: dict[str, str]) -> Topic:
    named_fields = {}
    for name, text in fields.items():
        text = unescape(text).strip()
        if name in _FIELD_LABELS:
            text = re.sub(rf"\A{re.escape(_FIELD_LABELS[name])}\s*:\s*", "", text, flags=re.IGNORECASE)
        named_fields[_FULL_FIELD_NAMES.get(name, name)] = text
    return line, _checked_number(path, line, named_fields.pop("num", ""), _CLASSIC_FORMAT), named_fields


@dataclass(slots=True)
class _Element:
    """An open XML element. `fields`: the texts of a topic's closed children, by name."""

    name: str
    attributes: dict[str, str]
    line: int
    text: str = ""
    fields: dict[str, list[str]] = field(default_factory=dict)


def _read_xml_topics(path: Path, content: bytes) -> list[Topic]:
    """Return the topics: all children of the root. Their children are the fields, whatever their names are."""
    topics: list[Topic] = []
    open_elements: list[_Element] = []
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        open_elements.append(_Element(name, attributes, parser.CurrentLineNumber))

    def text(data: str) -> None:
        if len(open_elements) == 1 and data.strip():
            problem = f"text outside all topics ({data.strip()[:40]!r})"
            raise FormatError(path, parser.CurrentLineNumber, problem, _XML_FORMAT)
        open_elements[-1].text += data

    def close(_: str) -> None:
        element = open_elements.pop()
        if len(open_elements) == 1:
            topics.append(_make_xml_topic(path, element))
        elif len(open_elements) == 2:
            open_elements[-1].fields.setdefault(element.name, []).append(element.text.strip())
        elif open_elements:
            open_elements[-1].text += element.text

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


def _make_xml_topic(path: Path, topic: _Element) -> Topic:
    fields = {_FULL_FIELD_NAMES.get(name, name): "\n".join(texts) for name, texts in topic.fields.items()}
    numbers = [topic.attributes[key] for key in _NUMBER_KEYS if key in topic.attributes]
    numbers += [fields.pop(key) for key in _NUMBER_KEYS if key in fields]
    query_id = _checked_number(path, topic.line, numbers[0].strip() if numbers else "", _XML_FORMAT)
    if outside := topic.text.strip():
        if fields:
            raise FormatError(path, topic.line, f"text outside all fields ({outside[:40]!r})", _XML_FORMAT)
        fields["text"] = outside
    return topic.line, query_id, fields


def _checked_number(path: Path, line: int, number: str, expected: str) -> str:
    if not number or len(number.split()) > 1:
        problem = f"number {number!r}" if number else "a topic without a number"
        raise FormatError(path, line, problem, expected)
    return number
