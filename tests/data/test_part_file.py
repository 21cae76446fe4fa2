"""Files that are complete or absent, and that one process writes at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rank_k.cli import main
from rank_k.data.trec import RunWriter
from rank_k.errors import InputError

pytestmark = pytest.mark.integration

WRITER = """
import sys
from rank_k.data.trec import RunWriter
with RunWriter(sys.argv[1], sys.argv[2]) as run:
    run.write_query("q1", ["d1"])
    print("writing", flush=True)
    sys.stdin.readline()
    run.write_query("q2", ["d2"])
"""


def start_writer(path: Path, tag: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), tag],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_run_writer_rejects_file_written_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "out.trec"
    first_writer = start_writer(path, "first")
    assert first_writer.stdout is not None
    assert first_writer.stdout.readline() == "writing\n"
    second_writer = start_writer(path, "second")
    _, error = second_writer.communicate("\n")
    assert f"another process is writing {path}" in error
    assert second_writer.returncode != 0
    _, error = first_writer.communicate("\n")
    assert (error, first_writer.returncode) == ("", 0)
    assert path.read_text().split() == "q1 Q0 d1 1 1.000000000000 first q2 Q0 d2 1 1.000000000000 first".split()
    assert list(tmp_path.iterdir()) == [path]


def test_run_writer_replaces_part_file_of_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "out.trec"
    killed_writer = start_writer(path, "killed")
    assert killed_writer.stdout is not None
    killed_writer.stdout.readline()
    killed_writer.kill()
    killed_writer.communicate()
    assert (tmp_path / "out.trec.part").read_text().endswith("killed\n")
    with RunWriter(path) as run:
        run.write_query("q1", ["d1"])
    assert path.read_text() == "q1 Q0 d1 1 1.000000000000 rank-k\n"


CONTENDING_WRITERS = """
import sys
from pathlib import Path
from rank_k.data.trec import RunWriter
from rank_k.errors import InputError
path = Path(sys.argv[1])
for turn in range(200):
    try:
        with RunWriter(path, f"{sys.argv[2]}-{turn}") as run:
            for query in range(3):
                run.write_query(str(query), ["d"])
    except InputError as error:
        assert "another process" in str(error), error
        continue
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and len({line.split()[-1] for line in lines}) == 1, lines
"""


def test_run_writer_never_mixes_lines_of_contending_processes(tmp_path: Path) -> None:
    """Writers that start while another one finishes either write the whole file or are refused."""
    command = [sys.executable, "-c", CONTENDING_WRITERS, str(tmp_path / "out.trec")]
    writers = [subprocess.Popen([*command, name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]


def test_run_writer_rejects_symbolic_link_at_part_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out.trec.part").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="is a symbolic link"), RunWriter(tmp_path / "out.trec"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


# --- on the command line ---


@pytest.fixture
def rerank_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of `rank-k rerank` for a small run with a simulated judge, without output, report and journal."""
    monkeypatch.chdir(tmp_path)
    Path("run.trec").write_text("q1 Q0 d1 1 2 bm25\nq1 Q0 d2 2 1 bm25\n")
    Path("queries.jsonl").write_text('{"_id": "q1", "text": "query"}\n')
    Path("documents.jsonl").write_text('{"_id": "d1", "text": "one"}\n{"_id": "d2", "text": "two"}\n')
    Path("qrels.trec").write_text("q1 0 d2 1\n")
    files = ["--run", "run.trec", "--queries", "queries.jsonl", "--documents", "documents.jsonl"]
    return ["rerank", *files, "--simulate", "qrels.trec", "--noise", "none", "--quiet"]


@pytest.mark.parametrize(
    ("names", "option"),
    [
        ({"--output": "a", "--journal": "a"}, "--journal a"),
        ({"--output": "a", "--journal": "b", "--report": "b"}, "--report b"),
        ({"--output": "a", "--report": "a"}, "--report a"),
        ({"--output": "a", "--report": "a.journal.sqlite"}, "--report a.journal.sqlite"),
        ({"--output": "a", "--report": "a.part"}, "--report a.part"),
        ({"--output": "a", "--journal": "b", "--report": "b-wal"}, "--report b-wal"),
        ({"--output": "a", "--journal": "link"}, "--journal link"),
        ({"--output": "run.trec"}, "--output run.trec"),
        ({"--output": "a", "--journal": "queries.jsonl"}, "--journal queries.jsonl"),
        ({"--output": "a", "--report": "hardlink"}, "--report hardlink"),
        ({"--output": "qrels.trec"}, "--output qrels.trec"),
    ],
)
def test_rerank_rejects_two_options_that_name_one_file(
    rerank_arguments: list[str], names: dict[str, str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("link").symlink_to("a")
    Path("hardlink").hardlink_to("documents.jsonl")
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert main([*rerank_arguments, *(word for pair in names.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert option in error
    assert "which this command also uses; give a different file" in error
    assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


def test_rerank_rejects_output_written_by_another_process(
    rerank_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with RunWriter("out.trec", "first") as writer:
        writer.write_query("q1", ["d1"])
        assert main([*rerank_arguments, "--output", "out.trec"]) == 2
        assert "another process is writing" in capsys.readouterr().err
    assert Path("out.trec").read_text() == "q1 Q0 d1 1 1.000000000000 first\n"
    assert main([*rerank_arguments, "--output", "out.trec"]) == 0
    assert Path("out.trec").read_text().startswith("q1 Q0 d2 1 ")
