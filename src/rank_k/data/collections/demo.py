"""The documentation of the running Python as a small judged collection, which is available on every machine.

The passages are created at run time from the topics of the language reference, which `help("for")` shows, and from the
docstrings of the standard library. The questions and their graded judgments are in `demo_questions.toml`, which also
describes how they were created. `load_python_docs` writes the collection to files in the cache
(`--dataset python-docs`).

This module and the modules that it imports need nothing but the standard library.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import re
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from textwrap import dedent
from types import FunctionType, MethodType
from typing import NamedTuple

from rank_k.data.cache_directory import cached_file
from rank_k.data.collections.base import CollectionFiles
from rank_k.data.lines import json_line
from rank_k.data.trec import qrels_line
from rank_k.errors import InputError
from rank_k.types import Passage, Query

COLLECTION_NAME = "python-docs"
QUESTIONS_FILE = "demo_questions.toml"
FEATURED_EVERY = 7
"""The first question and every seventh one after it are featured. This rule does not depend on any ranking."""

MIN_WORDS, DEFINITION_WORDS, FULL_WORDS, MAX_WORDS = 6, 20, 60, 130
"""Limits for splitting texts, in words. Texts below MIN_WORDS are skipped, and texts above MAX_WORDS are split.
A passage ends before the next definition (`str.join(iterable)`) when it has DEFINITION_WORDS, and before the next
paragraph when it has FULL_WORDS."""

AGGREGATE_TOPICS = ("typesseq", "types", "compound", "specialnames")
"""Topics that include the texts of other topics. They are read last, so that a text belongs to its original topic."""

SOURCE_MODULES = """
    abc argparse ast asyncio asyncio.tasks asyncio.base_events asyncio.events asyncio.runners asyncio.timeouts
    asyncio.locks asyncio.queues asyncio.taskgroups asyncio.threads asyncio.streams base64 bisect calendar collections
    concurrent.futures._base concurrent.futures.thread concurrent.futures.process configparser contextlib copy csv
    dataclasses difflib enum fileinput fnmatch fractions functools getpass glob graphlib gzip hashlib heapq html
    http.server inspect json json.decoder json.encoder keyword linecache logging logging.handlers
    multiprocessing.pool multiprocessing.context operator os posixpath genericpath pathlib._local pathlib._abc pathlib
    pickle pprint cProfile queue random re sched secrets shelve shlex shutil signal socket statistics string
    subprocess tempfile textwrap threading timeit traceback tracemalloc types typing unittest.case urllib.parse
    urllib.request uuid warnings weakref webbrowser zipfile
""".split()
"""Modules whose docstrings are read from source code, without importing it. Missing modules are skipped."""

COMPILED_MODULES = """
    _signal _thread array collections contextvars datetime decimal functools gc io itertools math operator os pickle
    random re sqlite3 struct sys time weakref zlib
