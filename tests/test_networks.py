"""Claims about deep networks: names and heads, whole runs, batch normalisation, memory."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from makers import assert_same_bits, tiny_images
from sparseirm import runs
from sparseirm.core import Moment, Outputs, SettingError, Sparsifier
from sparseirm.data import DATASETS, Batch, Batches
from sparseirm.evaluation import metrics
from sparseirm.evaluation.batch_norm import deployed_buffers, recollected
from sparseirm.files import read_json, read_tensors
from sparseirm.losses import BINARY
from sparseirm.models import MODELS, Network, build, maker, network
from sparseirm.penalties import PENALTIES, make
from sparseirm.randomness import generator, global_draws
from sparseirm.recipe import Recipe
from sparseirm.runs import CHECKPOINT, MODEL, RESULT, load_model, run
from sparseirm.sparsifiers import SPARSIFIERS, ProbMask
from sparseirm.training.loop import Record, train
from sparseirm.training.state import Plan, State, start

close = torch.testing.assert_close
SMALL = "shufflenet_v2_x0_5"  # a third of a million weights, fifty-six batch normalisations
TINY = Recipe(data="tiny_images", model=SMALL, n_train=24, batch_size=12, steps=4, eval_every=2)


@pytest.fixture(autouse=True)
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "tiny_images", tiny_images)
    monkeypatch.setitem(DATASETS, "tiny_digits", partial(tiny_images, classes=4))


def interrupted(recipe: Recipe, out: Path, step: int) -> None:
    def press(record: Record, trajectory: list[runs.Point]) -> None:
        if record.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out=out, on_step=press)


# Names and heads.


@pytest.mark.parametrize("n_outputs", [1, 10])
@pytest.mark.parametrize("name", ["resnet18", SMALL, "squeezenet1_1"])
def test_a_classifier_of_torchvision_has_the_head_asked_for(name: str, n_outputs: int) -> None:
    module = build(lambda: maker(name)((3, 40, 32), n_outputs, None), seed=0)
    net = network(module)
    logits = net.logits(torch.zeros(2, 3, 40, 32), *net.parts())
    assert logits.shape == ((2,) if n_outputs == 1 else (2, n_outputs))


def test_resnet18_is_torchvision_s_with_its_own_stem() -> None:
    module = maker("resnet18")((3, 64, 32), 1, None)
    assert sum(p.numel() for p in module.parameters()) == 11_177_025  # 11,689,512 with a head of 1,000
    stem = module.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d) and (stem.kernel_size, stem.stride) == ((7, 7), (2, 2))


def test_networks_that_would_give_several_outputs_give_one() -> None:
    module = maker("googlenet")((3, 32, 32), 2, None).train()
    assert module(torch.randn(2, 3, 32, 32)).shape == (2, 2)


def test_initial_weights_of_a_deep_network_depend_on_the_seed_only() -> None:
    one, same, other = (
        build(lambda: maker(SMALL)((3, 32, 32), 1, None), seed).state_dict() for seed in (0, 0, 1)
    )
    assert_same_bits(one, same)
    assert not torch.equal(one["conv1.0.weight"], other["conv1.0.weight"])


def test_networks_of_timm_take_any_number_of_channels() -> None:
    pytest.importorskip("timm")
    module = maker("timm:resnet10t")((2, 14, 14), 1, None)
    assert module(torch.zeros(3, 2, 14, 14)).shape == (3, 1)
    with pytest.raises(
        SettingError, match=r"no model of timm is named 'resnet10x'\. Did you mean 'resnet10t'"
    ):
        maker("timm:resnet10x")


def test_without_timm_its_networks_are_refused_with_the_extra_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        SettingError, match=r"'timm:resnet18' needs the package timm: pip install 'sparseirm\[timm\]'"
    ):
        Recipe(model="timm:resnet18").resolved()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet18", (2, 14, 14), r"samples of shape \(2, 14, 14\): .*2 channels instead.* mlp any shape"),
        ("resnet18", (12,), r"model 'resnet18' cannot classify samples of shape \(12,\)"),
        ("squeezenet1_1", (3, 8, 8), r"Output size is too small\. "),
    ],
)
def test_samples_a_network_does_not_take_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        maker(name)(shape, 1, None)


def test_a_network_that_refuses_samples_without_a_word_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torchvision.models.ResNet.forward", Mock(side_effect=AssertionError))
    with pytest.raises(SettingError, match=r"samples of shape \(3, 28, 28\): AssertionError\. "):
        maker("resnet18")((3, 28, 28), 1, None)


def test_unknown_names_are_refused_with_a_near_one() -> None:
    with pytest.raises(
        SettingError, match=r"no model is named 'resnet8'\. Did you mean 'resnet18'\? Known: mlp; "
    ):
        maker("resnet8")


# Recipes.


def test_a_resnet_is_trained_as_the_paper_says() -> None:
    recipe = Recipe(model="resnet18", settings="paper", data="full_colored_mnist").resolved()
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.lr_schedule) == ("sgd", 0.01, 0.9, "cosine")
    assert (recipe.epochs, recipe.steps, recipe.batch_size, recipe.width) == (50, None, 1024, None)
    assert recipe.sparsifier_options["score_lr"] == 6e-3
    assert recipe.plan(10_000).steps == 500
    assert recipe.resolved() == recipe


def test_what_is_given_wins_over_a_resnet_s_settings() -> None:
    deep = Recipe(model="resnet18", data="full_colored_mnist")
    assert replace(deep, steps=7).resolved().plan().steps == 7
    assert replace(deep, optimizer="sgd", momentum=0.5).resolved().momentum == 0.5
    assert (deep.resolved().optimizer, deep.resolved().lr_drop) == ("adam", 0.3)
    sgd = replace(deep, optimizer="sgd").resolved()
    assert (sgd.lr, sgd.divide_loss, sgd.momentum, sgd.lr_drop) == (0.01, True, 0.9, 1.0)
    paper = replace(deep, settings="paper", optimizer="adam").resolved()
    assert (paper.lr, paper.divide_loss, paper.momentum) == (4e-4, False, None)
    assert replace(deep, n_train=100).resolved().batch_size is None
    assert replace(deep, n_train=100).resolved().resolved().batch_size is None


@pytest.mark.parametrize("data", ["pair", "folder"])
def test_only_the_default_batch_size_is_lowered_to_the_samples_there_are(data: str) -> None:
    split = tiny_images(24).train
    usual = Recipe(data=data, test_envs=("c",) if data == "folder" else None, model="resnet18").resolved()
    assert usual.batch_size == 1024
    assert runs._batches(usual, split).batch_size == len(split)
    with pytest.raises(SettingError, match=r"`batch_size` must lie .* got 1000. Leave it out"):
        runs._batches(replace(usual, batch_size=1000), split)
    assert runs._batches(replace(usual, batch_size=12), split).batch_size == 12


def test_epochs_are_counted_in_steps_the_last_one_whole() -> None:
    recipe = Recipe(epochs=3, batch_size=100, n_train=1050)
    assert recipe.resolved().plan().steps == 33
    assert recipe.resolved().steps is None
    assert Recipe(epochs=3).resolved().plan(1000).steps == 3
    result = run(replace(recipe, method="erm", width=4, batch_size=500))
    assert result.trajectory[-1].step == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 10, "epochs": 5}, "give `steps` or `epochs`, not both; got 10 and 5"),
        ({"epochs": 0}, "`epochs` must be at least 1; got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"model": "resnet18", "width": 64}, "`width` has no effect: model 'resnet18' has none; got 64"),
        ({"model": "resnet18", "momentum": 0.9}, "`momentum` has no effect"),
        ({"model": "resnet18", "method": "erm", "optimizer": "sgd", "eps": 1e-8}, "`eps` has no effect"),
    ],
)
def test_recipes_of_networks_that_cannot_be_run_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Recipe(**settings).resolved()


# Whole runs.


@pytest.mark.parametrize(
    ("method", "data"), [("erm", "tiny_images"), ("irm", "tiny_digits"), ("sparseirm", "tiny_images")]
)
def test_a_resnet18_trains_through_a_recipe(method: str, data: str) -> None:
    recipe = replace(TINY, model="resnet18", method=method, data=data, steps=3, eval_every=3)
    result = run(recipe)
    assert result.n_weights == 11_166_912 + 512 * (4 if data == "tiny_digits" else 1)
    assert (
        result.kept == result.budget == (result.n_weights // 2 if method == "sparseirm" else result.n_weights)
    )
    assert result.last.keys() == {"train", "val", "test"}


@pytest.mark.parametrize("method", ["irm", "sparseirm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deep_run_repeats_its_bits_interrupted_or_not(method: str, precision: str, tmp_path: Path) -> None:
    recipe = replace(TINY, method=method, precision=precision)
    whole = run(recipe, out=tmp_path / "whole")
    interrupted(recipe, tmp_path / "broken", step=3)
    resumed = run(recipe, out=tmp_path / "broken", resume=True)
    assert whole.trajectory == resumed.trajectory
    assert_same_bits(*(read_tensors(tmp_path / name / MODEL)[0] for name in ("whole", "broken")))


def test_a_deep_model_comes_back_with_the_risk_reported_though_its_mask_was_random_to_the_end(
    tmp_path: Path,
) -> None:
    recipe = replace(TINY, sparsifier_options={"decide_at": 1, "shrink_to": 1}, density=0.3, penalty_from=1.0)
    result = run(recipe, out=tmp_path)
    data = tiny_images(24)
    assert data.test is not None
    with torch.no_grad():
        logits = load_model(tmp_path)(data.test.samples.x)[:, 0]
    risk = BINARY.value(logits, data.test.samples.y).mean().item()
    assert risk == pytest.approx(result.last["test"].risk, rel=1e-4)


def test_another_environment_on_resuming_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(TINY, method="erm", data="full_colored_digits", model="mlp", n_train=100)
    here = runs.environment(torch.device("cpu"))
    interrupted(recipe, tmp_path, step=1)
    _, note = read_tensors(tmp_path / CHECKPOINT)
    assert note["environment"] == here
    assert {"threads", "device", "torch"} <= here.keys()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "environment", lambda place: {**here, "threads": 64})
        run(recipe, out=tmp_path, resume=True)
    payload = read_json(tmp_path / RESULT)
    assert payload["environment"] == {**here, "resumed_on": [{**here, "threads": 64}]}


# Penalties.


@pytest.fixture(scope="module")
def resnet_step() -> Callable[[], Outputs]:
    net = network(build(lambda: maker("resnet18")((3, 32, 32), 1, None), seed=0))
    weights, others, buffers = net.parts()
    weights.requires_grad_()
    samples = tiny_images(12).train.samples

    def step() -> Outputs:
        with net.watched() as features:
            logits = net.logits(samples.x, weights, others, buffers, training=True)
        seen = features[0] if features else None
        return Outputs(logits, samples.y, samples.env, 2, BINARY, features=seen, parameters=(weights,))

    return step


@pytest.mark.parametrize("name", ["iga", "fishr", "coral", "ib_irm"])
def test_penalties_on_gradients_and_features_work_with_a_resnet18(
    name: str, resnet_step: Callable[[], Outputs]
) -> None:
    out = resnet_step()
    assert out.features is not None and out.features.shape == (12, 512)
    value = make(name)(out)
    (gradient,) = torch.autograd.grad(value, out.parameters)
    assert value > 0
    assert gradient.isfinite().all() and gradient.count_nonzero() > 0


def test_a_representation_in_bfloat16_is_copied_to_float32_only_for_who_reads_it() -> None:
    net = network(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)))
    weights, others, buffers = net.parts()
    with torch.autocast("cpu", torch.bfloat16), net.watched() as coarse:
        logits, features = net.outputs(torch.ones(4, 3), weights, others, buffers)
    out = Outputs(logits, torch.ones(4), torch.zeros(4, dtype=torch.int64), 1, BINARY, features=features)
    assert callable(features) and callable(vars(out)["features"])
    assert coarse[0].dtype == torch.bfloat16
    assert out.features is not None and out.features.dtype == torch.float32
    assert torch.equal(out.features, coarse[0].float())


@pytest.mark.parametrize("name", ["fishr", "coral", "ib_irm"])
def test_penalties_on_features_refuse_a_network_without_a_linear_head(name: str) -> None:
    with pytest.raises(
        SettingError, match=f"'{name}' needs a representation, and the model has no linear head"
    ):
        run(replace(TINY, model="squeezenet1_1", method="irm", penalty=name, penalty_from=0.0))


# Batch normalisation.


class Plain(nn.Sequential):
    """Convolution, normalisation with its usual momentum, dropout, head."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 1),
        )


