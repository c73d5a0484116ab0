"""The public functions as commands: flags from their signatures, help from their docstrings."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sparseirm.bench.command import bench
from sparseirm.core import NonFiniteError, SettingError
from sparseirm.deploy import export
from sparseirm.doctor import doctor
from sparseirm.experiments.ablation import ablation
from sparseirm.experiments.executors import local
from sparseirm.experiments.figures import comparison
from sparseirm.experiments.pictures import pictures
from sparseirm.experiments.prepare import prepare_coco
from sparseirm.experiments.progress import reporter
from sparseirm.experiments.report import report
from sparseirm.experiments.reproduce import reproduce
from sparseirm.experiments.rules import rounds, side_by_side
from sparseirm.experiments.rules import table as by_rule
from sparseirm.experiments.sheets import plain_table
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import sweep
from sparseirm.experiments.tables import HEADINGS, Row, cells, label, markdown, markdown_table, notes, rows
from sparseirm.experiments.theory import theory
from sparseirm.experiments.variants import DEFAULT, variants
from sparseirm.files import write_bytes
from sparseirm.recipe import Recipe
from sparseirm.runs import Point, Result, run
from sparseirm.study.fit import fit, predict
from sparseirm.training.loop import Record
from sparseirm.training.processes import first_process

Flat = tyro.conf.arg(name="")


def train(
    recipe: Annotated[Recipe, Flat],
    *,
    data_root: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    micro_batch: int | None = None,
    shrink: bool = False,
) -> Result:
    """Train one model and say how it does in every environment.

    Writes ``result.json`` (the whole recipe, versions, accuracy of every environment along the way and at
    the last step, density asked and reached, seconds) and ``model.safetensors`` to ``--out``. Started by
    torchrun, several processes train it together, with the same result up to rounding; see docs/scaling.md.

    Example: sparseirm train --data colored_digits --method sparseirm --penalty rex --out out/rex

    Args:
        recipe: what to run.
        data_root: folder of the data files; the variable SPARSEIRM_DATA otherwise.
        out: folder for the result and the model; nothing is written without it.
        resume: go on with the run in `--out`, from its last checkpoint.
        device: where to compute, such as cpu or cuda.
        micro_batch: samples per pass through the network, to save memory; the result is the same up to
            rounding.
        shrink: once the mask is decided, run a smaller network without its dead units; the result is the same
            up to rounding, and says what that saved.

    Returns:
        The result.
    """
    recipe = recipe.resolved()
    with _bar(label(recipe), recipe.total_steps, shown=first_process()) as on_step:
        result = run(
            recipe,
            data_root=data_root,
            out=out,
            resume=resume,
            device=device,
            on_step=on_step,
            micro_batch=micro_batch,
            shrink=shrink,
        )
    if first_process():
        _print(result)
    return result


def _print(result: Result) -> None:
    console = Console(width=100)
    for number, found in enumerate(result.inferred or []):
        rate = found["agreement"]
        agreement = "" if rate is None else f", spurious attribute and label agree in {100 * rate:.1f} %"
        console.print(f"inferred {number}: {found['size']} samples{agreement}", highlight=False)
    for split, score in result.last.items():
        each = ", ".join(f"{name}: {value:.1f}" for name, value in score.per_env.items())
        console.print(f"{split:>5} accuracy {score.accuracy:5.1f} %  ({each})", highlight=False)
    if result.source_note:
        console.print(f"data: {result.source_note}", highlight=False)
    console.print(
        f"kept {result.kept} of {result.n_weights} weights (density {result.kept / result.n_weights:.3g}) "
        f"in {result.seconds:.0f} s",
        highlight=False,
    )
    if result.shrunk:
        flops, seconds = (result.shrunk[name] for name in ("flops_per_step", "seconds_per_pass"))
        console.print(
            f"with its mask decided the network took {flops['after'] / flops['before']:.0%} of the FLOPs and "
            f"{seconds['after'] / seconds['before']:.0%} of the time for a pass",
            highlight=False,
        )


def compare(
    recipe: Annotated[Recipe, Flat] = DEFAULT,
    *,
    methods: tuple[str, ...] = ("erm", "irm", "sparseirm", "oracle"),
    penalties: tuple[str, ...] = ("rex",),
    sparsifiers: tuple[str, ...] = (),
    densities: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    data_root: str | None = None,
    store: Path = Path("results"),
    out: Path = Path("out/compare"),
    workers: int | None = None,
    rules: bool = False,
) -> list[Row]:
    """Compare methods on one data set over seeds, in one table and one figure.

    Runs in as many processes as there are cores. Finished runs are kept in ``--store``: the same command
    goes on where it was stopped. All other flags are those of ``train``, and hold for every method that
    has a use for them.

    Example: sparseirm compare --data colored_mnist --methods irm sparseirm --penalties irmv1 rex

    Args:
        recipe: what all runs have in common.
        methods: methods to compare, as in `--method`.
        penalties: penalties of the methods that have a choice, as in `--penalty`.
        sparsifiers: sparsifiers of the sparse methods, as in `--sparsifier`; that one by default.
        densities: densities of the sparse methods, as in `--density`; that one by default.
        seeds: one run each.
        data_root: folder of the data files; the variable SPARSEIRM_DATA otherwise.
        store: folder of the results.
        out: folder for the figure ``compare.svg`` and the table ``compare.md``.
        workers: number of processes; one per core by default.
        rules: also show what other rules of selecting a step would have reported; with three or more training
            environments this takes a further run without each of them.

    Returns:
        One row per method, penalty, sparsifier and density, with its results.
    """
    recipes = variants(recipe, methods, penalties, sparsifiers, densities, seeds)
    with reporter(Store(store)) as shown, local(workers) as pool:
        found = sweep(recipes, Store(store), pool, data_root, shown.on_done, watch=shown.watch)
        if rules and (further := rounds(filter(None, found))):
            sweep(further, Store(store), pool, data_root, shown.on_done, watch=shown.watch)
    table = rows(found)
    if not table:
        raise SettingError(f"no run finished; the reasons are in {store / 'failed'}.")
    title = "accuracy at the last step, in percent: mean ± standard deviation over seeds"
    shown_table = plain_table(HEADINGS, map(cells, table), title)
    Console(width=100).print(shown_table, *notes(table), sep="\n")
    text = markdown(table)
    if rules:
        chosen = [(row.label, side_by_side(row.results, Store(store).get)) for row in table]
        headings, lines = by_rule(chosen)
        refusals = sorted({f"{one.refusal}\n" for _, each in chosen for one in each if one.refusal})
        Console(width=120).print(plain_table(headings, lines), *refusals, sep="\n", highlight=False)
        text += "\n".join(["", markdown_table(headings, lines), *refusals])
    write_bytes(out / "compare.md", text.encode())
    figure = comparison(table, f"{recipe.data}: seen and unseen environments", out / "compare.svg")
    print(f"figure: {figure}, table: {out / 'compare.md'}")
    if None in found:
        raise SettingError(
            f"{found.count(None)} of {len(found)} runs did not finish, and the table lacks them; the reasons "
            "are above. The same command goes on with them."
        )
    return table


DEMO = Recipe(
    data="colored_digits",
    density=0.02,
    penalty_from=0.25,
    sparsifier_options={"shrink_to": 0.2, "decide_at": 0.25},
)
"""The demo's run. With 1,200 samples the phase before the penalty has to be longer; see docs/tuning.md."""


