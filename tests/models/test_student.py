"""Students: found by their file or folder, asked as they were trained, refused where something does not belong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rank_k.errors import FormatError, InputError
from rank_k.models import student as students
from rank_k.models import weights
from rank_k.models.embedded import EmbeddedModel
from rank_k.models.student import TEMPLATE_FIELDS, find_student, write_student
from rank_k.options import PRESETS, STUDENT_OPTIONS
from rank_k.reranker import Reranker
from rank_k.window.listwise import ListwiseRanker
from rank_k.window.prompt import PromptTemplate

TEMPLATE = PromptTemplate("Q: {query}\n", "\nA:", "<{i}> {text}", " | ", "be brief")
INFERENCE_OPTIONS = {
    "method": "listwise",
    "strategy": "blocks",
    "passage_tokens": 50,
    "window": 8,
    "stride": 4,
    "reasoning": "full",
    "max_tokens": 256,
    "temperature": 0.0,
}


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK_K_CACHE", str(tmp_path / "cache"))


def write_gguf(path: Path, content: bytes = b"numbers") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"GGUF" + content)
    return path


def export_student(folder: Path, **options: Any) -> Path:
    """A student's folder, with whole weights."""
    file = write_gguf(folder / "student.gguf")
    write_student(file, "tiny", asdict(TEMPLATE), INFERENCE_OPTIONS | options, None)
    return folder


def student_settings(reranker: Reranker) -> dict[str, Any]:
    """The reranker's values of the options that students have."""
    return {name: getattr(reranker.options, name) for name in STUDENT_OPTIONS}


def test_find_student_by_folder_and_by_file(tmp_path: Path) -> None:
    folder = export_student(tmp_path / "s")
    student = find_student(folder)
    assert student is not None
    assert student == find_student(str(folder / "student.gguf"))
    assert (student.name, student.adapter, student.weights.path) == ("tiny", None, folder / "student.gguf")
    assert dict(student.prompt) == {field: asdict(TEMPLATE)[field] for field in TEMPLATE_FIELDS}
    assert dict(student.asking) == INFERENCE_OPTIONS


def test_reranker_uses_the_student_settings_by_default(tmp_path: Path) -> None:
    folder = export_student(tmp_path / "s")
    with Reranker(folder) as reranker:
        assert student_settings(reranker) == INFERENCE_OPTIONS
        assert isinstance(reranker.ranker, ListwiseRanker)
        assert reranker.ranker.template.before == TEMPLATE.before
        settings = reranker.ranker.settings
        assert (settings.passage_tokens, settings.max_tokens, settings.temperature) == (50, 256, 0.0)
    with Reranker(folder, window=5, temperature=None, prompt="listwise") as reranker:
        assert student_settings(reranker) == INFERENCE_OPTIONS | {"window": 5, "temperature": None}
        assert {reranker.options.sources[name] for name in ("window", "temperature", "prompt")} == {"user"}
        assert reranker.options.sources["stride"] == "student"
        assert reranker.options.sources["depth"] == "default"
        assert isinstance(reranker.ranker, ListwiseRanker)
        assert reranker.ranker.template.name == "rank-k"


def test_reranker_uses_paper_settings_for_other_models(tmp_path: Path) -> None:
    plain = write_gguf(tmp_path / "plain.gguf")
    with Reranker(plain) as reranker:
        assert reranker.options.settings().items() >= {**PRESETS["paper"], "max_tokens": 512}.items()
        assert isinstance(reranker.model, EmbeddedModel)
        assert reranker.model.adapter is None
    with Reranker("m", server="http://127.0.0.1:9/v1") as reranker:
        assert reranker.options.settings().items() >= PRESETS["paper"].items()


def test_find_student_ignores_unrelated_json_files(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "plain.gguf")
    for content in ("{}", "[1]", "not json", '{"rank_k_student": 1, "gguf": "other.gguf", "name": "x"}', "[" * 99_999):
        file.with_suffix(".json").write_text(content, encoding="utf-8")
        if "other" in content:
            with pytest.raises(FormatError):
                find_student(file)
        else:
            assert find_student(file) is None


def test_find_student_checks_the_base_of_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = weights.Weights("base", write_gguf(tmp_path / "base.gguf"), "ab" * 32, 2048)
    monkeypatch.setattr(students, "locate", lambda name: base)
    file = write_gguf(tmp_path / "s" / "student.gguf", b"adapter")
    write_student(file, "tiny", asdict(TEMPLATE), INFERENCE_OPTIONS, {"name": "base", "sha256": base.sha256})
    student = find_student(file.parent)
    assert student is not None
    assert (student.weights.path, student.adapter, student.weights.context_length) == (base.path, file, 2048)
    with Reranker(file.parent) as reranker:
        assert isinstance(reranker.model, EmbeddedModel)
        assert reranker.model.identity == f"{base.sha256}+{weights.checksum(file)}"
    write_student(file, "tiny", asdict(TEMPLATE), INFERENCE_OPTIONS, {"name": "base", "sha256": "cd" * 32})
    with pytest.raises(InputError, match="adapter for different weights"):
        find_student(file.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_k_student": 2}, "version 2"),
        ({"gguf": "../elsewhere.gguf"}, "name or gguf is missing"),
        ({"prompt": {"before": "x"}}, "prompt is incomplete"),
        ({"asking": INFERENCE_OPTIONS | {"wind": 3}}, "asking has no option 'wind'"),
        ({"asking": INFERENCE_OPTIONS | {"window": "x"}}, "window is 'x'"),
        ({"asking": INFERENCE_OPTIONS | {"window": True}}, "window is True"),
        ({"asking": INFERENCE_OPTIONS | {"strategy": "os:system"}}, "strategy is not one of Rank-K"),
        ({"adapter_of": {"name": "x"}}, "adapter_of has no"),
    ],
)
def test_find_student_names_incomplete_settings(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = export_student(tmp_path / "s")
    path = folder / "student.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(FormatError, match=message):
        find_student(folder)


def test_find_student_without_a_student(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no student\.json.*distill export"):
        find_student(tmp_path)
    assert find_student("smollm2-135m-instruct") is None
    assert find_student("x" * 5000) is None
    assert find_student("a\0b") is None


def test_reranker_checks_overridden_student_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="window is 0"):
        Reranker(export_student(tmp_path / "s"), window=0)
