"""Runs and qrels: every accepted form, every malformed line, ids byte for byte."""

from __future__ import annotations

import os
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.data.trec import RunFile, RunWriter, read_qrels
from rank_k.errors import FormatError, InputError
from rank_k.types import Candidate
from tests.data.file_helpers import without_health_checks, write_file

# Runs


def test_run_file_keeps_query_order_and_sorts_by_score(tmp_path: Path) -> None:
    run = RunFile(
        write_file(
            tmp_path, "q2 Q0 low 1 1 t\nq2 Q0 x 2 3 t\nq2 Q0 y 3 3 t\nq1 Q0 d - nonsense t\n".replace("nonsense", "0")
        )
    )
    assert run.query_ids == ("q2", "q1")
    assert len(run) == 2
    expected = [
        ("q2", (Candidate("x", 3.0), Candidate("y", 3.0), Candidate("low", 1.0))),
        ("q1", (Candidate("d", 0.0),)),
    ]
    assert list(run) == expected
    assert list(run) == expected, "a second iteration reads the same"


@pytest.mark.parametrize(
    "content",
    [
        "q1 Q0 a 1 1 t\nq1 Q0 a 2 5 t\nq1 Q0 b 3 3 t\nq2 Q0 a 1 1 t\n",
        "q1 Q0 a 1 1 t\nq2 Q0 a 1 1 t\nq1 Q0 a 2 5 t\nq1 Q0 b 3 3 t\n",
        '{"q1": {"a": 1, "a": 5.0, "b": 3}, "q2": {"a": 1}}',
        '\ufeff\n{"q1": {"a": 1}, "q2": {"a": 1}, "q1": {"a": 5, "b": 3}}',
    ],
    ids=["together", "scattered", "json", "json with a query twice"],
)
def test_run_file_keeps_repeated_documents_once_at_best_score(tmp_path: Path, content: str) -> None:
    run = RunFile(write_file(tmp_path, content))
    assert run.duplicate_count == 1
    assert run.query_ids == ("q1", "q2")
    assert dict(iter(run)) == {
        "q1": (Candidate("a", 5.0), Candidate("b", 3.0)),
        "q2": (Candidate("a", 1.0),),
    }


ANY_ROWS = st.lists(
    st.tuples(st.sampled_from("pqr"), st.sampled_from("abcdef"), st.sampled_from([-1.5, 0.0, 1.0, 1.25, 2.0]))
)


@without_health_checks
@given(rows=ANY_ROWS.filter(bool), row_order=st.sampled_from(["as it comes", "by query"]))
def test_run_file_sorts_stably_by_score(tmp_path: Path, rows: list[tuple[str, str, float]], row_order: str) -> None:
    if row_order == "by query":
        rows = sorted(rows, key=lambda row: row[0])
    run = RunFile(
        write_file(
            tmp_path, "".join(f"{row_query_id} Q0 {doc_id} 1 {score} t\n" for row_query_id, doc_id, score in rows)
        )
    )
    assert run.query_ids == tuple(dict.fromkeys(row_query_id for row_query_id, _, _ in rows))
    candidate_count = 0
    for query_id, candidates in run:
        query_rows = [(doc_id, score) for row_query_id, doc_id, score in rows if row_query_id == query_id]
        best_scores = {
            doc_id: max(score for other_doc_id, score in query_rows if other_doc_id == doc_id)
            for doc_id, _ in query_rows
        }
        first_positions = {
            doc_id: next(i for i, row in enumerate(query_rows) if row == (doc_id, best_scores[doc_id]))
            for doc_id in best_scores
        }
        assert [(candidate.doc_id, candidate.score) for candidate in candidates] == sorted(
            best_scores.items(), key=lambda item: (-item[1], first_positions[item[0]])
        )
        candidate_count += len(candidates)
    assert run.duplicate_count == len(rows) - candidate_count