def demo(out: Path = Path("out/demo"), seeds: tuple[int, ...] = (0, 1, 2)) -> list[Row]:
    """Show the point of the paper on bundled data, in under three minutes on two cores.

    Handwritten digits are coloured so that the colour predicts the label in both training environments,
    0.9 and 0.8 of the time, and misleads in the test environment. Dense invariant training overfits and
    leans on the colour after all; sparse invariant training does not. The oracle never saw a colour.

    Args:
        out: folder for results and figure.
        seeds: one run of every method each.

    Returns:
        One row per method.
    """
    return compare(DEMO, seeds=seeds, store=out, out=out)


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
                description=__import__("sparseirm").__doc__,
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
        return lambda: command(*args, **kwargs)

    return deferred


def _first_line(box: str, arguments: Sequence[str]) -> str:
    """The point of tyro's framed message, on one line."""
    lines = [re.sub(r"^[-─]+$", "", line.strip("│|╭╮╰╯+─ ")) for line in box.splitlines()]
    title = next((at for at, line in enumerate(lines) if line), 0)
    body = itertools.dropwhile(lambda line: not line, lines[title + 1 :])
    first = " ".join(itertools.takewhile(bool, body))
    near = next((line.split()[0] for line in lines if line.startswith("--")), None)
    hint = f" Did you mean {near}?" if near and first.startswith("Unrecognized") else ""
    command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    return f"{first.rstrip('. ')}.{hint} See `sparseirm {command} --help`.".replace("  ", " ")


@contextmanager
def _bar(title: str, total: int, shown: bool) -> Iterator[Callable[[Record, Sequence[Point]], None]]:
    """A progress bar on a terminal, silence elsewhere; yields the function that moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(record: Record, trajectory: Sequence[Point]) -> None:
            if record.step % 10 == 0 or record.step == total:
                progress.update(task, completed=record.step, note=_note(record, trajectory))

        yield advance


def _note(record: Record, trajectory: Sequence[Point]) -> str:
    words = f"risk {record.risk:.3f}  penalty {record.penalty:.1e}"
    if trajectory:
        accuracy = "  ".join(f"{name} {score.accuracy:.1f}" for name, score in trajectory[-1].scores.items())
        words += f"  density {trajectory[-1].density:.3g}  accuracy {accuracy}"
    return words


if __name__ == "__main__":
    sys.exit(main())