def conv_net() -> Network:
    return network(build(Plain, seed=0))


def two_environments(n: int = 20) -> Batch:
    """Images whose mean differs between environments."""
    env = torch.arange(n) % 2
    x = torch.randn(n, 3, 6, 6, generator=generator(0, "x")) + 3 * env.reshape(-1, 1, 1, 1)
    return Batch(x, torch.arange(n) // 2 % 2, env)


def hidden(net: Network, weights: Tensor, x: Tensor) -> Tensor:
    """What normalisation is given, ``(channels, n * height * width)``, by a plain convolution."""
    bias = net.module.get_parameter("0.bias").detach()
    out = nn.functional.conv2d(x, net.layout.split(weights)["0.weight"], bias)
    return out.transpose(0, 1).reshape(6, -1)


def test_statistics_of_a_batch_are_over_all_environments_together() -> None:
    net, batch = conv_net(), two_environments()
    weights, others, buffers = net.parts()
    net.logits(batch.x, weights, others, buffers, training=True)
    values = hidden(net, weights, batch.x)
    close(buffers["1.running_mean"], 0.1 * values.mean(1))
    close(buffers["1.running_var"], 0.9 + 0.1 * values.var(1))
    of_one = hidden(net, weights, batch.x[batch.env == 0])
    assert (buffers["1.running_mean"] - 0.1 * of_one.mean(1)).abs().max() > 0.01


@torch.no_grad()
def test_evaluation_of_a_sample_does_not_depend_on_its_neighbours() -> None:
    net, batch = conv_net(), two_environments()
    weights, others, buffers = net.parts()
    net.logits(batch.x, weights, others, buffers, training=True)
    together = net.logits(batch.x, weights, others, buffers)
    alone = torch.cat([net.logits(x[None], weights, others, buffers) for x in batch.x])
    close(together, alone)


@torch.no_grad()
def test_statistics_collected_anew_are_plain_means_over_batches() -> None:
    net, batch = conv_net(), two_environments()
    weights, others, buffers = net.parts()
    buffers["1.num_batches_tracked"] += 7
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    pieces = torch.split(batch.x, 5)
    fresh = recollected(net, weights / 2, others, buffers, pieces)
    values = [hidden(net, weights / 2, x) for x in pieces]
    close(fresh["1.running_mean"], torch.stack([v.mean(1) for v in values]).mean(0))
    close(fresh["1.running_var"], torch.stack([v.var(1) for v in values]).mean(0))
    assert fresh["1.num_batches_tracked"] == 7
    assert_same_bits(buffers, before)
    assert net.module.get_submodule("1").momentum == 0.1


def trained(sparsifier: Sparsifier, steps: int) -> tuple[Network, State, Batches, Moment]:
    """A convolutional network after a few steps, its training batches, and the moment of the last step."""
    net, batches = conv_net(), Batches(two_environments(), 2, 10)
    plan = Plan(steps=10, lr=0.05, penalty_from=1.0)
    state = start(net, sparsifier, plan, 0)

    class Stop(Exception):
        pass

    def on_step(state: State, record: Record) -> None:
        if state.step == steps:
            raise Stop

    with pytest.raises(Stop):
        train(net, batches, BINARY, PENALTIES["irmv1"], sparsifier, plan, state, 0, on_step)
    return net, state, batches, Moment(steps - 1, 10, generator(0, "now"))


def test_a_network_whose_mask_is_still_random_is_evaluated_with_its_own_statistics() -> None:
    sparsifier = ProbMask(60, decide_at=1.0, shrink_to=0.5)
    net, state, batches, now = trained(sparsifier, steps=8)
    buffers = deployed_buffers(net, sparsifier, state, batches, now)
    weights = metrics.deployed(sparsifier, state)
    epoch = [batches.at(step).x for step in (0, 1)]
    assert_same_bits(buffers, recollected(net, weights, state.others, state.buffers, epoch))
    bias = state.others["0.bias"].detach()[:, None] - net.module.get_parameter("0.bias").detach()[:, None]
    values = hidden(net, weights, batches.samples.x) + bias
    off, right = ((b["1.running_mean"] - values.mean(1)).abs().max() for b in (state.buffers, buffers))
    assert right < 1e-4 < 0.05 < off


@pytest.mark.parametrize("decide_at", [0.4, 0.8])
def test_once_the_mask_is_decided_the_statistics_of_training_hold(decide_at: float) -> None:
    sparsifier = ProbMask(60, decide_at=decide_at)
    net, state, batches, now = trained(sparsifier, steps=8)
    assert deployed_buffers(net, sparsifier, state, batches, now) is state.buffers


def test_a_dense_network_keeps_the_statistics_of_training() -> None:
    dense = SPARSIFIERS["dense"](budget=168)
    net, state, batches, now = trained(dense, steps=8)
    assert deployed_buffers(net, dense, state, batches, now) is state.buffers


# Evaluation, layout, randomness.


def test_a_large_split_is_evaluated_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    net, data = conv_net(), tiny_images(24)
    weights = net.parts()[0]
    state = start(net, SPARSIFIERS["dense"](budget=168), Plan(), 0)
    whole = metrics.evaluate(net, state, weights, data.train, BINARY)
    sizes: list[int] = []
    original = Network.call

    def call(self: Network, x: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(x))
        return original(self, x, *rest)

    monkeypatch.setattr(Network, "call", call)
    monkeypatch.setattr(metrics, "IMAGES", 10)
    pieces = metrics.evaluate(net, state, weights, data.train, BINARY)
    assert sizes == [10, 10, 4]
    assert pieces.risks == pytest.approx(whole.risks, rel=1e-5)


@torch.no_grad()
def test_images_go_through_convolutions_channels_last_with_the_same_result() -> None:
    net, seen = conv_net(), []
    handle = net.module.get_submodule("0").register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    x = two_environments().x
    logits = net.logits(x, *net.parts())
    handle.remove()
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and not seen[0].is_contiguous()
    close(logits, net.module(x)[:, 0])
    assert not network(MODELS["mlp"]((3, 6, 6), 1, 8)).convolutional


def test_global_generators_are_lent_and_given_back() -> None:
    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    with global_draws(torch.device("cpu")) as seed_all:
        seed_all(1)
        first = torch.rand(2)
        seed_all(1)
        assert torch.equal(first, torch.rand(2))
    assert torch.equal(torch.rand(3), undisturbed)
    torch.manual_seed(1)
    assert torch.equal(first, torch.rand(2))


# Memory.

PEAK = """
import resource
from functools import partial
from makers import tiny_images
from sparseirm import Recipe, run
from sparseirm.data import DATASETS

DATASETS["large"] = partial(tiny_images, shape=(3, 64, 64))
recipe = Recipe(data="large", model="resnet18", n_train=1024, batch_size=1024, steps=2, eval_every=2)
run(recipe, out=OUT, checkpoint_seconds=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_a_resnet18_on_a_thousand_images_of_64_pixels_fits_in_8_gib(tmp_path: Path) -> None:
    script = PEAK.replace("OUT", repr(str(tmp_path / "out")))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert float(done.stdout) < 8