def test_run_file_memory_is_independent_of_query_count(tmp_path: Path) -> None:
    def measure_peak(queries: int) -> int:
        path = tmp_path / str(queries)
        with path.open("w") as file:
            for query in range(queries):
                file.writelines(f"{query} Q0 doc{i} {i} {-i} t\n" for i in range(200))
        tracemalloc.start()
        assert sum(len(candidates) for _, candidates in RunFile(path)) == 200 * queries
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    assert measure_peak(100) < measure_peak(10) + 50_000, "90 queries more would hold at least 90 * 200 * 100 bytes"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("q1 Q0 d 2 1", "5 columns"),
        ("q1", "1 column ("),
        ("q1 Q0 doc one 2 1 t", "7 columns"),
        ("q1 Q0 d 2 high t", "'high'"),
        ("q1 Q0 d 2 nan t", "'nan'"),
        ("q1 Q0 d 2 -inf t", "'-inf'"),
        ("q1 Q0 d 2 1e999 t", "'1e999'"),
        ("q1 Q0 d 2 1_0 t", "'1_0'"),
        ("q1 Q0 d\0 2 1 t", "NUL"),
    ],
)
def test_run_file_reports_malformed_line_when_opened(tmp_path: Path, line: str, problem: str) -> None:
    path = write_file(tmp_path, f"q1 Q0 a 1 2 t\n\n{line}\n")
    with pytest.raises(FormatError) as error_info:
        RunFile(path)
    message = str(error_info.value)
    assert error_info.value.line == 3
    assert message.startswith(f"{path}:3: ")
    assert problem in message
    assert "; expected " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", "without queries"),
        ('{"q1": {"a": 1}', "invalid JSON"),
        ('{"q1": 3}', "'q1' with 3"),
        ('{"q1": {"a": "1"}}', "score '1'"),
        ('{"q1": {"a": true}}', "score True"),
        ('{"q1": {"a": null}}', "score None"),
        ('{"q1": {"a": [1]}}', "score [1]"),
        ('{"q1": {"a": NaN}}', "score nan"),
        ('{"q1": {"a": 1' + "0" * 400 + "}}", "score 1000"),
        ('{"q1": {"a": ' + "1" * 5000 + "}}", "number of too many digits"),
        ('{"q1": {"a b": 1}}', "'a b'"),
        ('{"": {"a": 1}}', "id ''"),
        ('{"q1": {"\\ud800": 1}}', "id '\\ud800'"),
        ('{"q1": ' * 100_000, "nested too deeply"),
    ],
)
def test_run_file_rejects_malformed_json(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(FormatError) as error_info:
        RunFile(write_file(tmp_path, content))
    assert problem in str(error_info.value)
    assert "\n" not in str(error_info.value)


def test_run_file_reports_line_of_invalid_json(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="file:3: invalid JSON"):
        RunFile(write_file(tmp_path, '{"q1": {\n"a": 1,\n"b"}}'))


def test_run_file_rejects_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="pipe"):
        RunFile(pipe)


# Writing


