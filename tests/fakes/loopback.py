"""A real HTTP server that answers like a reasoning model behind an OpenAI-compatible API, faults included.

Four parts, in this order: *marked passages* and the oracle that ranks them; the *plan*, which says what
goes wrong; the *server*; and ways to run it. Everything that looks random is a hash of the window's contents
(the marks of its passages, in the order shown), so that every client, and the simulation in
`benchmarks.ideal`, meets the same latencies, the same traces and the same faults.

    python -m tests.fakes.loopback --port 0 --cut 0.28 --http-429 0.11:6

prints its base URL and serves until its standard input is closed. `POST /control` changes the plan of a
running server, `GET /log` tells what was asked of it, `DELETE /log` forgets that.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import math
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from http import HTTPStatus
from http.client import HTTPConnection
from typing import Any, NamedTuple

from rank_k.types import Candidate, Passage, Query, Run
from tests.paths import ROOT
from tests.support.waiting import PATIENCE

# --- Marked passages and the oracle that ranks them ------------------------------------------------

_MARK = re.compile(r"mark:([\w.]+(?:-[\w.]+)*)")
_GRADE = re.compile(r"-G(\d+)$")
_PASSAGE_LINE = re.compile(r"^\[(\d+)\] (?![>=])(.+)$", re.MULTILINE)


class Dataset(NamedTuple):
    """Queries with a first-stage run and judgments that the oracle agrees with entirely."""

    queries: tuple[Query, ...]
    passages: Mapping[str, Passage]
    run: Run
    qrels: Mapping[str, Mapping[str, int]]

    def marks(self, query_id: str, doc_ids: Iterable[str]) -> tuple[str, ...]:
        """What the oracle reads in the passages of a window."""
        return tuple(f"{doc_id}-G{self.qrels[query_id][doc_id]}" for doc_id in doc_ids)

    def perfect(self, query_id: str) -> list[str]:
        """The best ranking there is; equal grades in first-stage order."""
        grades = self.qrels[query_id]
        return sorted((c.doc_id for c in self.run[query_id]), key=lambda doc_id: -grades[doc_id])


def make_queries(n_queries: int, n_passages: int, seed: int = 0, *, strict: bool = False, words: int = 60) -> Dataset:
    """Queries `Q00`, `Q01`, ... with `n_passages` candidates each, in random first-stage order.

    Grades per query: 2 passages of grade 3, 4 of grade 2, 8 of grade 1, the others 0; with `strict`, all
    different (n_passages - 1 down to 0), so that there is only one perfect ranking. `words`: the length of
    a passage; its mark stands first, where no cut reaches it.
    """
    rng = random.Random(f"{seed}:{n_queries}:{n_passages}")
    queries, passages, run, qrels = [], {}, {}, {}
    vocabulary = [a + b for a in ("ba", "ke", "mi", "no", "su", "té") for b in ("lar", "ven", "dos", "rim")]
    for q in range(n_queries):
        query_id = f"Q{q:02d}"
        queries.append(Query(query_id, f"query {q}: which passage has the highest grade?"))
        by_merit = [f"{query_id}-D{d:03d}" for d in range(n_passages)]
        rng.shuffle(by_merit)
        graded = [3] * 2 + [2] * 4 + [1] * 8 + [0] * n_passages
        grades = range(n_passages - 1, -1, -1) if strict else graded[:n_passages]
        qrels[query_id] = dict(zip(by_merit, grades, strict=True))
        for doc_id, grade in sorted(qrels[query_id].items()):
            text = " ".join(rng.choices(vocabulary, k=words))
            passages[doc_id] = Passage(doc_id, f"mark:{doc_id}-G{grade} {text}")
        first_stage = rng.sample(by_merit, n_passages)
        run[query_id] = [Candidate(doc_id, float(n_passages - i)) for i, doc_id in enumerate(first_stage)]
    return Dataset(tuple(queries), passages, run, qrels)


def shown_marks(messages: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The marks of the passages `[1] ...`, `[2] ...` that the user's messages show, one per line.

    Of several such lists the longest counts: a ranking given as an example is not one. A passage without
    `mark:` is its own mark.
    """
    best: list[str] = []
    for message in messages:
        if message.get("role") != "user" or not isinstance(message.get("content"), str):
            continue
        found: list[str] = []
        for line in _PASSAGE_LINE.finditer(message["content"]):
            if int(line[1]) == 1:
                found = []
            if int(line[1]) == len(found) + 1:
                mark = _MARK.search(line[2])
                found.append(mark[1] if mark else line[2].strip())
            if len(found) > len(best):
                best = found
    return tuple(best)


