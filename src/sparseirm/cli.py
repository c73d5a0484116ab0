"""The public functions as commands: flags from their signatures, help from their docstrings."""

from __future__ import annotations

import contextlib
import functools
import io
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
from sparseirm.registry import one_of
from sparseirm.study.fit import evaluate, fit, predict
from sparseirm.training.processes import check_alone
from sparseirm.usage import UsageError, check_once, complaint

COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": train,
    "compare": compare,
    "theory": theory,
    "fit": fit,
    "predict": predict,
    "evaluate": evaluate,
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
    except (UsageError, SettingError, NonFiniteError) as error:
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


def _parsed(arguments: Sequence[str]) -> Callable[[], Any]:
    """The command with its values, not yet run."""
    if arguments and not arguments[0].startswith("-"):
        name = one_of("command", arguments[0], COMMANDS)
        check_once(name, COMMANDS[name], arguments)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
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
        raise UsageError(complaint(box.getvalue(), arguments, COMMANDS)) from None


def _later(command: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    @functools.wraps(command)
    def deferred(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        def call() -> Any:
            if command is not train:
                check_alone()
            return command(*args, **kwargs)

        return call

    return deferred


if __name__ == "__main__":
    sys.exit(main())
