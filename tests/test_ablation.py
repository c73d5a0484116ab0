"""Claims about the ablations: a probe reads what is there and only that, and no number depends on luck."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparseirm.experiments.ablation as command
import sparseirm.experiments.ablation_study as study
from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.data import Batch, Split
from sparseirm.evaluation.probes import Probe, read_attribute, representation
from sparseirm.experiments.pages import filled
from sparseirm.experiments.store import Store
from sparseirm.files import read_json, read_tensors, write_tensors
from sparseirm.models import MLP
from sparseirm.randomness import generator
from sparseirm.recipe import Recipe
from sparseirm.runs import MODEL, load_model

TINY = Recipe(width=8, n_train=100, steps=4, eval_every=4, method="irm")
QUICK = Probe(steps=100)


# The representation.


def test_the_representation_is_what_the_last_linear_layer_is_given() -> None:
    module = MLP(8, 5, 1)
    x = torch.randn(9, 2, 2, 2, generator=generator(0, "x"))
    hidden = x.flatten(1)
    for layer in (module[1], module[3]):
        assert isinstance(layer, nn.Linear)
        hidden = (hidden @ layer.weight.T + layer.bias).relu()
    torch.testing.assert_close(representation(module, x), hidden.detach())


def test_it_is_that_of_the_module_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).train()
    x = torch.ones(50, 3)
    torch.testing.assert_close(representation(module, x), module[0](x).detach())


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 1))])
def test_a_module_without_a_representation_is_refused(module: nn.Module) -> None:
    with pytest.raises(SettingError, match="no representation to read"):
        representation(module, torch.ones(2, 3))


# The probe.


def told(features: Tensor, attribute: Tensor | None) -> Split:
    env = torch.zeros(len(features), dtype=torch.int64)
    return Split(Batch(features, env, env), ("all",), attribute)


def puzzle(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Six units: the attribute is whether two of them have the same sign, which no single one says."""
    x = torch.randn(n, 6, generator=generator(seed, "features"))
    return x, (x[:, 0] * x[:, 1] > 0).long()


def test_the_probe_reads_what_no_linear_one_could() -> None:
    seen, fresh = (told(*puzzle(1500, seed)) for seed in (0, 1))
    accuracies = read_attribute(seen, fresh, Probe(steps=200, lr=1e-2))
    assert min(accuracies) > 92


def test_the_probe_finds_nothing_where_there_is_nothing() -> None:
    (x, _), (z, _) = puzzle(1500, 0), puzzle(1500, 1)
    coins = torch.randint(2, (3000,), generator=generator(0, "coins"))
    seen, fresh = read_attribute(told(x, coins[:1500]), told(z, coins[1500:]), QUICK)
    assert abs(fresh - 50) < 5 and seen < 75


def test_a_representation_without_any_variation_says_nothing() -> None:
    coins = torch.randint(2, (400,), generator=generator(0, "coins"))
    dead = told(torch.full((400, 3), 2.0), coins)
    seen, fresh = read_attribute(dead, dead, QUICK)
    heads = 100 * float(coins.float().mean())
    assert seen == fresh == pytest.approx(max(heads, 100 - heads), abs=1e-3)


def test_large_and_small_units_tell_it_equally_much() -> None:
    (x, y), (z, v) = puzzle(600, 0), puzzle(600, 1)
    sizes = torch.tensor([1e-2, 1e2, 1.0, 1.0, 1.0, 1.0])
    plain = read_attribute(told(x, y), told(z, v), QUICK)
    assert read_attribute(told(x * sizes + 7, y), told(z * sizes + 7, v), QUICK) == pytest.approx(
        plain, abs=1.0
    )


def test_it_reads_attributes_of_many_values() -> None:
    x, _ = puzzle(1500, 0)
    attribute = x[:, :4].argmax(1)
    assert min(read_attribute(told(x, attribute), told(x, attribute), Probe(steps=150, lr=1e-2))) > 90


def test_an_attribute_that_is_not_known_cannot_be_read() -> None:
    x, y = puzzle(10, 0)
    with pytest.raises(SettingError, match="does not say what its spurious attribute is"):
        read_attribute(told(x, y), told(x, None), QUICK)


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("width", 0), ("batch_size", 0), ("lr", 0.0)])
def test_a_probe_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"`{name}`.* must be"):
        Probe(**{name: value})  # type: ignore[arg-type]


# Exchanging the attribute.


