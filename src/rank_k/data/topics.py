"""Parse TREC topics: queries whose fields are marked by tags. The format of a file is detected from its first tag.

    classic   <top> <num> Number: 301 <title> ... <desc> Description: ... <narr> Narrative: ... </top>
              Fields need no closing tags. "&" and "<" need not be escaped.
    XML       <topics> <topic number="1"> <query>...</query> <question>...</question> </topic> </topics>
              Topics are the children of the root element and may have any name. The number is an attribute or an
              element. If a topic contains no elements, its text is the field `text`.

This module reads no files: `rank_k.data.queries` does, and composes the queries.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from rank_k.errors import FormatError

_CLASSIC_FORMAT = "<top> <num> Number: 301 <title> ... <desc> Description: ... </top>"
_XML_FORMAT = '<topic number="1"> elements with its texts </topic>'

_FIRST_TAG = re.compile(r"</?([A-Za-z][\w-]*)>")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_CLASSIC_TOPIC = re.compile(r"<top>(?P<fields>.*?)(?P<end></top>|(?=<top>)|\Z)", re.DOTALL | re.IGNORECASE)
_CLASSIC_FIELD = re.compile(
    r"<(?P<name>[a-z][\w-]*)>(?P<text>.*?)(?:</(?P=name)>|(?=</?[a-z][\w-]*>)|\Z)", re.DOTALL | re.IGNORECASE
)
"""A field ends with its closing tag, or before any other tag, or at the end of the topic."""
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
"""The label of each classic field, by tag. If a field begins with its label and a colon, they are removed."""
_LINE_ATTRIBUTE = " line"
"""The attribute that holds the line number of an XML element. Its name has a space, so no file can contain it."""
_NUMBER_KEYS = ("number", "num", "id", "identifier", "qid")


Topic = tuple[int, str, dict[str, str]]
"""A topic: line number, query id, and texts of the fields by name. Abbreviated names such as `desc` are written out."""


def read_topics(path: Path, content: bytes) -> list[Topic]:
    """Return the topics of a file.

    Args:
        path: The file, for error messages.
        content: The content of the file.

    Raises:
        FormatError: If the content is malformed.
    """
    text = content.decode("utf-8", "replace")
    text = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)  # line numbers stay the same
    first_tag = _FIRST_TAG.search(text)
    if first_tag and first_tag[1].lower() == "top" and not text.lstrip().startswith("<?"):
        return _read_classic_topics(path, text)
    return _read_xml_topics(path, content)


def _read_classic_topics(path: Path, text: str) -> list[Topic]:
    def line_number(position: int) -> int:
        return text.count("\n", 0, position) + 1

    def require_blank(start: int, end: int) -> None:
        if extra_text := text[start:end].strip():
            problem = f"text outside all fields ({extra_text[:40]!r})"
            raise FormatError(path, line_number(text.index(extra_text, start)), problem, _CLASSIC_FORMAT)

    topics: list[Topic] = []
    position = 0
    for topic in _CLASSIC_TOPIC.finditer(text):
        require_blank(position, topic.start())
        position, end = topic.span("fields")
        fields: dict[str, str] = {}
        for field in _CLASSIC_FIELD.finditer(text, position, end):
            require_blank(position, field.start())
            name = field["name"].lower()
            if name in fields:
                raise FormatError(path, line_number(field.start()), f"<{name}> appears again", _CLASSIC_FORMAT)
            fields[name] = field["text"]
            position = field.end()
        require_blank(position, end)
        position = topic.end()
        start_line = line_number(topic.start())
        if not topic["end"]:
            raise FormatError(path, start_line, "a topic without </top>", _CLASSIC_FORMAT)
        topics.append(_make_classic_topic(path, start_line, fields))
    require_blank(position, len(text))
    return topics


def _make_classic_topic(path: Path, line: int, fields: dict[str, str]) -> Topic:
    named_fields = {}
    for name, text in fields.items():
        text = unescape(text).strip()
        if name in _FIELD_LABELS:
            text = re.sub(rf"\A{re.escape(_FIELD_LABELS[name])}\s*:\s*", "", text, flags=re.IGNORECASE)
        named_fields[_FULL_FIELD_NAMES.get(name, name)] = text
    return line, _checked_number(path, line, named_fields.pop("num", ""), _CLASSIC_FORMAT), named_fields


def _read_xml_topics(path: Path, content: bytes) -> list[Topic]:
    """Return the topics, which are all children of the root element. The children of a topic are its fields."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def start_element(name: str, attributes: dict[str, str]) -> None:
        builder.start(name, {**attributes, _LINE_ATTRIBUTE: str(parser.CurrentLineNumber)})

    def reject_declaration(*_: object) -> None:
        raise FormatError(path, parser.CurrentLineNumber, "a document type with declarations", "XML without them")

    parser.StartElementHandler = start_element
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = reject_declaration  # entities can expand to huge texts or refer to other files
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        problem = f"bad XML ({expat.ErrorString(error.code)} at column {error.offset})"
        raise FormatError(path, error.lineno, problem, f"{_XML_FORMAT}, or {_CLASSIC_FORMAT}") from error
    except (LookupError, ValueError) as error:  # Python does not know the encoding
        raise FormatError(path, 1, f"XML that cannot be read ({error})", "UTF-8") from error
    root = builder.close()
    if len(root) == 0:
        raise FormatError(path, 0, "XML without topics", _XML_FORMAT)
    if extra_text := _text_between_children(root):
        line = int(root[0].attrib[_LINE_ATTRIBUTE])
        raise FormatError(path, line, f"text outside all topics ({extra_text[:40]!r})", _XML_FORMAT)
    return [_make_xml_topic(path, topic) for topic in root]


def _make_xml_topic(path: Path, topic: Element) -> Topic:
    line = int(topic.attrib[_LINE_ATTRIBUTE])
    texts_by_name: dict[str, list[str]] = {}
    for child in topic:
        name = _FULL_FIELD_NAMES.get(child.tag, child.tag)
        texts_by_name.setdefault(name, []).append("".join(child.itertext()).strip())
    fields = {name: "\n".join(texts) for name, texts in texts_by_name.items()}
    numbers = [topic.attrib[key] for key in _NUMBER_KEYS if key in topic.attrib]
    numbers += [fields.pop(key) for key in _NUMBER_KEYS if key in fields]
    query_id = _checked_number(path, line, numbers[0].strip() if numbers else "", _XML_FORMAT)
    if text := _text_between_children(topic):
        if fields:
            raise FormatError(path, line, f"text outside all fields ({text[:40]!r})", _XML_FORMAT)
        fields["text"] = text
    return line, query_id, fields


def _text_between_children(element: Element) -> str:
    """Return the text of `element` without the text of its children."""
    return "".join([element.text or "", *(child.tail or "" for child in element)]).strip()


def _checked_number(path: Path, line: int, number: str, expected: str) -> str:
    if not number or len(number.split()) > 1:
        problem = f"number {number!r}" if number else "a topic without a number"
        raise FormatError(path, line, problem, expected)
    return number
