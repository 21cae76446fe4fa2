"""Python's own documentation as a small judged collection: real text that is on every machine.

The passages are made at run time from the interpreter that runs us: the topics of the language reference
(what `help("for")` shows) and the docstrings of the standard library. The questions and their graded
judgments are package data; `demo_questions.toml` says how they were made.

Needs nothing but the standard library, `rank_k.types` and `rank_k.errors`.
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
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from textwrap import dedent
from types import FunctionType, MethodType
from typing import NamedTuple

from rank_k.errors import InputError
from rank_k.types import Passage, Query

QUESTIONS = "demo_questions.toml"
FEATURED_EVERY = 7
"""Every seventh question, from the first on, is featured: a rule that knows nothing of any ranking."""

SHORTEST, DEFINITION, FULL, LONGEST = 6, 20, 60, 130
"""Words. Fewer than SHORTEST are no passage, more than LONGEST are split; a passage of DEFINITION words ends
before the next definition (`str.join(iterable)`), one of FULL words before the next paragraph."""

UMBRELLAS = ("typesseq", "types", "compound", "specialnames")
"""Topics that repeat others whole. They are read last, so that a shared text is kept under its own topic."""

SOURCES = """
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
"""Modules whose source is read, never imported, for its docstrings. What this Python lacks is passed over."""

COMPILED = """
    _signal _thread array collections contextvars datetime decimal functools gc io itertools math operator os pickle
    random re sqlite3 struct sys time weakref zlib
""".split()
"""Modules free of side effects that are imported for the docstrings of what is compiled in them."""

PUBLIC_NAMES = (
    (r"^asyncio\.\w+\b(?=\.)", "asyncio"),
    (r"^(pathlib\._\w+|pathlib)\.(Pure)?PathBase", r"pathlib.\2Path"),  # where 3.13 keeps some docstrings
    (r"^(pathlib|concurrent\.futures)\._\w+|^(concurrent\.futures)\.(thread|process)\b", r"\1\2"),
    (r"^(posixpath|genericpath)\b", "os.path"),
    (r"^(json|unittest|multiprocessing)\.(decoder|encoder|case|context|pool)\b", r"\1"),
    (r"^random\.Random\.", "random."),
    (r"^_thread\.(lock|LockType)\b", "threading.Lock"),
    (r"^_thread\b", "threading"),
    (r"^_signal\b", "signal"),
    (r"^builtins\.", ""),
)
"""Where users find what is written elsewhere: patterns applied to a name one after the other."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and what was judged for it: `judgments[doc_id]` is 3 (answers it fully), 2 (in part),
    1 (on the topic, helps) or 0 (read and not relevant). `featured` marks the demo's default set."""

    query: Query
    judgments: dict[str, int]
    featured: bool


def passages() -> list[Passage]:
    """The documentation of this interpreter in passages of 6 to about 130 words, each text once.

    Ids are `topic:for/names-in-the-target-list` (a topic and the first words of the passage) and qualified
    names such as `asyncio.wait_for`; the further parts of a long docstring add their first words in the same
    way. No id depends on its neighbors, so most hold in all versions of Python.

    Made on the first call (about a second), then kept. Raises `InputError` where the interpreter was
    installed without its documentation.
    """
    return list(_passages().values())


def questions() -> list[Question]:
    """The judged questions, with the judgments that hold for this interpreter's text.

    A judgment is dropped where this Python has no passage of that id, or has one whose text is none of
    those that were read. Raises what `passages` raises.
    """
    texts = _passages()
    found = []
    for number, (query_id, entry) in enumerate(_entries().items()):
        judgments = {
            doc_id: grade
            for doc_id, (grade, hashes) in entry.judgments.items()
            if doc_id in texts and fingerprint(texts[doc_id].text) in hashes
        }
        found.append(Question(Query(query_id, entry.text), judgments, number % FEATURED_EVERY == 0))
    return found


def qrels() -> dict[str, dict[str, int]]:
    """`query_id -> doc_id -> grade` of all questions. Raises what `passages` raises."""
    return {question.query.query_id: question.judgments for question in questions()}


def fingerprint(text: str) -> str:
    """8 hex digits of the SHA-256 of the lower-cased words: blind to layout, quotes and punctuation."""
    words = " ".join(re.findall(r"\w+", text.lower()))
    return hashlib.sha256(words.encode()).hexdigest()[:8]


