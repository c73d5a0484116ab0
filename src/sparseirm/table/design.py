"""How a table is fitted: method, penalty, gates and plan, with defaults that depend on the table's size."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, cast

from torch import nn

from sparseirm.core import Penalty, SettingError, Sparsifier
from sparseirm.methods import METHODS, Method
from sparseirm.models import MLP
from sparseirm.penalties import USUAL_WEIGHTS
from sparseirm.penalties import make as make_penalty
from sparseirm.registry import lookup, one_of, options
from sparseirm.sparsifiers import SPARSIFIERS, Dense
from sparseirm.training.state import Plan

FULL_BATCH = 8192
"""Rows up to which every step sees all of them."""

USUAL_WEIGHT = 100.0
"""Default penalty weight on tables, where standardised targets and small networks make 1e4 too stiff."""

FIRST_LAYER = 0.1
"""What the initial weights of the first layer are multiplied by, so that their size says what was learnt."""

GATES = {"search": "", "screen": "", "columns": "structured_gmp", "weights": "probmask"}
"""How a mask comes about, and the sparsifier that is used for it by default; a search needs none."""

SEARCHES = ("search", "screen")
"""Those that find columns before training."""

TABLE_METHODS = [name for name, method in METHODS.items() if not (method.gray or method.retrains)]
"""The methods that train once, on the data as they are."""

OF_PENALTY = ("penalty", "penalty_options", "penalty_weight", "penalty_from")
OF_SPARSIFIER = ("gates", "sparsifier", "sparsifier_options", "density", "budget")
INTEGERS = ("budget", "width", "steps", "batch_size")
OF_GROUPS = ("groups", "budget_in", "blocks")
ON_COLUMNS = {"structured_gmp": {"every": 0.025, "shrink_from": 0.3, "shrink_to": 0.8}}
"""Defaults of sparsifiers on columns that differ: they go once the network knows what it uses."""


@dataclass(frozen=True)
class Design:
    """Everything that decides how a table is fitted, but for its seed. None stands for the default.

    Attributes:
        method: erm, irm, bayesianirm, sparseerm or sparseirm.
        penalty: invariance penalty of irm and sparseirm; rex by default.
        penalty_options: further settings of the penalty by name.
        penalty_weight: lambda; 100 by default, or the penalty's own usual weight.
        penalty_from: fraction of the run before which the penalty has no weight; by default 0 with gates on
            columns, whose choice the penalty may guide, and 1/4 with gates on weights.
        gates: what a sparse method switches off: columns that are found by a ``search`` before training
            (`sparseirm.table.search`, the default), or by a ``screen``, the same search among columns whose
            own relation to the target does not change; ``columns`` or single ``weights`` during training.
        sparsifier: how the mask is found in training; by default structured_gmp for columns and probmask for
            weights.
        sparsifier_options: further settings of the sparsifier by name.
        density: fraction of the columns (or weights) KEPT, in (0, 1]. Give this or `budget`.
        budget: number of columns (or weights) kept; with a search at most so many. By default as many as
            the search finds best, half the columns, or one weight for ten rows; and all of them if there is
            only one environment.
        width: hidden units of each of the two layers; by default a power of two near half the square root of
            the number of rows, from 16 to 128.
        steps: optimiser steps; 400, or 1500 with minibatches, by default.
        batch_size: rows per step; by default all up to 8192, and then at least 4096.
        lr: learning rate; by default 0.003 with gates on columns, 0.01 otherwise.
        l2: weight of the sum of squared parameters in the loss; by default 0.01 with gates on columns,
            otherwise 3 over the number of rows, at most 0.01.

    Raises:
        SettingError: if a value is unknown or out of range, or an option would have no effect.

    Example:
        >>> Design(method="irm").plan(1000).penalty_weight, Design().hidden(1000), Design().hidden(10**6)
        (100.0, 16, 128)
    """

    method: str = "sparseirm"
    penalty: str | None = None
    penalty_options: dict[str, Any] | None = None
    penalty_weight: float | None = None
    penalty_from: float | None = None
    gates: str | None = None
    sparsifier: str | None = None
    sparsifier_options: dict[str, Any] | None = None
    density: float | None = None
    budget: int | None = None
    width: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    l2: float | None = None

    def __post_init__(self) -> None:
        one_of("method", self.method, TABLE_METHODS)
        idle = {} if self.kind.invariant else dict.fromkeys(OF_PENALTY, "has no penalty")
        idle |= {} if self.kind.sparse else dict.fromkeys(OF_SPARSIFIER, "keeps every weight")
        for name, why in idle.items():
            if getattr(self, name) is not None:
                raise SettingError(f"`{name}` has no effect: method {self.method!r} {why}. Leave it out.")
        for name in INTEGERS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise SettingError(f"`{name}` must be an integer; got {value!r}.")
        if self.width is not None and self.width < 1:
            raise SettingError(f"`width` must be at least 1; got {self.width}.")
        if self.density is not None and self.budget is not None:
            raise SettingError(f"give `density` or `budget`, not both; got {self.density} and {self.budget}.")
        if self.density is not None and not 0 < self.density <= 1:
            raise SettingError(f"`density` must be in (0, 1], the fraction kept; got {self.density:g}.")
        self.plan(1)
        self.make_penalty()
        self._sparsifier_options()

    @property
    def kind(self) -> Method:
        """What the method is made of."""
        return METHODS[self.method]

    @property
    def gate(self) -> str:
        """What is switched off, a key of `GATES`; ``none`` for a dense method."""
        return one_of("kind of gate", self.gates or "search", GATES) if self.kind.sparse else "none"

    def plan(self, n: int) -> Plan:
        """Length, optimiser and schedules for ``n`` rows."""
        weight = self.penalty_weight
        if weight is None:
            weight = USUAL_WEIGHTS.get(self.penalty or "", USUAL_WEIGHT)
        late = 0.25 if self.gate == "weights" else 0.0
        usual = (3e-3, 1e-2) if self.gate == "columns" else (1e-2, min(1e-2, 3 / n))
        return Plan(
            steps=(400 if n <= FULL_BATCH else 1500) if self.steps is None else self.steps,
            lr=usual[0] if self.lr is None else self.lr,
            l2=usual[1] if self.l2 is None else self.l2,
            penalty_weight=weight if self.kind.invariant else 0.0,
            penalty_from=late if self.penalty_from is None else self.penalty_from,
        )

    def hidden(self, n: int) -> int:
        """Width of the hidden layers for ``n`` rows."""
        if self.width is not None:
            return self.width
        return next((width for width in (16, 32, 64) if width * width * 8 > n), 128)

    def batch(self, n: int, n_envs: int) -> int | None:
        """Rows per step for ``n`` rows in ``n_envs`` environments; None for all."""
        if self.batch_size is None and n > FULL_BATCH:
            return min(n, max(FULL_BATCH // 2, 256 * n_envs))
        return self.batch_size

    def module(self, n_inputs: int, width: int, n_outputs: int) -> nn.Module:
        """The network before training."""
        module = MLP(n_inputs, width, n_outputs)
        first = next(module.parameters())
        first.data.mul_(FIRST_LAYER)
        return module

    def make_penalty(self) -> Penalty | None:
        """The penalty with its options set, or None for a method without."""
        if not self.kind.invariant:
            return None
        name = self.penalty or self.kind.penalty or "rex"
        if name != (self.kind.penalty or name):
            raise SettingError(
                f"method {self.method!r} is defined by the penalty {self.kind.penalty!r}; got `penalty` "
                f"{name!r}. Leave it out, or choose irm."
            )
        return make_penalty(name, **(self.penalty_options or {}))

    def make_sparsifier(self, d: int, n: int, n_envs: int, blocks: tuple[int, ...]) -> Sparsifier:
        """The sparsifier for a table whose columns are not searched.

        Args:
            d: number of maskable weights.
            n: number of rows.
            n_envs: number of environments.
            blocks: number of inputs of each column.

        Returns:
            The sparsifier with its budget.

        Raises:
            SettingError: if the budget does not fit, or the sparsifier cannot keep the inputs of a column
                together and some column has more than one.
        """
        if self.gate == "none":
            return Dense(d)
        maker, given = self._sparsifier_options()
        if self.gate == "weights":
            usual = d if n_envs == 1 else min(d, max(1, n // 10))
            return cast(Sparsifier, maker(budget=self._count(d, usual, "weights"), **given))
        if "blocks" in _options_of(maker):
            given["blocks"] = blocks
        elif max(blocks) > 1:
            raise SettingError(
                f"sparsifier {self.sparsifier!r} cannot keep the inputs of a column together, and categories "
                "and columns with missing values have several; choose structured_gmp."
            )
        usual = len(blocks) if n_envs == 1 else max(1, len(blocks) // 2)
        budget = self._count(len(blocks), usual, "columns")
        return cast(Sparsifier, maker(budget=budget, groups="input", budget_in="groups", **given))

    def most_columns(self, n_columns: int) -> int | None:
        """How many columns a search may find; None if that is left to the search."""
        free = self.density is None and self.budget is None
        return None if free else self._count(n_columns, n_columns, "columns")

    def _count(self, most: int, usual: int, what: str) -> int:
        if self.density is not None:
            return max(1, round(self.density * most))
        if self.budget is None:
            return usual
        if not 1 <= self.budget <= most:
            raise SettingError(
                f"`budget` must lie between 1 and the number of {what}, {most}; got {self.budget}."
            )
        return int(self.budget)

    def _sparsifier_options(self) -> tuple[Any, dict[str, Any]]:
        """The maker of the sparsifier and its options; a dense method and a search have none."""
        if self.gate in ("none", *SEARCHES):
            for option in ("sparsifier", "sparsifier_options"):
                if getattr(self, option) is not None:
                    raise SettingError(
                        f"`{option}` has no effect: the columns are searched before training. Leave it out, "
                        "or set `gates` to columns or weights."
                    )
            return Dense, {}
        name = self.sparsifier or GATES[self.gate]
        maker = cast(Any, lookup("sparsifier", SPARSIFIERS, name))
        known = _options_of(maker)
        if ("budget_in" in known) != (self.gate == "columns"):
            raise SettingError(
                f"sparsifier {name!r} does not gate {self.gate}; for columns choose structured_gmp or "
                "structured, for weights any other."
            )
        known |= ON_COLUMNS.get(name, {}) if self.gate == "columns" else {}
        own = {option: default for option, default in known.items() if option not in OF_GROUPS}
        return maker, options(f"sparsifier {name!r}", own, self.sparsifier_options or {})


def _options_of(maker: Any) -> dict[str, Any]:
    return {f.name: f.default for f in fields(maker) if f.name != "budget"}
