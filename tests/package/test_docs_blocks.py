"""Every command and code block of README.md, CONTRIBUTING.md and docs/ runs as printed, or its row says why not."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rank_k.cli import main
from tests.conftest import StartLoopback
from tests.paths import ROOT
from tests.support.doc_blocks import Block, PageRunner, pages, rank_k_arguments, read_blocks, shell_lines
from tests.support.embedded import USER_CACHE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    # A short example may leave a reranker open. Its connections are closed when it is collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PAGES = pages(["README.md", "CONTRIBUTING.md", "docs"])
SHELL_LANGUAGES = ("bash", "console")
RUN_LANGUAGES = (*SHELL_LANGUAGES, "python")
OTHER_LANGUAGES = ("json", "jsonl", "text", "toml", "yaml")
"""Data and output, which do not run."""


class NotRun(NamedTuple):
    """Lines that do not run: those of a page whose logical line matches `pattern`."""

    page: str
    pattern: str
    reason: str


ANY_PAGE = ""
NOT_RUN = (
    NotRun(ANY_PAGE, r"(sudo )?apt-get ", "changes the machine"),
    NotRun(ANY_PAGE, r"(python3? -m )?pip install|python3? -m venv|\. \.venv/bin/activate", "installs packages"),
    NotRun(ANY_PAGE, r"make ", "the targets of make are what continuous integration runs"),
    NotRun(ANY_PAGE, r"docker ", "needs a container engine; tests/package/test_container.py runs the steps"),
    NotRun("docs/how-to/containers.md", r"curl ", "the container does not run"),
    NotRun(ANY_PAGE, r"(\.venv/bin/)?rank-k demo", "tests/models/test_embedded.py runs the demo"),
    NotRun(ANY_PAGE, r"rank-k fetch", "downloads weights"),
    NotRun(
        "docs/how-to/scale.md", r"(?s)rank-k rerank .*http://node1", "needs two servers; tests/models/test_balanced.py"
    ),
    NotRun("docs/how-to/scale.md", r"rank-k batch ingest", "needs results; tests/cli/test_batch.py"),
    NotRun("docs/how-to/scale.md", r"rank-k batch submit", "needs a batch API; tests/cli/test_batch.py"),
)
"""Shell lines that do not run. The arguments of `rank-k` commands among them are still parsed."""


RUN_ELSEWHERE = {
    "cohere": "tests/server/test_clients.py",
    "haystack": "tests/integrations/test_integrations.py",
    "langchain_cohere": "tests/server/test_clients.py",
    "langchain_core": "tests/integrations/test_integrations.py",
    "litellm": "tests/server/test_clients.py",
    "llama_index": "tests/integrations/test_integrations.py",
    "mteb": "tests/integrations/test_integrations.py",
    "pyterrier": "tests/integrations/test_integrations.py",
    "ray": "tests/scale/test_ray.py",
}
"""Modules of other projects, and the test that runs the Python blocks that import them in a separate environment."""


PREFERENCE = {
    "judge": "anna",
    "query_id": "1",
    "left": "bm25.trec",
    "right": "reranked.trec",
    "choice": "right",
    "time": "2026-05-04T09:30:00+00:00",
}

TOPIC = """\
<top>
<num> Number: {number}
<title> topic{number}
<desc> Description:
topic{number}
<narr> Narrative:
topic{number}
</top>
"""

NEEDS_WEIGHTS = ("docs/how-to/embedded.md", "docs/start.md")
"""Pages whose commands use the embedded model."""


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that pages assume: documents, queries, qrels, preferences, runs, a journal."""
    folder = tmp_path_factory.mktemp("collection")
    documents, queries, qrels = [], [], []
    for query in (1, 2, 3):
        text = f"topic{query}"
        queries.append({"_id": str(query), **dict.fromkeys(("text", "title", "description", "narrative", "ht"), text)})
        for number in range(20):
            doc_id, grade = str(100 * query + number), number * 7 % 20 // 6
            filler = f"topic{query} " + f"word{number} " * number
            documents.append({"_id": doc_id, "title": "", "text": f"mark:{doc_id}-G{grade} {filler}"})
            qrels.append(f"{query} 0 {doc_id} {grade}\n")
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in documents)
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries), encoding="utf-8")
    (folder / "qrels.trec").write_text("".join(qrels), encoding="utf-8")
    topics = "".join(TOPIC.format(number=query) for query in (1, 2, 3))
    (folder / "topics.txt").write_text(topics, encoding="utf-8")
    (folder / "preferences.jsonl").write_text(json.dumps(PREFERENCE) + "\n", encoding="utf-8")
    beir = folder / "cranfield"
    beir.mkdir()
    for name in ("corpus.jsonl.gz", "queries.jsonl", "qrels.trec"):
        shutil.copy(folder / name, beir / name)
    inputs = ["--queries", str(folder / "queries.jsonl"), "--documents", str(folder / "corpus.jsonl.gz")]
    run, reranked = str(folder / "bm25.trec"), str(folder / "reranked.trec")
    assert main(["retrieve", *inputs, "--output", run]) == 0
    simulated = ["--simulate", str(folder / "qrels.trec"), "--quiet"]
    assert main(["rerank", "--run", run, *inputs, "--output", reranked, *simulated]) == 0
    return folder


