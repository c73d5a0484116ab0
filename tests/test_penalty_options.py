"""Numbers of a penalty, penalties of other packages, and what is refused."""

import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import sparseirm.registry
from makers import outputs
from sparseirm.core import Outputs, Penalty, SettingError
from sparseirm.losses import BINARY
from sparseirm.penalties import PENALTIES, BayesianIRM, iga, irmv1_split, make


def test_make_gives_the_object_of_the_table_or_one_with_other_numbers() -> None:
    for name, penalty in PENALTIES.items():
        assert make(name) is penalty
    assert make("bayesian", sd=1, split=True) == BayesianIRM(sd=1.0, n_draws=10, split=True)
    assert make("bayesian", n_draws=1) == BayesianIRM(n_draws=1)
    assert repr(make("bayesian", sd=1)) == "BayesianIRM(sd=1.0, n_draws=10, split=False)"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("irm", {}, "no penalty is named 'irm'. Did you mean 'irmv1'"),
        ("eqrm", {"quantil": 0.9}, "no option of penalty 'eqrm' is named 'quantil'. Did you mean 'quantile'"),
        ("rex", {"sd": 0.1}, "penalty 'rex' has no options; got 'sd'"),
        ("bayesian", {"sd": "0.1"}, "`sd` of penalty 'bayesian' must be of type float; got '0.1'"),
        ("bayesian", {"n_draws": 2.5}, "`n_draws` of penalty 'bayesian' must be of type int; got 2.5"),
        ("bayesian", {"split": 1}, "`split` of penalty 'bayesian' must be of type bool; got 1"),
        ("bayesian", {"sd": -0.1}, "`sd` of the Bayesian penalty must be 0 or more; got -0.1"),
        ("bayesian", {"n_draws": 0}, "`n_draws` must be at least 1; got 0"),
        ("eqrm", {"quantile": 0.0}, "`quantile` must lie strictly between 0 and 1; got 0.0"),
        ("eqrm", {"quantile": 1.0}, "`quantile` must lie strictly between 0 and 1; got 1.0"),
        ("mmrex", {"lambda_min": 0.5}, "`lambda_min` must be 0 or less; got 0.5"),
        ("groupdro", {"temperature": -1.0}, "`temperature` must be 0 or more; got -1.0"),
        ("ib_irm", {"bottleneck": -1.0}, "`bottleneck` must be 0 or more; got -1.0"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        make(name, **options)


def test_not_a_number_is_no_number_of_a_penalty() -> None:
    for name, option in (("bayesian", "sd"), ("mmrex", "lambda_min"), ("groupdro", "temperature")):
        with pytest.raises(SettingError, match="got nan"):
            make(name, **{option: float("nan")})


@pytest.mark.parametrize("name", ["coral", "fishr", "ib_irm"])
def test_a_penalty_on_the_representation_needs_one(name: str) -> None:
    with pytest.raises(
        SettingError, match=f"'{name}' needs a representation, and the model has no linear head"
    ):
        PENALTIES[name](replace(outputs(BINARY), features=None))


def test_gradient_alignment_needs_parameters_and_gradients() -> None:
    out = outputs(BINARY)
    for useless in (replace(out, parameters=()), replace(out, logits=out.logits.detach())):
        with pytest.raises(SettingError, match="'iga' needs gradients by the weights"):
            iga(useless)


@pytest.mark.parametrize("penalty", [irmv1_split, BayesianIRM(split=True)])
def test_halves_need_two_samples_of_every_environment(penalty: Penalty) -> None:
    with pytest.raises(SettingError, match="environment 1 has 1 of 6"):
        penalty(outputs(BINARY, sizes=(5, 1)))
    out = outputs(BINARY, sizes=(5, 2))
    weight = torch.ones(7)
    weight[(out.env == 1).nonzero()[0]] = 0
    with pytest.raises(SettingError, match="environment 1 has 1 of 7"):
        penalty(replace(out, weight=weight))
    with pytest.raises(SettingError, match="environment 1 has 0 of 7"):
        penalty(replace(out, weight=(out.env == 0).float()))


@dataclass(frozen=True)
class Shipped:
    """A penalty of another package, as an entry point names it."""

    power: float = 2.0

    def __call__(self, out: Outputs) -> Tensor:
        """The penalty."""
        return out.risks.pow(self.power).mean()


def test_a_penalty_of_another_package_is_found_and_takes_options(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "power"

        def load(self) -> Penalty:
            return Shipped()

    monkeypatch.setattr(
        sparseirm.registry, "entry_points", lambda group: [Point()] if group == "sparseirm.penalty" else []
    )
    assert make("power") == Shipped()
    assert make("power", power=3) == Shipped(power=3.0)