def test_run_writer_writes_trec_that_run_file_reads(tmp_path: Path) -> None:
    path = tmp_path / "out.trec"
    with RunWriter(path, tag="mine") as run:
        run.write_query("q1", ["b", "a", "c"])
        run.write_query("q2", [])
        run.write_query("q3", ["z"])
    assert path.read_text().splitlines() == [
        "q1 Q0 b 1 1.000000000000 mine",
        "q1 Q0 a 2 0.500000000000 mine",
        "q1 Q0 c 3 0.333333333333 mine",
        "q3 Q0 z 1 1.000000000000 mine",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out.trec"]
    assert [[c.doc_id for c in candidates] for _, candidates in RunFile(path)] == [["b", "a", "c"], ["z"]]


def test_run_writer_scores_decrease_strictly_in_32_bits(tmp_path: Path) -> None:
    import numpy as np

    with RunWriter(tmp_path / "long") as run:
        run.write_query("q", [str(i) for i in range(100_000)])
    scores = [line.split()[4] for line in (tmp_path / "long").read_text().splitlines()]
    assert len(scores) == 100_000
    assert all(before > after for before, after in pairwise(scores))
    assert (np.diff(np.array(scores, dtype=np.float32)) < 0).all(), "trec_eval keeps scores in 32 bits"


def test_run_writer_lowers_only_tied_scores_by_one_step(tmp_path: Path) -> None:
    import numpy as np

    with RunWriter(tmp_path / "out") as run:
        run.write_query("q", ["b", "a", "c", "d"], [12.5, 7.25, 7.25, 7.25])
    scores = [line.split()[4] for line in (tmp_path / "out").read_text().splitlines()]
    assert scores[:2] == ["12.5", "7.25"]
    step_down = np.nextafter(np.float32(7.25), np.float32(0))
    assert np.float32(scores[2]) == step_down
    assert np.float32(scores[3]) == np.nextafter(step_down, np.float32(0))


@without_health_checks
@given(
    scores=st.lists(
        st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False) | st.sampled_from([0.0, 1.0, 2.0**-126, 7.25]),
        min_size=1,
        max_size=20,
    )
)
def test_every_reader_keeps_the_order_of_written_scores(tmp_path: Path, scores: list[float]) -> None:
    import numpy as np

    doc_ids = [f"d{number}" for number in range(len(scores))]
    with RunWriter(tmp_path / "out") as run:
        run.write_query("q", doc_ids, sorted(scores, reverse=True))
    lines = (tmp_path / "out").read_text().splitlines()
    score_texts = [line.split()[4] for line in lines]
    assert all(float(before) > float(after) for before, after in pairwise(score_texts))
    single_precision = np.array(score_texts, dtype=np.float32)
    assert (single_precision[1:] < single_precision[:-1]).all()
    [(_, candidates)] = RunFile(tmp_path / "out")
    assert [candidate.doc_id for candidate in candidates] == doc_ids
    written_scores = [candidate.score for candidate in candidates]
    assert written_scores == pytest.approx(sorted(scores, reverse=True), rel=1e-5, abs=1e-5)


def test_pytrec_eval_keeps_the_order_of_tied_scores(tmp_path: Path) -> None:
    """It reads scores in single precision and sorts ties by document id, the last in the alphabet first."""
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs the extra [eval]")
    with RunWriter(tmp_path / "out") as run:
        run.write_query("q", ["a", "b", "c"], [3.2, 3.2, 3.2])
    [(_, candidates)] = RunFile(tmp_path / "out")
    scores = {candidate.doc_id: candidate.score for candidate in candidates}
    for rank, doc_id in enumerate(["a", "b", "c"], 1):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {doc_id: 1}}, {"recip_rank"})
        assert evaluator.evaluate({"q": scores})["q"]["recip_rank"] == pytest.approx(1 / rank)


