"""Studies as TOML: the paper's own evaluation, a user's, and what is wrong with either."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from rank_k.cli import main
from rank_k.errors import InputError
from rank_k.study.config import config_file, read_study
from rank_k.study.grid import Study, expand_cells
from rank_k.window.prompt import read_template
from tests.paths import ROOT, SHARED


@pytest.fixture(scope="module")
def paper() -> Study:
    return read_study(config_file(Path("rank-k-paper")), Path("data"))


# --- the paper's evaluation ------------------------------------------------------------------------


def test_read_study_expands_all_cells_of_the_paper(paper: Study) -> None:
    bright_names = [collection.name for collection in paper.collections if collection.name.startswith("bright-")]
    assert len(bright_names) == 12
    assert [c.name for c in paper.collections if c.name not in bright_names] == [
        *("dl19", "dl20", "neuclir-zho", "neuclir-fas", "neuclir-rus"),
    ]
    assert {tuple(f.name for f in c.first_stages) for c in paper.collections} == {("bm25", "splade-v3")}
    assert [model.name for model in paper.models] == ["rank-k-32b", "qwq-32b", "deepseek-r1", "rank-zephyr"]
    assert len(expand_cells(paper)) == 17 * 2 * 4
    assert [average.name for average in paper.averages] == ["bright", "neuclir"]
    assert sorted(paper.averages[0].collections) == sorted(bright_names)


def test_read_study_applies_settings_of_the_papers_models(paper: Study) -> None:
    cells = {
        cell.model: cell for cell in expand_cells(paper) if cell.collection == "dl19" and cell.first_stage == "bm25"
    }
    for cell in cells.values():
        assert (cell.strategy, cell.window, cell.stride, cell.depth, cell.passage_tokens) == (
            "sliding",
            20,
            10,
            100,
            450,
        )
    assert (cells["rank-k-32b"].temperature, cells["rank-k-32b"].reasoning) == (0.5, "full")
    assert (cells["qwq-32b"].temperature, cells["qwq-32b"].top_p) == (0.6, 0.95)
    assert (cells["rank-zephyr"].reasoning, cells["rank-zephyr"].temperature) == ("off", 0)
    assert paper.model("rank-zephyr").context_length == 4096
    ports = set()
    for model in paper.models:
        assert model.model is not None
        assert model.serve.startswith(f"vllm serve {model.model} ")
        port = re.search(r"--port (\d+)", model.serve)
        assert port is not None
        assert model.server == f"http://localhost:{port[1]}/v1"
        ports.add(port[1])
        assert model.prompt is not None
        assert model.get
    assert len(ports) == 4


def test_paper_config_names_sources_of_data_and_published_figures(paper: Study) -> None:
    for collection in paper.collections:
        assert collection.get
        assert all(first_stage.get for first_stage in collection.first_stages)
    assert paper.published
    for published in paper.published:
        assert "arXiv" in published.source or "leaderboard" in published.source
        assert 0 < published.value < 1
        assert published.first_stage not in ("bm25", "splade-v3"), "none of them is of the runs that are reranked here"


def test_study_command_lists_all_missing_files_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = ["study", "--config", "rank-k-paper", "--data", str(tmp_path), "--output", str(tmp_path / "study")]
    assert main([*command, "--only", "bright-biology", "bright-pony", "rank-zephyr"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "7 files missing" in err
    for name in ("bright-biology/run.bm25.trec", "bright-pony/run.splade-v3.trec", "prompts/rank_zephyr_template.yaml"):
        assert str(tmp_path / name) in err
    assert "https://huggingface.co/datasets/xlangai/BRIGHT" in err
    assert "https://github.com/castorini/rank_llm" in err
    assert not (tmp_path / "study").exists()


def test_study_command_list_shows_cells_and_serve_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--config", "rank-k-paper", "--list", "--only", "dl19", "qwq-32b"]) == 0
    out, _ = capsys.readouterr()
    assert "2 cells:" in out
    assert "vllm serve Qwen/QwQ-32B --port 8001" in out


def test_study_command_server_requires_a_single_model(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["study", "--config", "rank-k-paper", "--server", "http://localhost:1/v1", "--list", "--only", "dl19"]
    assert main(options) == 2
    assert "choose a model with --only" in capsys.readouterr().err
    assert main([*options, "rank-k-32b"]) == 0
    assert "rank-k-32b at http://localhost:1/v1" in capsys.readouterr().out


def test_read_template_accepts_rank_zephyr_format(tmp_path: Path) -> None:
    """In the form in which rank_llm has it, in words of our own."""
    path = tmp_path / "rank_zephyr_template.yaml"
    path.write_text(
        'method: "singleturn_listwise"\nsystem_message: "You rank."\nprefix: "{num} passages for {query}:\\n"\n'
        'body: "[{rank}] {candidate}\\n"\nsuffix: "Rank the {num} for {query}, as in [2] > [1]."\n'
    )
    system, user = read_template(path).messages("why", ["one", "two"])
    assert system.content == "You rank."
    assert user.content == "2 passages for why:\n[1] one\n[2] two\nRank the 2 for why, as in [2] > [1]."


# --- a tiny collection, always ---------------------------------------------------------------------

TINY_TOML = """
title = "A tiny study"
measures = ["nDCG@5", "RR"]

