"""A module as an ONNX file that gives the same outputs, or no file."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sparseirm.core import SettingError
from sparseirm.randomness import generator

TOLERANCE = 1e-4
"""Largest difference between the outputs of ONNX Runtime and PyTorch, relative to the largest output.

Both compute in float32, with sums in another order.
"""

BATCHES = (1, 7)
"""Numbers of samples in the batches that outputs are compared on."""


def to_onnx(
    module: nn.Module,
    input_shape: tuple[int, ...],
    note: dict[str, Any] | None = None,
    x: Tensor | None = None,
) -> tuple[bytes, float]:
    """A module as ONNX, checked: ONNX Runtime must give its outputs for batches of several sizes.

    The graph has one input ``x`` ``(batch, *input_shape)`` with any number of samples, and one output
    ``logits``. Zeros are written like other numbers: compact the module first.

    Args:
        module: a module with one input and one output; it runs in evaluation mode, in float32 unless ``x`` is
            given.
        input_shape: shape of one sample.
        note: plain data to keep in the file's metadata under ``sparseirm``.
        x: seven samples or more to export and compare with, in the type the module takes; standard normal
            numbers in float32 by default.

    Returns:
        The content of the file, and the largest absolute difference of an output that was seen.

    Raises:
        SettingError: if the extra ``onnx`` is not installed, the module cannot be exported, or the outputs
            differ by more than `TOLERANCE`.
    """
    _installed()
    plain = copy.deepcopy(module).cpu().eval()
    if x is None:
        plain = plain.float()
        x = torch.randn(max(BATCHES), *input_shape, generator=generator(0, "onnx check"))
    content = _exported(plain, x, note or {})
    gap, scale = 0.0, 0.0
    with torch.no_grad():
        for n in BATCHES:
            ours, theirs = plain(x[:n]), run_onnx(content, x[:n])
            if theirs.shape != ours.shape:
                raise SettingError(f"ONNX Runtime gives {tuple(theirs.shape)}, PyTorch {tuple(ours.shape)}.")
            gap = max(gap, float((ours - theirs).abs().max()))
            scale = max(scale, float(ours.abs().max()))
    if not gap <= TOLERANCE * scale + 1e-6:
        raise SettingError(
            f"ONNX Runtime's outputs differ from PyTorch's by {gap:.1e} where the largest is {scale:.1e}. "
            "Nothing was written."
        )
    return content, gap


def run_onnx(content: bytes, x: Tensor) -> Tensor:
    """The outputs ONNX Runtime computes on the CPU for samples ``(n, ...)``, in the type the graph takes.

    Args:
        content: an ONNX file of one input and one output.
        x: the samples.

    Returns:
        The outputs.

    Raises:
        SettingError: if the extra ``onnx`` is not installed.
    """
    _installed()
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    x = x.double() if entry.type == "tensor(double)" else x.float()
    (output,) = session.run(None, {entry.name: x.numpy()})
    return torch.from_numpy(output)


def _exported(module: nn.Module, x: Tensor, note: dict[str, Any]) -> bytes:
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                module,
                (x,),
                dynamo=True,
                verbose=False,
                input_names=["x"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except Exception as error:  # the exporter fails in as many ways as there are modules
        reason = " ".join(str(error).split())[:200]
        raise SettingError(f"{type(module).__name__} cannot be exported to ONNX: {reason}") from error
    finally:
        quiet.setLevel(level)
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(program.model)  # where on this machine the code lies
    program.model.metadata_props["sparseirm"] = json.dumps(note)
    content: bytes = program.model_proto.SerializeToString()
    return content


def _installed() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise SettingError(
                f"ONNX needs the package {name}, which is not installed: pip install 'sparseirm[onnx]'."
            ) from None
