"""One recipe crossed with methods, penalties, sparsifiers, densities and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from sparseirm.core import SettingError
from sparseirm.methods import METHODS
from sparseirm.penalties import defaults as penalty_defaults
from sparseirm.recipe import Recipe
from sparseirm.registry import lookup
from sparseirm.sparsifiers import defaults as sparsifier_defaults

DEFAULT = Recipe()


def variants(
    recipe: Recipe,
    methods: Sequence[str],
    penalties: Sequence[str],
    sparsifiers: Sequence[str] = (),
    densities: Sequence[float] = (),
    seeds: Sequence[int] = (0,),
) -> list[Recipe]:
    """All runs of a comparison.

    Args:
        recipe: what they have in common; each run has what it has a use for.
        methods: names of methods.
        penalties: penalties of the methods that have a choice.
        sparsifiers: sparsifiers of the methods that have a choice; the recipe's if empty.
        densities: densities of the sparse methods; the recipe's budget if empty.
        seeds: one run each.

    Returns:
        The recipes, not resolved; the seeds of one combination follow each other.

    Raises:
        SettingError: if names are missing, repeated or unknown, or a setting has no effect in any run.

    Example:
        >>> [(run.method, run.penalty) for run in variants(DEFAULT, ["erm", "irm"], ["rex"])]
        [('erm', None), ('irm', 'rex')]
    """
    for name, instead in (("method", "methods"), ("penalty", "penalties"), ("seed", "seeds")):
        if getattr(recipe, name) != getattr(DEFAULT, name):
            raise SettingError(f"`{name}` has no effect in a comparison; give `{instead}`.")
    for name, given in (("methods", methods), ("penalties", penalties), ("seeds", seeds)):
        if not given or len(set(given)) < len(given):
            raise SettingError(f"`{name}` must name each one once, and at least one; got {list(given)}.")
    if recipe.test_envs == ():
        raise SettingError(
            "`test_envs` must name an environment: a comparison shows how methods do in the test. Without "
            "one, `sparseirm fit` compares them by leaving environments out."
        )
    kinds = [(method, lookup("method", METHODS, method)) for method in methods]
    sparse = _sparse_variants(recipe, sparsifiers, densities)
    if (sparsifiers or densities) and not any(kind.sparse for _, kind in kinds):
        raise SettingError(
            "`sparsifiers` and `densities` have no effect: no method is sparse. Leave them out."
        )
    if sparsifiers and all(kind.sparsifier for _, kind in kinds if kind.sparse):
        raise SettingError("`sparsifiers` has no effect: no method has a choice. Leave it out.")
    own = _sparse_variants(recipe, (), densities)
    chosen = [
        start.adapted(method, penalty)
        for method, kind in kinds
        for penalty in (penalties if kind.invariant and not kind.penalty else (kind.penalty,))
        for start in (own if kind.sparsifier else sparse if kind.sparse else [recipe])
    ]
    shared = {f.name for f in fields(Recipe)} - {"method", "penalty", "seed"}
    for name in sorted(name for name in shared if getattr(recipe, name) != getattr(DEFAULT, name)):
        value = getattr(recipe, name)
        if all(getattr(variant, name) != value for variant in chosen):
            raise SettingError(f"`{name}` has no effect with methods {', '.join(methods)}; got {value}.")
    return [replace(variant, seed=seed) for variant in _with_own_options(chosen) for seed in seeds]


def _with_own_options(recipes: list[Recipe]) -> list[Recipe]:
    """Each recipe without options that only penalties or sparsifiers of others know.

    One that none of them knows stays, to be refused.
    """
    for name, known in (("penalty_options", _of_penalty), ("sparsifier_options", _of_sparsifier)):
        each = [known(recipe) if getattr(recipe, name) else {} for recipe in recipes]
        anywhere = {option for own in each for option in own}
        for at, own in enumerate(each):
            given = getattr(recipes[at], name).items()
            kept = {option: value for option, value in given if option in own or option not in anywhere}
            change: dict[str, Any] = {name: kept}
            recipes[at] = replace(recipes[at], **change)
    return recipes


def _of_penalty(recipe: Recipe) -> dict[str, Any]:
    return penalty_defaults(str(recipe.penalty))


def _of_sparsifier(recipe: Recipe) -> dict[str, Any]:
    return sparsifier_defaults(recipe.sparsifier or METHODS[recipe.method].sparsifier or "probmask")


def _sparse_variants(recipe: Recipe, sparsifiers: Sequence[str], densities: Sequence[float]) -> list[Recipe]:
    """The recipe with every sparsifier at every density; the recipe's own where none are given."""
    for name, plural, given in (
        ("sparsifier", "sparsifiers", sparsifiers),
        ("density", "densities", densities),
    ):
        if given and getattr(recipe, name) is not None:
            raise SettingError(f"give `{name}` or `{plural}`, not both.")
        if len(set(given)) < len(given):
            raise SettingError(f"`{plural}` must name each one once; got {list(given)}.")
    return [
        replace(recipe, sparsifier=sparsifier, density=density)
        for sparsifier in sparsifiers or (recipe.sparsifier,)
        for density in densities or (recipe.density,)
    ]
