"""A fitted table model ready to be taken away: only the columns it uses, their scaling inside the network."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sparseirm.core import SettingError
from sparseirm.deploy.compact import Compaction, compact
from sparseirm.deploy.packed import read_compact, save_compact
from sparseirm.estimator import Estimator, as_saved, restored
from sparseirm.randomness import generator
from sparseirm.table.columns import Column
from sparseirm.table.encoding import Encoding


class FromValues(nn.Module):
    """A network together with what makes its inputs: values of columns in, logits or predictions out.

    Numbers are standardised, missing ones count as the mean (and set their indicator, if the column had any
    in training), and a category becomes one input per level, all zero for a level that training never saw.

    Args:
        encoding: how values become inputs.
        network: what runs on the inputs.
        scale: what its output is multiplied by, such as the spread of the training targets.
        shift: what is added to it then.
    """

    def __init__(
        self, encoding: Encoding, network: nn.Module, scale: float = 1.0, shift: float = 0.0
    ) -> None:
        super().__init__()
        self.network, self.scale, self.shift = network, scale, shift
        state = encoding.to_json()["scaling"]
        numbers = [at for at, one in enumerate(state) if one]
        gaps = [at for at in numbers if state[at]["indicator"]]
        levels = [
            (at, level)
            for at, column in enumerate(encoding.used)
            for level in range(len(column.levels))
            if column.kind == "category"
        ]
        kinds = [*numbers, *gaps, *(at for at, _ in levels)]
        order = sorted(range(len(kinds)), key=lambda at: (kinds[at], at))
        for name, values in {
            "numbers": numbers,
            "gaps": gaps,
            "categories": [at for at, _ in levels],
            "order": order,
        }.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64))
        for name, floats in {
            "mean": [state[at]["mean"] for at in numbers],
            "spread": [state[at]["scale"] for at in numbers],
            "levels": [level for _, level in levels],
        }.items():
            self.register_buffer(name, torch.tensor(floats, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)`` or predictions of values ``(n, n_columns)``, float64, NaN if missing."""
        pieces = []
        if len(self.numbers):
            numbers = (x[:, self.numbers] - self.mean) / self.spread
            pieces.append(torch.where(torch.isnan(numbers), torch.zeros_like(numbers), numbers))
        if len(self.gaps):
            pieces.append(torch.isnan(x[:, self.gaps]).to(x.dtype))
        if len(self.categories):
            pieces.append((x[:, self.categories] == self.levels).to(x.dtype))
        inputs = torch.cat(pieces, dim=1)[:, self.order].float()
        out: Tensor = self.network(inputs)
        return out * self.scale + self.shift

    numbers: Tensor
    gaps: Tensor
    categories: Tensor
    order: Tensor
    mean: Tensor
    spread: Tensor
    levels: Tensor


@dataclass(frozen=True)
class TableModel:
    """A fitted estimator as something to be taken away.

    Attributes:
        network: the dense network on the inputs of all columns, float32.
        compaction: the same without dead units.
        whole: the network without dead units on the columns it uses, their scaling before it; takes values as
            of `sparseirm.table.encoding.values`, float64.
        columns: the columns it uses, in the order of its inputs.
        note: what a program that runs it has to know, as plain data.
    """

    network: nn.Module
    compaction: Compaction
    whole: FromValues
    columns: list[Column]
    note: dict[str, Any]


def table_model(estimator: Estimator) -> TableModel:
    """Take a fitted estimator apart, and leave behind what it does not use.

    Args:
        estimator: a fitted classifier or regressor.

    Returns:
        The parts.

    Raises:
        SettingError: if removing dead units would change an output.
    """
    encoding, network = estimator.encoding_, copy.deepcopy(estimator.module_).float().eval()
    weights = estimator.column_weights_
    used = [at for at in range(len(weights)) if weights[at] > 0] or [0]
    ends = np.cumsum(encoding.blocks)
    inputs = np.concatenate([np.arange(ends[at] - encoding.blocks[at], ends[at]) for at in used])
    narrow = copy.deepcopy(network)
    first = next(layer for layer in narrow.modules() if isinstance(layer, nn.Linear))
    first.weight = nn.Parameter(first.weight.detach()[:, inputs])
    first.in_features = len(inputs)
    small = compact(narrow, (len(inputs),)).module
    columns = [encoding.used[at] for at in used]
    kept = Encoding.from_json({"columns": [asdict(c) for c in columns], "scaling": _scaling(encoding, used)})
    scale = getattr(estimator, "target_scale_", 1.0), getattr(estimator, "target_mean_", 0.0)
    note: dict[str, Any] = {
        "columns": [{"name": c.name, "kind": c.kind, "levels": list(c.levels)} for c in columns],
        "input": "float64 (n, columns): numbers, days since 1970, places of levels from 0 (-1 for one that "
        "is not listed); NaN where a number is missing",
    }
    if hasattr(estimator, "classes_"):
        note |= {"output": "logits", "labels": [*map(str, estimator.classes_.tolist())]}
    else:
        note |= {"output": "predictions"}
    whole = FromValues(kept, small, *scale).eval()
    return TableModel(network, compact(network, (sum(encoding.blocks),)), whole, columns, note)


def samples_like(model: TableModel, n: int) -> Tensor:
    """Made-up values to compare outputs on: about what training saw, some of them missing or new.

    Args:
        model: the model.
        n: number of rows.

    Returns:
        ``(n, n_columns)`` float64.
    """
    noise = generator(0, "table samples")
    x = torch.randn(n, len(model.columns), dtype=torch.float64, generator=noise)
    whole = model.whole
    x[:, whole.numbers] = x[:, whole.numbers] * whole.spread + whole.mean
    for at, column in enumerate(model.columns):
        if column.kind == "category":
            x[:, at] = torch.randint(-1, len(column.levels), (n,), generator=noise).double()
    x[:, whole.numbers] = x[:, whole.numbers].where(
        torch.rand(n, len(whole.numbers), generator=noise) > 0.1, torch.nan
    )
    return x


def save_table(path: Path, estimator: Estimator) -> int:
    """Write an estimator as one small file, see `sparseirm.deploy.save_compact`.

    Args:
        path: the file.
        estimator: a fitted classifier or regressor.

    Returns:
        Size of the file in bytes.
    """
    return save_compact(path, estimator.module_, note={"estimator": as_saved(estimator)})


def load_table(path: Path | str) -> Estimator:
    """The estimator of a file that ``sparseirm export`` wrote.

    Args:
        path: the file.

    Returns:
        An estimator that predicts the same to the last bit.

    Raises:
        SettingError: if the file holds something else.
    """
    tensors, note = read_compact(path)
    if "estimator" not in note:
        raise SettingError(f"{path} holds no table's model; use `load_compact`.")
    return restored(note["estimator"], tensors, path)


def _scaling(encoding: Encoding, used: list[int]) -> list[Any]:
    state = cast(list[Any], encoding.to_json()["scaling"])
    return [state[at] for at in used]
