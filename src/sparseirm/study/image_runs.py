"""One candidate, trained on some images and looked at on others; to be run in processes of their own."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseirm.core import Loss, SettingError
from sparseirm.data.environments import DataSet, Split
from sparseirm.evaluation.readouts import disagreement
from sparseirm.recipe import Recipe
from sparseirm.runs import load_model, run
from sparseirm.study.assessment import Assessment, Candidate, Seen, one_hot, probabilities, seen_in
from sparseirm.study.images import Images

WEIGHTS_PER_IMAGE = (3, 10)
"""How many weights the small network keeps for each training image, by default; one candidate each."""

DENSITIES = (0.2, 0.5)
"""Fractions of the weights that other networks keep, by default."""

LEFT_OUT = 1 / 3
"""Share of each environment's images that every seed leaves out of training to look at."""

SMALL_NETWORK: dict[str, Any] = {"penalty_from": 0.25, "penalty_weight": 100.0}
SMALL_MASK: dict[str, Any] = {"shrink_to": 0.2, "decide_at": 0.25}
"""Few images and short runs ask for a penalty that starts later and weighs less, and a mask decided later."""

CHUNK = 512
"""Images per forward pass."""


def candidates(small: bool, densities: Sequence[float] = ()) -> list[Candidate]:
    """ERM, IRM with REx, and SparseIRM at several densities, as fields of a recipe.

    Args:
        small: whether the network is the MLP, whose settings were tuned.
        densities: fractions of the weights that SparseIRM keeps; by default `WEIGHTS_PER_IMAGE` for the MLP
            and `DENSITIES` for others.

    Returns:
        The candidates, the simplest first.

    Raises:
        SettingError: if a density is not in (0, 1].

    Example:
        >>> [candidate.name for candidate in candidates(small=True)]
        ['erm', 'irm', 'sparseirm-3', 'sparseirm-10']
    """
    penalty = {"penalty": "rex", **(SMALL_NETWORK if small else {})}
    mask = {"sparsifier_options": SMALL_MASK} if small else {}
    found = [
        Candidate("erm", "ERM", {"method": "erm"}),
        Candidate("irm", "IRM (REx)", {"method": "irm", **penalty}),
    ]
    for density in densities:
        if not 0 < density <= 1:
            raise SettingError(f"`densities` must be in (0, 1], the fractions kept; got {density:g}.")
    sparse = {"method": "sparseirm", **penalty, **mask}
    if small and not densities:
        for n in WEIGHTS_PER_IMAGE:
            budget = {"budget": "auto", "weights_per_sample": float(n)}
            found.append(
                Candidate(f"sparseirm-{n}", f"SparseIRM, {n} weights per image", {**sparse, **budget})
            )
        return found
    for density in sorted(set(densities)) or DENSITIES:
        label = f"SparseIRM, {100 * density:g} % of the weights"
        found.append(Candidate(f"sparseirm-{density:g}", label, {**sparse, "density": density}))
    return found


def rounds(images: Images, seeds: Sequence[int]) -> list[tuple[str, int, int | None, float]]:
    """The runs that every candidate gets.

    Args:
        images: what is to be learnt.
        seeds: seeds of the runs.

    Returns:
        ``(kind, seed, environment left out, share of images left out)`` of each. Environments are
        left out only if there are three or more for training.
    """
    n = len(images.train_envs)
    held = [("held out", seed, e, 0.0) for e in range(n) for seed in seeds] if n >= 3 else []
    return [*held, *(("fresh", seed, None, LEFT_OUT) for seed in seeds)]


def recipe_of(
    images: Images, candidate: Candidate, seed: int, leave_out: int | None = None, share: float = 0.0
) -> Recipe:
    """The recipe of one run.

    Args:
        images: the images.
        candidate: what to train.
        seed: seed of the run, and of which images are left out.
        leave_out: the training environment that is left out, or None.
        share: share of the images of the training environments that is left out.

    Returns:
        The recipe.
    """
    options = {**images.recipe.data_options, "val_fraction": share}
    return replace(
        images.recipe, data_options=options, seed=seed, leave_out=leave_out, **dict(candidate.parameters)
    )