@pytest.mark.parametrize("data", ["colored_digits", "full_colored_digits"])
def test_exchanging_shows_the_same_images_in_other_colours(data: str) -> None:
    recipe = replace(TINY, data=data).resolved()
    one, other = (study._test(study._drawn(recipe, agreement, None)) for agreement in (1.0, 0.0))
    assert torch.equal(one.samples.y, other.samples.y) and torch.equal(one.samples.y, one.spurious)  # type: ignore[arg-type]
    assert (one.spurious != other.spurious).all()  # type: ignore[union-attr, attr-defined]
    assert torch.equal(one.samples.x.amax(1), other.samples.x.amax(1))  # every palette has a full channel
    assert (one.samples.x != other.samples.x).flatten(1).any(1).all()


@pytest.mark.parametrize(("data", "rate"), [("colored_digits", 0.5), ("full_colored_digits", 0.1)])
def test_the_probe_s_attribute_says_nothing_about_the_label(data: str, rate: float) -> None:
    drawn = study._drawn(replace(TINY, data=data, n_train=1200).resolved(), None, None)
    agrees = drawn.train.spurious == drawn.train.samples.y
    assert float(agrees.float().mean()) == pytest.approx(rate, abs=0.05)


def blind_and_sighted(tmp_path: Path) -> dict[str, study.Reading]:
    """Readings of one network that cannot tell the colours apart and one that sees nothing else."""
    found = {}
    for name in ("blind", "sighted"):
        root = tmp_path / name
        _, folder = study.trained(TINY, Store(root))
        module = load_model(folder)
        with torch.no_grad():
            first = module[1].weight.view(8, 2, -1)  # type: ignore[index, operator, union-attr]
            if name == "blind":
                first[:, 1] = first[:, 0]
            else:
                first[:, 0], first[:, 1] = 1.0, -1.0
                first[4:] *= -1
                module[3].weight[:] = torch.eye(8)  # type: ignore[index, operator, union-attr]
        tensors = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        write_tensors(folder / MODEL, tensors, read_tensors(folder / MODEL)[1])
        found[name] = study.reading(TINY, root, Probe(steps=300))
    return found


def test_a_network_blind_to_colour_and_one_that_sees_it_are_told_apart(tmp_path: Path) -> None:
    found = blind_and_sighted(tmp_path)
    assert found["blind"].moved == 0 and not any(found["blind"].units) and found["blind"].size > 0
    assert abs(found["blind"].fresh - 50) < 12
    assert found["sighted"].fresh > 95 and found["sighted"].moved > 0.5 * found["sighted"].size


# Trained networks.


def test_a_network_is_trained_once_and_again_only_if_it_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    result, folder = study.trained(TINY, store)
    assert folder == tmp_path / "models" / TINY.key and store.get(TINY) == result
    stored, written = (tmp_path / "runs" / f"{TINY.key}.json"), (folder / MODEL).stat().st_mtime_ns
    before = stored.read_bytes()
    assert study.trained(TINY, store)[0] == result and (folder / MODEL).stat().st_mtime_ns == written
    for path in folder.iterdir():
        path.unlink()
    again, _ = study.trained(TINY, store)
    assert again.trajectory == result.trajectory and stored.read_bytes() == before


def test_data_whose_attribute_cannot_be_exchanged_is_refused() -> None:
    own = replace(TINY.resolved(), correlations=None)
    with pytest.raises(SettingError, match="cannot be exchanged; choose one that is constructed"):
        study._drawn(own, 0.5, None)