""".split()
"""Modules that are imported for the docstrings of their compiled functions and classes. None has side effects."""

PUBLIC_NAMES = (
    (r"^asyncio\.\w+\b(?=\.)", "asyncio"),
    (r"^(pathlib\._\w+|pathlib)\.(Pure)?PathBase", r"pathlib.\2Path"),  # some docstrings of Python 3.13 are here
    (r"^(pathlib|concurrent\.futures)\._\w+|^(concurrent\.futures)\.(thread|process)\b", r"\1\2"),
    (r"^(posixpath|genericpath)\b", "os.path"),
    (r"^(json|unittest|multiprocessing)\.(decoder|encoder|case|context|pool)\b", r"\1"),
    (r"^random\.Random\.", "random."),
    (r"^_thread\.(lock|LockType)\b", "threading.Lock"),
    (r"^_thread\b", "threading"),
    (r"^_signal\b", "signal"),
    (r"^builtins\.", ""),
)
"""Patterns and replacements that convert the name of a definition to its public name. They are applied in order."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with judgments.

    Attributes:
        query: The question.
        judgments: Grades by passage id: 3 (answers the question), 2 (answers a part of it), 1 (is on the topic and
            helps) or 0 (not relevant).
        featured: Whether the demo shows the question by default.
    """

    query: Query
    judgments: dict[str, int]
    featured: bool


def load_passages() -> list[Passage]:
    """Return the documentation of the running Python as passages of 6 to about 130 words, without duplicates.

    Passage ids are `topic:for/names-in-the-target-list`, which is a topic and the first words of the passage, or
    qualified names such as `asyncio.wait_for`. The second and later parts of a long docstring have their first words
    after the name. Most ids are the same in all versions of Python.

    The first call takes about a second; later calls return the same passages.

    Raises:
        InputError: If Python was installed without its documentation.
    """
    return list(_passages_by_id().values())


def load_questions() -> list[Question]:
    """Return the questions with the judgments that are valid for the running Python.

    A judgment is left out if there is no passage with its id, or if the text of the passage differs from all judged
    texts.

    Raises:
        InputError: If Python was installed without its documentation.
    """
    passages_by_id = _passages_by_id()
    content = files("rank_k.data.collections").joinpath(QUESTIONS_FILE).read_text(encoding="utf-8")
    questions = []
    for index, (query_id, entry) in enumerate(tomllib.loads(content).items()):
        judgments = {
            doc_id: int(judgment.split()[0])
            for doc_id, judgment in entry["judgments"].items()  # a grade, then the fingerprints of the judged texts
            if doc_id in passages_by_id and fingerprint(passages_by_id[doc_id].text) in judgment.split()[1:]
        }
        questions.append(Question(Query(query_id, entry["text"]), judgments, index % FEATURED_EVERY == 0))
    return questions


def load_qrels() -> dict[str, dict[str, int]]:
    """Return the judgments of all questions as `query_id -> {doc_id: grade}`. Raises the errors of `load_questions`."""
    return {question.query.query_id: question.judgments for question in load_questions()}


def fingerprint(text: str) -> str:
    """Return 8 hex digits of the SHA-256 of the words of `text`. Case, layout and punctuation are ignored."""
    words = " ".join(re.findall(r"\w+", text.lower()))
    return hashlib.sha256(words.encode()).hexdigest()[:8]


def load_python_docs() -> CollectionFiles:
    """Return the collection of `rank-k demo` as files in the cache. They are written if they do not exist.

    Raises:
        InputError: If Python was installed without its documentation, or if the cache cannot be written.
    """
    questions = load_questions()
    lines_by_name = {
        "corpus.jsonl": [json_line({"_id": passage.doc_id, "text": passage.text}) for passage in load_passages()],
        "queries.jsonl": [json_line({"_id": q.query.query_id, "text": q.query.text}) for q in questions],
        "qrels.trec": [
            qrels_line(q.query.query_id, doc_id, grade) for q in questions for doc_id, grade in q.judgments.items()
        ],
    }
    digest = hashlib.sha256(b"".join(line for lines in lines_by_name.values() for line in lines)).hexdigest()[:16]
    documents, queries, qrels = (
        cached_file(f"{COLLECTION_NAME}/{digest}/{name}", lines) for name, lines in lines_by_name.items()
    )
    return CollectionFiles(documents, queries, qrels)


@cache
def _passages_by_id() -> dict[str, Passage]:
    passages_by_id: dict[str, Passage] = {}
    fingerprints: set[str] = set()
    for name, signature, text in (*_language_topics(), *_docstrings()):
        for number, (title, body) in enumerate(_split_text(text, signature)):
            body_fingerprint = fingerprint(body)
            if len(body.split()) < MIN_WORDS or body_fingerprint in fingerprints:
                continue
            fingerprints.add(body_fingerprint)
            first_words = "-".join(re.findall(r"\w+", body.lower())[:5])
            doc_id = name if number == 0 and not name.startswith("topic:") else f"{name}/{first_words}"
            while doc_id in passages_by_id:
                doc_id += "+"
            passages_by_id[doc_id] = Passage(doc_id, f"{title}\n{body}")
    return passages_by_id


def _language_topics() -> Iterator[tuple[str, str, str]]:
    """Yield the name, title and text of the topics of the language reference, `AGGREGATE_TOPICS` last."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise InputError(
            "this Python was installed without the texts of help(), the module pydoc_data",
            "install the full standard library (on Debian, the package libpython3-stdlib) or use a different Python",
        ) from error
    for topic in sorted(topics, key=lambda topic: (topic in AGGREGATE_TOPICS, topic)):
        yield f"topic:{topic}", topic, topics[topic]


