"""Sanitize the text of queries, passages and reasoning traces before it enters a prompt. Pure.

Passages are data. Anything in them that could forge structure (the `[n]` of another passage, reasoning tags, tokens of
chat templates) is replaced by look-alike characters, here and nowhere else. Users get the original text back.
"""

from __future__ import annotations

import re

_MARKER = re.compile(r"[\[［【]\s*(\d{1,4})\s*[\]］】]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_TOKEN = re.compile(
    # <|im_end|>, <｜User｜>; and with one bar only: <|turn>, <turn|>
    r"<(?=[|｜▁]|/?\w{1,20}[|｜]>)"
    # tags of reasoning, turns, tools and sequences; with the closing bracket: `a < s` is mathematics
    r"|<(?=\s?/?\s?(?:\w+:)?(?i:think|thinking|thought|reasoning|analysis|answer|sys|s|mask|unk|pad|bos|eos|sep|cls|sop|eop"
    r"|(?:unused|extra_id_|special_)\d+|tools?|(?:tool|function)_(?:call|response|output)s?|im_\w+|(?:start|end)_of_\w+"
    r"|(?:fim|cot)_\w+|\w{0,12}_token)(?:[\s=][^>]{0,60})?\s?/?>)"
    # ◁think▷; [|user|]; ]~b] and [e~[
    r"|◁(?=/?think)|\[(?=\|(?:user|assistant|system|tool|endofturn)\|\])|~(?:(?<=\]~)(?=!?b[\[\]])|(?<=\[e~)(?=\[))"
)
_LOOK_ALIKE = {"<": "‹", "◁": "‹", "[": "(", "~": "∼"}
_BRACKET_TOKEN = re.compile(
    r"\[(/?(?:INST|THINK|ARGS|CALL_ID|gMASK|SYSTEM_PROMPT|MODEL_SETTINGS|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)))\]",
    re.IGNORECASE,
)


def join_lines(text: str) -> str:
    """Return `text` on one line, with single spaces and without control characters and lone surrogates."""
    return " ".join(_CONTROL.sub("", text).split())


def sanitize(text: str, *, markers: bool = True) -> str:
    """Return `text` on one line, without anything that the model could mistake for structure.

    `[3]` becomes `(3)`, unless `markers` is False, as for queries. `<think>`, `<|im_end|>`, `</s>` and similar tokens
    get a look-alike bracket. `[INST]` becomes `(INST)`.
    """
    text = join_lines(text)
    if markers and ("[" in text or "［" in text or "【" in text):
        text = _MARKER.sub(r"(\1)", text)
    return _replace_tokens(text)


def strip_template_tokens(text: str) -> str:
    """Return a reasoning trace without reasoning tags and chat-template tokens. Its lines are kept."""
    return _replace_tokens(_CONTROL.sub("", text))


def _replace_tokens(text: str) -> str:
    return _BRACKET_TOKEN.sub(r"(\1)", _TOKEN.sub(lambda m: _LOOK_ALIKE[m[0]], text))
