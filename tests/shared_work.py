"""What the processes of tests/test_sharding.py compute, alone and together."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from makers import PLAN, Problem, plain_module, samples
from sparseirm.core import Moment, Outputs, Penalty, SettingError, Tensors
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import sweep
from sparseirm.files import write_json, write_tensors
from sparseirm.losses import BINARY
from sparseirm.models import build
from sparseirm.penalties import PENALTIES, make
from sparseirm.randomness import generator, global_draws
from sparseirm.recipe import Recipe
from sparseirm.runs import run
from sparseirm.sparsifiers import ProbMask
from sparseirm.training.attach import attach
from sparseirm.training.checkpoint import tensors_of
from sparseirm.training.loop import Record, forward
from sparseirm.training.sharding import WHOLE, Sharding, gathered
from sparseirm.training.shrinking import Shrinking

UNEVEN = samples((3, 29, 9))
"""In this order: of several processes, only the first has samples of the first environment."""

MIXED = samples((12, 29, 9)).take(torch.cat([torch.arange(first, 50, 4) for first in range(4)]))
"""In this order, each of two or four processes has samples of every environment."""

NAIVE = ("irmv1", "rex")

EVERY_PENALTY: dict[str, Penalty] = {
    **PENALTIES,
    "bayesian_split": make("bayesian", split=True),
    "groupdro_smooth": make("groupdro", temperature=0.1),
}

RECIPE = Recipe(width=8, steps=20, n_train=120, penalty="rex", density=0.1, lr_stop=1, eval_every=5)


def without_batch_norm() -> nn.Module:
    """A module that can be run in micro-batches."""
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 1))


def convolutions() -> nn.Module:
    """Batch normalisation of images, after a layer without bias."""
    layers = nn.Conv2d(1, 4, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), *layers)


class Standardised(nn.Conv2d):
    """A convolution that normalises its weights with the function for batches, as some networks do."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).view_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def standardised(*after: nn.Module) -> nn.Module:
    """A network whose weights are standardised."""
    layers = Standardised(1, 4, 2), *after, nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), *layers)


class Frames(nn.BatchNorm1d):
    """Batch normalisation with as many rows per sample as it has positions."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return super().forward(rows.flatten(0, 1)).view_as(rows).transpose(1, 2).reshape(x.shape)


def problem(penalty: str = "irmv1", **changes: Any) -> Problem:
    return replace(Problem(batch=UNEVEN, penalty=EVERY_PENALTY[penalty]), **changes)


def gradients(problem: Problem, sharding: Sharding = WHOLE) -> Tensors:
    """Value and gradients of risk and penalty after one pass, and the running statistics."""
    net, sparsifier, state = problem.fresh()
    now = Moment(0, problem.plan.steps, generator(0, "step", 0))
    effective = sparsifier.effective(state.weights, state.memory, now)
    with global_draws(torch.device("cpu")) as seed_all:
        seed_all(5)
        out = forward(net, state, effective, problem.batch, 3, BINARY, problem.plan, now, sharding, 5)
        loss = out.risks.mean() + problem.penalty(out)
        loss.backward()
    leaves = {"weights": state.weights, **state.others, **state.memory.learned, "effective": effective}
    found = {f"gradient {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"loss": loss.detach(), **state.buffers, **found}


def naive_gradients(problem: Problem, sharding: Sharding) -> Tensors:
    """Gradients as plain data parallelism has them: of a loss on each process's rows, then averaged."""
    rows = sharding.rows(len(problem.batch))
    mine = gradients(replace(problem, batch=problem.batch.take(torch.arange(rows.start, rows.stop))))
    for tensor in mine.values():
        dist.all_reduce(tensor)
    return {name: tensor / sharding.ranks for name, tensor in mine.items()}


def trained(problem: Problem, sharding: Sharding = WHOLE, shrinking: Shrinking | None = None) -> Tensors:
    """The state after 20 steps, and its mask."""
    found = replace(problem, plan=replace(PLAN, steps=20)).train(sharding=sharding, shrinking=shrinking)
    mask = found.sparsifier.mask(found.state.weights.detach(), found.state.memory)
    return {**tensors_of(found.state), "mask": mask.clone()}


def numbers_gathered(problem: Problem, sharding: Sharding) -> Tensors:
    """How many numbers one pass gathers from all processes."""
    counts: list[int] = []
    gather = dist.all_gather

    def counting(pieces: list[Tensor], mine: Tensor) -> None:
        counts.append(sum(piece.numel() for piece in pieces))
        gather(pieces, mine)

    with patch.object(dist, "all_gather", counting):
        gradients(problem, sharding)
    return {"numbers": torch.tensor(sum(counts))}


