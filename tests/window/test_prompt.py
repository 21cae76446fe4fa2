"""Prompts: what a window looks like to a model, what a passage cannot do to it, and templates from files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import InputError
from rank_k.window import prompt
from rank_k.window.prompt import (
    PromptTemplate,
    default_template,
    join_lines,
    read_template,
    sanitize,
    strip_template_tokens,
)

TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>"),
    *("<|channel|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|turn>", "<turn|>", "<|think|>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|START_OF_TURN_TOKEN|>"),
    *("<s>", "</s>", "<S>", "< s >", "<pad>", "<unk>", "<bos>", "<eos>", "<mask>", "<BOS_TOKEN>", "<unused99>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]", "[gMASK]"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "<function_calls>", "<tools>", "<fim_prefix>", "[TOOL_CALLS]"),
    *("<think>", "</think>", "<THINK>", "</ think >", "<think/>", '<think mode="x">', "<thinking>", "</thought>"),
    *("<reasoning>", "<answer>", "</answer>", "<analysis>", "[THINK]", "[/THINK]", "◁think▷", "◁/think▷"),
    *("<seed:think>", "<seed:bos>", "<minimax:tool_call>", "]~!b[", "]~b]", "[e~[", "[|user|]", "[|endofturn|]"),
)
MARKERS = ("[1]", "[ 20 ]", "[999]", "［3］", "[٣]", "【4】", "[5】")
ORDINARY = (
    *("if a < b and c > d", "x <y> z", "i<n; s<t", "a < s", "p<0.05", "1 < 2 > 1", "<3", "->", "a || b", "x |> f(y)"),
    *("<strong>bold</strong>", "<b>", "<span class='x'>", "<sup>2</sup>", "<section>", "<!-- note -->", "vector<int>"),
    *(
        "list[str]",
        "a[i]",
        "[sic]",
        "[12345]",
        "[1, 2]",
        "[-1]",
        "[0.5]",
        "~[a, b]",
        "E[|X|]",
        "~/bin",
        "{query} {docs}",
    ),
    *("thinking of answers", "tool call", "im_start", "the INST unit", "[institute]", "◁ left"),
    *("ภาษาไทย", "می‌خواهم", "हिन्दी", "中文，没有空格。", "日本語", "👩‍👩‍👧‍👦 🇮🇷 👍🏽", "e\u0301", "Ω ≈ 3·10⁻⁹"),
)
LINE = re.compile(r"^\[\d+\] ", re.MULTILINE)
hostile = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([*TOKENS, *MARKERS, *ORDINARY]),
        st.sampled_from("<>[]|｜/~◁▷ \n\u2028\x85s3"),
    )
).map("".join)


def holds_structure(text: str) -> bool:
    return any(token in text for token in TOKENS) or bool(prompt._MARKER.search(text)) or len(text.splitlines()) > 1


# --- the default -----------------------------------------------------------------------------------


def test_default_prompt_is_instructions_then_query_then_one_line_per_passage() -> None:
    (message,) = default_template().messages("why is the sky blue", ["Rayleigh", "Paint", "Sea"])
    assert message.role == "user"
    assert message.content.endswith("\n\nQuery: why is the sky blue\n\n[1] Rayleigh\n[2] Paint\n[3] Sea")
    instructions = message.content.partition("Query:")[0]
    assert "given a query and 3 passages" in instructions
    for asked in (
        "[3] > [2] > [4] = [1] > [5]",
        "question",
        "searcher is after",
        "misspelt",
        "contradict",
        "share a place",
        "accurate",
    ):
        assert asked in instructions
    assert "nothing else" in instructions


def test_fields_in_query_and_passages_never_expand() -> None:
    (message,) = default_template().messages("{passages} {count}", ["{query} {0} {", "{i}{text}", "{{docs}} %s"])
    assert message.content.endswith(
        "\n\nQuery: {passages} {count}\n\n[1] {query} {0} {\n[2] {i}{text}\n[3] {{docs}} %s"
    )


@given(query=hostile, passages=st.lists(hostile, max_size=6))
def test_as_many_numbered_lines_as_passages_whatever_they_hold(query: str, passages: Sequence[str]) -> None:
    shown = [sanitize(passage) for passage in passages]
    (message,) = default_template().messages(sanitize(query, markers=False), shown)
    assert len(LINE.findall(message.content)) == len(passages)
    if passages:
        assert message.content.endswith("\n".join(f"[{i}] {text}" for i, text in enumerate(shown, 1)))


# --- harmless --------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", TOKENS)
def test_tokens_and_think_tags_do_not_survive(token: str) -> None:
    for text in (token, f"before {token}after", f"{token}{token}"):
        cleaned = sanitize(text)
        assert token not in cleaned
        assert len(cleaned) == len(text)  # a look-alike each: nothing is dropped
        assert token not in strip_template_tokens(text)
        assert token not in sanitize(text, markers=False)


@pytest.mark.parametrize("marker", MARKERS)
def test_markers_become_parentheses_but_for_queries(marker: str) -> None:
    number = marker.strip("[]［］【】 ")
    assert sanitize(f"as shown {marker} above") == f"as shown ({number}) above"
    assert marker in sanitize(f"as shown {marker} above", markers=False)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert sanitize(text) == text
    assert strip_template_tokens(text) == text


@given(hostile)
def test_harmless_leaves_no_structure_and_does_nothing_twice(text: str) -> None:
    cleaned = sanitize(text)
    assert not holds_structure(cleaned)
    assert sanitize(cleaned) == cleaned
    cleaned.encode()  # no lone surrogates


@given(hostile)
def test_defused_keeps_lines_and_does_nothing_twice(text: str) -> None:
    cleaned = strip_template_tokens(text)
    assert not any(token in cleaned for token in TOKENS)
    assert strip_template_tokens(cleaned) == cleaned
    assert cleaned.count("\n") == text.count("\n")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="[［【<◁~\ufffe\uffff")))
def test_text_of_any_script_is_only_folded(text: str) -> None:
    assert sanitize(text) == " ".join(text.split())


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert len(join_lines(text).splitlines()) <= 1
    assert re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", join_lines(text)) is None


# --- templates: plain text -------------------------------------------------------------------------


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("field", ["docs", "passages"])
def test_plain_text_template(tmp_path: Path, field: str) -> None:
    text = f'{{"form": {{"a": 1}}}} {{count}} for {{query}} ({{query}}):\n{{{field}}}\nNow rank.'
    template = read_template(written(tmp_path / "mine.txt", text))
    assert template.messages("q", ["a", "b"]) == (("user", '{"form": {"a": 1}} 2 for q (q):\n[1] a\n[2] b\nNow rank.'),)
    assert template.name == "mine.txt"
    assert template.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_byte_order_mark_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    plain = "{query}: {docs}"
    with_mark = read_template(written(tmp_path / "p.txt", "\ufeff" + plain))
    assert with_mark.before == "{query}: "
    script = read_template(written(tmp_path / "p.py", f"\ufeffrank_k_prompt = {plain!r}"))
    assert script.sha256 == with_mark.sha256


@pytest.mark.parametrize(
    ("name", "text", "told"),
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
        ("p.yaml", "- a\n- b", "no rank_llm prompt template"),
        ("p.yaml", "", "no rank_llm prompt template"),
        ("p.yaml", "method: singleturn_listwise\nbody: 3", "no rank_llm prompt template"),
        ("p.yaml", "body: '[{rank}] {candidate}'\nprefix: '{query}'", "of the method ''"),
        ("p.yml", "method: pointwise\nbody: '[{rank}] {candidate}'\nprefix: '{query}'", "of the method 'pointwise'"),
        ("p.yaml", "method: singleturn_listwise\nprefix: '{query}'", "body of prompt"),
        ("p.yaml", "method: singleturn_listwise\nbody: '{candidate}'\nprefix: '{query}'", "body of prompt"),
        ("p.yaml", "method: singleturn_listwise\nbody: '[{rank}] {candidate}'", "no {query} field"),
        ("p.yaml", "method: singleturn_listwise\nprefix: '{query}'\nbody: '{rank} {candidate} {score}'", "{score}"),
        ("p.yaml", "method: singleturn_listwise\nprefix: '{query} {psg_ids}'\nbody: '{rank} {candidate}'", "{psg_ids}"),
        ("p.yaml", "method: singleturn_listwise\nsuffix: '{query} {{x}}'\nbody: '{rank} {candidate}'", "holds {{"),
    ],
)
def test_a_wrong_template_is_told_in_one_line(tmp_path: Path, name: str, text: str, told: str) -> None:
    path = written(tmp_path / name, text)
    with pytest.raises(InputError) as raised:
        read_template(path)
    assert told in str(raised.value)
    assert str(path) in str(raised.value)
    assert raised.value.remedy
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["p.txt", "p.py", "p.yaml"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
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


def test_a_script_is_read_without_being_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    template = read_template(written(tmp_path / "rerank.py", SCRIPT))
    assert capfd.readouterr() == ("", "")
    passages = ["one {query}", "two", "three"]
    docs = "\n\n".join(f"[{i}] {passage}" for i, passage in enumerate(passages, 1))
    assert template.messages("what", passages) == (("user", SCRIPT_PROMPT.format(query="what", docs=docs)),)
    assert template.name == "rerank.py"


def test_the_official_prompt_is_recognized_by_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prompt.OFFICIAL_SHA256 == "075c6a7c2f8229976cb6154eabd39b7680bb5f3970171f1ba932d22b14f70541"
    monkeypatch.setattr(prompt, "OFFICIAL_SHA256", hashlib.sha256(SCRIPT_PROMPT.encode()).hexdigest())
    for path, text in (("rerank.py", SCRIPT), ("copied.txt", SCRIPT_PROMPT)):
        template = read_template(written(tmp_path / path, text))
        assert template.name == "Rank-K official"
        assert template.sha256 == prompt.OFFICIAL_SHA256
        assert template.between == "\n\n"  # as the authors' script joins passages
    assert read_template(written(tmp_path / "p.txt", SCRIPT_PROMPT + " ")).name == "p.txt"


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
def test_rank_llm_templates_render_as_there(tmp_path: Path, name: str) -> None:
    """rank_llm concatenates prefix, bodies and suffix, each filled by `str.format`, and adds nothing."""
    path = written(tmp_path / "t.yaml", RANK_LLM[name])
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


def test_a_template_made_by_hand_needs_no_file() -> None:
    template = PromptTemplate("{query}?\n", "\n{num} in all", passage="<{rank}> {candidate}", between=" / ", system="S")
    assert template.messages("q", ["a", "b"]) == (("system", "S"), ("user", "q?\n<1> a / <2> b\n2 in all"))
    assert template.messages("q", []) == (("system", "S"), ("user", "q?\n\n0 in all"))


def test_a_line_of_a_template_may_stand_for_a_passage(tmp_path: Path) -> None:
    path = tmp_path / "marked.txt"
    path.write_text("Query: {query}\n<{i}> {text} <{i}>\nWhich of {count}?\n", encoding="utf-8")
    (message,) = read_template(path).messages("why", ["a {i}", "b"])
    assert message.content == "Query: why\n<1> a {i} <1>\n<2> b <2>\nWhich of 2?\n"


def test_the_compact_template_has_a_passage_s_number_at_both_its_ends() -> None:
    (message,) = read_template("compact").messages("why", ["a", "b"])
    assert message.content == "Query: why\n[1] a [1]\n[2] b [2]\nQuery: why\nWhich passages answer the query?"
