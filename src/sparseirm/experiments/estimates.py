"""How long a run will take, from the seconds that runs like it took."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from sparseirm.models import MODELS
from sparseirm.recipe import Recipe
from sparseirm.runs import Result
from sparseirm.training.loop import steps_taken


def cost(recipe: Recipe) -> float:
    """Relative work of a resolved recipe among those of its network: steps, times samples, times weights.

    Only steps that are taken count: the MLP has no running statistics, and skips those at rest.

    >>> wide, narrow = (cost(Recipe(width=width).resolved()) for width in (640, 64))
    >>> wide > 10 * narrow
    True
    """
    stages = recipe.stages(d=1 << 40, n_train=1 << 20)  # any that are large: times do not depend on them
    mlp = recipe.model in MODELS
    steps = sum(steps_taken(each.sparsifier, each.plan) for each in stages) if mlp else recipe.total_steps
    samples = recipe.batch_size or recipe.n_train or 1
    width = recipe.width or 8000  # networks without one are compared with their own kind only
    return float(steps * samples * width * (width + 400))


@dataclass(frozen=True)
class Estimates:
    """Seconds per unit of `cost`, learnt from finished runs; the more alike they are, the more they count.

    Runs of one network say nothing about another. Of runs at once, each has its share of their time; they
    tell about runs by themselves only where nothing else does.

    Attributes:
        rates: measured rates by whether the run shared its time and by kind of run, from exactly alike to any
            of the same network.

    Example:
        >>> Estimates().seconds(Recipe()) is None
        True
    """

    rates: dict[Hashable, list[float]] = field(default_factory=dict)

    @staticmethod
    def of(results: Iterable[Result]) -> Estimates:
        """Estimates from finished runs."""
        estimates = Estimates()
        for result in results:
            estimates.learn(result)
        return estimates

    def learn(self, result: Result) -> None:
        """Add a finished run."""
        shared = "together" in result.environment
        for kind in _kinds(result.recipe):
            self.rates.setdefault((shared, kind), []).append(result.seconds / cost(result.recipe))

    def seconds(self, recipe: Recipe, shared: bool = False) -> float | None:
        """Seconds that a run should take on one worker; None before a run of its network has finished.

        Args:
            recipe: the run.
            shared: whether it is to share its time with others at once, if it can.

        Returns:
            Seconds, or None.
        """
        recipe = recipe.resolved()
        kinds = _kinds(recipe)
        if shared:
            keys = [(own, kind) for kind in kinds for own in (True, False)]
        else:
            keys = [(own, kind) for own in (False, True) for kind in kinds]
        known = next((self.rates[key] for key in keys if key in self.rates), None)
        return statistics.median(known) * cost(recipe) if known else None


def _kinds(recipe: Recipe) -> list[Hashable]:
    """What a run's speed depends on, from everything to the network alone."""
    where, how = (recipe.data, recipe.model), (recipe.method, recipe.penalty, recipe.precision)
    alike = (*where, *how, recipe.n_train, recipe.width, recipe.sparsifier, recipe.settings)
    return [alike, (*where, *how), (recipe.model, *how), (*where, recipe.method), where, (recipe.model,)]
