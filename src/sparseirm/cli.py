"""The public functions as commands: flags from their signatures, help from their docstrings."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

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
    try:
        _parsed(sys.argv[1:] if arguments is None else arguments)()
    except (_UsageError, SettingError, NonFiniteError) as error:
        print("sparseirm:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "sparseirm: stopped. The same command goes on: `train` with `--out` and `--resume`, all with a "
            "`--store`, `bench` and `prepare-coco`.",
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
        raise _UsageError(_first_line(complaint.getvalue(), arguments)) from None


def _later(command: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    @functools.wraps(command)
    def deferred(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        def call() -> Any:
            if command is not train:
                check_alone()
            return command(*args, **kwargs)

        return call

    return deferred


def _first_line(box: str, arguments: Sequence[str]) -> str:
    """The point of tyro's framed message, on one line."""
    lines = [re.sub(r"^[-─]+$", "", line.strip("│|╭╮╰╯+─ ")) for line in box.splitlines()]
    title = next((at for at, line in enumerate(lines) if line), 0)
    body = itertools.dropwhile(lambda line: not line, lines[title + 1 :])
    first = " ".join(itertools.takewhile(bool, body))
    near = next((line.split()[0] for line in lines if line.startswith("--")), None)
    hint = f" Did you mean {near}?" if near and first.startswith("Unrecognized") else ""
    if any("," in value and repr(value) in first for value in arguments):
        hint = " Several values are separated by spaces, not commas."
    command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    return f"{first.rstrip('. ')}.{hint} See `sparseirm {command} --help`.".replace("  ", " ")


if __name__ == "__main__":
    sys.exit(main())