class _Entry(NamedTuple):
    """One question of the file. `judgments`: doc_id -> grade and the fingerprints of the texts read."""

    text: str
    judgments: dict[str, tuple[int, tuple[str, ...]]]


@cache
def _entries() -> dict[str, _Entry]:
    content = tomllib.loads(files("rank_k.data.collections").joinpath(QUESTIONS).read_text(encoding="utf-8"))
    found = {}
    for query_id, entry in content.items():
        cells = {doc_id: cell.split() for doc_id, cell in entry["judgments"].items()}
        judgments = {doc_id: (int(grade), tuple(hashes)) for doc_id, (grade, *hashes) in cells.items()}
        found[query_id] = _Entry(entry["text"], judgments)
    return found


@cache
def _passages() -> dict[str, Passage]:
    kept: dict[str, Passage] = {}
    seen: set[str] = set()
    for name, signature, text in (*_topics(), *_docstrings()):
        for number, part in enumerate(_parts(text, signature)):
            body = fingerprint(part.body)
            if part.words < SHORTEST or body in seen:
                continue
            seen.add(body)
            doc_id = name if number == 0 and not name.startswith("topic:") else f"{name}/{_slug(part.body)}"
            while doc_id in kept:
                doc_id += "+"
            kept[doc_id] = Passage(doc_id, f"{part.title}\n{part.body}")
    return kept


def _slug(text: str) -> str:
    return "-".join(re.findall(r"\w+", text.lower())[:5])


def _topics() -> Iterator[tuple[str, str, str]]:
    """`(name, title, text)` of the language reference's topics, the umbrellas last."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise InputError(
            "this Python was installed without the text of help() (its module pydoc_data)",
            "install the full standard library (on Debian the package libpython3-stdlib) or another Python",
        ) from error
    for topic in sorted(topics, key=lambda topic: (topic in UMBRELLAS, topic)):
        yield f"topic:{topic}", topic, topics[topic]


def _docstrings() -> Iterator[tuple[str, str, str]]:
    """`(qualified name, name with its parameters, docstring)` of the standard library, each name once."""
    known: set[str] = set()
    for name, signature, text in (*_compiled(["builtins"]), *_written(), *_compiled(COMPILED)):
        for pattern, replacement in PUBLIC_NAMES:
            name, signature = re.sub(pattern, replacement, name), re.sub(pattern, replacement, signature)
        if name not in known:
            known.add(name)
            yield name, signature, text


def _written() -> Iterator[tuple[str, str, str]]:
    """From source: it keeps its docstrings under `python -OO`, and reading runs nobody's code."""
    root = Path(sysconfig.get_path("stdlib"))
    places = [(module, root.joinpath(*module.split("."))) for module in SOURCES]
    candidates = [(module, path) for module, place in places for path in (Path(f"{place}.py"), place / "__init__.py")]
    sources = [(module, path) for module, path in candidates if path.is_file()]
    if not sources:
        raise InputError(
            f"this Python was installed without the source of its standard library (there is none in {root})",
            "run Rank-K with another Python",
        )
    for module, path in sources:
        yield from _defined(module, ast.parse(path.read_bytes()))


