"""Section 5.3 of the paper, measured on trained networks: do they know the spurious attribute?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparseirm.core import SettingError
from sparseirm.data import DataSet, Split
from sparseirm.evaluation.probes import Probe, read_attribute, representation
from sparseirm.experiments.executors import Submitter
from sparseirm.experiments.store import Store
from sparseirm.experiments.tables import Row, label
from sparseirm.randomness import seed_of
from sparseirm.recipe import Recipe
from sparseirm.runs import Result, load_model, run


@dataclass(frozen=True)
class Reading:
    """What one trained network knows about the spurious attribute.

    Attributes:
        label: the method in words.
        seed: seed of the run.
        seen: accuracy of the probe on the samples it learnt from, percent.
        fresh: its accuracy on others, percent.
        train: accuracy of the network itself in the training environments, last step, percent.
        test: the same in the test environment.
        moved: mean over test images and units of how far a unit moves when the attribute is exchanged.
        size: mean over test images and units of the absolute value of a unit.
        units: how far each unit moves for one test image, ``(h,)``.
    """

    label: str
    seed: int
    seen: float
    fresh: float
    train: float
    test: float
    moved: float
    size: float
    units: tuple[float, ...]


@dataclass(frozen=True)
class Budget:
    """One method at one density, over seeds.

    Attributes:
        label: the method in words.
        density: fraction of the weights kept that was asked for.
        kept: number of weights kept.
        train: accuracy in the training environments at the last step, one for each seed, percent.
        val: the same on fresh samples of the training environments.
        test: the same in the test environment.
    """

    label: str
    density: float
    kept: int
    train: tuple[float, ...]
    val: tuple[float, ...]
    test: tuple[float, ...]


@dataclass(frozen=True)
class AblationReport:
    """All numbers of the ablations.

    Attributes:
        recipe: what all runs have in common, as plain data.
        probe: the probe.
        attribute: what the spurious attribute is, in words.
        chance: accuracy of a probe that guesses, percent.
        readings: one for each method, penalty and seed.
        budgets: one for each sparse method, penalty and density.
    """

    recipe: dict[str, Any]
    probe: Probe
    attribute: str
    chance: float
    readings: tuple[Reading, ...]
    budgets: tuple[Budget, ...] = ()

    @staticmethod
    def from_json(payload: dict[str, Any]) -> AblationReport:
        """The report of ``dataclasses.asdict``, from plain data."""
        readings = (Reading(**{**each, "units": tuple(each["units"])}) for each in payload["readings"])
        budgets = (
            Budget(**{**each, **{split: tuple(each[split]) for split in ("train", "val", "test")}})
            for each in payload["budgets"]
        )
        return AblationReport(
            **{
                **payload,
                "probe": Probe(**payload["probe"]),
                "readings": tuple(readings),
                "budgets": tuple(budgets),
            }
        )


def readings(
    recipes: list[Recipe], store: Store, executor: Submitter, probe: Probe, data_root: str | None = None
) -> list[Reading]:
    """Train what is not trained yet, and read every network.

    Args:
        recipes: the runs.
        store: where results go; the networks are kept beside them, see `trained`.
        executor: where to run.
        probe: the probe.
        data_root: folder of the data files.

    Returns:
        One reading each, in their order.

    Raises:
        SettingError: if a run cannot be carried out, or its data set has no attribute that can be exchanged.
    """
    waiting = [executor.submit(reading, recipe, store.root, probe, data_root) for recipe in recipes]
    return [future.result() for future in waiting]


def reading(recipe: Recipe, root: Path, probe: Probe, data_root: str | None = None) -> Reading:
    """Train one network, or take it from where it is kept, and read it.

    The probe learns from the representations of training images, coloured afresh so that the attribute says
    nothing about the label, and is tested on those of test images. The attribute is exchanged by drawing the
    test set twice, once with an attribute that always agrees with the label and once with one that never
    does: the same images, shown with different attributes.

    Args:
        recipe: the run.
        root: folder of the result store.
        probe: the probe.
        data_root: folder of the data files.

    Returns:
        The reading.

    Raises:
        SettingError: as in `readings`.
    """
    recipe = recipe.resolved()
    blind = _drawn(recipe, None, data_root)
    result, folder = trained(recipe, Store(root), data_root)
    module = load_model(folder)
    learn, fresh = (_represented(module, part) for part in (blind.train, _test(blind)))
    seen, unseen = read_attribute(learn, fresh, probe, seed_of(recipe.seed, "probe"))
    one, other = (_test(_drawn(recipe, agreement, data_root)).samples.x for agreement in (1.0, 0.0))
    units = representation(module, one)
    moved = (units - representation(module, other)).abs()
    return Reading(
        label=label(recipe),
        seed=recipe.seed,
        seen=seen,
        fresh=unseen,
        train=result.last["train"].accuracy,
        test=result.last["test"].accuracy,
        moved=float(moved.mean()),
        size=float(units.abs().mean()),
        units=tuple(moved[0].tolist()),
    )


def trained(recipe: Recipe, store: Store, data_root: str | None = None) -> tuple[Result, Path]:
    """The result of a run and the folder of its network, ``models/KEY/`` in the store's folder.

    Networks are large and can be trained again, so they are not meant to be committed with the results.

    Args:
        recipe: the run; it goes on from its checkpoint, and is not repeated if its network is there.
        store: where the result goes as well, unless it has one.
        data_root: folder of the data files.

    Returns:
        The result, and a folder for `load_model`.

    Raises:
        SettingError: if the run cannot be carried out, or another process is at it.
    """
    folder = kept(recipe, store)
    result = run(recipe, data_root=data_root, out=folder, resume=True)
    if store.get(recipe) is None:
        store.put(result)
    return result, folder


def kept(recipe: Recipe, store: Store) -> Path:
    """The folder of a run's network, see `trained`; whether it is there or not."""
    return store.root / "models" / recipe.key


def chance_agreement(data: DataSet) -> float:
    """How often an attribute agrees with the label by chance: 1 / k with k labels, one half for two."""
    return 1 / max(2, data.n_outputs)


def budget_of(row: Row) -> Budget:
    """A row of results at one density."""
    first = row.results[0]
    accuracies = {split: row.accuracy(split).values for split in ("train", "val", "test")}
    return Budget(row.label, float(first.recipe.density or 0), first.kept, **accuracies)


def _drawn(recipe: Recipe, agreement: float | None, data_root: str | None) -> DataSet:
    """The recipe's data with a seed of its own and an attribute that agrees with the label this often.

    None stands for `chance_agreement`.
    """
    if recipe.correlations is None:
        raise SettingError(
            f"the attribute of data set {recipe.data!r} cannot be exchanged; choose one that is constructed, "
            "such as colored_mnist."
        )
    if agreement is None:
        agreement = chance_agreement(recipe.make_data(data_root))
    drawn = replace(
        recipe, correlations=(agreement,) * len(recipe.correlations), seed=seed_of(recipe.seed, "ablation")
    )
    return drawn.make_data(data_root)


def _test(data: DataSet) -> Split:
    assert data.test is not None  # a constructed data set has one
    return data.test


def _represented(module: nn.Module, split: Split) -> Split:
    features: Tensor = representation(module, split.samples.x)
    return replace(split, samples=replace(split.samples, x=features))
