"""Prompt templates: the default one, and templates from files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from rank_k.errors import InputError
from rank_k.window import prompt
from rank_k.window.prompt import PromptTemplate, default_template, read_template

# --- default template -----------------------------------------------------------------------------------


def test_default_template_shows_instructions_query_and_numbered_passages() -> None:
    (message,) = default_template().messages("why is the sky blue", ["Rayleigh", "Paint", "Sea"])
    assert message.role == "user"
    assert message.content.endswith("\n\nQuery: why is the sky blue\n\n[1] Rayleigh\n[2] Paint\n[3] Sea")
    instructions = message.content.partition("Query:")[0]
    assert "given a query and 3 passages" in instructions
    for instruction in (
        "[3] > [2] > [4] = [1] > [5]",
        "question",
        "searcher is after",
        "misspelt",
        "contradict",
        "share a place",
        "accurate",
    ):
        assert instruction in instructions
    assert "nothing else" in instructions


def test_messages_never_expand_fields_in_query_and_passages() -> None:
    (message,) = default_template().messages("{passages} {count}", ["{query} {0} {", "{i}{text}", "{{docs}} %s"])
    assert message.content.endswith(
        "\n\nQuery: {passages} {count}\n\n[1] {query} {0} {\n[2] {i}{text}\n[3] {{docs}} %s"
    )


# --- templates: plain text -------------------------------------------------------------------------


def write_template(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("field", ["docs", "passages"])
def test_read_template_reads_plain_text(tmp_path: Path, field: str) -> None:
    text = f'{{"form": {{"a": 1}}}} {{count}} for {{query}} ({{query}}):\n{{{field}}}\nNow rank.'
    template = read_template(write_template(tmp_path / "mine.txt", text))
    assert template.messages("q", ["a", "b"]) == (("user", '{"form": {"a": 1}} 2 for q (q):\n[1] a\n[2] b\nNow rank.'),)
    assert template.name == "mine.txt"
    assert template.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_read_template_ignores_a_byte_order_mark(tmp_path: Path) -> None:
    plain = "{query}: {docs}"
    with_mark = read_template(write_template(tmp_path / "p.txt", "\ufeff" + plain))
    assert with_mark.before == "{query}: "
    script = read_template(write_template(tmp_path / "p.py", f"\ufeffrank_k_prompt = {plain!r}"))
    assert script.sha256 == with_mark.sha256


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "no passages for {query}", "no {passages} field"),
        ("p.txt", "{query} {passages} {docs}", "2 {passages} fields"),
        ("p.txt", "{docs} without the other", "no {query} field"),
        ("p.txt", "", "no {passages} field"),
        ("p.py", "rank_k_prompt = (", "not Python source"),
        ("p.py", "x = '\0'", "not Python source"),
        ("p.py", "(" * 5000, "not Python source"),
        ("p.py", "other = '{query} {docs}'", "assigns no string to rank_k_prompt"),
        ("p.py", "rank_k_prompt = open('x').read()", "assigns no string to rank_k_prompt"),
        ("p.py", "rank_k_prompt = 'about {query}'", "no {passages} field"),
        ("p.yaml", "a: [", "not YAML"),
        ("p.yaml", "when: 2024-99-99", "not YAML"),
        ("p.yaml", "- a\n- b", "not a rank_llm prompt template"),
        ("p.yaml", "", "not a rank_llm prompt template"),
        ("p.yaml", "method: singleturn_listwise\nbody: 3", "not a rank_llm prompt template"),
        ("p.yaml", "body: '[{rank}] {candidate}'\nprefix: '{query}'", "uses the method '', which is not supported"),
        ("p.yml", "method: pointwise\nbody: '[{rank}] {candidate}'\nprefix: '{query}'", "uses the method 'pointwise'"),
        ("p.yaml", "method: singleturn_listwise\nprefix: '{query}'", "body of prompt"),
        ("p.yaml", "method: singleturn_listwise\nbody: '{candidate}'\nprefix: '{query}'", "body of prompt"),
        ("p.yaml", "method: singleturn_listwise\nbody: '[{rank}] {candidate}'", "no {query} field"),
        ("p.yaml", "method: singleturn_listwise\nprefix: '{query}'\nbody: '{rank} {candidate} {score}'", "{score}"),
        ("p.yaml", "method: singleturn_listwise\nprefix: '{query} {psg_ids}'\nbody: '{rank} {candidate}'", "{psg_ids}"),
        (
            "p.yaml",
            "method: singleturn_listwise\nsuffix: '{query} {{x}}'\nbody: '{rank} {candidate}'",
            "unknown field {{",
        ),
    ],
)
def test_read_template_reports_invalid_templates_in_one_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = write_template(tmp_path / name, text)
    with pytest.raises(InputError) as raised:
        read_template(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert raised.value.remedy
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["p.txt", "p.py", "p.yaml"])
def test_read_template_reports_unreadable_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InputError, match="No such file"):
        read_template(path)
    path.write_bytes(b"\xff\xfe{query} {docs}")
    with pytest.raises(InputError, match="not UTF-8"):
        read_template(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="directory"):
        read_template(path)


# --- templates: the authors' script ----------------------------------------------------------------

SCRIPT = '''
import a_module_that_does_not_exist
print("this must not be seen")
pattern = "\\d"  # an escape that Python warns about
rank_k_prompt = """
Put these in order.

