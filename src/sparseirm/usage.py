"""What is said of flags that a command cannot use, on one line and with the way out."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

Command = Callable[..., Any]
"""A public function, whose flags follow from its signature."""


class UsageError(Exception):
    """Flags that do not parse."""


def check_once(name: str, command: Command, arguments: Sequence[str]) -> None:
    """Refuse a flag given twice, of which only the last would count.

    Args:
        name: the command's name on the command line.
        command: the function behind it.
        arguments: what was given.

    Raises:
        UsageError: if there is such a flag.
    """
    known = _spellings(command)
    counts = Counter(known[flag] for flag in _flags(arguments) if flag in known)
    for flag, count in counts.items():
        if count > 1:
            raise UsageError(
                f"`{flag}` is given {count} times, and only the last would count. Give it once; if it takes "
                f"several values, they follow it: `{flag} A B`. See `sparseirm {name} --help`."
            )


def _flags(arguments: Sequence[str]) -> list[str]:
    """What may be flags among arguments, as tyro reads them: without values, with dashes for underscores."""
    return [one.partition("=")[0].replace("_", "-") for one in arguments if re.match(r"--?[a-zA-Z]", one)]


def _spellings(command: Command) -> dict[str, str]:
    """Every spelling of a command's flags, and the flag it stands for."""
    found: dict[str, str] = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        kind, *about = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if name == "return" or tyro.conf.Positional in about:
            continue
        within = "" if any(getattr(part, "name", None) == "" for part in about) else f"{name}."
        for one in [within + field.name for field in fields(kind)] if is_dataclass(kind) else [name]:
            flag = "--" + one.replace("_", "-")
            others = [f"--no-{flag[2:]}"] if kind is bool else []
            others += [alias for part in about for alias in getattr(part, "aliases", None) or ()]
            found |= dict.fromkeys([flag, *others], flag)
    return found


def complaint(box: str, arguments: Sequence[str], commands: Mapping[str, Command]) -> str:
    """The point of tyro's framed message.

    Args:
        box: the message.
        arguments: what was given.
        commands: functions by the names of their commands.

    Returns:
        One line that says what to do.
    """
    lines = [re.sub(r"^[-─]+$", "", line.strip("│|╭╮╰╯+─ ")) for line in box.splitlines()]
    title = next((at for at, line in enumerate(lines) if line), 0)
    body = itertools.dropwhile(lambda line: not line, lines[title + 1 :])
    point = " ".join(itertools.takewhile(bool, body)).rstrip(". ")
    name = arguments[0] if arguments and arguments[0] in commands else ""
    if name and point.startswith(("Unrecognized", "Missing")):
        point = _unknown_flag(name, commands[name], arguments) or point
        if point.startswith("Missing from"):
            point = _missing(name, commands[name], box)
    elif flag := re.match(r"Error parsing (--[\w.-]+): ", point):
        usage = next((line for line in lines if line.startswith(f"{flag[1]} ")), "")
        point = _wrong_value(flag[1], usage, re.findall(r"'(.*?)'", point)) or point
    hint = ""
    if any("," in value and repr(value) in point for value in arguments):
        hint = " Several values are separated by spaces, not commas."
    end = "" if point.endswith("?") else "."
    return f"{point}{end}{hint} See `sparseirm {name} --help`.".replace("  ", " ")


def _unknown_flag(name: str, command: Command, arguments: Sequence[str]) -> str | None:
    """What to say of the first flag that a command does not know."""
    known = _spellings(command)
    for flag in _flags(arguments):
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            return f"`{name}` has no flag `{flag}`" + (f". Did you mean `{near[0]}`?" if near else "")
    return None


def _missing(name: str, command: Command, box: str) -> str:
    """What a command cannot do without, and an example of it."""
    names = re.findall(r"^[│ ] {5}(?!sparseirm )(\S.*?)[│ ]*$", box, re.MULTILINE)
    example = re.search(r"Example: (.*)", command.__doc__ or "")
    shown = f". Example: `{example[1]}`" if example else ""
    return f"`{name}` needs {', '.join(names)} as well{shown}"


TERMS = {
    "[STR FLOAT": "names and values in turn, such as `size 32`",
    "[INT [": "whole numbers",
    "[FLOAT [": "numbers",
    "INT": "a whole number",
    "FLOAT": "a number",
}
"""How the usage of a flag's value begins, and the same in words."""


def _wrong_value(flag: str, usage: str, values: Sequence[str]) -> str | None:
    """The rule for a flag and what was given, or None if there are no words for the rule."""
    kind = usage.removeprefix(flag).strip().removeprefix("{None}|").removeprefix("{")
    rule = next((words for start, words in TERMS.items() if kind.startswith(start)), None)
    if others := re.fullmatch(r"INT\|\{(.*)\}", kind):
        rule = f"{rule} or {others[1].replace(',', ' or ')}"
    got = f"; got {', '.join(map(repr, values))}" if values else ""
    return rule and f"`{flag}` must be {rule}{got}"