def _defined(name: str, node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """The docstring of `node`, then those of what is defined in it (never inside a function)."""
    parameters = ""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        parameters = f"({', '.join(_parameters(node.args))})"
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield name, name + parameters, text
        if parameters:
            return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_") or child.name == "__init__":
                yield from _defined(f"{name}.{child.name}", child)
        elif isinstance(child, ast.If | ast.Try):
            yield from _defined(name, child)


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    yield from names[1:] if names[:1] in (["self"], ["cls"]) else names
    if arguments.vararg:
        yield f"*{arguments.vararg.arg}"
    elif arguments.kwonlyargs:
        yield "*"
    yield from (argument.arg for argument in arguments.kwonlyargs)
    if arguments.kwarg:
        yield f"**{arguments.kwarg.arg}"


def _compiled(modules: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    for module in modules:
        try:
            members = vars(importlib.import_module(module))
        except ImportError:
            continue  # sqlite3 and zlib are optional parts of Python
        yield from _documented(module, members)


def _documented(owner: str, members: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    for name, value in sorted(members.items()):
        is_compiled = inspect.isroutine(value) and not isinstance(value, FunctionType | MethodType)
        if name.startswith("_") or not (is_compiled or inspect.isclass(value)):
            continue
        if getattr(value, "__name__", name) in members.keys() - {name}:
            continue  # another name of what is listed under its own
        qualified, text = f"{owner}.{name}", inspect.getdoc(value)
        if text:
            parameters = getattr(value, "__text_signature__", None) or ""
            yield qualified, qualified + re.sub(r"\$\w+(, )?|, /|/(, )?", "", parameters), text
        if inspect.isclass(value):
            yield from _documented(qualified, vars(value))


class _Part(NamedTuple):
    title: str
    body: str

    @property
    def words(self) -> int:
        return len(self.body.split())


def _parts(text: str, title: str) -> Iterator[_Part]:
    """`text` cut at headings, at definitions and between paragraphs, by rules that look at neighbors only:
    where a version of Python inserts a paragraph, the cuts fall back into step soon after it."""
    held: list[str] = []
    defined = _Block(-1, "")  # the definition we are in
    base = size = 0

    def flushed() -> Iterator[_Part]:
        nonlocal size
        if held:
            inside = defined.indent >= 0 and held[0] != defined.text
            yield _Part(f"{title}: {defined.text.splitlines()[0]}" if inside else title, "\n".join(held))
        held.clear()
        size = 0

    blocks = list(_blocks(text))
    whole = len(text.split()) <= LONGEST
    for block, following in zip(blocks, [*blocks[1:], _Block(0, "")], strict=True):
        if block.is_heading:
            yield from flushed()
            title, defined = block.text, _Block(-1, "")
            continue
        opens = not whole and block.may_define and following.indent > block.indent
        belongs = block.indent > base and not opens  # an example, a list or the body of a definition
        if size >= (DEFINITION if opens else FULL) and not belongs and not whole:
            yield from flushed()
        if opens and not held:
            defined = block
        elif block.indent <= defined.indent and not held:
            defined = _Block(-1, "")
        base = base if belongs else block.indent
        for piece in _pieces(block.text):
            words = len(piece.split())
            if size + words > LONGEST:
                yield from flushed()
            held.append(piece)
            size += words
    yield from flushed()


class _Block(NamedTuple):
    """What stands between two blank lines, dedented."""

    indent: int
    text: str
    is_heading: bool = False

    @property
    def may_define(self) -> bool:
        """Like `str.join(iterable)`: a short line without a full stop, whose body is indented below it."""
        return len(self.text.split()) <= 12 and self.text[-1:] not in ".:,;" and not self.text.startswith(">>>")


_UNDERLINED = re.compile(r"(.+)\n([*=\-~^])\2{3,}")
_LEFT_OUT = re.compile(r"(Changed|New|Added|Deprecated) (in version|since)|.*::=|-\[ |See also:?$", re.DOTALL)
"""What differs between versions of Python without a reader's noticing, and grammar productions."""


def _blocks(text: str) -> Iterator[_Block]:
    for chunk in re.split(r"\n\s*\n", _plain(text).expandtabs().strip("\n")):
        lines = chunk.strip("\n")
        heading = _UNDERLINED.fullmatch(lines)
        if heading:
            yield _Block(0, heading[1].strip(), True)
        elif _RULE.match(lines):
            yield _Block(0, "\n".join(_rows(lines)))
        elif not _LEFT_OUT.match(lines.strip()):
            yield _Block(len(lines) - len(lines.lstrip(" ")), dedent(lines).strip())


_RULE = re.compile(r"^ *[+|][-=+|]+[+|] *$", re.MULTILINE)


def _rows(table: str) -> Iterator[str]:
    """A drawn table as a list: `* cell: cell`."""
    for row in _RULE.split(table):
        cells = zip(*(line.strip().strip("|").split("|") for line in row.strip().splitlines()), strict=False)
        texts = [" ".join(" ".join(cell).split()) for cell in cells]
        if any(texts):
            yield f"* {': '.join(text for text in texts if text)}"


def _plain(text: str) -> str:
    """Without the commonest RST: roles and literal quotes."""
    return re.sub(r":[\w:]+:`~?([^`<]+?)(?: ?<[^>`]+>)?`", r"\1", text).replace("``", "").replace("::\n", ":\n")


def _pieces(block: str) -> list[str]:
    """The block whole; where it is too long, its sentences, the items of a list or the lines of an example."""
    if len(block.split()) <= LONGEST:
        return [block]
    if block.startswith("* "):
        return block.split("\n* ")
    if ">>>" in block:
        return block.splitlines()
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"“*])", block)
