"""The reference of a command in Markdown, taken from its parser.

Each option becomes an `option` of Sphinx's standard domain, so that other pages can refer to it.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from typing import Any

from rank_k.cli import VERBS, add_command

PAGE = re.compile(r"docs/([\w/-]+)\.md")
MARKUP = re.compile(r"([\\`*_<>\[\]{}~|])")
CODE = re.compile(r"(`[^`]+`)")
EXAMPLE_PREFIX = "example: "


def command_parser(verb: str, *steps: str) -> argparse.ArgumentParser:
    """Return the parser of a command, such as `command_parser("distill", "sample")`."""
    root = argparse.ArgumentParser(prog="rank-k")
    verbs = root.add_subparsers()
    add_command(verbs, verb, VERBS[verb], importlib.import_module(f"rank_k.cli.{verb}"))
    parser: argparse.ArgumentParser = verbs.choices[verb]
    for step in steps:
        parser = steps_of(parser)[step]
    return parser


def steps_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a command's steps, by name; empty if it has none."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def render_command(command: str) -> Iterator[str]:
    """Yield the lines of a command's page below its title. `command`: the verb, and the step if it has steps."""
    parser = command_parser(*command.split())
    description = parser.description or ""
    yield from (escape(description[:1].upper() + description[1:] + "."), "")
    yield from ("```text", format_usage(parser), "```", "")
    example = (parser.epilog or "").removeprefix(EXAMPLE_PREFIX)
    if example:
        yield from ("Example:", "", "```bash", *wrap_command(example), "```", "")
    yield from render_groups(parser, "##")
    if command != "distill":  # each of its steps has a separate page
        for name, step in steps_of(parser).items():
            yield from (f"## {parser.prog} {name}", "")
            yield from ("```text", format_usage(step), "```", "")
            yield from render_groups(step, "###")


def render_groups(parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    """Yield the lines that describe the arguments of a parser, with a heading for each group."""
    yield from (f":::{{program}} {parser.prog}", ":::", "")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        if not actions or isinstance(actions[0], argparse._SubParsersAction):
            continue
        yield from (f"{heading} {escape(group_title(group.title))}", "")
        if group.description:
            yield from (escape(group.description[:1].upper() + group.description[1:] + "."), "")
        for action in actions:
            yield from render_argument(parser, action)


def format_usage(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=90)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help().rstrip()


def wrap_command(command: str) -> list[str]:
    """Return a command as lines of a moderate length, which begin with an option."""
    lines = [""]
    for part in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(part) > 85:
            lines[-1] += " \\"
            lines.append(f"   {part}")
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return lines


def group_title(title: str | None) -> str:
    """Return the heading for a group of arguments."""
    if title == "positional arguments":
        return "Arguments"
    text = title or "options"
    return text[:1].upper() + text[1:]


def render_argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    """Yield the lines that describe an option or a positional argument."""
    formatter: Any = parser._get_formatter()
    text = escape(formatter._expand_help(action)) if action.help else ""
    if action.option_strings:
        values = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
        signature = ", ".join(f"{name} {values}".rstrip() for name in action.option_strings)
        yield from (f"::::{{option}} {signature}", text, "::::", "")
    else:
        yield from (f"`{formatter._format_args(action, action.dest)}`", f": {text}", "")


def escape(text: str) -> str:
    """Return `text` as Markdown, with code in backticks. The name of a documentation page becomes a link to it."""
    parts = CODE.split(text)
    parts[::2] = [PAGE.sub(r"[](/\1.md)", MARKUP.sub(r"\\\1", part)) for part in parts[::2]]
    return "".join(parts)
