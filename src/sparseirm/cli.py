"""The public functions as commands: flags from their signatures, help from their docstrings."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import itertools
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

import sparseirm
from sparseirm.bench.command import bench
from sparseirm.core import NonFiniteError, SettingError
from sparseirm.deploy import export
from sparseirm.doctor import doctor
from sparseirm.experiments.ablation import ablation
from sparseirm.experiments.compare import compare, demo
from sparseirm.experiments.pictures import pictures
from sparseirm.experiments.prepare import prepare_coco
from sparseirm.experiments.report import report
from sparseirm.experiments.reproduce import reproduce
from sparseirm.experiments.theory import theory
from sparseirm.experiments.train import train
from sparseirm.registry import one_of
from sparseirm.study.fit import fit, predict
from sparseirm.training.processes import check_alone

COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": train,
    "compare": compare,
    "theory": theory,
    "fit": fit,
    "predict": predict,
    "export": export,
    "pictures": pictures,
    "prepare-coco": prepare_coco,
    "doctor": doctor,
    "reproduce": reproduce,
    "report": report,
    "ablation": ablation,
    "bench": bench,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 with one helpful line if a value cannot be used."""
    warnings.formatwarning = lambda message, *where, **more: f"sparseirm: note: {message}.\n"
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"sparseirm {sparseirm.__version__}")
        return 0
    try:
        _parsed(given)()
    except (_UsageError, SettingError, NonFiniteError) as error:
        print("sparseirm:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "sparseirm: stopped. The same command goes on: `train` with `--out` and `--resume`, all with a "
            "`--store`, `bench` and `prepare-coco`. `fit` starts over.",
            file=sys.stderr,
        )
        return 130
    except OSError as error:
        print(f"sparseirm: {error}", file=sys.stderr)
        return 2
    return 0


class _UsageError(Exception):
    """Flags that do not parse."""


def _parsed(arguments: Sequence[str]) -> Callable[[], Any]:
    """The command with its values, not yet run."""
    if arguments and not arguments[0].startswith("-"):
        _check_once(one_of("command", arguments[0], COMMANDS), arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            call: Callable[[], Any] = tyro.extras.subcommand_cli_from_dict(
                {name: _later(command) for name, command in COMMANDS.items()},
                prog="sparseirm",
                description=sparseirm.__doc__,
                args=list(arguments),
            )
            return call
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _UsageError(_complaint(complaint.getvalue(), arguments)) from None


def _later(command: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    @functools.wraps(command)
    def deferred(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        def call() -> Any:
            if command is not train:
                check_alone()
            return command(*args, **kwargs)

        return call

    return deferred


def _check_once(command: str, arguments: Sequence[str]) -> None:
    """Refuse a flag given twice, of which only the last would count."""
    known = _spellings(COMMANDS[command])
    counts = Counter(known[flag] for flag in _flags(arguments) if flag in known)
    for flag, count in counts.items():
        if count > 1:
            raise _UsageError(
                f"`{flag}` is given {count} times, and only the last would count. Give it once; if it takes "
                f"several values, they follow it: `{flag} A B`. See `sparseirm {command} --help`."
            )


def _flags(arguments: Sequence[str]) -> list[str]:
    """What may be flags among arguments, as tyro reads them: without values, with dashes for underscores."""
    return [one.partition("=")[0].replace("_", "-") for one in arguments if re.match(r"--?[a-zA-Z]", one)]


def _spellings(command: Callable[..., Any]) -> dict[str, str]:
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


def _complaint(box: str, arguments: Sequence[str]) -> str:
    """The point of tyro's framed message, on one line."""
    lines = [re.sub(r"^[-─]+$", "", line.strip("│|╭╮╰╯+─ ")) for line in box.splitlines()]
    title = next((at for at, line in enumerate(lines) if line), 0)
    body = itertools.dropwhile(lambda line: not line, lines[title + 1 :])
    point = " ".join(itertools.takewhile(bool, body)).rstrip(". ")
    command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    if command and point.startswith(("Unrecognized", "Missing")):
        point = _unknown_flag(command, arguments) or point
        if point.startswith("Missing from"):
            point = _missing(command, box)
    elif flag := re.match(r"Error parsing (--[\w.-]+): ", point):
        usage = next((line for line in lines if line.startswith(f"{flag[1]} ")), "")
        point = _wrong_value(flag[1], usage, re.findall(r"'(.*?)'", point)) or point
    hint = ""
    if any("," in value and repr(value) in point for value in arguments):
        hint = " Several values are separated by spaces, not commas."
    end = "" if point.endswith("?") else "."
    return f"{point}{end}{hint} See `sparseirm {command} --help`.".replace("  ", " ")


def _unknown_flag(command: str, arguments: Sequence[str]) -> str | None:
    """What to say of the first flag that a command does not know."""
    known = _spellings(COMMANDS[command])
    for flag in _flags(arguments):
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            return f"`{command}` has no flag `{flag}`" + (f". Did you mean `{near[0]}`?" if near else "")
    return None


def _missing(command: str, box: str) -> str:
    """What a command cannot do without, and an example of it."""
    names = re.findall(r"^[│ ] {5}(?!sparseirm )(\S.*?)[│ ]*$", box, re.MULTILINE)
    example = re.search(r"Example: (.*)", COMMANDS[command].__doc__ or "")
    shown = f". Example: `{example[1]}`" if example else ""
    return f"`{command}` needs {', '.join(names)} as well{shown}"


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


if __name__ == "__main__":
    sys.exit(main())