def test_run_writer_keeps_old_output_and_part_file_after_error(tmp_path: Path) -> None:
    path = write_file(tmp_path, "old")

    def interrupt_writer() -> None:
        with RunWriter(path) as run:
            run.write_query("q1", ["a"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt_writer()
    assert path.read_text() == "old"
    assert (tmp_path / "file.part").read_text() == "q1 Q0 a 1 1.000000000000 rank-k\n"


def test_run_writer_flushes_each_query(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "out") as run:
        run.write_query("q1", ["a"])
        assert (tmp_path / "out.part").read_text().startswith("q1 ")
        assert not (tmp_path / "out").exists()


def test_run_writer_follows_symbolic_link(tmp_path: Path) -> None:
    target = write_file(tmp_path, "old", "target")
    (tmp_path / "link").symlink_to(target)
    with RunWriter(tmp_path / "link") as run:
        run.write_query("q1", ["a"])
    assert (tmp_path / "link").is_symlink()
    assert target.read_text().startswith("q1 ")


@pytest.mark.parametrize("invalid_id", ["", "a b", "a\tb", "a\nb", "a\0b", "\ud800"])
def test_run_writer_rejects_ids_with_white_space(tmp_path: Path, invalid_id: str) -> None:
    with pytest.raises(InputError, match="cannot be written to a TREC file"), RunWriter(tmp_path / "1") as run:
        run.write_query(invalid_id, ["a"])
    with pytest.raises(InputError, match="cannot be written to a TREC file"), RunWriter(tmp_path / "2") as run:
        run.write_query("q", ["a", invalid_id])
    assert (tmp_path / "2.part").read_bytes() == b"", "a query is written whole or not at all"
    with pytest.raises(InputError, match="cannot be written to a TREC file"):
        RunWriter(tmp_path / "3", tag=invalid_id)


@pytest.mark.parametrize("location", ["/dev/null", "folder", "absent/out"])
def test_run_writer_reports_unwritable_path(tmp_path: Path, location: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as error_info, RunWriter(tmp_path / location):
        pass
    assert location in str(error_info.value)


MAGIC_PREFIXES = (b"{", b"\xef\xbb\xbf", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # JSON, a byte order mark, gzip, Zstandard
ANY_IDS = st.binary(min_size=1, max_size=12).filter(
    lambda raw: not set(raw) & set(b" \t\n\r\v\f\0") and not raw.startswith(MAGIC_PREFIXES)
)


@without_health_checks
@given(raw_query_id=ANY_IDS, doc_ids=st.lists(ANY_IDS, unique=True, min_size=1))
def test_run_file_and_writer_preserve_ids_byte_for_byte(
    tmp_path: Path, raw_query_id: bytes, doc_ids: list[bytes]
) -> None:
    path = write_file(
        tmp_path,
        b"".join(b"%b Q0 %b 1 %d t\n" % (raw_query_id, raw_doc_id, -i) for i, raw_doc_id in enumerate(doc_ids)),
    )
    with RunWriter(tmp_path / "out") as writer:
        for query_id, candidates in RunFile(path):
            writer.write_query(query_id, [candidate.doc_id for candidate in candidates])
    fields = [line.split(b" ") for line in (tmp_path / "out").read_bytes().split(b"\n")[:-1]]
    assert [(line[0], line[2]) for line in fields] == [(raw_query_id, raw_doc_id) for raw_doc_id in doc_ids]


# Judgments


def test_read_qrels_reads_trec_and_beir(tmp_path: Path) -> None:
    assert read_qrels(write_file(tmp_path, "1 0 a 2\n1\t0\tb -1\n2 0 a +0\n1 0 a 2\n")) == {
        "1": {"a": 2, "b": -1},
        "2": {"a": 0},
    }
    assert read_qrels(write_file(tmp_path, "query-id\tcorpus-id\tscore\r\n1\tdoc one\t2\r\n1\tb\t0\r\n")) == {
        "1": {"doc one": 2, "b": 0}
    }


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("1 0 a 2\n1 0 a\n", 2, "3 columns"),
        ("1 0 a 2 x\n", 1, "5 columns"),
        ("1\ta\t2\n", 1, "3 columns"),
        ("1 0 a high\n", 1, "grade 'high'"),
        ("1 0 a 1.5\n", 1, "grade '1.5'"),
        ("1 0 a 1_0\n", 1, "grade '1_0'"),
        ("1 0 a 99999999999\n", 1, "grade '99999999999'"),
        ("1 0 a 2\n1 0 a 1\n", 2, "judged 1 here and 2 before"),
        ("query-id\tcorpus-id\tscore\n1\ta\n", 2, "2 columns"),
        ("query-id\tcorpus-id\tscore\n1\t\t1\n", 2, "3 columns"),
        ("query-id\tcorpus-id\tscore\n", 0, "a header without judgments"),
    ],
)
def test_read_qrels_rejects_malformed_lines(tmp_path: Path, content: str, line: int, problem: str) -> None:
    with pytest.raises(FormatError) as error_info:
        read_qrels(write_file(tmp_path, content))
    assert error_info.value.line == line
    assert problem in str(error_info.value)