def _fraction(*of: str) -> float:
    """A number in [0, 1) that is the same for the same strings, on every machine."""
    digest = hashlib.sha256("\n".join(of).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def relevance(mark: str) -> float:
    """The grade of `...-G2`; for a mark without one, the first 7 bytes of its sha256 as a fraction of 1."""
    grade = _GRADE.search(mark)
    return float(grade[1]) if grade else _fraction(mark)


def oracle(marks: Sequence[str]) -> list[list[int]]:
    """The true order of a window: tiers of 1-based numbers, best first, equal marks tied."""
    numbers = sorted(range(1, len(marks) + 1), key=lambda i: (-relevance(marks[i - 1]), i))
    return [list(tier) for _, tier in itertools.groupby(numbers, key=lambda i: relevance(marks[i - 1]))]


def window_key(marks: Sequence[str]) -> str:
    """What names a window in the log: 16 hex digits of the sha256 of its contents."""
    return hashlib.sha256("\n".join(marks).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@lru_cache(maxsize=4096)
def reply_tokens(marks: tuple[str, ...]) -> int:
    """Length of thought and answer together: lognormal of mean 430 and sigma 0.5, clipped to 100 .. 2,000.

    Longer where the answer alone needs more.
    """
    drawn = random.Random(window_key(marks)).lognormvariate(math.log(430) - 0.5**2 / 2, 0.5)
    return max(round(min(max(drawn, 100), 2000)), 2 * len(marks) + 20)


def latency(marks: tuple[str, ...], first_token: float = 0.2, per_token: float = 0.002) -> float:
    """Seconds from the arrival of a window's question to the end of its reply, where nothing goes wrong."""
    return first_token + per_token * reply_tokens(marks)


# --- The plan: what the server is, and what goes wrong ---------------------------------------------


class Fault(NamedTuple):
    """A share of all windows, each of which meets the fault the first `times` times it is asked about."""

    rate: float = 0.0
    times: int = 1

    @classmethod
    def of(cls, value: object) -> Fault:
        """From 0.11, "0.11", "0.11:6" or (0.11, 6)."""
        parts = value.split(":") if isinstance(value, str) else value
        rate, times = (*parts, 1)[:2] if isinstance(parts, (list, tuple)) else (parts, 1)
        return cls(float(rate), int(times))


NEVER = Fault()
ENGINE_FAULT = "EngineCore encountered an issue."
QUIRKS = ("inline", "missing_open", "reasoning", "reasoning_content", "reasoning_details", "none")
ABILITIES = ("raw", "continue", "grammar", "budget", "logprobs", "spell")
"""Going on from a rendered prompt, or from an open last message; grammars; budgets; probabilities; grammars of tokens
behind any text, as llama.cpp takes them."""
TRAPS = ("", "answer_in_reasoning", "two_ends", "always_thinks", "repetition_stopped")
"""A closed thought's answer comes as reasoning with null content; an end of thought leaks into the content; the
switch for direct answers is forgotten; thoughts go in circles for ever."""
TRANSIENT = ("http_429", "http_500", "drop", "error_in_stream", "bad_utf8", "bad_json")


@dataclass(frozen=True, slots=True)
class Plan:
    """Faults can be combined. One request meets one transient fault (`TRANSIENT`, in that order) at most."""

    model: str = "oracle"
    owned_by: str = "vllm"
    max_model_len: int = 40960  # 0: not told, not enforced; a token is 4 characters
    api_key: str = ""  # asked for where given
    redirect: str = ""  # another server's /v1, to which this one's is redirected (307)
    refuse: int = 0  # the HTTP status with which every question is turned down
    first_token: float = 0.2  # seconds
    per_token: float = 0.002
    flush: float = 0.05  # seconds between the pieces of a stream
    quirk: str = "inline"  # where the trace goes: one of QUIRKS
    abilities: str = ""  # of ABILITIES, with blanks between: what is honored; the rest is refused or forgotten
    trap: str = ""  # one of TRAPS
    cut: float = 0.0  # share of windows whose thought ends by "length" unless a later turn asks for the order
    prose: float = 0.0  # answered as a sentence with a bare comma list of all numbers
    garbage: float = 0.0  # answered with an apology and no order, or misspelt
    slow_start: float = 0.0  # begun `slow_seconds` late, with a comment in the stream meanwhile
    slow_seconds: float = 1.0
    http_429: Fault = NEVER
    http_500: Fault = NEVER
    drop: Fault = NEVER  # the connection is reset in mid-stream
    error_in_stream: Fault = NEVER  # an error object in mid-stream, then the end
    bad_utf8: Fault = NEVER  # a piece of the trace holds bytes that are no UTF-8
    bad_json: Fault = NEVER  # half a JSON object in mid-stream; the stream then goes on
    retry_after: str = ""  # the Retry-After header of a 429, as it is sent
    ragged: bool = False  # HTTP chunks end in mid-line and in mid-character
    bodies: bool = False  # keep the requests' bodies in the log
    seed: int = 0  # another one draws other windows for the faults

    def changed(self, changes: Mapping[str, Any]) -> Plan:
        """Raises `ValueError` for a name or a quirk that does not exist."""
        unknown = changes.keys() - {f.name for f in fields(self)}
        able = set(str(changes.get("abilities", "")).split())
        if unknown or changes.get("quirk", self.quirk) not in QUIRKS or not able <= set(ABILITIES):
            raise ValueError(f"no such setting, quirk or ability: {', '.join(unknown) or changes}")
        values: dict[str, Any] = {k: Fault.of(v) if k in TRANSIENT else v for k, v in changes.items()}
        return replace(self, **values)

    def can(self, ability: str) -> bool:
        return ability in self.abilities.split()

    def strikes(self, fault: str, window: str) -> bool:
        value = getattr(self, fault)
        rate = value.rate if isinstance(value, Fault) else value
        return rate > 0 and _fraction(fault, window, str(self.seed)) < rate


@dataclass(slots=True)
class Seen:
    """One request. Times are of `time.monotonic`, which all processes of a machine share."""

    path: str
    start: float
    end: float | None = None
    status: int = 0
    window: str = ""
    n_messages: int = 0
    stream: bool = False
    authorization: str = ""
    fault: str = ""
    cancelled: bool = False  # the client went away before the end
    body: Any = None


def peak_concurrency(spans: Iterable[tuple[float, float]]) -> int:
    """How many of the (start, end) overlapped at most; one may start the moment another ends."""
    known = list(spans)
    events = sorted([(start, 1) for start, _ in known] + [(end, -1) for _, end in known])
    return max(itertools.accumulate(step for _, step in events), default=0)


# --- One reply ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Script:
    """A reply as tokens. `said` of them are said, the last ones fall to the limit."""

    thought: list[str]
    answer: list[str]
    said: int

    @property
    def finish_reason(self) -> str:
        return "stop" if self.said == len(self.thought) + len(self.answer) else "length"

    def text(self, start: int, end: int) -> tuple[str, str]:
        """Thought and answer from token `start` to before token `end`."""
        shift = len(self.thought)
        return (
            "".join(self.thought[start:end]),
            "".join(self.answer[max(0, start - shift) : max(0, end - shift)]),
        )


def _answer(plan: Plan, marks: Sequence[str], window: str, held: bool) -> list[str]:
    """The answer as tokens; `held` to a grammar, it is always well formed."""
    tiers = oracle(marks)
    if not marks:
        text = "Hello there."
    elif not held and plan.strikes("garbage", window):
        text = "I am sorry, but I cannot help with that request."
    elif not held and plan.strikes("prose", window):
        listed = ", ".join(str(i) for tier in tiers for i in tier)
        text = f"Of the {len(marks)} passages, the 3 best answer the question directly: {listed}"
    else:
        text = " > ".join(" = ".join(f"[{i}]" for i in tier) for tier in tiers)
    return re.findall(r"\S+\s*", text)


_MUSINGS = [f"{a}{b}{c}" for a in ("ka", "mo", "ti", "su", "re") for b in ("l", "n", "st", "v") for c in "aeiou"]
"""Words to muse in, so many that a thought is not one that goes in circles."""


def _thought(plan: Plan, marks: Sequence[str], window: str, length: int) -> list[str]:
    """`length` tokens that mention passages, and even orders of them, at random: none is the answer."""
    rng = random.Random(window)
    opening = ["<think>\n"] if plan.quirk == "inline" else []
    closing = ["\n</think>\n\n"] if plan.quirk in ("inline", "missing_open") else []
    room = length - len(opening) - len(closing)
    words: list[str] = []
    if plan.trap == "repetition_stopped":
        words = re.findall(r"\S+\s", "Wait, let me think about [2] again, since it might be better than [1].\n")
        words = (words * (room // len(words) + 1))[:room]
    while len(words) < room:
        for i in rng.sample(range(1, len(marks) + 1), len(marks)) or [0]:
            j = rng.randint(1, len(marks) or 1)
            aside = " ".join(rng.choices(_MUSINGS, k=rng.randint(6, 14)))
            phrase = f"{aside} [{i}] {rng.choice(_MUSINGS)} [{i}] > [{j}], {rng.choice(_MUSINGS)} — naïve?\n"
            words += re.findall(r"\S+\s", phrase)
    return [*opening, *words[:room], *closing]


def spelt(plan: Plan, window: str, tokens: list[str]) -> Script:
    """A text that the grammar prescribes, unless this window is misspelt or cut."""
    if plan.strikes("garbage", window):
        tokens = [token.swapcase() for token in tokens]
    said = len(tokens) // 2 if plan.strikes("cut", window) else len(tokens)
    return Script([], tokens, said)


def probability(mark: str, token: str) -> float:
    """The log-probability of a token of the query behind a passage: the better the passage, the higher."""
    return -100.0 + relevance(mark) - 0.001 * _fraction(token)


def compose(plan: Plan, marks: tuple[str, ...], window: str, body: Mapping[str, Any]) -> Script:
    if "spelling" in body:
        return spelt(plan, window, body["spelling"])
    held = plan.can("grammar") and any(key in body for key in ("grammar", "regex", "structured_outputs"))
    answer = _answer(plan, marks, window, held)
    switches = body.get("chat_template_kwargs") or {}
    direct = plan.quirk == "none" or switches.get("enable_thinking", switches.get("thinking")) is False
    prefill = str(body.get("prefill") or "")
    if plan.trap == "always_thinks" and plan.quirk != "none" and "</think>" not in prefill:
        direct = False
    elif _is_follow_up(body) or "</think>" in prefill:
        direct = True
    if direct:
        thought = []
        if plan.trap == "two_ends" and "</think>" in prefill:
            answer = ["</think>\n\n", *answer]
    else:
        wanted = reply_tokens(marks) if marks else 40
        if plan.trap == "repetition_stopped":
            wanted = 100_000
        budget = body.get("thinking_token_budget")
        if plan.can("budget") and isinstance(budget, int):
            wanted = min(wanted, budget + len(answer))
        thought = _thought(plan, marks, window, max(wanted - len(answer), 3))
        if prefill.startswith("<think>") and thought and thought[0].startswith("<think>"):
            thought = thought[1:]
    if "</think>" in (body.get("stop") or ()):
        thought = [token for token in thought if "</think>" not in token]
        answer = []
    said = min(len(thought) + len(answer), _max_tokens(body) or sys.maxsize)
    if thought and plan.strikes("cut", window):
        said = min(said, 2 + int((len(thought) - 2) * _fraction("where", window)))
    return Script(thought, answer, said)


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    limit: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
    return limit


def rendered(messages: Iterable[Mapping[str, Any]]) -> str:
    """Messages in this server's chat template, which is JSON, and the beginning of the assistant's turn."""
    return f"{json.dumps(list(messages))}\n<|assistant|>\n"


def token_ids(text: str) -> list[int]:
    """Four characters a token, as numbers that tell them."""
    return [int.from_bytes(text[i : i + 4].encode("utf-32-be", "surrogatepass"), "big") for i in range(0, len(text), 4)]


def text_of(ids: Iterable[int]) -> str:
    """The text whose `token_ids` are `ids`."""
    pieces = (i.to_bytes(16, "big").decode("utf-32-be", "surrogatepass") for i in ids)
    return "".join(piece.lstrip("\0") for piece in pieces)


def _is_follow_up(body: Mapping[str, Any]) -> bool:
    """Whether the order is asked for in a later turn."""
    return len([message for message in body["messages"] if message.get("role") != "system"]) > 1


def count_tokens(messages: Iterable[Mapping[str, Any]]) -> int:
    return sum(len(str(message.get("content") or "")) for message in messages) // 4


# --- The server -----------------------------------------------------------------------------------


class _GoneError(ConnectionError):
    """The client has left, or is to be left, in mid-reply."""


@dataclass(slots=True)
class _Exchange:
    """One request that is being answered, and the connection it came over."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seen: Seen

    def send(self, status: int, payload: Any, headers: str = "") -> None:
        self.seen.status = status
        body = b"" if payload is None else json.dumps(payload).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def refuse(self, status: int, message: str, kind: str, headers: str = "") -> None:
        error = {"message": message, "type": kind, "param": None, "code": status}
        self.send(status, {"error": error}, headers)

    async def until(self, deadline: float, step: float = 0.05) -> None:
        """Wait for the deadline, but look after the client every `step` seconds."""
        while True:
            if self.writer.transport.is_closing() or self.reader.at_eof():
                self.seen.cancelled = True
                raise _GoneError
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await asyncio.sleep(min(left, step))


class Server:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.seen: list[Seen] = []
        self.connections = 0
        self._met: Counter[tuple[str, str]] = Counter()  # (fault, window) -> how often
        self._talks: set[asyncio.Task[None]] = set()

    async def run(self, port: int, ready: Callable[[str], object], stop: asyncio.Event) -> None:
        """Serve until `stop` is set. `ready` is told the base URL."""
        server = await asyncio.start_server(self._talk, "127.0.0.1", port, backlog=1024)
        ready(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        await stop.wait()
        server.close()
        for talk in self._talks:
            talk.cancel()
        if self._talks:
            await asyncio.wait(self._talks)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        self.connections += 1
        try:
            while True:
                await self._request(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the ways in which a conversation ends
        except asyncio.CancelledError:
            writer.transport.abort()
        except (ValueError, asyncio.LimitOverrunError):
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        finally:
            self._talks.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        body = json.loads(raw) if raw else {}
        seen = Seen(path, time.monotonic(), authorization=headers.get("authorization", ""))
        exchange = _Exchange(reader, writer, seen)
        if path in ("/control", "/log"):
            self._manage(exchange, method, body)
            return
        self.seen.append(seen)
        if self.plan.bodies:
            seen.body = body
        try:
            await self._route(exchange, method, body)
        finally:
            seen.end = time.monotonic()

    def _manage(self, exchange: _Exchange, method: str, body: Any) -> None:
        if exchange.seen.path == "/log":
            if method == "DELETE":
                self.seen.clear()
                self._met.clear()
            exchange.send(200, {"requests": [asdict(s) for s in self.seen], "connections": self.connections})
            return
        try:
            self.plan = self.plan.changed(body)
        except (ValueError, TypeError) as error:
            exchange.refuse(400, str(error), "plan")
        else:
            exchange.send(200, asdict(self.plan))

    async def _route(self, exchange: _Exchange, method: str, body: Any) -> None:
        plan, path = self.plan, exchange.seen.path
        if path == "/health":
            exchange.send(200, {})
        elif plan.redirect and path.startswith("/v1/"):
            exchange.send(307, None, f"Location: {plan.redirect}{path.removeprefix('/v1')}\r\n")
        elif plan.api_key and exchange.seen.authorization != f"Bearer {plan.api_key}":
            exchange.refuse(401, "Incorrect API key provided.", "invalid_request_error")
        elif (method, path) == ("GET", "/v1/models"):
            card = {"id": plan.model, "object": "model", "created": 0, "owned_by": plan.owned_by}
            length = {"max_model_len": plan.max_model_len} if plan.max_model_len else {}
            exchange.send(200, {"object": "list", "data": [card | length]})
        elif (method, path) == ("POST", "/tokenize"):
            text = body.get("prompt", body.get("content"))
            ids: list[Any] = token_ids(rendered(body["messages"]) if text is None else text)
            if body.get("with_pieces"):
                ids = [{"id": i, "piece": text_of([i])} for i in ids]
            exchange.send(200, {"count": len(ids), "max_model_len": plan.max_model_len, "tokens": ids})
        elif (method, path) == ("POST", "/apply-template") and plan.can("raw") and plan.owned_by == "llamacpp":
            exchange.send(200, {"prompt": rendered(body["messages"])})
        elif (method, path) == ("POST", "/v1/completions") and plan.can("spell") and "<[" in body.get("grammar", ""):
            await self._complete(exchange, _as_spelling(body))
        elif (method, path) == ("POST", "/v1/completions") and plan.can("raw"):
            await self._complete(exchange, _as_chat(body))
        elif (method, path) == ("POST", "/v1/chat/completions"):
            if not (isinstance(body, dict) and body.get("continue_final_message")):
                await self._complete(exchange, body)
            elif plan.can("continue"):
                *messages, last = body["messages"]
                await self._complete(exchange, body | {"messages": messages, "prefill": last["content"]})
            else:
                exchange.refuse(400, "continue_final_message is not supported", "BadRequestError")
        else:
            exchange.refuse(404, "Not Found", "NotFoundError")

    async def _complete(self, exchange: _Exchange, body: Any) -> None:
        plan, seen, loop = self.plan, exchange.seen, asyncio.get_running_loop()
        arrived = loop.time()
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            exchange.refuse(400, "messages: a list is required", "BadRequestError")
            return
        marks = tuple(body["marks"]) if "marks" in body else shown_marks(body["messages"])
        seen.window = window_key(marks)
        seen.n_messages = len(body["messages"])
        seen.stream = bool(body.get("stream"))
        if self._refuses(exchange, body):
            return
        for fault in TRANSIENT:
            met = (fault, seen.window)
            if plan.strikes(fault, seen.window) and self._met[met] < getattr(plan, fault).times:
                self._met[met] += 1
                seen.fault = fault
                break
        if seen.fault == "http_429":
            wait = f"Retry-After: {plan.retry_after}\r\n" if plan.retry_after else ""
            limit = "rate limit: limit 20 per 1 min, try again in 3s"
            exchange.send(429, {"error": {"message": limit}}, wait)
            return
        if seen.fault == "http_500":
            exchange.refuse(500, ENGINE_FAULT, "InternalServerError")
            return
        script = compose(plan, marks, seen.window, body)
        prompt_tokens = count_tokens(body["messages"])
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": script.said,
            "total_tokens": prompt_tokens + script.said,
            "completion_tokens_details": {"reasoning_tokens": min(script.said, len(script.thought))},
        }
        begin = arrived + plan.first_token
        if plan.strikes("slow_start", seen.window):
            begin += plan.slow_seconds
        shape = {"id": f"chatcmpl-{len(self.seen)}", "created": 0, "model": plan.model}
        if seen.stream:
            await _stream(exchange, plan, script, begin, shape, body, usage)
            return
        await exchange.until(begin + plan.per_token * script.said)
        if seen.fault == "drop":
            exchange.writer.transport.abort()
            raise _GoneError
        if seen.fault == "error_in_stream":
            exchange.refuse(500, ENGINE_FAULT, "InternalServerError")
            return
        message = {"role": "assistant"} | _placed(plan.quirk, *script.text(0, script.said))
        choice = {"index": 0, "message": message, "finish_reason": script.finish_reason}
        exchange.send(200, shape | {"object": "chat.completion", "choices": [choice], "usage": usage})

    def _refuses(self, exchange: _Exchange, body: Any) -> bool:
        plan = self.plan
        prompt = count_tokens(body["messages"])
        wanted = _max_tokens(body) or 1
        limit = plan.max_model_len or math.inf
        if plan.refuse:
            exchange.refuse(plan.refuse, HTTPStatus(plan.refuse).description or "refused", "RequestRejected")
        elif body.get("model") != plan.model:
            name = body.get("model")
            exchange.refuse(404, f"The model `{name}` does not exist.", "NotFoundError")
        elif prompt >= limit:  # the next two messages are vLLM's own, for clients that read numbers in them
            exchange.refuse(
                400,
                f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{prompt + wanted} tokens ({prompt} in the messages, {wanted} in the completion). "
                "Please reduce the length of the messages or completion.",
                "BadRequestError",
            )
        elif prompt + wanted > limit:
            exchange.refuse(
                400,
                f"'max_tokens' or 'max_completion_tokens' is too large: {wanted}. This model's maximum "
                f"context length is {limit} tokens and your request has {prompt} input tokens "
                f"({wanted} > {limit} - {prompt}).",
                "BadRequestError",
            )
        else:
            return False
        return True


def _as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a completion as the chat that its prompt was rendered from; its text begins the answer."""
    prompt = body["prompt"] if isinstance(body["prompt"], str) else text_of(body["prompt"])
    messages, _, prefill = prompt.partition("\n<|assistant|>\n")
    return {**body, "messages": json.loads(messages), "prefill": prefill, "completion": True}


def _as_spelling(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a given text behind a passage as a chat about that passage."""
    mark = _MARK.search(body["prompt"])
    marks = [mark[1] if mark else str(body["prompt"])]
    tokens = [text_of([int(number)]) for number in re.findall(r"<\[(\d+)\]>", body["grammar"])]
    messages = [{"role": "user", "content": body["prompt"]}]
    return {**body, "messages": messages, "marks": marks, "spelling": tokens, "completion": True}


def _placed(quirk: str, thought: str, answer: str) -> dict[str, Any]:
    """Thought and answer in the fields where this kind of server puts them; no answer is a null content."""
    if quirk in ("inline", "missing_open", "none"):
        return {"content": thought + answer}
    details = [{"type": "reasoning.text", "text": thought, "format": None, "index": 0}]
    trace: Any = details if quirk == "reasoning_details" else thought
    return {"content": answer or None} | ({quirk: trace} if thought else {})


async def _stream(
    exchange: _Exchange, plan: Plan, script: Script, begin: float, shape: Any, body: Any, usage: Any
) -> None:
    loop, seen, shape = asyncio.get_running_loop(), exchange.seen, shape | {"object": "chat.completion.chunk"}

    def send(*events: bytes) -> None:
        data = b"".join(events)
        # 7 bytes more than half: in mid-line as a rule, and now and then in mid-character
        parts = (data[: len(data) // 2 + 7], data[len(data) // 2 + 7 :]) if plan.ragged else (data,)
        exchange.writer.write(b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part))

    def event(payload: Any) -> bytes:
        return b"data: %b\n\n" % json.dumps(payload, ensure_ascii=False).encode()

    def chunk(delta: Any, finish_reason: str | None = None) -> bytes:
        return event(shape | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def say(start: int, to: int) -> None:
        thought, answer = script.text(start, to)
        if body.get("completion"):
            choice: dict[str, Any] = {"index": 0, "text": thought + answer, "finish_reason": None}
            if "spelling" in body and plan.can("logprobs"):
                told = [(token, probability(body["marks"][0], token)) for token in script.answer[start:to]]
                choice["logprobs"] = {"content": [{"token": token, "logprob": p} for token, p in told]}
            send(event(shape | {"object": "text_completion", "choices": [choice]}))
            return
        if plan.trap == "answer_in_reasoning" and "</think>" in str(body.get("prefill")):
            send(chunk({"reasoning": answer, "content": None}))
            return
        inline = plan.quirk in ("inline", "missing_open", "none")
        pieces = [(thought, answer)] if inline else [(thought, ""), ("", answer)]
        send(*(chunk(_placed(plan.quirk, *piece)) for piece in pieces if any(piece)))

    seen.status = 200
    exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    if begin - plan.first_token > loop.time():
        send(b": the model is still being waited for\n\n")
    await exchange.until(begin)
    send(chunk({"role": "assistant", "content": ""}))
    end = begin + plan.per_token * script.said
    flush = max(plan.flush, 0.001)
    middle = min(script.said, len(script.thought)) // 2
    said, fault = 0, seen.fault
    while said < script.said:
        # Deadlines are counted from the beginning, so that late wake-ups do not add up.
        await exchange.until(min(end, begin + flush * (1 + (loop.time() - begin) // flush)))
        now = loop.time()
        due = script.said if now >= end else min(script.said, int((now - begin) / plan.per_token))
        if fault and due >= middle:
            say(said, middle)
            if fault == "drop":
                exchange.writer.transport.abort()
                raise _GoneError
            if fault == "error_in_stream":
                error = {"message": ENGINE_FAULT, "type": "InternalServerError", "code": 500}
                send(event({"error": error}), b"data: [DONE]\n\n")
                exchange.writer.write(b"0\r\n\r\n")
                return
            if fault == "bad_utf8":
                # one more piece of thought, in which one character is broken
                send(chunk(_placed(plan.quirk, "¤", "")).replace("¤".encode(), b"\xff\xfe"))
            else:
                send(b'data: {"choices": [{"index": 0, "delta": {"con\n\n')
            said, fault = middle, ""
        say(said, due)
        said = due
    last = [chunk({}, script.finish_reason)]
    if (body.get("stream_options") or {}).get("include_usage"):
        last.append(event(shape | {"choices": [], "usage": usage}))
    send(*last, b"data: [DONE]\n\n")
    exchange.writer.write(b"0\r\n\r\n")


# --- Running it -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loopback:
    """A running server, seen from outside; the same for one in a thread and one in a child process."""

    url: str  # what a client is given: http://127.0.0.1:PORT/v1
    pid: int | None = None  # of the child process, where it runs in one

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        connection = HTTPConnection(self.url.split("/")[2], timeout=PATIENCE)
        try:
            connection.request(method, path, json.dumps(body))
            response = connection.getresponse()
            payload = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(payload["error"]["message"])
        return payload

    def change(self, **plan: Any) -> None:
        """Change the plan for the requests to come."""
        self._call("POST", "/control", plan)

    def forget(self) -> None:
        """Empty the log, and let transient faults strike anew."""
        self._call("DELETE", "/log")

    @property
    def requests(self) -> list[Seen]:
        """Everything asked so far, by time of arrival; what is not yet answered has no `end`."""
        return [Seen(**seen) for seen in self._call("GET", "/log")["requests"]]

    @property
    def calls(self) -> list[Seen]:
        """Those of `requests` that are questions to the model."""
        return [seen for seen in self.requests if seen.path == "/v1/chat/completions"]

    @property
    def connections(self) -> int:
        """How many connections were opened, the one this is asked over included."""
        return int(self._call("GET", "/log")["connections"])


@contextmanager
def in_thread(plan: Plan) -> Iterator[Loopback]:
    """Quick to start: for tests."""
    ready: Future[str] = Future()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        handles.append((asyncio.get_running_loop(), stop))
        await Server(plan).run(0, ready.set_result, stop)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    try:
        yield Loopback(ready.result(timeout=PATIENCE))
    finally:
        for loop, stop in handles:
            loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=PATIENCE)


@contextmanager
def in_child(plan: Plan) -> Iterator[Loopback]:
    """In a process of its own, so that it shares neither the interpreter lock nor the CPU account."""
    command = [sys.executable, "-m", "tests.fakes.loopback"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            server = Loopback(child.stdout.readline().strip(), child.pid)
            server.change(**asdict(plan))
            yield server
        finally:
            with suppress(BrokenPipeError):
                child.stdin.close()
            try:
                child.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()


async def _serve(plan: Plan, port: int) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(stop.set)

    def announce(url: str) -> None:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    await Server(plan).run(port, announce, stop)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.loopback")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    for setting in fields(Plan):
        option = f"--{setting.name.replace('_', '-')}"
        if isinstance(setting.default, bool):
            parser.add_argument(option, action="store_true")
        else:
            kind = Fault.of if setting.name in TRANSIENT else type(setting.default)
            parser.add_argument(option, type=kind, default=setting.default)
    options = vars(parser.parse_args())
    port = options.pop("port")
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(Plan().changed(options), port))


if __name__ == "__main__":
    main()
