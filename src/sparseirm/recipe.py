"""A run as data: typed, complete, hashed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from sparseirm.core import Loss, Penalty, SettingError, Sparsifier
from sparseirm.data import DATASETS, DEFAULTS, OPTIONS, OWN, DataSet, fingerprint, n_classes
from sparseirm.data.environments import steps_per_epoch, without_environment
from sparseirm.files import canonical, check_types, digest
from sparseirm.inference import Inference
from sparseirm.inference import make as make_inference
from sparseirm.inference import options as inference_options
from sparseirm.losses import LOSSES
from sparseirm.methods import METHODS, SETTINGS, Method, defaults
from sparseirm.models import MODELS, maker
from sparseirm.penalties import USUAL_WEIGHTS, no_penalty
from sparseirm.penalties import defaults as penalty_defaults
from sparseirm.penalties import make as make_penalty
from sparseirm.registry import LARGEST, lookup, one_of, options
from sparseirm.sparsifiers import SPARSIFIERS, Dense, FixedMask
from sparseirm.sparsifiers import defaults as sparsifier_defaults
from sparseirm.training.stages import Stage
from sparseirm.training.state import Plan

Option = float | int | str | bool

KINDS = {
    **dict.fromkeys(("data", "model", "method", "penalty", "sparsifier", "settings", "optimizer"), str),
    **dict.fromkeys(("lr_schedule", "precision", "environments", "data_digest"), str),
    **dict.fromkeys(("n_train", "width", "steps", "epochs", "batch_size", "eval_every"), int),
    **dict.fromkeys(("seed", "leave_out"), int),
    **dict.fromkeys(("label_noise", "density", "weights_per_sample", "lr", "momentum", "eps", "l2"), float),
    **dict.fromkeys(("penalty_weight", "penalty_from", "penalty_to", "lr_drop", "lr_stop"), float),
}
"""Types of fields, for recipes that come from files."""

OF_PENALTY = (
    *("penalty", "penalty_options", "penalty_weight", "penalty_from", "penalty_to"),
    *("divide_loss", "lr_drop", "lr_stop"),
)
OF_ENVIRONMENTS = ("environments", "environments_options")
YOUNGER = {"score_eps": 0.0}
"""Options of sparsifiers that came after the first results, with their defaults: keys stay as they were."""

OF_SPARSIFIER = ("sparsifier", "density", "budget", "weights_per_sample", "sparsifier_options")
OF_CONSTRUCTION = ("n_train", "correlations", "label_noise")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's result. None stands for the default of the chosen settings.

    Attributes:
        data: data set: colored_digits or full_colored_digits, which need no files; colored_mnist,
            full_colored_mnist, colored_fashion, full_colored_fashion; or, to tune on,
            colored_mnist_small, full_colored_mnist_small, colored_mnist_parity; cifar_mnist, cifar_fashion,
            fashion_over_mnist, digit_pairs; pair, any two sources; photos_on_colors; colored_object, after
            prepare-coco; folder or manifest, your own images. See docs/data.md.
        data_options: further settings of the data set by name, such as size 32 for photos_on_colors, or
            top digits:3,8 bottom mnist:0,1 for pair.
        test_envs: the environments of your own images that are kept for the test.
        data_digest: SHA-256 of the files the data are made of; found by itself, and refused if they changed.
        n_train: training samples of all environments together; the data set's own number by default.
        correlations: how often the spurious attribute agrees with the label, in each training
            environment and, last, in the test environment, each in [0, 1].
        label_noise: fraction of labels that are wrong, in [0, 1].
        model: network: mlp; resnet18 or another classifier of torchvision by name; timm:NAME for one of timm.
        width: hidden units of each of the mlp's two hidden layers.
        method: erm, oracle, sparseerm, irm, bayesianirm, sparseirm or mrm.
        penalty: invariance penalty of irm, sparseirm and mrm: irmv1, rex, irmv1_split, bayesian, mmrex,
            groupdro, eqrm, iga, fishr, coral, ib_irm or sd.
        penalty_options: further settings of the penalty by name, such as n_draws 20 for bayesian.
        environments: environments an invariance penalty compares: given, those of the data set; or, for
            eiil or zin, inferred from all training samples together.
        environments_options: further settings of eiil or zin by name, such as auxiliary time for zin;
            reference_steps is, for both, the most steps of the model they infer from.
        sparsifier: how the mask of a sparse method is found: probmask, structured, structured_gmp, topk, gmp,
            l0, str, set, rigl, random or modular; mrm is defined with the last.
        density: fraction of the maskable weights KEPT, in (0, 1]. Give this or `budget`.
        budget: number of weights kept, or auto: `weights_per_sample` times the number of samples, but
            no more than half of the weights, the paper's density.
        weights_per_sample: weights kept per training sample when `budget` is auto.
        sparsifier_options: further settings of the sparsifier by name, such as decide_at 0.3.
        settings: where unset values come from: ours, paper or released.
        steps: optimiser steps; of each stage if `stage_lengths` are 1. Give this or `epochs`.
        epochs: times the training goes through the data; of each stage if `stage_lengths` are 1.
        stage_lengths: how long mrm's three stages are (dense training, finding the mask, training anew), in
            units of `steps`; 1 each by default, so that a run costs three of another method.
        batch_size: samples per step, every environment among them; by default all for the mlp, 1024 for
            other networks if there are as many.
        optimizer: adam or sgd, for the weights.
        lr: learning rate of the weights.
        lr_schedule: cosine or constant.
        momentum: momentum of sgd, in [0, 1).
        eps: Adam's epsilon, for weights and probabilities.
        l2: weight of the sum of squared parameters in the loss.
        penalty_weight: lambda, the weight of the penalty in the loss.
        penalty_from: fraction of the run before which the penalty has no weight, in [0, 1].
        penalty_to: fraction of the run at which the penalty has its full weight, rising geometrically from 1,
            or evenly from 0 to one below 1; at once if this is not after `penalty_from`.
        divide_loss: divide the loss by 1 + penalty_weight, as the released code does.
        lr_drop: factor on the learning rate once the penalty acts, in (0, 1].
        lr_stop: fraction of the run at which the schedule of the learning rate is over once the penalty acts;
            steps after that are skipped where they change nothing else either.
        precision: fp32 or bf16 (convolutions and matrix products only; loss, penalty and probabilities stay
            fp32).
        eval_every: steps between two evaluations of the trajectory; they never influence the run. Of steps
            that no longer change the network only the last is evaluated.
        seed: seed of data, initial weights, batches and gates.
        leave_out: a training environment, counted from 0, that is not trained on and becomes ``val``; for the
            selection rule leave_one_env_out, which needs such a run for each of three or more environments.
    """

    data: str = "colored_digits"
    data_options: dict[str, Option] = field(default_factory=dict)
    test_envs: tuple[str, ...] | None = None
    data_digest: str | None = None
    n_train: int | None = None
    correlations: tuple[float, ...] | None = None
    label_noise: float | None = None
    model: str = "mlp"
    width: int | None = None
    method: str = "sparseirm"
    penalty: str | None = None
    penalty_options: dict[str, Option] = field(default_factory=dict)
    environments: str | None = None
    environments_options: dict[str, Option] = field(default_factory=dict)
    sparsifier: str | None = None
    density: float | None = None
    budget: int | Literal["auto"] | None = None
    weights_per_sample: float | None = None
    sparsifier_options: dict[str, Option] = field(default_factory=dict)
    settings: str = "ours"
    steps: int | None = None
    epochs: int | None = None
    stage_lengths: tuple[float, ...] | None = None
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
    lr_drop: float | None = None
    lr_stop: float | None = None
    precision: str = "fp32"
    eval_every: int = 100
    seed: int = 0
    leave_out: int | None = None

    def __post_init__(self) -> None:
        for field_ in fields(self):  # 1 and 1.0 are one number, and must have one key
            value = getattr(self, field_.name)
            if str(field_.type).startswith("float") and isinstance(value, int) and abs(value) <= LARGEST:
                object.__setattr__(self, field_.name, float(value))
        for name in ("correlations", "stage_lengths"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if isinstance(self.test_envs, list):
            object.__setattr__(self, "test_envs", tuple(self.test_envs))

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
        one_of("data set", self.data, {*DATASETS, *OWN})
        maker(self.model)
        one_of("settings", self.settings, SETTINGS)
        method = lookup("method", METHODS, self.method)
        self._refuse_what_has_no_effect(method)
        usual, recipe = self._defaults(), self
        if method.sparse and self.density is None and self.budget is None:
            recipe = replace(recipe, density=usual.get("density"), budget=usual.get("budget"))
        unset = {name for name in usual if getattr(recipe, name) is None}
        unset -= {*recipe._idle(method), "density", "budget"}
        recipe = replace(recipe, **{name: usual[name] for name in unset})
        chosen = options(f"data set {self.data!r}", OPTIONS.get(self.data, {}), self.data_options)
        recipe = replace(recipe, data_options=chosen)
        if method.invariant:
            recipe = recipe._with_penalty(method, given_weight=self.penalty_weight)
            recipe = recipe._with_environments()
        if method.sparse:
            recipe = recipe._with_sparsifier(method, usual["sparsifier_options"])
        recipe._check_counts()
        recipe.plans()
        return recipe

    def _defaults(self) -> dict[str, Any]:
        """Values of what is left open, of the settings and the data set."""
        many = n_classes(self.data, self.data_options) > 2
        usual = {
            **defaults(self.settings, self.model, self.data, self.optimizer, many),
            **DEFAULTS.get(self.data, {}),
        }
        if self.steps is not None or self.epochs is not None:
            usual = {name: value for name, value in usual.items() if name not in ("steps", "epochs")}
        n_train = self.n_train or usual.get("n_train")
        if n_train is not None and n_train < usual.get("batch_size", 0):
            del usual["batch_size"]
        return usual

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

    def _with_environments(self) -> Recipe:
        """Options of the inference written out and checked; given environments are no setting at all."""
        if self.environments in (None, "given"):
            return replace(self, environments=None)
        chosen = inference_options(str(self.environments), self.environments_options)
        return replace(self, environments_options=chosen)

    def _with_sparsifier(self, method: Method, usual: dict[str, Option]) -> Recipe:
        """The sparsifier's name and options written out, and its budget checked."""
        name = self.sparsifier or method.sparsifier or "probmask"
        if name != (method.sparsifier or name):
            raise SettingError(
                f"method {self.method!r} is defined by the sparsifier {method.sparsifier!r}; got "
                f"`sparsifier` {name!r}. Leave it out, or choose sparseirm."
            )
        chosen = {**(usual if name == "probmask" else {}), **self.sparsifier_options}
        recipe = replace(self, sparsifier=name, sparsifier_options=chosen)
        recipe = replace(recipe, sparsifier_options=recipe._options())
        recipe._check_budget()
        recipe.make_sparsifier(d=1 << 40, n_train=1 << 20)
        return recipe

    @property
    def has_default_batches(self) -> bool:
        """Whether a resolved recipe's batch size is the default, which no choice was made for."""
        return self.batch_size == self._defaults().get("batch_size")

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the fields that are None, and without `YOUNGER` options at their default."""
        plain, given = asdict(self), self.sparsifier_options.items()
        plain["sparsifier_options"] = {name: value for name, value in given if YOUNGER.get(name) != value}
        return {name: value for name, value in plain.items() if value not in (None, {})}

    @staticmethod
    def from_json(payload: Any) -> Recipe:
        """The recipe of `to_json`.

        Args:
            payload: values of fields by name; fields left out keep their defaults.

        Returns:
            The recipe, not resolved: values are checked by `resolved`.

        Raises:
            SettingError: if a key is no field of a recipe, or a value has the wrong type.

        Example:
            >>> recipe = Recipe(width=64, correlations=(0.9, 0.8, 0.1))
            >>> Recipe.from_json(recipe.to_json()) == recipe
            True
        """
        if not isinstance(payload, dict):
            raise SettingError(f"a recipe must be an object of names and values; got {payload!r:.80}.")
        for name in payload:
            one_of("field of a recipe", name, [f.name for f in fields(Recipe)])
        try:
            recipe = Recipe(**payload)
        except (TypeError, ValueError, OverflowError) as error:
            raise SettingError(f"no recipe can be made of these values: {error}.") from None
        check_types(recipe)
        return recipe

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name the resolved recipe in a result store."""
        if self.data_digest is None and fingerprint(self.data, self.data_options):
            raise SettingError(
                f"results on data set {self.data!r} are kept by the content of its files; get a recipe that "
                "knows it with `recipe.pinned(data_root)`."
            )
        return digest(canonical(self.resolved().to_json()).encode())[:16]

    def pinned(self, data_root: str | None = None) -> Recipe:
        """The same recipe tied to the content of the files its data are made of.

        Args:
            data_root: folder of the data files.

        Returns:
            The recipe with ``data_digest``; itself if its data are the same wherever they come from.

        Raises:
            SettingError: if the recipe is tied to other files, or the files are not to be had.

        Example:
            >>> Recipe().pinned() == Recipe()
            True
        """
        digest_of = fingerprint(self.data, self.data_options)
        if digest_of is None:
            return self
        here = digest_of(data_root)
        if self.data_digest not in (None, here):
            raise SettingError(
                f"`data_digest` of the recipe is {str(self.data_digest)[:8]}..., and that of the files of "
                f"{self.data!r} is {here[:8]}...: they are others, or have changed. Leave it out to use them."
            )
        return replace(self, data_digest=here)

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
        data = self._whole_data(data_root)
        return data if self.leave_out is None else without_environment(data, self.leave_out)

    def _whole_data(self, data_root: str | None) -> DataSet:
        if self.data in OWN:
            return OWN[self.data](data_root, test_envs=self.test_envs, seed=self.seed, **self.data_options)
        return DATASETS[self.data](
            n_train=self.n_train,
            correlations=self.correlations,
            label_noise=self.label_noise,
            seed=self.seed,
            gray=lookup("method", METHODS, self.method).gray,
            data_root=data_root,
            **self.data_options,
        )

    def make_penalty(self) -> Penalty:
        """The penalty of a resolved recipe.

        Returns:
            The penalty with its options set; one that is always zero for a method without.

        Raises:
            SettingError: if the penalty or one of its options is unknown, or a value does not fit.
        """
        if self.penalty is None:
            return no_penalty
        return make_penalty(self.penalty, **self.penalty_options)

    def make_inference(self) -> Inference | None:
        """How a resolved recipe infers environments, or None if they are given."""
        if self.environments is None:
            return None
        return make_inference(self.environments, self.environments_options)

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
            return Dense(d)
        maker = lookup("sparsifier", SPARSIFIERS, self.sparsifier)
        return maker(budget=self.count(d, n_train), **self._options())

    def _options(self) -> dict[str, Option]:
        """All options of the sparsifier, those that are not given with their defaults."""
        if self.sparsifier == "dense":
            raise SettingError("`sparsifier` dense keeps every weight; choose method erm or irm instead.")
        known, given = sparsifier_defaults(str(self.sparsifier)), self.sparsifier_options
        if known.keys() - given.keys() == YOUNGER.keys():
            given = {**given, **YOUNGER}  # all others are written out: by `to_json`, or before these came
        return options(f"sparsifier {self.sparsifier!r}", known, given)

    def count(self, d: int, n_train: int) -> int:
        """K: how many of ``d`` maskable weights are kept with ``n_train`` training samples.

        Args:
            d: number of maskable weights of the model.
            n_train: number of training samples, all environments together; matters if `budget` is auto.

        Returns:
            ``density * d``, rounded, at least 1; or ``weights_per_sample * n_train``, rounded, from 1 to
            half of ``d``, if `budget` is auto; else `budget`.

        Raises:
            SettingError: if `budget` exceeds ``d``, or neither `density` nor `budget` is set.
        """
        if self.density is not None:
            return max(1, round(self.density * d))
        if self.budget == "auto":
            return max(1, min(d // 2, round(float(self.weights_per_sample or 0) * n_train)))
        if self.budget is None or self.budget > d:
            raise SettingError(
                f"`budget` must not exceed the {d} maskable weights of this model; got {self.budget}. "
                "Lower it, or make the model wider."
            )
        return self.budget

    def plan(self, n_train: int | None = None) -> Plan:
        """Length, optimiser and schedules of the run.

        Args:
            n_train: number of training samples, all environments together; None for that of the recipe.

        Returns:
            The plan, `epochs` counted in steps; fields that are None take the defaults of `Plan`.

        Raises:
            SettingError: if a value is unknown or out of range.
        """
        given = {f.name: getattr(self, f.name) for f in fields(Plan)}
        if self.epochs is not None:
            given["steps"] = self.epochs * steps_per_epoch(n_train or self.n_train or 1, self.batch_size)
        return Plan(**{name: value for name, value in given.items() if value is not None})

    def plans(self, n_train: int | None = None) -> tuple[Plan, ...]:
        """The plan of every stage of a resolved recipe, in order; one for most methods.

        Args:
            n_train: as in `plan`.

        Returns:
            Plans that differ in their numbers of steps, each at least 1.

        Raises:
            SettingError: if a value is unknown or out of range.

        Example:
            >>> recipe = Recipe(method="mrm", steps=100, stage_lengths=(1, 0.5, 2)).resolved()
            >>> [plan.steps for plan in recipe.plans()], recipe.total_steps
            ([100, 50, 200], 350)
        """
        plan = self.plan(n_train)
        if self.stage_lengths is None:
            return (plan,)
        if len(self.stage_lengths) != 3 or not all(0 < length < math.inf for length in self.stage_lengths):
            raise SettingError(
                "`stage_lengths` must be three positive numbers, in units of `steps`; "
                f"got {self.stage_lengths}."
            )
        return tuple(replace(plan, steps=max(1, round(part * plan.steps))) for part in self.stage_lengths)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all stages of a resolved recipe.

        A guess where `epochs` are counted on samples whose number the recipe does not know: your own images,
        and `leave_out`. A run's records know it.
        """
        return sum(plan.steps for plan in self.plans())

    def stages(self, d: int, n_train: int) -> tuple[Stage, ...]:
        """The trainings that a resolved recipe consists of.

        Args:
            d: number of maskable weights of the model.
            n_train: number of training samples, all environments together.

        Returns:
            One stage for most methods. For mrm three: dense training, a mask learned for the weights found,
            and the masked network trained from its initial parameters.

        Raises:
            SettingError: as in `make_sparsifier` and `plans`.
        """
        plans, sparsifier = self.plans(n_train), self.make_sparsifier(d, n_train)
        if not lookup("method", METHODS, self.method).retrains:
            return (Stage(plans[0], sparsifier),)
        dense, search, anew = plans
        return (
            Stage(dense, Dense(d)),
            Stage(replace(search, divide_loss=False), sparsifier, frozen=True),  # its price is not divided
            Stage(anew, FixedMask(sparsifier.budget)),
        )

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
        kind = lookup("method", METHODS, method)
        drop: dict[str, Any] = dict.fromkeys(recipe._idle(kind))
        if kind.sparsifier and kind.sparsifier != (self.sparsifier or "probmask"):
            drop |= dict.fromkeys(("sparsifier", "sparsifier_options"))
        drop |= {name: {} for name in drop if name.endswith("_options")}
        return replace(recipe, **drop)

    def _idle(self, method: Method) -> dict[str, str]:
        """Fields that have no effect in this run, and why."""
        idle: dict[str, str] = {}
        if not method.invariant:
            idle |= dict.fromkeys(OF_PENALTY, f"method {self.method!r} has no penalty")
            idle |= dict.fromkeys(OF_ENVIRONMENTS, f"method {self.method!r} compares no environments")
        elif self.environments in (None, "given"):
            idle["environments_options"] = "environments are given"
        if not method.sparse:
            idle |= dict.fromkeys(OF_SPARSIFIER, f"method {self.method!r} keeps every weight")
        elif self.budget != "auto" and (self.density is not None or self.budget is not None):
            idle["weights_per_sample"] = "`density` or `budget` already says how many weights are kept"
        if not method.retrains:
            idle["stage_lengths"] = f"method {self.method!r} trains once"
        if self.lr_schedule == "constant":
            idle["lr_stop"] = "a constant learning rate has no schedule that could be over"
        if self.model not in MODELS:
            idle["width"] = f"model {self.model!r} has none"
        if (self.optimizer or self._defaults()["optimizer"]) != "sgd":
            idle["momentum"] = "only sgd has one"
        elif not method.sparse or not self._learns(method):
            idle["eps"] = "nothing is trained with Adam"
        return idle | self._idle_on_data()

    def _idle_on_data(self) -> dict[str, str]:
        idle: dict[str, str] = {}
        if self.data in OWN:
            idle |= dict.fromkeys(OF_CONSTRUCTION, "your own images are taken as they are")
        else:
            idle["test_envs"] = f"the environments of {self.data!r} follow from `correlations`"
        if fingerprint(self.data, self.data_options) is None:
            idle["data_digest"] = f"{self.data!r} is the same wherever it comes from"
        return idle

    def _learns(self, method: Method) -> bool:
        """Whether the sparsifier has something of its own to train."""
        maker: Any = lookup("sparsifier", SPARSIFIERS, self.sparsifier or method.sparsifier or "probmask")
        return any(field_.name == "score_lr" for field_ in fields(maker))

    def _refuse_what_has_no_effect(self, method: Method) -> None:
        if self.data in OWN and method.gray:
            raise SettingError(
                f"method {self.method!r} needs images without the spurious attribute, which your own (data "
                f"{self.data!r}) cannot be turned into. Choose another method."
            )
        for name, why in self._idle(method).items():
            value = getattr(self, name)
            if value is not None and value != {}:
                raise SettingError(f"`{name}` has no effect: {why}; got {value}. Leave it out.")

    def _check_types(self) -> None:
        for name, kind in KINDS.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise SettingError(f"`{name}` must be of type {kind.__name__}; got {value!r:.80}.")
            if isinstance(value, float) and not abs(value) <= LARGEST:
                raise SettingError(f"`{name}` must be finite; got {value}.")
            if isinstance(value, int) and not abs(value) < 1 << 63:
                raise SettingError(f"`{name}` must be below 2**63; got {value!r:.80}.")
        if not (self.test_envs is None or isinstance(self.test_envs, tuple)):
            raise SettingError(f"`test_envs` must be a list of names; got {self.test_envs!r:.80}.")

    def _check_counts(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise SettingError(f"give `steps` or `epochs`, not both; got {self.steps} and {self.epochs}.")
        for name in ("width", "epochs", "batch_size", "eval_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"`{name}` must be at least 1; got {value}.")

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
        count = type(self.budget) is int and self.budget >= 1
        if not (count or self.budget in (None, "auto")):
            raise SettingError(f"`budget` must be at least 1 weight, or auto; got {self.budget}.")
        if self.weights_per_sample is not None and not self.weights_per_sample > 0:
            raise SettingError(f"`weights_per_sample` must be positive; got {self.weights_per_sample}.")
