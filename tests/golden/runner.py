"""Runs golden cases and returns what they did, normalized, as JSON values."""

from __future__ import annotations

import csv
import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from tests.golden import adapter
from tests.golden.cases import GROUPS, KEYS
from tests.golden.data import write_data
from tests.golden.model_server import CapturedRequest, ModelServer, running_model_server
from tests.golden.normalize import Normalizer, Texts, table
from tests.golden.steps import Case, Command, Content, Http, Serving, Session, Step

Json = Any
RESPONSE_HEADERS = ("content-type", "www-authenticate", "allow", "access-control-allow-origin")
AUXILIARY = ("/v1/models", "/tokenize", "/apply-template")
"""Requests that may be repeated more or less often: only the distinct ones are recorded."""
_RUN_NAME = re.compile(r'"([0-9a-f]{16})"')


def run_group(group: str) -> tuple[dict[str, Json], Texts]:
    """Run the cases of a group. Returns case name -> record, and the texts that the records refer to."""
    texts = Texts()
    with tempfile.TemporaryDirectory(prefix="golden-") as folder, running_model_server() as server:
        root = Path(folder).resolve()
        write_data(root / "data")
        with _isolated_environment(root / "home"):
            return {case.name: _Runner(case, root, server, texts).run() for case in GROUPS[group]}, texts


