"""Other packages, where they run beside the installed PyTorch."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparseirm.bench.equality import TOLERANCE
from sparseirm.bench.timing import Row, interleaved, row
from sparseirm.bench.workloads import samples
from sparseirm.core import Outputs
from sparseirm.data.environments import Batch, Batches
from sparseirm.losses import MULTICLASS
from sparseirm.models import MLP, build, network
from sparseirm.penalties import irmv1_split
from sparseirm.sparsifiers import Dense
from sparseirm.training.loop import train
from sparseirm.training.state import Plan, start

DOMAINLAB = "domainlab==0.7.1"
"""The version compared with. It asks for PyTorch 1, so it is installed without what it asks for; its trainer
of IRM needs nothing else."""

WEIGHT = 10.0
"""Weight of the penalty."""


@contextmanager
def installed(requirement: str) -> Iterator[None]:
    """A package from PyPI in a folder of its own, without its dependencies, while the context is open.

    Args:
        requirement: the package and its version.

    Yields:
        None: nothing; it can be imported.

    Raises:
        ModuleNotFoundError: if it cannot be had; the message says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        done = subprocess.run([*pip, requirement], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise ModuleNotFoundError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(folder)
            name = requirement.split("==")[0]
            for module in [m for m in sys.modules if m.split(".")[0] == name]:
                del sys.modules[module]


class _Model(nn.Module):
    """What DomainLab's trainer asks of a model, as its own classifiers answer it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def cal_logit_y(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)``."""
        logits: Tensor = self.net(x)
        return logits

    def cal_task_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return cross_entropy(self.cal_logit_y(x), y)


def domainlab_trainer(batch: Batch, module: nn.Module, plan: Plan) -> Any:
    """DomainLab's own trainer of IRM on one batch of every environment; its package must be importable.

    Args:
        batch: the samples, as many of every environment.
        module: a copy of what it trains.
        plan: learning rate and weight of the penalty.

    Returns:
        The trainer; ``tr_epoch(0)`` is one step.
    """
    trainer = importlib.import_module("domainlab.algos.trainers.train_irm").TrainerIRM()
    trainer.model = _Model(module)
    trainer.device, trainer.observer = torch.device("cpu"), SimpleNamespace(update=lambda epoch: False)
    parts = [batch.take((batch.env == env).nonzero()[:, 0]) for env in range(int(batch.env.max()) + 1)]
    share = len(batch) / len(parts)  # it counts the penalty once for every sample of an environment
    trainer.aconf = SimpleNamespace(gamma_reg=plan.penalty_weight / share)
    trainer.dict_loader_tr = {str(at): [(part.x, part.y, part.env)] for at, part in enumerate(parts)}
    trainer.optimizer = torch.optim.Adam(trainer.model.parameters(), lr=plan.lr)
    return trainer


def our_step(batch: Batch, module: nn.Module, plan: Plan) -> Callable[[], object]:
    """The same step with this package: dense, split-half IRMv1, sums over environments in place of means."""
    net = network(module)
    sparsifier, n_envs = Dense(net.layout.size), int(batch.env.max()) + 1
    state = start(net, sparsifier, plan, 0)

    def in_turn(out: Outputs) -> Tensor:
        return irmv1_split(Outputs(out.logits, out.y, out.env, out.n_envs, out.loss))

    def step() -> None:
        state.step = 0
        train(net, Batches(batch, n_envs), MULTICLASS, in_turn, sparsifier, plan, state)

    return step


def first_loss(batch: Batch, module: nn.Module) -> float:
    """What a step's loss is before it, by our definitions, as a sum over environments."""
    out = Outputs(module(batch.x), batch.y, batch.env, int(batch.env.max()) + 1, MULTICLASS)
    return float((out.n_envs * (out.risks.mean() + WEIGHT * irmv1_split(out))).detach())


def against_domainlab(batch: Batch, width: int, repeats: int) -> Row:
    """Time one step of dense IRM against DomainLab's; its package must be importable.

    Args:
        batch: the samples.
        width: hidden units.
        repeats: timed rounds.

    Returns:
        The row.

    Raises:
        ArithmeticError: if the two do not compute the same loss.
    """

    def module() -> nn.Module:
        return build(lambda: MLP(batch.x[0].numel(), width, 2), 0)

    plan = Plan(steps=1, lr_schedule="constant", l2=0.0, penalty_weight=WEIGHT, penalty_from=0.0)
    trainer = domainlab_trainer(batch, module(), plan)
    trainer.tr_epoch(0)
    expected = first_loss(batch, module())
    if not abs(trainer.epo_loss_tr - expected) <= TOLERANCE * abs(expected):
        raise ArithmeticError(f"its loss is {trainer.epo_loss_tr}, ours {expected}")
    times = interleaved(
        {"theirs": lambda: trainer.tr_epoch(0), "ours": our_step(batch, module(), plan)}, repeats
    )
    what = f"step of dense IRM, {len(batch)} samples, width {width}"
    return row(what, times["ours"], times["theirs"], f"the trainer of {DOMAINLAB}")


def domainlab(n: int, width: int, repeats: int) -> tuple[list[Row], list[str]]:
    """The row of DomainLab, or why there is none.

    Args:
        n: samples.
        width: hidden units.
        repeats: timed rounds.

    Returns:
        Rows and notes; one of them is empty.
    """
    try:
        with installed(DOMAINLAB):
            return [against_domainlab(samples(n), width, repeats)], []
    except (ImportError, AttributeError, TypeError, ArithmeticError, subprocess.TimeoutExpired) as error:
        return [], [f"{DOMAINLAB} has no row, because it does not run here: {error}"]