def attached(penalty: str, sharding: Sharding) -> Tensors:
    """What is left after 12 steps of a loop of one's own, on several processes under DDP."""
    module = build(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), 0)
    model = module if sharding == WHOLE else DistributedDataParallel(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    sparse = attach(module, optimizer, ProbMask(20, score_lr=0.02), steps=12)
    mine = UNEVEN.take(torch.arange(len(UNEVEN))[sharding.rows(len(UNEVEN))])
    features: list[Tensor] = []
    module[1].register_forward_hook(lambda module, inputs, output: features.append(output))
    for _ in range(12):
        optimizer.zero_grad()
        logits = model(mine.x)[:, 0]
        seen = Outputs(
            *(logits, mine.y, mine.env, 3, BINARY), features=features.pop(), noise=sparse.now.noise
        )
        out = gathered(seen)
        (out.risks.mean() + EVERY_PENALTY[penalty](out)).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


GRADIENTS: dict[str, Callable[[Sharding], Tensors]] = {
    **{f"gradients {name}": lambda s, name=name: gradients(problem(name), s) for name in EVERY_PENALTY},
    "gradients convolutions": lambda s: gradients(problem(module=convolutions), s),
    "gradients standardised": lambda s: gradients(problem(module=standardised), s),
    "gradients frames": lambda s: gradients(problem(module=lambda: standardised(Frames(4))), s),
    "gradients micro-batches": lambda s: gradients(
        problem(module=without_batch_norm), replace(s, micro_batch=4)
    ),
}
TRAINED: dict[str, Callable[[Sharding], Tensors]] = {
    **{f"trained {name}": lambda s, name=name: trained(problem(name), s) for name in ("irmv1", "coral")},
    "trained rigl": lambda s: trained(problem("rex", sparsifier="rigl"), s),
    **{f"attached {name}": lambda s, name=name: attached(name, s) for name in ("coral", "irmv1_split")},
    "trained shrunk": lambda s: trained(problem("coral", sparsifier="structured"), s, Shrinking()),
    "trained minibatch": lambda s: trained(problem("irmv1_split", batch_size=33), s),
}
OTHER: dict[str, Callable[[Sharding], Tensors]] = {
    **{
        f"naive {name}": lambda s, name=name: naive_gradients(problem(name, batch=MIXED), s) for name in NAIVE
    },
    **{f"mixed {name}": lambda s, name=name: gradients(problem(name, batch=MIXED), s) for name in NAIVE},
    "numbers irmv1": lambda s: numbers_gathered(problem(module=plain_module), s),
    "numbers coral": lambda s: numbers_gathered(problem("coral", module=plain_module), s),
}


def refused(call: Callable[[], object]) -> str:
    """The message of a refusal."""
    try:
        call()
    except SettingError as error:
        return str(error)
    return "not refused"


def refusals(sharding: Sharding, folder: Path) -> dict[str, str]:
    """Messages of what cannot be done with several processes."""
    few = replace(problem(), batch=UNEVEN.take(torch.tensor([2])))
    different = {"weights": torch.tensor(sharding.rank)}
    return {
        "few samples": refused(lambda: gradients(few, sharding)),
        "device": refused(lambda: run(RECIPE, device="cuda:1")),
        "sweep": refused(lambda: sweep([], Store(folder), None)),  # type: ignore[arg-type]
        "different": refused(lambda: sharding.check_alike("weights", different)),
        "held": refused(lambda: run(RECIPE, out=folder / "run")),
    }


def whole_runs(folder: Path) -> None:
    """A run by all processes, stopped in the middle and resumed, then asked for again."""

    def stop(record: Record, trajectory: object) -> None:
        if record.step == 12:
            raise KeyboardInterrupt

    try:
        run(RECIPE, out=folder / "run", on_step=stop)
    except KeyboardInterrupt:
        dist.barrier()  # what torchrun does: nobody goes on before all have stopped
    steps: list[int] = []
    found = run(RECIPE, out=folder / "run", resume=True, on_step=lambda record, _: steps.append(record.step))
    assert steps == list(range(13, 21))
    assert found.trajectory == run(RECIPE, out=folder / "run", resume=True).trajectory


def work(rank: int, ranks: int, folder: Path) -> None:
    """All that a group of processes is needed for."""
    sharding = Sharding(rank, ranks)
    for name, call in (GRADIENTS | TRAINED | OTHER).items():
        write_tensors(folder / f"{name}-{rank}", call(sharding), {})
    whole_runs(folder)
    write_json(folder / f"refusals-{rank}", refusals(sharding, folder))


def process(rank: int, ranks: int, folder: str) -> None:
    """One process of a group."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=ranks)
    work(rank, ranks, Path(folder))
    dist.destroy_process_group()


def together(ranks: int, folder: Path) -> None:
    """Have a group of processes do the `work`; they start from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shared_work"])
    group = [context.Process(target=process, args=(rank, ranks, str(folder))) for rank in range(ranks)]
    for one in group:
        one.start()
    for one in group:
        one.join(timeout=300)
    assert [one.exitcode for one in group] == [0] * ranks