@contextmanager
def _isolated_environment(home: Path) -> Iterator[None]:
    """No keys and no settings of the user, a new home, and the keys that the cases name."""
    home.mkdir()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RANK_K_") and k != "OPENAI_API_KEY"}
    paths = [str(adapter.SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    changed = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONPATH": os.pathsep.join(paths)}
    with patch.dict(os.environ, {**inherited, **changed, **KEYS}, clear=True):
        yield


class _Runner:
    """Runs one case."""

    def __init__(self, case: Case, root: Path, server: ModelServer, texts: Texts) -> None:
        self._case = case
        self._server = server
        self._data = root / "data"
        self._work = root / re.sub(r"\W+", "-", case.name)
        self._work.mkdir()
        self._run_name = ""
        places = {str(self._work): "<work>", str(self._data): "<data>", server.origin: "<server>"}
        self._normalizer = Normalizer(texts, places | {str(adapter.SOURCE): "<source>"})

    def run(self) -> dict[str, Json]:
        """Return exit codes, outputs and model requests of the case."""
        for name, text in self._case.files.items():
            (self._work / name).write_text(self._fill_placeholders(text), encoding="utf-8")
        self._server.take_requests()
        url = self._server.url("llamacpp")
        starts: list[dict[str, Json]] = []
        with ExitStack() as stack:
            if self._case.embedded:
                starts = stack.enter_context(adapter.embedded_server_at(url))
            steps = [self._run_step(step) for step in self._case.steps]
        captured = self._server.take_requests()
        record: dict[str, Json] = {"steps": steps, "requests": self._request_records(captured)}
        if headers := sorted({_header_line(request) for request in captured}):
            record["headers"] = headers
        return record | ({"embedded": starts} if starts else {})

    def _run_step(self, step: Step) -> dict[str, Json]:
        if isinstance(step, Command):
            return self._run_command(step)
        return self._run_server(step) if isinstance(step, Serving) else self._run_session(step)

    def _argv(self, line: str) -> list[str]:
        return shlex.split(self._fill_placeholders(line))

    def _fill_placeholders(self, text: str) -> str:
        text = text.replace("{data}", str(self._data)).replace("{work}", str(self._work))
        return re.sub(r"\{server:([\w-]+)/?([\w+-]*)\}", self._url, text)

    def _url(self, match: re.Match[str]) -> str:
        return self._server.url(match[1], match[2] or "normal")

    # --- commands ---

    def _run_command(self, step: Command) -> dict[str, Json]:
        code, out, err = adapter.run_command(self._argv(step.argv))
        record: dict[str, Json] = {"code": code}
        if step.stdout != "none":
            record["stdout"] = self._parse_content(out, step.stdout, step)
        for name, kind in step.files.items():
            path = self._work / name
            text = path.read_text(encoding="utf-8") if path.is_file() else None
            record.setdefault("files", {})[name] = None if text is None else self._parse_content(text, kind, step)
        if code and err and step.stdout != "none":
            record["stderr"] = "<prose>"
        return record | ({"tolerance": step.tolerance} if step.tolerance else {})

    def _parse_content(self, text: str, kind: Content, step: Command) -> Json:
        if kind == "run":
            return _parse_run(text)
        if kind == "json":
            return self._normalizer.value(_drop_keys(json.loads(text or "null"), step.drop))
        if kind == "jsonl":
            return [self._normalizer.value(json.loads(line)) for line in text.splitlines() if line]
        if kind == "csv":
            rows = [_parse_row(row) for row in csv.DictReader(text.splitlines())]
            return self._normalizer.value(_drop_keys(rows, step.drop))
        if kind in ("table", "rows"):
            return table(text.splitlines(), step.columns, decimals_only=kind == "table")
        return bool(text)

    # --- servers ---

    def _run_server(self, step: Serving) -> dict[str, Json]:
        with _child_process([*adapter.PROGRAM, *self._argv(step.argv)]) as child:
            assert child.stdout is not None
            address = child.stdout.readline().decode().rstrip().rpartition(" ")[2]
            answers = [self._send_http(address, request) for request in step.requests]
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=60)
        return {"code": child.returncode, "answers": answers}

    def _send_http(self, url: str, request: Http) -> dict[str, Json]:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        raw = request.body if isinstance(request.body, bytes) else json.dumps(request.body).encode()
        body = None if request.body is None else raw
        sent = ({} if body is None else {"Content-Type": "application/json"}) | dict(request.headers)
        try:
            connection.request(request.method, request.path.replace("{run}", self._run_name), body, sent)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if names := _RUN_NAME.findall(text):
            self._run_name = names[0]
        headers = {name: value for name in RESPONSE_HEADERS if (value := response.getheader(name))}
        record: dict[str, Json] = {"request": f"{request.method} {request.path}", "status": response.status}
        record["headers"] = headers
        if request.answer == "json" or (response.status >= 400 and request.answer != "status"):
            record["body"] = self._normalizer.value(json.loads(text))
        elif request.answer == "events":
            record["events"] = [[kind, self._normalizer.value(data)] for kind, data in _parse_events(text)]
        elif request.answer == "metrics":
            record["metrics"] = _parse_metrics(text)
        return record

    def _run_session(self, step: Session) -> dict[str, Json]:
        answers: list[Json] = []
        with _child_process([*adapter.PROGRAM, *self._argv(step.argv)]) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            for number, message in enumerate(step.messages):
                is_notification = str(message["method"]).startswith("notifications/")
                numbered = message if is_notification else {"id": number, **message}
                child.stdin.write(json.dumps({"jsonrpc": "2.0", **numbered}).encode() + b"\n")
                child.stdin.flush()
                if not is_notification:
                    answers.append(self._without_prose(json.loads(child.stdout.readline())))
            child.communicate(timeout=60)
        return {"code": child.returncode, "answers": answers}

    def _without_prose(self, message: dict[str, Json]) -> Json:
        """An MCP message, without the texts for people."""
        result = message.get("result", {})
        for content in result.get("content", []):
            content["text"] = "<prose>"
        return self._normalizer.value(message)

    # --- requests to the model ---

    def _request_records(self, captured: list[CapturedRequest]) -> list[Json]:
        counts: dict[tuple[str, str, bytes], int] = {}
        for request in captured:
            key = (request.method, request.path, request.body)
            counts[key] = counts.get(key, 0) + 1
        records = []
        for (method, path, body), count in counts.items():
            record = self._normalizer.request(method, path, body)
            records.append(record | ({"times": count} if count > 1 and path not in AUXILIARY else {}))
        return sorted(records, key=lambda record: json.dumps(record, sort_keys=True))


@contextmanager
def _child_process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def _header_line(request: CapturedRequest) -> str:
    pairs = ", ".join(f"{name}: {value}" for name, value in request.headers)
    return f"{request.method} {request.path}: {pairs}"


def _parse_run(text: str) -> dict[str, Json]:
    """Query id -> document ids in one string, and the values of the other columns."""
    rankings: dict[str, list[str]] = {}
    tags, scores = set(), []
    for line in text.splitlines():
        query_id, _, doc_id, _, score, tag = line.split()
        rankings.setdefault(query_id, []).append(doc_id)
        tags.add(tag)
        scores.append(float(score))
    top = [round(score, 6) for score in scores[:5]]
    return {"rankings": {q: " ".join(ids) for q, ids in rankings.items()}, "tags": sorted(tags), "top_scores": top}


def _drop_keys(value: Json, keys: Collection[str]) -> Json:
    """`value` without `keys`, at any depth."""
    if isinstance(value, dict):
        return {key: _drop_keys(child, keys) for key, child in value.items() if key not in keys}
    return [_drop_keys(child, keys) for child in value] if isinstance(value, list) else value


def _parse_row(row: Mapping[str, str]) -> dict[str, Json]:
    """A row of CSV, its numbers as numbers."""

    def number(cell: str) -> Json:
        try:
            return float(cell)
        except ValueError:
            return cell

    return {name: number(cell) for name, cell in row.items()}


def _parse_events(text: str) -> list[tuple[str, Json]]:
    """Server-sent events; the pieces of one response are joined, since their boundaries depend on timing."""
    events: list[tuple[str, Json]] = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if not lines:
            continue
        kind, data = lines["event"], json.loads(lines["data"])
        if events and kind == events[-1][0] and "reasoning" in data:
            for name, value in data.items():
                if name in ("reasoning", "text"):
                    events[-1][1][name] += value
        else:
            events.append((kind, data))
    return events


def _parse_metrics(text: str) -> list[Json]:
    """Names and labels of Prometheus samples, and the values of counters. Times of creation are optional there."""
    samples = set()
    for line in text.splitlines():
        if not line.startswith("#") and "_created" not in line:
            name, _, value = line.rpartition(" ")
            name = re.sub(r'le="[^"]*",?', "", name)
            samples.add(f"{name} {float(value):g}" if name.partition("{")[0].endswith("_total") else name)
    return sorted(samples)
