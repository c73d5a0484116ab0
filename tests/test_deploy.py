"""Claims about exported models: the same function, smaller files, and never a wrong one."""

import copy
import json
import struct
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from sparseirm import Recipe, SettingError, load_model, run
from sparseirm.cli import main
from sparseirm.deploy import compact, export, fastest, load_compact, masked, onnx_file, save_compact, to_onnx
from sparseirm.deploy.packed import dense_bytes
from sparseirm.deploy.speed import latencies, to_sparse
from sparseirm.files import DamagedFileError, read_json, read_tensors, write_tensors
from sparseirm.randomness import generator
from sparseirm.runs import MODEL

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Softplus]


def randomised(module: nn.Module, seed: int, density: float, dead: float = 0.0) -> nn.Module:
    """Random numbers everywhere, and masks that kill whole rows and columns as well."""
    noise = generator(seed, "module")
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.randn(tensor.shape, generator=noise)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.data = buffer.abs() + 0.5
    for weight in module.parameters():
        if weight.ndim >= 2:
            weight.data *= torch.rand(weight.shape, generator=noise) < density
            weight.data[torch.rand(weight.shape[0], generator=noise) < dead] = 0
            weight.data[:, torch.rand(weight.shape[1], generator=noise) < dead] = 0
    return module.eval()


def assert_same_function(module: nn.Module, input_shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """Compact the module and compare outputs on inputs that `compact` has not seen; units by layer."""
    before = copy.deepcopy(module.state_dict())
    done = compact(module, input_shape)
    x = 3 * torch.randn(20, *input_shape, generator=generator(1, "x"))
    pairs = [(module, done.module, x, 1e-4)]
    exact = copy.deepcopy(module).double()
    pairs += [(exact, compact(exact, input_shape).module, x.double(), 1e-10)]
    for dense, small, samples, tolerance in pairs:
        with torch.no_grad():
            expected, given = dense(samples), small(samples)
        assert given.dtype == samples.dtype
        assert (given - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert type(done.module) is type(module) and not done.module.training
    return done.units


# Dead units: multi-layer perceptrons.


@st.composite
def perceptrons(draw: st.DrawFn) -> nn.Sequential:
    """Random widths, activations, normalisations and masks, often with dead layers."""
    widths = draw(st.lists(st.integers(1, 7), min_size=2, max_size=5))
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out, bias=draw(st.booleans()))]
        layers += [nn.BatchNorm1d(n_out)] * draw(st.booleans())
        layers += [draw(st.sampled_from(ACTIVATIONS))()]
    module = nn.Sequential(*layers[:-1], nn.Dropout(0.5))
    density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]))
    randomised(module, draw(st.integers(0, 1000)), density, draw(st.sampled_from([0.0, 0.4])))
    for layer in module:
        if isinstance(layer, nn.Linear) and draw(st.integers(0, 4)) == 0:
            layer.weight.data.zero_()
    return module


@given(perceptrons())
@settings(max_examples=40)
def test_a_compacted_perceptron_is_the_same_function(module: nn.Sequential) -> None:
    linear = next(layer for layer in module if isinstance(layer, nn.Linear))
    assert_same_function(module, (linear.in_features,))


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 8), min_size=3, max_size=5),
    st.integers(0, 1000),
    st.sampled_from([0.1, 0.3, 0.6]),
)
def test_the_units_left_are_those_on_a_path_from_an_input_to_an_output(
    widths: list[int], seed: int, density: float
) -> None:
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    module = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())])
    randomised(module, seed, density)
    arcs = [np.asarray(layer.weight.detach() != 0) for layer in layers]
    reached = [np.ones(widths[0], dtype=bool)]
    for arc in arcs:
        reached.append(arc @ reached[-1])
    useful = [np.ones(widths[-1], dtype=bool)]
    for arc, below in zip(reversed(arcs), reversed(reached[:-1]), strict=True):
        useful.insert(0, (useful[0] @ arc) & below)
    alive = [max(1, int(u.sum())) for u in useful[1:-1]] + [widths[-1]]
    assert [after for _, after in compact(module, (widths[0],)).units.values()] == alive


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_with_no_weight_a_constant_is_left_and_with_all_weights_everything(density: float) -> None:
    module = randomised(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), 0, density)
    done = compact(module, (6,))
    assert done.units == ({"0": (5, 1), "2": (2, 2)} if density == 0 else {"0": (5, 5), "2": (2, 2)})
    assert done.parameters[1] == (6 + 1 + 2 + 2 if density == 0 else done.parameters[0])
    assert done.removed == 1 - done.parameters[1] / done.parameters[0]
    x = torch.randn(9, 6)
    torch.testing.assert_close(done.module(x), module(x))
    assert (density == 1) == (module(x).std(0) > 0).all()


