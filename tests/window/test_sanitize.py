"""Sanitizing text for prompts: what could forge structure is replaced, everything else is left alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.window import sanitize as sanitize_module
from rank_k.window.prompt import default_template
from rank_k.window.sanitize import join_lines, sanitize, strip_template_tokens

TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>"),
    *("<|channel|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|turn>", "<turn|>", "<|think|>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|START_OF_TURN_TOKEN|>"),
    *("<s>", "</s>", "<S>", "< s >", "<pad>", "<unk>", "<bos>", "<eos>", "<mask>", "<BOS_TOKEN>", "<unused99>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]", "[gMASK]"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "<function_calls>", "<tools>", "<fim_prefix>", "[TOOL_CALLS]"),
    *("<think>", "</think>", "<THINK>", "</ think >", "<think/>", '<think mode="x">', "<thinking>", "</thought>"),
    *("<reasoning>", "<answer>", "</answer>", "<analysis>", "[THINK]", "[/THINK]", "◁think▷", "◁/think▷"),
    *("<beginning_of_sentence>", "<begin_of_document>", "<longcat_think>", "</longcat_think>", "<longcat_tool_call>"),
    *("<role>", "</role>", "[unused16]", "[unused10]", "[BOS]", "[EOS]", "[EOT]", "[PAD]", "[UNK]", "[SEP]", "[CLS]"),
    *("[start_header_id]", "[end_header_id]", "[IMG]", "[PREFIX]", "[MASK]", "[sMASK]", "<arg_key>", "<response>"),
    *("<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>", "<issue_start>", "<jupyter_code>"),
    *("<empty_output>", "<reserved_106>", "<_user>", "<_bot>", "/no_think", "/nothink", "/No-Think"),
    *("<seed:think>", "<seed:bos>", "<minimax:tool_call>", "]~!b[", "]~b]", "[e~[", "[|user|]", "[|endofturn|]"),
)
MARKERS = ("[1]", "[ 20 ]", "[999]", "［3］", "[٣]", "【4】", "[5】", "〔3〕", "⟦3⟧", "[③]", "[³]")
DECORATED_MARKERS = (
    "[3.]",
    "[#3]",
    "[3:]",
    "[Passage 3]",
    "[document 3]",
    "[doc. 3]",
    "&#91;3&#93;",
    "&lsqb;3&RBRACK;",
)
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
hostile_texts = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([*TOKENS, *MARKERS, *ORDINARY]),
        st.sampled_from("<>[]|｜/~◁▷ \n\u2028\x85s3"),
    )
).map("".join)


def holds_structure(text: str) -> bool:
    return (
        any(token in text for token in TOKENS)
        or bool(sanitize_module._MARKER.search(text))
        or len(text.splitlines()) > 1
    )


@pytest.mark.parametrize("token", TOKENS)
def test_sanitize_replaces_template_tokens_and_reasoning_tags(token: str) -> None:
    for text in (token, f"before {token}after", f"{token}{token}"):
        cleaned = sanitize(text)
        assert token not in cleaned
        assert len(cleaned) == len(text)  # a look-alike each: nothing is dropped
        assert token not in strip_template_tokens(text)
        assert token not in sanitize(text, markers=False)


@pytest.mark.parametrize("marker", MARKERS)
def test_sanitize_replaces_passage_markers_except_in_queries(marker: str) -> None:
    number = marker.strip("[]［］【】〔〕⟦⟧ ")
    assert sanitize(f"as shown {marker} above") == f"as shown ({number}) above"
    assert marker in sanitize(f"as shown {marker} above", markers=False)


@pytest.mark.parametrize("marker", DECORATED_MARKERS)
def test_sanitize_replaces_decorated_passage_markers(marker: str) -> None:
    assert sanitize(f"as shown {marker} above") == "as shown (3) above"


@pytest.mark.parametrize(
    "invisible", ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\U000e0041", "\u202e", "\u200e"]
)
def test_sanitize_removes_invisible_characters_that_hide_structure(invisible: str) -> None:
    assert sanitize(f"[{invisible}3{invisible}] <th{invisible}ink> /no{invisible}_think") == "(3) ‹think> ∕no_think"


def test_sanitize_replaces_reasoning_switches_in_addresses() -> None:
    assert sanitize("see https://example.org/no_think for more") == "see https://example.org∕no_think for more"
    assert sanitize("/think hard, </no_think") == "∕think hard, <∕no_think"
    assert sanitize("and/or /nothing a/rethink no thinking") == "and/or /nothing a/rethink no thinking"


@pytest.mark.parametrize("text", ORDINARY)
def test_sanitize_keeps_ordinary_text(text: str) -> None:
    assert sanitize(text) == text
    assert strip_template_tokens(text) == text


@given(hostile_texts)
def test_sanitize_removes_all_structure_and_is_idempotent(text: str) -> None:
    cleaned = sanitize(text)
    assert not holds_structure(cleaned)
    assert sanitize(cleaned) == cleaned
    cleaned.encode()  # no lone surrogates


@given(hostile_texts)
def test_strip_template_tokens_keeps_lines_and_is_idempotent(text: str) -> None:
    cleaned = strip_template_tokens(text)
    assert not any(token in cleaned for token in TOKENS)
    assert strip_template_tokens(cleaned) == cleaned
    assert cleaned.count("\n") == text.count("\n")


@given(
    st.text(
        st.characters(
            exclude_categories=["Cs", "Cc", "Cf", "Mn", "Lo"], exclude_characters="[［【〔⟦〖〚❲⁅<◁~/&\ufffe\uffff"
        )
    )
)
def test_sanitize_only_folds_blanks_in_ordinary_text(text: str) -> None:
    assert sanitize(text) == " ".join(text.split())


@given(st.text())
def test_join_lines_returns_one_line(text: str) -> None:
    assert len(join_lines(text).splitlines()) <= 1
    assert re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", join_lines(text)) is None


@given(query=hostile_texts, passages=st.lists(hostile_texts, max_size=6))
def test_sanitize_prevents_passages_from_forging_numbered_lines(query: str, passages: Sequence[str]) -> None:
    sanitized = [sanitize(passage) for passage in passages]
    (message,) = default_template().messages(sanitize(query, markers=False), sanitized)
    assert len(LINE.findall(message.content)) == len(passages)
    if passages:
        assert message.content.endswith("\n".join(f"[{i}] {text}" for i, text in enumerate(sanitized, 1)))