@pytest.fixture
def runner(collection: Path, tmp_path: Path, loopback: StartLoopback) -> Iterator[PageRunner]:
    server = loopback(
        model="hltcoe/Rank-K-32B",
        owned_by="llamacpp",
        quirk="reasoning_content",
        capabilities="raw continue grammar budget logprobs spell",
        max_model_len=0,
    )
    folder = tmp_path / "page"
    shutil.copytree(collection, folder)
    cache = tmp_path / "cache"
    cache.mkdir()
    if USER_CACHE is not None:
        for path in USER_CACHE.iterdir():
            (cache / path.name).symlink_to(path)
    page_runner = PageRunner(folder, server.url, {"RANK_K_CACHE": str(cache)})
    yield page_runner
    page_runner.close()


def find_exception(page: str, line: str) -> NotRun | None:
    return next((row for row in NOT_RUN if row.page in (ANY_PAGE, page) and re.match(row.pattern, line.strip())), None)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_as_printed(page: str, runner: PageRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in NEEDS_WEIGHTS and USER_CACHE is None:
        pytest.skip("the embedded weights are not here: rank-k fetch")
    if page in NEEDS_WEIGHTS:  # the embedded model is slow, and five candidates of one query are enough
        run = runner.folder / "bm25.trec"
        run.write_text("".join(run.read_text(encoding="utf-8").splitlines(keepends=True)[:5]), encoding="utf-8")
    monkeypatch.chdir(runner.folder)
    for name, value in runner.env.items():
        monkeypatch.setenv(name, value)
    for block in read_blocks(page):
        if block.language in SHELL_LANGUAGES:
            run_shell_block(runner, block)
        elif block.language == "python" and block.imports.isdisjoint(RUN_ELSEWHERE):
            runner.run_python(block)


def run_shell_block(runner: PageRunner, block: Block) -> None:
    lines = shell_lines(block)
    skipped = [line for line in lines if find_exception(block.page, line) is not None]
    for line in skipped:
        if (arguments := rank_k_arguments(line)) is not None:
            check_arguments(runner, block, arguments)
    rest = "".join(line for line in lines if line not in skipped)
    if rest.strip():
        runner.run_shell(block, rest)


def check_arguments(runner: PageRunner, block: Block, arguments: list[str]) -> None:
    """Check that a command that does not run has options that exist: with --help, the options before it are parsed."""
    command = [str(runner.folder / ".bin" / "rank-k"), *arguments, "--help"]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, f"{block}: {completed.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_blocks_have_a_known_language(page: str) -> None:
    directive = re.compile(r"\{[\w-]+\}")
    unknown = [
        f"{block}: {block.language!r}"
        for block in read_blocks(page)
        if block.language not in (*RUN_LANGUAGES, *OTHER_LANGUAGES) and not directive.match(block.language)
    ]
    assert not unknown


def test_every_exception_is_needed() -> None:
    lines = [
        (page, line)
        for page in PAGES
        for block in read_blocks(page)
        if block.language in SHELL_LANGUAGES
        for line in shell_lines(block)
    ]
    used = {find_exception(page, line) for page, line in lines}
    assert [row for row in NOT_RUN if row not in used] == []
    assert [page for page in NEEDS_WEIGHTS if page not in PAGES] == []
    imports = {name for page in PAGES for block in read_blocks(page) for name in block.imports}
    assert [module for module in RUN_ELSEWHERE if module not in imports] == []
    assert [test for test in RUN_ELSEWHERE.values() if not (ROOT / test).is_file()] == []


def test_blocks_that_fail_are_reported(runner: PageRunner) -> None:
    with pytest.raises(AssertionError, match=r"docs/x\.md:7"):
        runner.run_shell(Block("docs/x.md", 7, "bash", ""), "rank-k rerank --no-such-option\n")
    with pytest.raises(NameError):
        runner.run_python(Block("docs/x.md", 7, "python", "missing_name\n"))
