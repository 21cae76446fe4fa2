"""Sanitize queries, passages and reasoning traces before they enter a prompt. This module does no I/O.

Passages are data, not instructions. Text that a model could mistake for structure (a passage number such as `[3]`, a
reasoning tag, a chat-template token) is replaced by look-alike characters. Only the prompt contains the sanitized text;
users get the original text back.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")

# --- invisible characters ---

_INVISIBLE = re.compile(
    # soft hyphen, joiners and fillers without a glyph, direction overrides, byte order mark, annotation marks
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u202d\u202e\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"
    # tags and variation selectors, which can carry whole texts
    "\U000e0000-\U000e007f\U000e0100-\U000e01ef]"
)
_JOINER = re.compile(
    # Zero-width joiners and non-joiners next to ASCII. Between other characters, Persian, Hindi and emoji need them.
    "(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f])"
    # Direction marks before ASCII, where they could split a number or a tag. Arabic and Hebrew need them elsewhere.
    "|[\u061c\u200e\u200f\u202a-\u202c\u2066-\u2069]+(?=[!-~])"
)

# --- passage numbers ---

_DIGIT = "[\\d⁰¹²³⁴-⁹₀-₉①-⑳⓪㉑-㉟㊱-㊿❶-❿➀-➓]"
_MARKER = re.compile(
    rf"[\[［【〔⟦〖〚❲⁅]\s*(?:(?:passage|document|doc|no)\.?\s*)?\#?\s*({_DIGIT}{{1,4}})\s*[.:)]?\s*[\]］】〕⟧〗〛❳⁆]",
    re.IGNORECASE,
)
_BRACKET_ENTITY = re.compile(r"&(?:(\#0*91|\#x0*5b|lsqb|lbrack)|\#0*93|\#x0*5d|rsqb|rbrack);", re.IGNORECASE)

# --- chat-template tokens ---

_TOKEN = re.compile(
    # <|im_end|>, <｜User｜>; and with a single bar: <|turn>, <turn|>
    r"<(?=[|｜▁]|/?\w{1,20}[|｜]>)"
    # any word with an underscore: <start_of_turn>, <file_sep>, <longcat_think>, <reserved_106>
    r"|<(?=\s?/?\s?(?:\w+:)?\w{0,40}_\w{0,40}(?:[\s=][^>]{0,60})?\s?/?>)"
    # tags of reasoning, turns, tools and sequences; the closing bracket is required, because `a < s` is mathematics
    r"|<(?=\s?/?\s?(?:\w+:)?(?i:think|thinking|thought|reasoning|analysis|answer|response|role|sys|s|mask|unk|pad|bos"
    r"|eos|sep|cls|sop|eop|unused\d+|tools?|reponame|filename)(?:[\s=][^>]{0,60})?\s?/?>)"
    # ◁think▷; [|user|]; ]~b] and [e~[
    r"|◁(?=/?think)|\[(?=\|(?:user|assistant|system|tool|endofturn)\|\])|~(?:(?<=\]~)(?=!?b[\[\]])|(?<=\[e~)(?=\[))"
    # /no_think and /think, which switch the reasoning of some models, anywhere in a message; not the tag </think>
    r"|/(?=(?i:no[_-]?think))|(?<![<‹\[(])/(?=(?i:think))"
)
_LOOK_ALIKE = {"<": "‹", "◁": "‹", "[": "(", "~": "∼", "/": "∕"}
_BRACKET_TOKEN = re.compile(
    # [INST], [BOS], [TOOL_CALLS]; [start_header_id]; [unused17], [gMASK], [sMASK]
    r"\[(/?(?:[A-Z][A-Z0-9_]{1,40}|\w{0,40}_\w{0,40}|(?i:inst|think|args|unused\d+|[gs]?mask)))\]"
)


def join_lines(text: str) -> str:
    """Return `text` on one line, with single spaces and without control characters and lone surrogates."""
    return " ".join(_CONTROL.sub("", text).split())


def sanitize(text: str, *, markers: bool = True) -> str:
    """Return `text` on one line, without anything that the model could mistake for structure.

    `[3]` and its variants become `(3)` if `markers` is True; queries are sanitized with `markers=False`. `<think>`,
    `<|im_end|>`, `</s>` and similar tokens get a look-alike bracket, `[INST]` becomes `(INST)`, and the slash of
    `/no_think` is replaced. Invisible characters are removed, except where a script needs them.
    """
    text = join_lines(_JOINER.sub("", join_lines(_INVISIBLE.sub("", text))))
    if markers:
        text = _BRACKET_ENTITY.sub(lambda match: "(" if match[1] else ")", text)
        text = _MARKER.sub(r"(\1)", text)
    return _JOINER.sub("", _replace_tokens(text))


def strip_template_tokens(text: str) -> str:
    """Return a reasoning trace without reasoning tags and chat-template tokens. Its lines are kept."""
    return _replace_tokens(_CONTROL.sub("", text))


def _replace_tokens(text: str) -> str:
    return _BRACKET_TOKEN.sub(r"(\1)", _TOKEN.sub(lambda match: _LOOK_ALIKE[match[0]], text))
