"""Data that stays where it is: training and evaluation move what they need, when they need it.

There is no GPU here; PyTorch's device without memory, "meta", stands in for one where no number is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from makers import Problem, samples
from sparseirm.data import Batch, DataSet, Split
from sparseirm.evaluation import metrics
from sparseirm.evaluation.metrics import predict
from sparseirm.models import network
from sparseirm.recipe import Recipe
from sparseirm.runs import placed, training_split
from sparseirm.sparsifiers import Dense
from sparseirm.training.state import Plan, start

META, GPU = torch.device("meta"), torch.device("cuda")


class _Moves(TorchFunctionMode):
    """Notes how many rows every move to another device has."""

    rows: list[int]

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is Tensor.to and result.device != args[0].device:
            self.rows.append(len(args[0]))
        return result


@contextmanager
def moves() -> Iterator[list[int]]:
    mode = _Moves()
    mode.rows = []
    with mode:
        yield mode.rows


def test_samples_to_predict_are_moved_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CHUNK", 10)
    net = network(nn.Linear(6, 1))
    state, x = start(net, Dense(net.layout.size), Plan(), 0), torch.zeros(24, 6)
    away = replace(state, others={name: tensor.to(META) for name, tensor in state.others.items()})
    with moves() as rows:
        assert predict(net, state, state.weights.detach(), x).shape == (24,)
        assert not rows
    weights = state.weights.detach().to(META)
    with moves() as rows:
        found = predict(net, away, weights, x)
    assert rows == [10, 10, 4] and found.shape == (24,) and found.device == META


def test_every_batch_of_training_is_moved_to_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.device] = []
    to = Batch.to

    def noted(batch: Batch, device: torch.device) -> Batch:
        moved.append(device)
        return to(batch, device)

    monkeypatch.setattr(Batch, "to", noted)
    problem = Problem()
    state = replace(problem, plan=replace(problem.plan, steps=3)).train().state
    assert moved == [state.weights.device] * 3


@pytest.mark.parametrize(("free", "where"), [(1000, GPU), (300, None)])
def test_data_goes_to_a_gpu_that_has_room_for_it(
    free: int, where: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Split(samples((3, 2), n_inputs=5), ("a", "b"))  # 100 bytes of inputs
    data = DataSet("towns", part, None, part, "binary", 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    moved: list[torch.device] = []
    monkeypatch.setattr(DataSet, "to", lambda data, device: moved.append(device) or data)  # type: ignore[func-returns-value]
    assert placed(data, GPU) is data
    assert moved == [place for place in [where] if place]


def test_the_model_to_infer_from_is_trained_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(method="irm", environments="eiil", n_train=60, width=4).resolved()
    seen: list[torch.device] = []

    def reference(net: Any, *given: Any) -> Tensor:
        seen.append(next(net.module.parameters()).device)
        raise InterruptedError

    monkeypatch.setattr("sparseirm.inference.splits.reference_logits", reference)
    data = recipe.make_data()
    for place in (None, META):
        with pytest.raises(InterruptedError):
            training_split(recipe, data, place)
    assert seen == [torch.device("cpu"), META]