# Dead channels: convolutional networks.


def conv_net(padding: int = 1, mode: str = "zeros") -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=padding, padding_mode=mode), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 5, 3, padding=padding, padding_mode=mode, bias=False), nn.Sigmoid(), nn.MaxPool2d(2)),
        *(nn.Conv2d(5, 4, 3, padding=padding, padding_mode=mode), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()),
        nn.LazyLinear(3),
    )


class Odd(nn.Module):
    """Everything that must be left alone or done with care: reuse, ties, views, groups, sums, sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(inplace=True)
        self.norm, self.inner = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.twice, self.depth = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.one, self.two = nn.Linear(6 * 16, 8), nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.two.weight
        self.steps, self.head = nn.Linear(2, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = x + self.inner(self.relu(self.norm(x)))
        x = self.depth(self.twice(self.relu(self.twice(x))))
        x = torch.relu(self.one(x.view(x.size(0), -1)))
        x = self.tied(self.two(x).tanh()) + 1
        return self.head(self.steps(x.view(-1, 4, 2)).flatten(1))


def residual() -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("make", "input_shape"),
    [
        (conv_net, (2, 8, 8)),
        (lambda: conv_net(0), (2, 14, 14)),
        (lambda: conv_net(1, "reflect"), (2, 8, 8)),
        (Odd, (2, 4, 4)),
    ],
)
def test_a_compacted_convolutional_network_is_the_same_function(
    make: Callable[[], nn.Module], input_shape: tuple[int, ...], seed: int
) -> None:
    module = make()
    module(torch.zeros(2, *input_shape))  # lazy layers learn their shapes
    units = assert_same_function(randomised(module, seed, density=0.3, dead=0.4), input_shape)
    fewer = sum(after for _, after in units.values()) < sum(before for before, _ in units.values())
    assert fewer == isinstance(module, nn.Sequential)  # what `Odd` does needs every channel


def test_a_compacted_residual_network_is_the_same_function_with_fewer_channels() -> None:
    module = randomised(residual(), 0, density=0.2, dead=0.3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):  # keeps random weights from blowing up
            norm.weight.data *= 0.1
    units = assert_same_function(module, (3, 32, 32))
    assert all(1 <= after <= before for before, after in units.values())
    inner = [name for name in units if name.endswith("conv1") and name != "conv1"]
    assert all(units[name][1] < 0.8 * units[name][0] for name in inner)
    for stage in (2, 3, 4):  # what is added together has the same channels
        assert units[f"layer{stage}.0.conv2"] == units[f"layer{stage}.0.downsample.0"]


@pytest.mark.parametrize(("padding", "left"), [(0, 1), (1, 2)])
def test_a_constant_channel_stays_where_zero_padding_makes_it_vary(padding: int, left: int) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sigmoid(), nn.Conv2d(2, 1, 3, padding=padding))
    randomised(module, 0, density=1)
    module.get_parameter("0.weight").data[0] = 0  # its sigmoid is the constant of its bias
    assert assert_same_function(module, (1, 6, 6))["0"] == (2, left)


def test_layers_that_are_shared_or_not_understood_stay_complete() -> None:
    units = compact(randomised(Odd(), 0, density=0.3, dead=0.4), (2, 4, 4)).units
    assert not {"twice", "depth", "two", "tied", "steps"} & units.keys()


# What cannot be compacted.


class Fickle(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class SizeMinded(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self[0].out_features


def test_a_module_whose_code_depends_on_its_input_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"Fickle cannot be traced, so its dead units cannot be removed \("
    ):
        compact(Fickle(3, 3), (3,))


def test_a_module_whose_function_would_change_is_refused() -> None:
    module = randomised(SizeMinded(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)), 0, density=0)
    with pytest.raises(SettingError, match=r"changed an output by 4\.0e\+00, more than rounding explains"):
        compact(module, (3,))


def test_weights_that_are_not_finite_are_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    module.get_parameter("0.weight").data[0] = torch.inf
    with pytest.raises(SettingError, match="weights may be NaN or infinite"):
        compact(module, (3,))


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(SettingError, match=r"`x` must hold samples of shape \(3,\); got \(4,\)"):
        compact(nn.Linear(3, 1), (3,), torch.zeros(2, 4))


# Masks and compact files.


def test_masked_keeps_what_the_mask_keeps() -> None:
    module = nn.Linear(4, 3)
    keep = torch.rand(3, 4) < 0.5
    result = masked(module, {"weight": keep})
    assert torch.equal(result.get_parameter("weight"), module.weight * keep)
    assert torch.equal(result.get_parameter("bias"), module.bias)
    for wrong in ({"weigth": keep}, {"weight": keep[:2]}, {"weight": keep.float()}):
        with pytest.raises(SettingError, match="`mask` must hold bool tensors in the shapes"):
            masked(module, wrong)


def payload(path: Path) -> int:
    """Bytes of a safetensors file without its header."""
    content = path.read_bytes()
    return len(content) - 8 - int(struct.unpack("<Q", content[:8])[0])


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    kind=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_a_compact_file_gives_back_every_number_and_is_as_small_as_promised(
    shape: list[int], density: float, kind: torch.dtype, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    noise = generator(seed, "weights")
    values = torch.randn(shape, generator=noise) * (torch.rand(shape, generator=noise) < density)
    module = nn.Module()
    module.weight = nn.Parameter(values.to(kind))
    module.register_buffer("count", torch.tensor(3))
    path = tmp_path_factory.mktemp("compact") / "file"
    size = save_compact(path, module)
    fresh = copy.deepcopy(module)
    fresh.weight.data.normal_()
    loaded = load_compact(path, fresh)
    assert torch.equal(loaded.weight, module.weight) and loaded.weight.dtype == kind
    n, k, width = values.numel(), int(module.weight.count_nonzero()), module.weight.element_size()
    assert size == path.stat().st_size
    assert payload(path) == min(n * width, -(-n // 8) + k * width) + 8


def test_kept_weights_that_are_zero_stay_in_the_mask(tmp_path: Path) -> None:
    module = masked(nn.Linear(40, 1, bias=False), {"weight": torch.zeros(1, 40, dtype=torch.bool)})
    keep = (torch.arange(40) < 3)[None]
    save_compact(tmp_path / "file", module, {"weight": keep})
    tensors, _ = read_tensors(tmp_path / "file")
    assert tensors["weight.values"].tolist() == [0, 0, 0] and tensors["weight.bits"].tolist() == [
        224,
        0,
        0,
        0,
        0,
    ]
    module.get_parameter("weight").data += 1
    with pytest.raises(SettingError, match="'weight' is not zero outside its `mask`; use `masked`"):
        save_compact(tmp_path / "other", module, {"weight": keep})
    assert not (tmp_path / "other").exists()


def test_a_truncated_or_altered_compact_file_is_refused(tmp_path: Path) -> None:
    module = masked(nn.Linear(20, 2), {"weight": torch.arange(40).view(2, 20) % 5 == 0})
    path = tmp_path / "file"
    save_compact(path, module, note={"hello": 1})
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(DamagedFileError):
            load_compact(path, module)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError):
            load_compact(path, module)


def test_a_file_of_another_kind_or_module_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "other", {"weight": torch.zeros(2)}, {})
    with pytest.raises(SettingError, match="is not of the format 'sparseirm bitmap 1'"):
        load_compact(tmp_path / "other")
    save_compact(tmp_path / "mine", nn.Linear(2, 1))
    with pytest.raises(SettingError, match=r"no recipe, input_shape, n_outputs.* pass that module"):
        load_compact(tmp_path / "mine")
    with pytest.raises(SettingError, match=r"holds another module: .*size mismatch"):
        load_compact(tmp_path / "mine", nn.Linear(3, 1))


# Sparse matrices.


def test_sparse_linear_layers_compute_the_same() -> None:
    module = randomised(nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)), 0, 0.4)
    for one in (module, nn.Linear(6, 2)):
        for x in (torch.randn(1, 6), torch.randn(9, 6), torch.randn(2, 4, 6)):
            torch.testing.assert_close(to_sparse(one)(x), one(x))
    assert isinstance(module[0], nn.Linear)


def test_the_fastest_form_is_measured_and_computes_the_same() -> None:
    module = randomised(nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 3)), 0, 0.1)
    _, form = fastest(module, (6,), batch_size=4)
    x = torch.randn(4, 6)
    torch.testing.assert_close(form(x), module(x))
    slow = nn.Sequential(nn.Linear(6, 3), *[nn.Linear(3, 3) for _ in range(30)])
    times = latencies({"slow": slow, "quick": nn.Identity()}, (6,), 4)
    assert times["slow"] > times["quick"] > 0


# ONNX.


def outputs(content: bytes, x: Tensor) -> Tensor:
    pytest.importorskip("onnxruntime", reason="needs pip install 'sparseirm[onnx]'")
    return onnx_file.run_onnx(content, x)


@pytest.mark.parametrize("density", [0.2, pytest.param(0.0, marks=pytest.mark.slow)])
def test_an_onnx_file_gives_the_same_outputs_for_any_number_of_samples(density: float) -> None:
    onnx = pytest.importorskip("onnx", reason="needs pip install 'sparseirm[onnx]'")
    module = randomised(nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)), 0, density)
    content, gap = to_onnx(compact(module, (2, 4)).module, (2, 4), {"seed": 3})
    assert gap < 1e-5
    for n in (1, 2, 33):
        x = torch.randn(n, 2, 4)
        torch.testing.assert_close(outputs(content, x), module(x), rtol=1e-5, atol=1e-5)
    graph = onnx.load_from_string(content)
    assert {p.key: json.loads(p.value) for p in graph.metadata_props} == {"sparseirm": {"seed": 3}}
    assert ".py" not in str(graph.graph)


def test_an_onnx_file_with_other_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_installed", lambda: None)
    monkeypatch.setattr(onnx_file, "_exported", lambda module, x, note: b"")
    module = nn.Linear(3, 1)
    for wrong, message in (
        (lambda content, x: module(x) + 0.01, r"differ from PyTorch's by 1\.0e-02 .* Nothing was written"),
        (lambda content, x: module(x)[:1], r"ONNX Runtime gives \(1, 1\), PyTorch \(7, 1\)"),
    ):
        monkeypatch.setattr(onnx_file, "run_onnx", wrong)
        with pytest.raises(SettingError, match=message):
            to_onnx(module, (3,))


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SettingError, match=r"needs the package onnx.*: pip install 'sparseirm\[onnx\]'"):
        to_onnx(nn.Linear(3, 1), (3,))


# The command.

TINY = Recipe(width=16, n_train=100, steps=12, density=0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of `TINY`; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    run(TINY, out=folder)
    return folder


def test_the_command_writes_what_gives_the_same_outputs(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, graph = tmp_path / "small.safetensors", tmp_path / "model.onnx"
    assert main(["export", str(finished), "--out", str(small), "--batch-sizes", "3"]) == 0
    said = capsys.readouterr().out
    module = load_model(finished)
    kept = read_json(finished / "result.json")["kept"]
    assert f"kept {kept} of " in said and "% removed" in said and "batch size" in said
    assert f"{small.stat().st_size} bytes" in said and f"of the {dense_bytes(module)} dense ones" in said
    assert small.stat().st_size < 0.4 * dense_bytes(module)
    for name, tensor in load_compact(small).state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name])
    pytest.importorskip("onnxruntime", reason="needs pip install 'sparseirm[onnx]'")
    assert main(["export", str(small), "--out", str(graph)]) == 0  # from the compact file as from the folder
    x = torch.rand(5, 2, 8, 8)
    torch.testing.assert_close(outputs(graph.read_bytes(), x), module(x), rtol=1e-5, atol=1e-5)


def test_the_report_counts_what_the_run_kept(finished: Path) -> None:
    report = export(finished, batch_sizes=(2,))
    assert report.file_bytes is None and report.n_weights == 128 * 16 + 16 * 16 + 16
    assert report.kept == read_json(finished / "result.json")["kept"] == round(0.05 * report.n_weights)
    assert set(report.milliseconds) == {2} and set(report.milliseconds[2]) == {"dense", "compact", "sparse"}
    assert report.compaction.difference64 < 1e-12 and report.compaction.difference32 < 1e-4


def test_a_model_that_does_not_know_its_shapes_is_refused(finished: Path, tmp_path: Path) -> None:
    tensors, note = read_tensors(finished / MODEL)
    write_tensors(tmp_path / MODEL, tensors, {"recipe": note["recipe"]})
    with pytest.raises(SettingError, match=r"no input_shape, n_outputs\. If it holds a module of your own"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["nowhere"], "holds no model.safetensors; name a folder of `train --out` or `fit --out`"),
        (["RUN", "--out", "model.pt"], "`out` must end in .onnx or .safetensors; got 'model.pt'."),
        (["RUN", "--out", "RUN/model.safetensors"], "exists already; choose another name."),
        (["RUN", "--batch-sizes", "0"], "`batch_sizes` must be at least 1; got 0."),
        (["RUN/result.json"], "is damaged: it is not a safetensors file"),
        ([], "See `sparseirm export --help`."),
    ],
)
def test_what_cannot_be_exported_gives_one_helpful_line(
    flags: list[str], line: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert main(["export", *(flag.replace("RUN", str(finished)) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in finished.iterdir()} == before