def assess_images(
    images: Images, candidate: Candidate, kind: str, seed: int, leave_out: int | None, share: float
) -> tuple[Assessment, Tensor]:
    """Train a candidate and look at it on images it did not see; to be run in a process of its own.

    Args:
        images: the images.
        candidate: what to train.
        kind: ``held out`` or ``fresh``, see `sparseirm.study.assessment.Assessment`.
        seed: seed of the run.
        leave_out: the training environment that is left out, or None.
        share: share of the images of the training environments that is left out.

    Returns:
        What came of it, and where the logits depend on the image, see `attention`.
    """
    recipe, root = recipe_of(images, candidate, seed, leave_out, share), str(images.root)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the monitor tells of copies and absent classes
        run(recipe, data_root=root, out=folder)
        module = load_model(folder)
        data = recipe.make_data(root)
    look = _Look(module, recipe.loss(data), _class_losses(data))
    assessment = Assessment(
        candidate=candidate.name,
        kind=kind,
        seed=seed,
        seen=look.at(data.val, agreement=kind == "fresh"),
        tested=look.at(data.test) if kind == "fresh" else [],
    )
    return assessment, attention(module, data.train.samples.x)


def _class_losses(data: DataSet) -> Tensor:
    """The loss of each class under the best constant prediction; every environment counts alike."""
    samples, k = data.train.samples, len(data.label_names)
    shares = [torch.bincount(samples.y[samples.env == e], minlength=k) for e in range(len(data.train.names))]
    mean = torch.stack([share / share.sum() for share in shares]).mean(0)
    return -mean.clamp_min(0.5 / len(data.train)).log()


@dataclass(frozen=True)
class _Look:
    """A trained network, to be looked at environment by environment."""

    module: nn.Module
    loss: Loss
    class_losses: Tensor

    def at(self, split: Split | None, agreement: bool = False) -> list[Seen]:
        if split is None:
            return []
        logits, y, env = logits_of(self.module, split.samples.x), split.samples.y, split.samples.env
        apart = self._disagreement(logits, y, env) if agreement else [None] * len(split.names)
        return [
            seen_in(
                name, logits[here], y[here], self.loss, float(self.class_losses[y[here]].mean()), apart[e]
            )
            for e, name in enumerate(split.names)
            for here in [env == e]
        ]

    def _disagreement(self, logits: Tensor, y: Tensor, env: Tensor) -> list[float | None]:
        """Of the environments on how to use the logits, which is what IRMv1 measures too."""
        scaled = logits.reshape(len(y), -1).double()
        scaled = scaled / scaled.std(0).clamp_min(1e-9)
        residual = one_hot(y, logits) - probabilities(logits.double())
        found = disagreement(scaled.numpy(), residual.numpy(), env.numpy())
        return [None if math.isnan(value) else float(value) for value in found]


@torch.no_grad()
def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """Logits of images in evaluation mode, some at a time.

    Args:
        module: the network.
        x: ``(n, 3, size, size)``.

    Returns:
        ``(n,)`` for two classes, else ``(n, k)``.
    """
    out = torch.cat([module.eval()(part) for part in torch.split(x, CHUNK)])
    return out[:, 0] if out.shape[1] == 1 else out


def attention(module: nn.Module, x: Tensor) -> Tensor:
    """Where the logits depend on the image: mean size of their gradient by every pixel.

    Args:
        module: the network.
        x: ``(n, 3, size, size)``; of more than `CHUNK` images so many are used, from first to last.

    Returns:
        ``(size, size)``, relative to the largest.
    """
    places = torch.linspace(0, len(x) - 1, min(len(x), CHUNK), dtype=torch.float64).round().long()
    images = x[places].requires_grad_()
    out = module.eval()(images)
    total = torch.zeros(x.shape[2:])
    for k in range(out.shape[1]):
        (slope,) = torch.autograd.grad(out[:, k].sum(), images, retain_graph=True)
        total += slope.abs().mean((0, 1))
    return total / total.max().clamp_min(1e-30)