# The command.


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in threads of this process, which start faster."""

    @contextmanager
    def threads(workers: int | None = None) -> Iterator[Executor]:
        with ThreadPoolExecutor(1) as pool:
            yield pool

    monkeypatch.setattr(command, "local", threads)


FLAGS = ["--width", "8", "--n-train", "100", "--steps", "4", "--eval-every", "4", "--probe.steps", "20"]


@pytest.mark.usefixtures("here")
def test_the_command_writes_tables_figure_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        *FLAGS,
        "--seeds",
        "0",
        "1",
        "--densities",
        "0.2",
        "0.5",
        "--density-methods",
        "sparseirm",
        "mrm",
    ]
    place = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert main(["ablation", *flags, *place]) == 0
    said, text = capsys.readouterr().out, (tmp_path / "out" / "ablation.md").read_text()
    numbers = read_json(tmp_path / "out" / "ablation.json")
    report = study.AblationReport.from_json(numbers)
    assert study.AblationReport.from_json(read_json(tmp_path / "out" / "ablation.json")) == report
    assert asdict(report)["readings"][0]["units"] == tuple(numbers["readings"][0]["units"])
    labels = ["IRM (irmv1)", "MRM (irmv1)", "SparseIRM (irmv1)"]
    assert [(r.label, r.seed) for r in report.readings] == [
        (name, seed) for name in labels for seed in (0, 1)
    ]
    assert [(b.label, b.density) for b in report.budgets] == [
        (name, density) for name in labels[:0:-1] for density in (0.2, 0.5)
    ]
    assert all(len(reading.units) == 8 for reading in report.readings)
    for name, sheet in command.sheets(report).items():
        assert sheet.table in text and sheet.title in said, name
        assert all(len(row) == len(sheet.headings) for row in sheet.rows)
    assert (tmp_path / "out" / "ablation.svg").read_text().startswith("<?xml")

    stored = {(r.recipe.method, r.recipe.seed, r.recipe.density): r for r in Store(tmp_path / "store").all()}
    one = stored["mrm", 1, None]
    assert (report.readings[3].train, report.readings[3].test) == tuple(
        one.last[split].accuracy for split in ("train", "test")
    )
    assert report.budgets[1].val[1] == stored["sparseirm", 1, 0.5].last["val"].accuracy
    assert report.budgets[1].kept == stored["sparseirm", 1, 0.5].kept

    page = "<!-- ablation out/ablation.json probe -->\nold\n<!-- end -->\n"
    assert command.sheets(report)["probe"].table in filled(page, tmp_path)
    with pytest.raises(SettingError, match="no ablation table is named 'prob'"):
        filled(page.replace("probe", "prob"), tmp_path)


@pytest.mark.usefixtures("here")
def test_a_setting_of_one_method_does_not_stop_the_others(tmp_path: Path) -> None:
    report = command.ablation(
        replace(TINY, method="sparseirm", stage_lengths=(0.5, 0.5, 1)),
        methods=("mrm",),
        seeds=(0,),
        densities=(0.5,),
        probe=Probe(steps=5),
        store=tmp_path,
        out=tmp_path,
    )
    assert [budget.label for budget in report.budgets] == ["SparseIRM (irmv1)"]
    steps = {result.recipe.method: result.trajectory[-1].step for result in Store(tmp_path).all()}
    assert steps == {"mrm": 8, "sparseirm": 4}


@pytest.mark.usefixtures("here")
def test_the_numbers_are_the_same_again(tmp_path: Path) -> None:
    def once(out: Path) -> dict[str, object]:
        command.ablation(
            replace(TINY, method="sparseirm"),
            methods=("irm",),
            seeds=(0,),
            densities=(),
            probe=Probe(steps=5),
            store=out / "store",
            out=out,
        )
        return read_json(out / "ablation.json")

    first = once(tmp_path / "a")
    assert first == once(tmp_path / "b") == once(tmp_path / "a")
    assert first["budgets"] == [] and "density" not in str(first["recipe"])


def test_the_papers_numbers_stand_beside_those_of_its_data_set() -> None:
    reading = study.Reading("SparseIRM (irmv1)", 0, 60.0, 59.0, 70.0, 69.0, 0.1, 0.2, (0.1,))
    papers = {"data": "colored_mnist", "n_train": 50000, "width": 640}
    report = study.AblationReport(papers, Probe(), "colour", 50.0, (reading, replace(reading, label="ERM")))
    sheet = command.sheets(report)["probe"]
    assert sheet.headings[-2:] == ("paper, seen", "paper, fresh")
    assert [row[-2:] for row in sheet.rows] == [("50.3 ± 0.8", "50.0 ± 0.7"), ("", "")]
    other = command.sheets(replace(report, recipe={**papers, "data": "colored_digits"}))["probe"]
    assert other.headings[-1] == "seeds" and all(len(row) == len(other.headings) for row in other.rows)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--method", "irm"], "give `methods`"),
        (["--methods", "magic"], "no method is named 'magic'"),
        (["--density-methods", "irm"], "`density_methods` must be sparse; 'irm' keeps every weight"),
        (["--densities", "--density-methods", "mrm"], "`density_methods` has no effect without `densities`"),
        (["--density-methods", "mrm", "mrm"], "`density_methods` must name each one once"),
        (["--densities", "5"], "`density` must be in (0, 1]"),
        (["--densities", "0.1", "0.1"], "`densities` must name each one once"),
        (["--probe.width", "0"], "`width` of the probe must be at least 1"),
        (["--probe.steps", "0"], "`steps` must be at least 1"),
        (["--seeds", "0", "0"], "`seeds` must name each one once"),
        (["--workers", "0"], "`workers` must be at least 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(
    flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablation", *FLAGS[:-2], *flags, "--store", str(tmp_path), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