[[collections]]
each = ["one", "two"]
name = "{each}"
dataset = "beir:{each}"

[[collections.runs]]
name = "given"
file = "{each}/run.given.trec"

[[models]]
name = "sharp"
simulate = "none"

[[models]]
name = "blunt"
simulate = "weak"

[models.settings]
samples = 3

[[grids]]
strategy = ["sliding", "single"]
window = [4]
stride = [2]

[[averages]]
name = "both"
collections = ["one", "two"]

[[published]]
collection = "both"
first_stage = "another"
model = "sharp"
measure = "nDCG@5"
value = 0.5
source = "nobody"
"""


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        documents = [f'{{"_id": "d{n}", "text": "{name} number {n}"}}' for n in range(8)]
        (folder / "corpus.jsonl").write_text("\n".join(documents) + "\n")
        (folder / "queries.jsonl").write_text(
            "".join(f'{{"_id": "q{q}", "text": "the number of {name} {q}"}}\n' for q in range(3))
        )
        (folder / "qrels.trec").write_text("".join(f"q{q} 0 d{n} {n % (q + 3)}\n" for q in range(3) for n in range(8)))
        (folder / "run.given.trec").write_text(
            "".join(f"q{q} Q0 d{n} {n + 1} {8 - n} given\n" for q in range(3) for n in range(8))
        )
    file = tmp_path / "tiny.toml"
    file.write_text(TINY_TOML)
    return file


def read_cells(output: Path) -> list[dict[str, str]]:
    with (output / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_study_command_runs_user_config(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "study"
    assert main(["study", "--config", str(tiny_config), "--output", str(output)]) == 0
    out, _ = capsys.readouterr()
    rows = read_cells(output)
    assert len(rows) == 2 * (1 + 2 * 2)
    assert [float(row["RR"]) for row in rows if row["model"] == "sharp"] == [1.0] * 4
    assert float(rows[0]["RR"]) < 1
    assert {row["samples"] for row in rows if row["model"] == "blunt"} == {"3"}
    assert "one, given, sharp: 3 queries" in out
    average_rows = [line.split() for line in out.splitlines() if line.startswith("both ")]
    assert ["both", "given", "sharp", "sliding-full-w4-s2"] in [words[:4] for words in average_rows]
    [published] = [line for line in out.splitlines() if "nobody" in line]
    assert "0.5000" in published
    assert "nobody" not in (output / "cells.csv").read_text(), "published figures are not among the measured"


def test_study_command_only_restricts_user_config(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    assert main(["study", "--config", str(tiny_config), "--output", str(output), "--only", "two", "sharp"]) == 0
    assert {row["collection"] for row in read_cells(output)} == {"two"}
    assert "both  " not in capsys.readouterr().out.partition("published")[0], "an average needs all its collections"
    assert main(["study", "--config", str(tiny_config), "--output", str(output), "--measures", "RR"]) == 0
    assert len(read_cells(output)) == 10


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('title = "A tiny study"', "title = 3", "title = 3"),
        ('title = "A', 'title = "A"\ntitel = "A', "did you mean title?"),
        ('title = "A tiny study"', 'title = "A', "TOML"),
        ('strategy = ["sliding", "single"]', 'strategy = ["slidng"]', "did you mean sliding?"),
        ('strategy = ["sliding", "single"]', 'strategies = ["sliding"]', "no option 'strategies'"),
        ("window = [4]", "window = [1]", "window is 1"),
        ('simulate = "weak"', 'simulate = "dull"', "simulate = 'dull'"),
        ('name = "blunt"', 'name = "sharp"', "two models have the same name"),
        ('collections = ["one", "two"]', 'collections = ["one", "three"]', "over 'three'"),
        ('model = "sharp"\nmeasure', 'model = "dull"\nmeasure', "published result is for dull"),
        ('file = "{each}/run.given.trec"', 'fil = "x"', "did you mean file?"),
        ('name = "given"\n', "", "runs[0].name is missing"),
        ('measures = ["nDCG@5", "RR"]', "measures = []", "measures = []"),
        ("value = 0.5", 'value = "half"', "published[0].value = 'half'"),
        ("samples = 3", "samples = 0", "samples is 0"),
        ('each = ["one", "two"]', "each = 1", "each = 1 in [[collections]]"),
        ('dataset = "beir:{each}"', "folder = 1", "folder = 1 in [[collections]]"),
        ("[[averages]]", "[averages]", "averages is not a list of tables"),
    ],
)
def test_read_study_reports_problem_with_file_name(tiny_config: Path, before: str, after: str, problem: str) -> None:
    assert before in TINY_TOML
    tiny_config.write_text(TINY_TOML.replace(before, after))
    with pytest.raises(InputError) as raised:
        read_study(tiny_config, tiny_config.parent)
    assert problem in str(raised.value)
    assert str(tiny_config) in str(raised.value)


@pytest.mark.parametrize("part", ["collections", "models", "grids"])
def test_read_study_rejects_study_without_required_part(part: str, tiny_config: Path) -> None:
    tiny_config.write_text(re.sub(rf"\[\[{part}\]\].*?(?=\n\[\[(?!{part}\.)|\Z)", "", TINY_TOML, flags=re.DOTALL))
    with pytest.raises(InputError, match=f"no {part}|has no runs"):
        read_study(tiny_config, tiny_config.parent)


def test_read_study_rejects_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a TOML file"):
        read_study(tmp_path / "none.toml", tmp_path)


def test_read_study_accepts_documented_example(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "study.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.toml").write_text(example)
    study = read_study(tmp_path / "mine.toml", tmp_path)
    assert [collection.dataset for collection in study.collections] == [
        f"beir:{tmp_path / name}" for name in ("one", "two", "three")
    ]
    assert len(expand_cells(study)) == 3 * 2 * (2 * 3 + 1)


# --- the paper's format on real data ---------------------------------------------------------------


@pytest.mark.slow
def test_study_command_runs_paper_config_on_trec_dl_2019(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TREC DL 2019 with the texts that are there, a SPLADE++ run for SPLADE-v3's, and judges for the models."""
    source = SHARED / "trec-dl19"
    if not source.is_dir():
        pytest.skip("needs trec-dl19 in ../shared/data beside the checkout")
    data = tmp_path / "data"
    (data / "dl19").mkdir(parents=True)
    for file in ("corpus.jsonl.gz", "queries.jsonl", "qrels.trec", "run.bm25.trec"):
        (data / "dl19" / file).symlink_to(source / file)
    (data / "dl19" / "run.splade-v3.trec").symlink_to(source / "run.splade-pp-ed.textonly.trec")
    output = tmp_path / "study"
    command = ["study", "--config", "rank-k-paper", "--data", str(data), "--simulate", "--noise", "strong"]
    assert main([*command, "--only", "dl19", "rank-k-32b", "rank-zephyr", "--output", str(output), "--quiet"]) == 0
    out, _ = capsys.readouterr()
    rows = {row["cell"]: row for row in read_cells(output)}
    assert set(rows) == {
        *("dl19.bm25", "dl19.bm25.rank-k-32b.sliding-full", "dl19.bm25.rank-zephyr.sliding-off-m300-t0-free"),
        *("dl19.splade-v3", "dl19.splade-v3.rank-k-32b.sliding-full"),
        "dl19.splade-v3.rank-zephyr.sliding-off-m300-t0-free",
    }
    assert float(rows["dl19.splade-v3"]["nDCG@10"]) == pytest.approx(0.7675, abs=5e-5)
    for run in ("dl19.bm25", "dl19.splade-v3"):
        for name, row in rows.items():
            if name.startswith(f"{run}."):
                assert float(row["nDCG@10"]) > float(rows[run]["nDCG@10"])
                assert row["queries"] == "43"
    assert "RankZephyr (arXiv 2312.02724)" in out
    assert "0.7803" not in (output / "cells.csv").read_text()