def _docstrings() -> Iterator[tuple[str, str, str]]:
    """Yield the qualified name, the signature and the docstring of definitions in the standard library."""
    seen_names: set[str] = set()
    for name, signature, text in (
        *_docstrings_of_compiled(["builtins"]),
        *_docstrings_in_source(),
        *_docstrings_of_compiled(COMPILED_MODULES),
    ):
        for pattern, replacement in PUBLIC_NAMES:
            name, signature = re.sub(pattern, replacement, name), re.sub(pattern, replacement, signature)
        if name not in seen_names:
            seen_names.add(name)
            yield name, signature, text


def _docstrings_in_source() -> Iterator[tuple[str, str, str]]:
    """Yield docstrings from source code, which has them even with `python -OO`. No code is executed."""
    library = Path(sysconfig.get_path("stdlib"))
    sources = [
        (module, path)
        for module in SOURCE_MODULES
        for path in (library / f"{module.replace('.', '/')}.py", library.joinpath(*module.split("."), "__init__.py"))
        if path.is_file()
    ]
    if not sources:
        raise InputError(
            f"this Python was installed without the source of its standard library (there is none in {library})",
            "run Rank-K with a different Python",
        )
    for module, path in sources:
        yield from _docstrings_of_node(module, ast.parse(path.read_bytes()))