Query: {query}

{docs}
"""
raise SystemExit("this must not run")
'''
SCRIPT_PROMPT = "\nPut these in order.\n\nQuery: {query}\n\n{docs}\n"


def test_read_template_reads_a_script_without_running_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    template = read_template(write_template(tmp_path / "rerank.py", SCRIPT))
    assert capfd.readouterr() == ("", "")
    passages = ["one {query}", "two", "three"]
    docs = "\n\n".join(f"[{i}] {passage}" for i, passage in enumerate(passages, 1))
    assert template.messages("what", passages) == (("user", SCRIPT_PROMPT.format(query="what", docs=docs)),)
    assert template.name == "rerank.py"


def test_read_template_recognizes_the_official_prompt_by_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prompt.OFFICIAL_SHA256 == "075c6a7c2f8229976cb6154eabd39b7680bb5f3970171f1ba932d22b14f70541"
    monkeypatch.setattr(prompt, "OFFICIAL_SHA256", hashlib.sha256(SCRIPT_PROMPT.encode()).hexdigest())
    for path, text in (("rerank.py", SCRIPT), ("copied.txt", SCRIPT_PROMPT)):
        template = read_template(write_template(tmp_path / path, text))
        assert template.name == "Rank-K official"
        assert template.sha256 == prompt.OFFICIAL_SHA256
        assert template.between == "\n\n"  # as the authors' script joins passages
    assert read_template(write_template(tmp_path / "p.txt", SCRIPT_PROMPT + " ")).name == "p.txt"


# --- templates: rank_llm ---------------------------------------------------------------------------

RANK_LLM = {
    "line each": """
        method: "singleturn_listwise"
        system_message: "You sort. {query} stays as it is here."
        prefix: "Here are {num} passages for {query}.\\n"
        body: "[{rank}] {candidate}\\n"
        suffix: |-
          Query: {query}.
          Sort the {num} passages.
        output_validation_regex: r"^\\[\\d+\\]( > \\[\\d+\\])*$"
        """,
    "blank lines, no suffix": """
        method: singleturn_listwise
        prefix: |+
          Sort.

          Query: {query}

        body: "[{rank}] {candidate}\\n\\n"
        """,
    "break before each": """
        method: singleturn_listwise
        prefix: "Sort for {query}."
        body: "\\n[{rank}] {candidate}"
        suffix: "\\nSort them."
        """,
    "empty parts": """
        method: singleturn_listwise
        system_message:
        prefix:
        body: "{rank}: {candidate}; "
        suffix: "{query}?"
        """,
}


@pytest.mark.parametrize("name", RANK_LLM)
def test_read_template_renders_rank_llm_templates_identically(tmp_path: Path, name: str) -> None:
    """rank_llm concatenates prefix, bodies and suffix, each filled by `str.format`, and adds nothing."""
    path = write_template(tmp_path / "t.yaml", RANK_LLM[name])
    fields = yaml.safe_load(RANK_LLM[name])
    passages = ["alpha {num}", "beta", "gamma"]
    user = (fields.get("prefix") or "").format(num=3, query="what {rank}")
    for i, passage in enumerate(passages, 1):
        user += fields["body"].format(rank=i, candidate=passage)
    user += (fields.get("suffix") or "").format(num=3, query="what {rank}")
    system = fields.get("system_message")
    expected = [("system", system)] if system else []
    messages = read_template(path).messages("what {rank}", passages)
    assert list(messages) == [*expected, ("user", user)]


def test_prompt_template_works_without_a_file() -> None:
    template = PromptTemplate("{query}?\n", "\n{num} in all", passage="<{rank}> {candidate}", between=" / ", system="S")
    assert template.messages("q", ["a", "b"]) == (("system", "S"), ("user", "q?\n<1> a / <2> b\n2 in all"))
    assert template.messages("q", []) == (("system", "S"), ("user", "q?\n\n0 in all"))


def test_read_template_reads_a_passage_line(tmp_path: Path) -> None:
    path = tmp_path / "marked.txt"
    path.write_text("Query: {query}\n<{i}> {text} <{i}>\nWhich of {count}?\n", encoding="utf-8")
    (message,) = read_template(path).messages("why", ["a {i}", "b"])
    assert message.content == "Query: why\n<1> a {i} <1>\n<2> b <2>\nWhich of 2?\n"


def test_compact_template_shows_the_number_before_and_after_passages() -> None:
    (message,) = read_template("compact").messages("why", ["a", "b"])
    assert message.content == "Query: why\n[1] a [1]\n[2] b [2]\nQuery: why\nWhich passages answer the query?"
