"""Methods by name, each a combination of penalty, sparsifier and data; and the named settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparseirm.registry import one_of


@dataclass(frozen=True)
class Method:
    """What a method is made of.

    Attributes:
        summary: one line for people.
        invariant: whether it has a penalty.
        sparse: whether it has a sparsifier.
        gray: whether it trains and is evaluated without the spurious attribute.
        penalty: the one penalty it is defined with, or None for a free choice.
        sparsifier: the one sparsifier it is defined with, or None for a free choice.
        retrains: whether it trains densely, then finds a mask, then trains anew with it: three stages.
    """

    summary: str
    invariant: bool
    sparse: bool
    gray: bool = False
    penalty: str | None = None
    sparsifier: str | None = None
    retrains: bool = False


METHODS = {
    "erm": Method("plain training on the mean risk", invariant=False, sparse=False),
    "oracle": Method("plain training without the spurious attribute", False, False, gray=True),
    "sparseerm": Method("sparse training on the mean risk", invariant=False, sparse=True),
    "irm": Method("dense training with an invariance penalty", invariant=True, sparse=False),
    "bayesianirm": Method(
        "dense training with Bayesian IRM's penalty", invariant=True, sparse=False, penalty="bayesian"
    ),
    "sparseirm": Method("sparse training with an invariance penalty", invariant=True, sparse=True),
    "mrm": Method(
        "dense training, a mask for the trained weights, training anew with that mask; one penalty for all",
        invariant=True,
        sparse=True,
        sparsifier="modular",
        retrains=True,
    ),
}

_PAPER: dict[str, Any] = {
    "width": 390,
    "steps": 1500,
    "optimizer": "adam",
    "lr": 4e-4,
    "lr_schedule": "cosine",
    "momentum": 0.9,
    "eps": 1e-8,
    "l2": 1e-3,
    "penalty_weight": 1e4,
    "penalty_from": 200 / 1500,
    "penalty_to": 0.0,
    "divide_loss": False,
    "lr_drop": 1.0,
    "lr_stop": 1.0,
    "density": 0.5,
    "weights_per_sample": 3.0,
    "stage_lengths": (1.0, 1.0, 1.0),
    "sparsifier_options": {
        "shrink_from": 0.28,
        "shrink_to": 0.6,
        "decide_at": 1.0,
        "score_lr": 6e-3,
        "score_eps": 0.0,
        "gradient_floor": 0.0,
        "final": "sample",
    },
}

SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {
        **_PAPER,
        "lr": 6e-4,
        "eps": 1e-12,
        "penalty_from": 0.2,
        "lr_drop": 0.3,
        "lr_stop": 0.6,
        "density": None,
        "budget": "auto",
        "sparsifier_options": {"shrink_to": 0.13, "decide_at": 0.16, "score_lr": 3e-2},
    },
    "paper": _PAPER,
    "released": {**_PAPER, "divide_loss": True},
}
"""Defaults of a recipe by the name of its settings.

``paper`` is appendix D of the paper; where it is silent (L2 weight, start of the penalty, times of the
density schedule) the values of the released code stand in. ``released`` adds that code's division of the
loss by ``1 + penalty_weight``. ``ours`` decides the mask early, ties the budget to the number of samples and
has rates of its own; how its values were found is told in docs/tuning.md. ``sparsifier_options`` are those of
``probmask``; every other sparsifier starts from its own defaults.
"""

MANY: dict[str, dict[str, Any]] = {
    "ours": {"lr": 1.5e-3, "lr_drop": 1.0, "penalty_weight": 3e3},
}
"""What the settings say otherwise of the MLP for more than two classes.

The penalty is dozens of times larger there when it sets in, Adam remembers that and takes small steps for the
rest of the run, so the rate must not be lowered as well.
"""

_DEEP_PAPER = {"batch_size": 1024, "optimizer": "sgd", "penalty_from": 40 / 500}

DEEP: dict[str, dict[str, Any]] = {
    "ours": {"batch_size": 1024, "density": 0.5, "budget": None, "penalty_weight": 200.0, "lr_stop": 1.0},
    "paper": _DEEP_PAPER,
    "released": _DEEP_PAPER,
}
"""What the settings say otherwise of every network but the MLP, which is for images.

The paper gives epochs, SGD and its rate, but neither batch size nor start of the penalty, and its released
code does not run these networks. Both are from the code of Bayesian IRM (Lin et al. 2022, by some of the same
authors) for CIFARMNIST: 1024 samples, 40 of 500 steps. ``ours`` keeps the MLP's optimiser and plan but for
its end. A batch measures slopes less exactly than all samples do: its penalty weighs less (docs/tuning.md).
"""

SGD: dict[str, Any] = {"lr": 0.01, "lr_drop": 1.0, "divide_loss": True}
"""The paper's training of deep networks. At that rate, 1e4 times the penalty diverges unless divided."""

EPOCHS = {"colored_object": 75}
"""Epochs of networks but the MLP, by data set; 50 for others, as the paper has for CIFARMNIST."""


def defaults(
    settings: str, model: str, data: str, optimizer: str | None, many: bool = False
) -> dict[str, Any]:
    """Values of what a recipe leaves open, by field.

    Args:
        settings: name of the settings.
        model: name of the network.
        data: name of the data set.
        optimizer: the optimiser asked for, or None.
        many: whether the data set is known to have more than two classes.

    Returns:
        A value for each field that has a default, and ``sparsifier_options``, those of ProbMask.

    Raises:
        SettingError: if there are no settings of that name.

    Example:
        >>> defaults("paper", "mlp", "colored_mnist", None)["steps"]
        1500
        >>> defaults("paper", "resnet18", "colored_object", None)["epochs"]
        75
    """
    usual = SETTINGS[one_of("settings", settings, SETTINGS)]
    if model == "mlp":
        return usual | MANY.get(settings, {}) if many else usual
    deep = {name: value for name, value in usual.items() if name not in ("width", "steps")}
    deep |= DEEP[settings] | {"epochs": EPOCHS.get(data, 50)}
    return deep | SGD if (optimizer or deep["optimizer"]) == "sgd" else deep