def _docstrings_of_node(name: str, node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Yield the docstrings of `node` and of the definitions in it, without definitions inside functions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield name, name + _without_self(_parameters(node.args)), text
        return
    if isinstance(node, ast.Module | ast.ClassDef) and (text := ast.get_docstring(node)):
        yield name, name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_") or child.name == "__init__":
                yield from _docstrings_of_node(f"{name}.{child.name}", child)
        elif isinstance(child, ast.If | ast.Try):
            yield from _docstrings_of_node(name, child)


def _parameters(arguments: ast.arguments) -> str:
    """Return the parameters of a function in parentheses, without annotations and defaults."""
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    arguments.defaults = []
    arguments.kw_defaults = [None] * len(arguments.kwonlyargs)
    return f"({ast.unparse(arguments)})"


def _without_self(parameters: str) -> str:
    """Return `parameters` without `self` or `cls` and without "/"."""
    return re.sub(r"(\$\w+|(?<=\()(self|cls)\b)(, )?|, /|/(, )?", "", parameters)


def _docstrings_of_compiled(modules: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    for module in modules:
        with suppress(ImportError):  # sqlite3 and zlib are optional parts of Python
            yield from _docstrings_of_members(module, vars(importlib.import_module(module)))


def _docstrings_of_members(owner: str, members: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    for name, value in sorted(members.items()):
        is_compiled = inspect.isroutine(value) and not isinstance(value, FunctionType | MethodType)
        if name.startswith("_") or not (is_compiled or inspect.isclass(value)):
            continue
        if getattr(value, "__name__", name) in members.keys() - {name}:
            continue  # an alias of another member
        qualified_name, text = f"{owner}.{name}", inspect.getdoc(value)
        if text:
            parameters = getattr(value, "__text_signature__", None) or ""
            yield qualified_name, qualified_name + _without_self(parameters), text
        if inspect.isclass(value):
            yield from _docstrings_of_members(qualified_name, vars(value))


def _split_text(text: str, title: str) -> list[tuple[str, str]]:
    """Split `text` at headings, at definitions and between paragraphs, and return the title and body of each part.

    The rules depend only on neighboring paragraphs: if a version of Python inserts a paragraph, only a few parts
    change.
    """
    parts: list[tuple[str, str]] = []
    pieces: list[str] = []
    definition = _Block(-1, "")  # the definition that the current pieces belong to
    base_indent = 0

    def count_words() -> int:
        return sum(len(piece.split()) for piece in pieces)

    def finish_part() -> None:
        if pieces:
            continues_definition = definition.indent >= 0 and pieces[0] != definition.text
            part_title = f"{title}: {definition.text.splitlines()[0]}" if continues_definition else title
            parts.append((part_title, "\n".join(pieces)))
            pieces.clear()

    blocks = list(_split_into_blocks(text))
    is_short = len(text.split()) <= MAX_WORDS
    for block, next_block in zip(blocks, [*blocks[1:], _Block(0, "")], strict=True):
        if block.is_heading:
            finish_part()
            title, definition = block.text, _Block(-1, "")
            continue
        starts_definition = not is_short and block.may_define and next_block.indent > block.indent
        # an example, a list or the body of a definition
        continues_block = block.indent > base_indent and not starts_definition
        full_words = DEFINITION_WORDS if starts_definition else FULL_WORDS
        if count_words() >= full_words and not continues_block and not is_short:
            finish_part()
        if starts_definition and not pieces:
            definition = block
        elif block.indent <= definition.indent and not pieces:
            definition = _Block(-1, "")
        base_indent = base_indent if continues_block else block.indent
        for piece in _split_block(block.text):
            if count_words() + len(piece.split()) > MAX_WORDS:
                finish_part()
            pieces.append(piece)
    finish_part()
    return parts


class _Block(NamedTuple):
    """A paragraph, without its indentation."""

    indent: int
    text: str
    is_heading: bool = False

    @property
    def may_define(self) -> bool:
        """Whether the paragraph may be the head of a definition like `str.join(iterable)`: short, without a period."""
        return len(self.text.split()) <= 12 and self.text[-1:] not in ".:,;" and not self.text.startswith(">>>")


_UNDERLINED_HEADING = re.compile(r"(.+)\n([*=\-~^])\2{3,}")
_SKIPPED_BLOCK = re.compile(r"(Changed|New|Added|Deprecated) (in version|since)|.*::=|-\[ |See also:?$", re.DOTALL)
"""Matches paragraphs that are left out: notes about versions of Python, and grammar productions."""


def _split_into_blocks(text: str) -> Iterator[_Block]:
    for chunk in re.split(r"\n\s*\n", _strip_markup(text).expandtabs().strip("\n")):
        lines = chunk.strip("\n")
        heading = _UNDERLINED_HEADING.fullmatch(lines)
        if heading:
            yield _Block(0, heading[1].strip(), True)
        elif _TABLE_RULE.match(lines):
            yield _Block(0, "\n".join(_table_rows(lines)))
        elif not _SKIPPED_BLOCK.match(lines.strip()):
            yield _Block(len(lines) - len(lines.lstrip(" ")), dedent(lines).strip())


_TABLE_RULE = re.compile(r"^ *[+|][-=+|]+[+|] *$", re.MULTILINE)


def _table_rows(table: str) -> Iterator[str]:
    """Yield the rows of a text table as list items: `* cell: cell`."""
    for row in _TABLE_RULE.split(table):
        cells = zip(*(line.strip().strip("|").split("|") for line in row.strip().splitlines()), strict=False)
        cell_texts = [" ".join(" ".join(cell).split()) for cell in cells]
        if any(cell_texts):
            yield f"* {': '.join(text for text in cell_texts if text)}"


def _strip_markup(text: str) -> str:
    """Return `text` without the most common reStructuredText markup: roles and literal quotes."""
    return re.sub(r":[\w:]+:`~?([^`<]+?)(?: ?<[^>`]+>)?`", r"\1", text).replace("``", "").replace("::\n", ":\n")


def _split_block(block: str) -> list[str]:
    """Return the paragraph as a whole, or split it into sentences, list items or lines if it is too long."""
    if len(block.split()) <= MAX_WORDS:
        return [block]
    if block.startswith("* "):
        return block.split("\n* ")
    if ">>>" in block:
        return block.splitlines()
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"“*])", block)
