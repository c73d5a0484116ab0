"""A run as data: typed, complete, hashed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from sparseirm.core import Loss, Penalty, SettingError, Sparsifier
from sparseirm.data import DATASETS, DEFAULTS, DataSet
from sparseirm.data.environments import without_environment
from sparseirm.files import canonical, digest
from sparseirm.losses import LOSSES
from sparseirm.methods import METHODS, SETTINGS, Method
from sparseirm.models import MODELS
from sparseirm.penalties import USUAL_WEIGHTS
from sparseirm.penalties import defaults as penalty_defaults
from sparseirm.penalties import make as make_penalty
from sparseirm.registry import lookup, one_of, options
from sparseirm.sparsifiers import SPARSIFIERS
from sparseirm.training.state import Plan

Option = float | int | str | bool

KINDS = {
    **dict.fromkeys(("data", "model", "method", "penalty", "sparsifier", "settings", "optimizer"), str),
    **dict.fromkeys(("lr_schedule", "precision"), str),
    **dict.fromkeys(("n_train", "width", "steps", "batch_size", "eval_every", "seed", "leave_out"), int),
    **dict.fromkeys(("label_noise", "density", "weights_per_sample", "lr", "momentum", "eps", "l2"), float),
    **dict.fromkeys(("penalty_weight", "penalty_from", "penalty_to"), float),
}
"""Types of fields, for recipes that come from files."""

OF_PENALTY = ("penalty", "penalty_options", "penalty_weight", "penalty_from", "penalty_to", "divide_loss")
OF_SPARSIFIER = ("sparsifier", "density", "budget", "weights_per_sample", "sparsifier_options")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's result. None stands for the default of the chosen settings.

    Attributes:
        data: data set: colored_digits or full_colored_digits, which need no files; colored_mnist,
            full_colored_mnist, colored_fashion, full_colored_fashion; or, to tune on,
            colored_mnist_small, full_colored_mnist_small, colored_mnist_parity.
        n_train: training samples of all environments together; the data set's own number by default.
        correlations: how often the spurious attribute agrees with the label, in each training
            environment and, last, in the test environment, each in [0, 1].
        label_noise: fraction of labels that are wrong, in [0, 1].
        model: network: mlp.
        width: hidden units of each of the mlp's two hidden layers.
        method: erm, oracle, sparseerm, irm, bayesianirm or sparseirm.
        penalty: invariance penalty of irm and sparseirm: irmv1, rex, irmv1_split, bayesian, mmrex,
            groupdro, eqrm, iga, fishr, coral, ib_irm or sd.
        penalty_options: further settings of the penalty by name, such as n_draws 20 for bayesian.
        sparsifier: how the mask of a sparse method is found: probmask, structured, topk, gmp, l0, str,
            set, rigl or random.
        density: fraction of the maskable weights KEPT, in (0, 1]. Give this or `budget`.
        budget: number of weights kept, or auto: `weights_per_sample` times the number of samples.
        weights_per_sample: weights kept per training sample when `budget` is auto.
        sparsifier_options: further settings of the sparsifier by name, such as decide_at 0.3.
        settings: where unset values come from: ours, paper or released.
        steps: optimiser steps.
        batch_size: samples per step, every environment among them; full batches by default.
        optimizer: adam or sgd, for the weights.
        lr: learning rate of the weights.
        lr_schedule: cosine or constant.
        momentum: momentum of sgd, in [0, 1).
        eps: Adam's epsilon, for weights and probabilities.
        l2: weight of the sum of squared parameters in the loss.
        penalty_weight: lambda, the weight of the penalty in the loss.
        penalty_from: fraction of the run before which the penalty has no weight, in [0, 1].
        penalty_to: fraction of the run at which the penalty has its full weight, rising geometrically
            from 1; it starts with its full weight if this is not after `penalty_from`.
        divide_loss: divide the loss by 1 + penalty_weight, as the released code does.
        precision: fp32 or bf16 (matrix products only; loss, penalty and probabilities stay fp32).
        eval_every: steps between two evaluations of the trajectory; they never influence the run.
        seed: seed of data, initial weights, batches and gates.
        leave_out: a training environment, counted from 0, that is not trained on and becomes ``val``; for the
            selection rule leave_one_env_out, which needs such a run for each of three or more environments.
    """

    data: str = "colored_digits"
    n_train: int | None = None
    correlations: tuple[float, ...] | None = None
    label_noise: float | None = None
    model: str = "mlp"
    width: int = 390
    method: str = "sparseirm"
    penalty: str | None = None
    penalty_options: dict[str, Option] = field(default_factory=dict)
    sparsifier: str | None = None
    density: float | None = None
    budget: int | Literal["auto"] | None = None
    weights_per_sample: float | None = None
    sparsifier_options: dict[str, Option] = field(default_factory=dict)
    settings: str = "ours"
    steps: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    lr_schedule: str | None = None
    momentum: float | None = None
    eps: float | None = None
    l2: float | None = None
    penalty_weight: float | None = None
    penalty_from: float | None = None
    penalty_to: float | None = None
    divide_loss: bool | None = None
    precision: str = "fp32"
    eval_every: int = 100
    seed: int = 0
    leave_out: int | None = None

    def __post_init__(self) -> None:
        for field_ in fields(self):  # 1 and 1.0 are one number, and must have one key
            value = getattr(self, field_.name)
            if str(field_.type).startswith("float") and isinstance(value, int):
                object.__setattr__(self, field_.name, float(value))
        if self.correlations is not None:
            object.__setattr__(self, "correlations", tuple(map(float, self.correlations)))

    def resolved(self) -> Recipe:
        """The same run with every default written out, and nothing in it that has no effect.

        Returns:
            A new recipe, whose fields without effect are None or empty; its `key` is that of this one.

        Raises:
            SettingError: if a value is unknown or out of range, or an option would have no effect.

        Example:
            >>> recipe = Recipe(method="irm").resolved()
            >>> recipe.penalty, recipe.penalty_weight, recipe.density
            ('irmv1', 10000.0, None)
        """
        self._check_types()
        one_of("data set", self.data, DATASETS)
        one_of("model", self.model, MODELS)
        one_of("settings", self.settings, SETTINGS)
        method = lookup("method", METHODS, self.method)
        self._refuse_what_has_no_effect(method)
        defaults, recipe = {**SETTINGS[self.settings], **DEFAULTS[self.data]}, self
        if method.sparse and self.density is None and self.budget is None:
            recipe = replace(recipe, density=defaults.get("density"), budget=defaults.get("budget"))
        unset = {name for name in defaults if getattr(recipe, name) is None}
        unset -= {*recipe._idle(method), "density", "budget"}
        recipe = replace(recipe, **{name: defaults[name] for name in unset})
        if method.invariant:
            recipe = recipe._with_penalty(method, given_weight=self.penalty_weight)
        if method.sparse:
            recipe = recipe._with_sparsifier(defaults["sparsifier_options"])
        recipe.plan()
        for name, least in (("width", 1), ("eval_every", 1)):
            if getattr(recipe, name) < least:
                raise SettingError(f"`{name}` must be at least {least}; got {getattr(recipe, name)}.")
        return recipe

    def _with_penalty(self, method: Method, given_weight: float | None) -> Recipe:
        """The penalty's name, weight and options written out and checked."""
        name = self.penalty or method.penalty or "irmv1"
        if name != (method.penalty or name):
            raise SettingError(
                f"method {self.method!r} is defined by the penalty {method.penalty!r}; got `penalty` "
                f"{name!r}. Leave it out, or choose irm."
            )
        usual = USUAL_WEIGHTS.get(name, self.penalty_weight)
        recipe = replace(
            self,
            penalty=name,
            penalty_weight=usual if given_weight is None else given_weight,
            penalty_options=options(f"penalty {name!r}", penalty_defaults(name), self.penalty_options),
        )
        recipe.make_penalty()
        return recipe

    def _with_sparsifier(self, usual: dict[str, Option]) -> Recipe:
        """The sparsifier's name and options written out, and its budget checked."""
        name = self.sparsifier or "probmask"
        chosen = {**(usual if name == "probmask" else {}), **self.sparsifier_options}
        recipe = replace(self, sparsifier=name, sparsifier_options=chosen)
        recipe = replace(recipe, sparsifier_options=recipe._options())
        recipe._check_budget()
        recipe.make_sparsifier(d=1 << 40, n_train=1 << 20)
        return recipe

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the fields that are None."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}

    @staticmethod
    def from_json(payload: dict[str, Any]) -> Recipe:
        """The recipe of `to_json`.

        Args:
            payload: values of fields by name; fields left out keep their defaults.

        Returns:
            The recipe, not resolved: values are checked by `resolved`.

        Raises:
            SettingError: if a key is no field of a recipe.

        Example:
            >>> recipe = Recipe(width=64, correlations=(0.9, 0.8, 0.1))
            >>> Recipe.from_json(recipe.to_json()) == recipe
            True
        """
        for name in payload:
            one_of("field of a recipe", name, [f.name for f in fields(Recipe)])
        return Recipe(**payload)

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name the resolved recipe in a result store."""
        return digest(canonical(self.resolved().to_json()).encode())[:16]

    def make_data(self, data_root: str | None = None) -> DataSet:
        """The data set of a resolved recipe.

        Args:
            data_root: folder of the data files, for data sets that are not embedded.

        Returns:
            The data set, on the CPU; a function of the recipe's data settings, `method` and `seed`.

        Raises:
            SettingError: if the data set is unknown, one of its settings is out of range, or its files are
                not to be had.
        """
        data = DATASETS[self.data](
            n_train=self.n_train,
            correlations=self.correlations,
            label_noise=self.label_noise,
            seed=self.seed,
            gray=lookup("method", METHODS, self.method).gray,
            data_root=data_root,
        )
        return data if self.leave_out is None else without_environment(data, self.leave_out)

    def make_penalty(self) -> Penalty:
        """The penalty of a resolved recipe.

        Returns:
            The penalty with its options set; one that is always zero for a method without.

        Raises:
            SettingError: if the penalty or one of its options is unknown, or a value does not fit.
        """
        if self.penalty is None:
            return lambda out: out.risks.sum() * 0
        return make_penalty(self.penalty, **self.penalty_options)

    def make_sparsifier(self, d: int, n_train: int) -> Sparsifier:
        """The sparsifier of a resolved recipe.

        Args:
            d: number of maskable weights of the model.
            n_train: number of training samples, all environments together.

        Returns:
            The sparsifier with the budget of `count`; one that keeps all weights for a dense method.

        Raises:
            SettingError: if the sparsifier or one of its options is unknown, a value is out of range, or
                the budget exceeds ``d``.
        """
        if self.sparsifier is None:
            return SPARSIFIERS["dense"](budget=d)
        maker = lookup("sparsifier", SPARSIFIERS, self.sparsifier)
        return maker(budget=self.count(d, n_train), **self._options())

    def _options(self) -> dict[str, Option]:
        """All options of the sparsifier, those that are not given with their defaults."""
        if self.sparsifier == "dense":
            raise SettingError("`sparsifier` dense keeps every weight; choose method erm or irm instead.")
        maker: Any = lookup("sparsifier", SPARSIFIERS, str(self.sparsifier))
        known = {f.name: f.default for f in fields(maker) if f.name != "budget"}
        return options(f"sparsifier {self.sparsifier!r}", known, self.sparsifier_options)

    def count(self, d: int, n_train: int) -> int:
        """K: how many of ``d`` maskable weights are kept with ``n_train`` training samples.

        Args:
            d: number of maskable weights of the model.
            n_train: number of training samples, all environments together; matters if `budget` is auto.

        Returns:
            ``density * d``, rounded, at least 1; or ``weights_per_sample * n_train``, rounded, from 1 to
            ``d``, if `budget` is auto; else `budget`.

        Raises:
            SettingError: if `budget` exceeds ``d``, or neither `density` nor `budget` is set.
        """
        if self.density is not None:
            return max(1, round(self.density * d))
        if self.budget == "auto":
            return max(1, min(d, round(float(self.weights_per_sample or 0) * n_train)))
        if self.budget is None or self.budget > d:
            raise SettingError(
                f"`budget` must not exceed the {d} maskable weights of this model; got {self.budget}. "
                "Lower it, or make the model wider."
            )
        return self.budget

    def plan(self) -> Plan:
        """Length, optimiser and schedules of the run.

        Returns:
            The plan; fields that are None take the defaults of `Plan`.

        Raises:
            SettingError: if a value is unknown or out of range.
        """
        given = {f.name: getattr(self, f.name) for f in fields(Plan)}
        return Plan(**{name: value for name, value in given.items() if value is not None})

    def loss(self, data: DataSet) -> Loss:
        """The loss that goes with the data set's labels."""
        return LOSSES[data.loss]

    def adapted(self, method: str, penalty: str | None = None) -> Recipe:
        """The same run with another method and penalty, without what that method has no use for.

        Args:
            method: name of the method.
            penalty: name of the penalty, dropped if the method has none; None for the method's default.

        Returns:
            A new recipe, not resolved; settings that have no effect are None or empty.

        Raises:
            SettingError: if the method is unknown.

        Example:
            >>> Recipe(density=0.1).adapted("irm", "rex").density is None
            True
        """
        recipe = replace(self, method=method, penalty=penalty)
        drop: dict[str, Any] = {name: None for name in recipe._idle(lookup("method", METHODS, method))}
        drop |= {name: {} for name in drop if name.endswith("_options")}
        return replace(recipe, **drop)

    def _idle(self, method: Method) -> dict[str, str]:
        """Fields that have no effect in this run, and why."""
        idle: dict[str, str] = {}
        if not method.invariant:
            idle |= dict.fromkeys(OF_PENALTY, f"method {self.method!r} has no penalty")
        if not method.sparse:
            idle |= dict.fromkeys(OF_SPARSIFIER, f"method {self.method!r} keeps every weight")
        elif self.budget != "auto" and (self.density is not None or self.budget is not None):
            idle["weights_per_sample"] = "`density` or `budget` already says how many weights are kept"
        if self.optimizer != "sgd":
            idle["momentum"] = "only sgd has one"
        elif not method.sparse:
            idle["eps"] = "nothing is trained with Adam"
        return idle

    def _refuse_what_has_no_effect(self, method: Method) -> None:
        for name, why in self._idle(method).items():
            value = getattr(self, name)
            if value is not None and value != {}:
                raise SettingError(f"`{name}` has no effect: {why}; got {value}. Leave it out.")

    def _check_types(self) -> None:
        for name, kind in KINDS.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise SettingError(f"`{name}` must be of type {kind.__name__}; got {value!r}.")

    def _check_budget(self) -> None:
        if self.density is not None and self.budget is not None:
            raise SettingError(f"give `density` or `budget`, not both; got {self.density} and {self.budget}.")
        if self.density is not None and not 0 < self.density <= 1:
            percent = (
                f" For {self.density:g} per cent pass {self.density / 100:g}." if self.density > 1 else ""
            )
            raise SettingError(
                f"`density` must be in (0, 1], the fraction of weights kept; got {self.density:g}.{percent}"
            )
        if self.budget not in (None, "auto") and not (isinstance(self.budget, int) and self.budget >= 1):
            raise SettingError(f"`budget` must be at least 1 weight, or auto; got {self.budget}.")
        if self.weights_per_sample is not None and not self.weights_per_sample > 0:
            raise SettingError(f"`weights_per_sample` must be positive; got {self.weights_per_sample}.")
