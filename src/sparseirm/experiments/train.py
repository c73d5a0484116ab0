"""One run as a command: a progress bar, then accuracy in every environment."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from sparseirm.data import OWN, own
from sparseirm.experiments.bar import bar
from sparseirm.experiments.sheets import plain_console
from sparseirm.experiments.tables import label
from sparseirm.methods import MANY
from sparseirm.recipe import Recipe
from sparseirm.runs import Point, Result, run
from sparseirm.training.loop import Record
from sparseirm.training.processes import first_process


def train(
    recipe: Annotated[Recipe, tyro.conf.arg(name="")],
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
    given, recipe = recipe, recipe.resolved()
    if first_process():
        _advise(given, recipe, data_root)
    with bar(label(recipe), recipe.total_steps, "steps", shown=first_process()) as move:

        def on_step(record: Record, trajectory: Sequence[Point]) -> None:
            if record.step % 10 == 0 or record.step == record.total:
                move(completed=record.step, total=record.total, note=_note(record, trajectory))

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


def _advise(given: Recipe, recipe: Recipe, data_root: str | None) -> None:
    """Name the settings for more than two classes, which own images have without a recipe knowing."""
    if recipe.data not in OWN or recipe.model != "mlp":
        return
    others = {
        name: value
        for name, value in MANY.get(recipe.settings, {}).items()
        if getattr(given, name) is None and getattr(recipe, name) is not None
    }
    n = own.n_classes(recipe.data, data_root) if others else 0
    if n > 2:
        flags = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in others.items())
        warnings.warn(
            f"the default settings are those of two classes, and there are {n}: pass {flags}", stacklevel=3
        )


def _print(result: Result) -> None:
    console = plain_console(100)
    for number, found in enumerate(result.inferred or []):
        rate = found["agreement"]
        agreement = "" if rate is None else f", spurious attribute and label agree in {100 * rate:.1f} %"
        console.print(f"inferred {number}: {found['size']} samples{agreement}")
    for split in (name for name in ("train", "val", "test") if name in result.last):
        score = result.last[split]  # files do not keep the order, so that of names is shown
        each = ", ".join(f"{name}: {value:.1f}" for name, value in sorted(score.per_env.items()))
        console.print(f"{split:>5} accuracy {score.accuracy:5.1f} %  ({each})")
    if result.source_note:
        console.print(f"data: {result.source_note}")
    console.print(
        f"kept {result.kept} of {result.n_weights} weights (density {result.kept / result.n_weights:.3g}) "
        f"in {result.seconds:.0f} s",
    )
    if result.shrunk:
        flops, seconds = (result.shrunk[name] for name in ("flops_per_step", "seconds_per_pass"))
        console.print(
            f"with its mask decided the network took {flops['after'] / flops['before']:.0%} of the FLOPs and "
            f"{seconds['after'] / seconds['before']:.0%} of the time for a pass",
        )


def _note(record: Record, trajectory: Sequence[Point]) -> str:
    words = f"risk {record.risk:.3f}  penalty {record.penalty:.1e}"
    if trajectory:
        accuracy = "  ".join(f"{name} {score.accuracy:.1f}" for name, score in trajectory[-1].scores.items())
        words += f"  density {trajectory[-1].density:.3g}  accuracy {accuracy}"
    return words
