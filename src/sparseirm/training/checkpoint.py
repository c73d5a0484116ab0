"""Save and restore a `State` bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparseirm.core import Tensors
from sparseirm.files import DamagedFileError, read_tensors, write_tensors
from sparseirm.training.state import State


def save_state(path: Path, state: State, note: dict[str, Any]) -> None:
    """Write the state and a JSON note (recipe, trajectory so far) as one file, atomically."""
    write_tensors(path, tensors_of(state), {**note, "step": state.step, "stage": state.stage})


def load_state(path: Path, state: State) -> dict[str, Any]:
    """Fill ``state`` (made by `sparseirm.training.state.start`) from a file; return the note.

    Args:
        path: a file of `save_state`.
        state: a state of the same network, sparsifier, plan and stage; changed in place, on its device.

    Returns:
        The note that was saved with it.

    Raises:
        DamagedFileError: if the file is damaged or does not fit the state, which may then be half filled.
        OSError: if the file does not exist or cannot be read.
    """
    tensors, note = read_tensors(path)
    step = note.pop("step", None)
    if note.pop("stage", 0) != state.stage:
        raise DamagedFileError(f"{path} belongs to another stage of the run; delete it to start over.")
    kept = {n.removeprefix("kept/"): t for n, t in tensors.items() if n.startswith("kept/")}
    device = state.weights.device
    state.memory.kept = {name: tensor.to(device) for name, tensor in kept.items()}
    try:
        if type(step) is not int or step < 0:
            raise ValueError(f"its step is {step!r}")
        with torch.no_grad():
            for name, tensor in _parameters(state).items():
                if tensors[name].shape != tensor.shape:
                    raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}")
                tensor.copy_(tensors[name])
        for name, optimizer in state.optimizers.items():
            _restore(optimizer, {n: t for n, t in tensors.items() if n.startswith(f"optimizer/{name}/")})
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise DamagedFileError(
            f"{path} does not belong to this run ({error}); delete it to start over."
        ) from None
    state.step = step
    return note


def tensors_of(state: State) -> Tensors:
    """Every tensor of a state by a name that says where it belongs."""
    found = _parameters(state)
    found |= {f"kept/{name}": tensor for name, tensor in state.memory.kept.items()}
    for name, optimizer in state.optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            found |= {
                f"optimizer/{name}/{index}/{slot}": tensor
                for slot, tensor in slots.items()
                if isinstance(tensor, Tensor)
            }
    return found


def _parameters(state: State) -> Tensors:
    found = {"weights": state.weights}
    groups = {"others": state.others, "buffers": state.buffers, "learned": state.memory.learned}
    for group, tensors in groups.items():
        found |= {f"{group}/{name}": tensor for name, tensor in tensors.items()}
    return found


def _restore(optimizer: Optimizer, tensors: Tensors) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        _, _, index, slot = name.split("/")
        if tensor.shape not in ((), parameters[int(index)].shape):  # optimisers read memory without asking
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}")
        slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
