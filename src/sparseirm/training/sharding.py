"""A training step divided exactly: its batch over processes, and over passes one after the other.

Penalties are not sums over samples, so gradients of penalties on parts of a batch do not add up to the
gradient on all of it. Here only the network is run on parts. Its logits (and, where a penalty reads it, its
representation) are put together again, every process computes risks and penalty of the WHOLE batch, and then
carries its own rows back through the network. What all processes compute alike is called replicated below.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from sparseirm.core import Outputs, SettingError, Tensors, accumulator, first_line
from sparseirm.models import Features
from sparseirm.training.processes import collected, shared, summed, torchrun

Run = Callable[[Tensor, Tensor, Tensors], tuple[Tensor, Features]]
"""``(inputs, effective weights, other parameters) -> (logits, representation)``."""


@dataclass(frozen=True)
class Sharding:
    """Which part of every step is this process's, and in how many passes it is run.

    Attributes:
        rank: number of this process, from 0.
        ranks: number of processes that train the network together.
        micro_batch: samples per pass through the network, or None for all rows of this process at once. Less
            memory, and a second forward pass: that of each micro-batch is repeated when its gradient is due.

    Raises:
        SettingError: if ``micro_batch`` is below 1.

    Example:
        >>> Sharding(rank=1, ranks=2).rows(5), Sharding(micro_batch=2).passes(5)
        (slice(3, 5, None), [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)])
    """

    rank: int = 0
    ranks: int = 1
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise SettingError(f"`micro_batch` must be at least 1 sample; got {self.micro_batch}.")

    def sizes(self, n: int) -> list[int]:
        """How many of ``n`` samples each process has: as equal as possible, larger ones first."""
        if n < self.ranks:
            raise SettingError(
                f"a batch of {n} samples cannot be divided among {self.ranks} processes. Start fewer, or use "
                "a larger `batch_size`."
            )
        return [n // self.ranks + (rank < n % self.ranks) for rank in range(self.ranks)]

    def rows(self, n: int) -> slice:
        """Which of ``n`` samples are this process's."""
        sizes = self.sizes(n)
        first = sum(sizes[: self.rank])
        return slice(first, first + sizes[self.rank])

    def passes(self, n: int) -> list[slice]:
        """The rows of this process, some for each pass."""
        mine = self.rows(n)
        step = self.micro_batch or n
        return [slice(at, min(at + step, mine.stop)) for at in range(mine.start, mine.stop, step)]

    def apply(
        self, run: Run, x: Tensor, effective: Tensor, others: Tensors, seed: int
    ) -> tuple[Tensor, Features]:
        """What ``run`` gives for the whole batch, of which this process runs its part.

        Gradients by ``effective`` and ``others`` are those of the whole batch, the same in every process.

        Args:
            run: one pass through the network.
            x: ``(n, ...)`` inputs of the whole batch; only this process's rows are used.
            effective: ``(d,)`` weights, replicated.
            others: other parameters, replicated.
            seed: seed of dropout.

        Returns:
            Logits and representation of all ``n`` samples, replicated; the representation of several
            processes as a function that collects it, which all of them must call or none.

        Raises:
            SettingError: if the batch has fewer samples than there are processes, or the network or penalty
                cannot be computed in micro-batches.
        """
        if self == WHOLE:
            return run(x, effective, others)
        sizes = self.sizes(len(x))
        if self.ranks > 1:
            effective, others = _shared(effective, others)
        draws = _Draws(len(x), torch.Generator(x.device).manual_seed(seed))
        parts = [self._pass(run, x, rows, effective, others, draws) for rows in self.passes(len(x))]
        logits = torch.cat([logits for logits, _ in parts])
        found = [features for _, features in parts if features is not None]
        features = torch.cat(found) if found else None
        if self.ranks == 1:
            return logits, features
        collect = None if features is None else lambda: collected(features, sizes, self.rank)
        return collected(logits, sizes, self.rank), collect

    def _pass(
        self, run: Run, x: Tensor, rows: slice, effective: Tensor, others: Tensors, draws: _Draws
    ) -> tuple[Tensor, Tensor | None]:
        def part(effective: Tensor, others: Tensors) -> tuple[Tensor, Tensor | None]:
            with _Part(self, rows, draws):
                logits, features = run(x[rows], effective, others)
                return logits, features() if callable(features) else features

        if self.micro_batch is None:
            return part(effective, others)
        logits, features = checkpoint(part, effective, others, use_reentrant=False)
        if features is not None:
            logits, features = differentiable_once(TWICE, logits, features)
            return logits, features
        return differentiable_once(TWICE, logits)[0], None

    @contextmanager
    def first_process_first(self) -> Iterator[None]:
        """The others enter the block when the first process has left it, and do not if it fails there.

        Raises:
            SettingError: in the others, if the first process failed.
        """
        if self.ranks == 1:
            yield
        elif self.rank == 0:
            done = False
            try:
                yield
                done = True
            finally:
                dist.broadcast(torch.tensor(int(done)), 0)
        else:
            done_there = torch.tensor(0)
            dist.broadcast(done_there, 0)
            if not done_there:
                raise SettingError("the first process stopped; its message says why.")
            yield

    def check_alike(self, what: str, tensors: Mapping[str, Tensor], note: str = "") -> None:
        """Refuse to go on if the processes do not hold the same bits.

        Args:
            what: in words, for the message.
            tensors: what must be equal, by name.
            note: text that must be equal too.

        Raises:
            SettingError: in every process, if something differs.
        """
        if self.ranks == 1:
            return
        found = hashlib.blake2b(note.encode(), digest_size=8)
        for name in sorted(tensors):
            values = tensors[name].detach().cpu().contiguous().reshape(-1)
            found.update(name.encode() + values.view(torch.uint8).numpy().tobytes())
        mine = torch.tensor(list(found.digest()))
        every = [torch.empty_like(mine) for _ in range(self.ranks)]
        dist.all_gather(every, mine)
        differ = [str(rank) for rank, digest in enumerate(every) if not digest.equal(every[0])]
        if differ:
            raise SettingError(
                f"{what} of process {', '.join(differ)} differ from those of process 0. All processes need "
                "the same recipe, data, versions and kind of processor, and must see the same `out`."
            )


WHOLE = Sharding()
"""One process, which runs every batch in one pass."""


@contextmanager
def joined(device: str, micro_batch: int | None = None) -> Iterator[tuple[Sharding, torch.device]]:
    """This process as one of those that torchrun started, or alone.

    A process group that exists is used and left as it is; otherwise one is made if torchrun is at work.

    Args:
        device: where to compute. With several processes ``cuda`` gives each a device of its own.
        micro_batch: as in `Sharding`.

    Yields:
        tuple[Sharding, torch.device]: the part of this process, and its device.

    Raises:
        SettingError: if the device is not there or cannot be shared out, or ``micro_batch`` is below 1.
    """
    rank, ranks = torchrun()
    if ranks > 1 and device not in ("cpu", "cuda"):
        raise SettingError(
            f"`device` must be cpu or cuda with several processes, each of which takes its own; got "
            f"{device!r}."
        )
    if ranks > 1 and device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', rank % max(1, torch.cuda.device_count()))}"
    place = _usable(device)
    begun = dist.is_available() and not dist.is_initialized() and dist.is_torchelastic_launched()
    if begun:
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            raise SettingError(f"the processes cannot reach each other: {first_line(error)}.") from None
    try:
        yield Sharding(rank, ranks, micro_batch), place
    finally:
        if begun:
            dist.destroy_process_group()


def _usable(name: str) -> torch.device:
    """A device that is there."""
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it cannot train")
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"`device` {name!r} cannot be used here: {first_line(error)}. Use cpu.") from None
    return device


def gathered(out: Outputs) -> Outputs:
    """The outputs of all processes together, for a loop of your own under `DistributedDataParallel`.

    Compute risks and penalty of what this returns, in every process, and go backwards from them: averaged
    over the processes, as `DistributedDataParallel` does, the gradients are those of one process with all
    samples.

    Args:
        out: what this process has for its own samples, of which each process may have another number.
            ``noise`` must be the same in all processes, as that of an attachment is.

    Returns:
        The outputs of the samples of all processes; ``out`` itself if there is one process. It has no
        ``parameters``, since gradients by them are not gathered.

    Example:
        >>> from sparseirm.losses import BINARY
        >>> out = Outputs(torch.tensor([1.0]), torch.ones(1), torch.tensor([0]), 1, BINARY)
        >>> gathered(out) is out
        True
    """
    rank, ranks = torchrun()
    if ranks == 1:
        return out
    counts = collected(out.env.new_tensor([len(out.env)]), [1] * ranks, rank)
    sizes = counts.tolist()

    def everywhere(values: Tensor) -> Tensor:
        mine: Any = values.view_as(values)
        if mine.requires_grad:
            mine.register_hook(lambda gradient: ranks * gradient)  # which is then averaged
        return collected(mine, sizes, rank)

    return replace(
        out,
        logits=everywhere(out.logits),
        y=everywhere(out.y),
        env=everywhere(out.env),
        weight=None if out.weight is None else everywhere(out.weight),
        features=None if out.features is None else lambda: everywhere(cast(Tensor, out.features)),
        parameters=(),
    )


@dataclass
class _Draws:
    """What dropout draws in a step for the whole batch: one mask per call, the same in every pass."""

    n: int
    noise: torch.Generator
    masks: list[Tensor] = field(default_factory=list)

    def mask(self, call: int, x: Tensor, p: float) -> Tensor:
        """Which numbers of the whole batch stay in a call, bool ``(n, ...)``; calls come in one order."""
        if call == len(self.masks):
            drawn = x.new_empty(self.n, *x.shape[1:]).bernoulli_(1 - p, generator=self.noise)
            self.masks.append(drawn.bool())
        return self.masks[call]


class _Part(TorchFunctionMode):
    """While it is active, modules treat the rows they are given as part of the whole batch.

    Two operations of usual modules depend on the other rows: batch normalisation, by its statistics, and
    dropout, by what was drawn before.
    """

    def __init__(self, sharding: Sharding, rows: slice, draws: _Draws) -> None:
        super().__init__()
        self.sharding, self.rows, self.draws, self.calls = sharding, rows, draws, 0
        self.entered: nn.Module | None = None

    def __enter__(self) -> _Part:
        self.hook = register_module_forward_pre_hook(self._enter)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self.hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.entered = module

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = {F.batch_norm: self.batch_norm, F.dropout: self.dropout}
        return own.get(function, function)(*args, **(kwargs or {}))

    def batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Batch normalisation with the statistics of all processes' rows."""
        if not training or not self._of_samples(x, running_mean):
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        if self.sharding.micro_batch is not None:
            raise SettingError(
                "`micro_batch` cannot be used with batch normalisation, whose statistics are of the whole "
                "batch: use several processes, a smaller `batch_size`, or a network without it."
            )
        count = self.draws.n * (x.numel() // (self.rows.stop - self.rows.start)) // x.shape[1]
        mean, var = _statistics(x, count)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((var * (count / (count - 1))).to(running_var), momentum)
        scale = (var + eps).rsqrt()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        along = (1, -1, *[1] * (x.ndim - 2))
        normal = (wide - mean.to(wide).view(along)) * scale.to(wide).view(along)
        if weight is not None:
            normal = normal * weight.to(wide).view(along)
        return (normal if bias is None else normal + bias.to(wide).view(along)).to(x.dtype)

    def _of_samples(self, x: Tensor, running_mean: Tensor | None) -> bool:
        """Whether it has rows of samples; some convolutions normalise weights ``(1, out, k)`` this way."""
        if len(x) == 1 and running_mean is None and not isinstance(self.entered, _NormBase):
            return False
        samples: int = self.rows.stop - self.rows.start
        return len(x) % samples == 0

    def dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Dropout with this part's rows of what is drawn for the whole batch."""
        if not training or p in (0, 1) or len(x) != self.rows.stop - self.rows.start:
            return F.dropout(x, p, training, inplace)
        kept = self.draws.mask(self.calls, x, p)[self.rows].to(x.dtype).div_(1 - p)
        self.calls += 1
        return x.mul_(kept) if inplace else x * kept


def _statistics(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over the samples of all processes, in the accumulator's type."""
    exact = accumulator(x.device)
    var, mean = torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0)
    var, mean, here = var.to(exact), mean.to(exact), x.numel() // x.shape[1]
    sums = torch.stack([mean, var + mean.square()]) * (here / count)
    means = shared(summed(sums))
    return means[0], (means[1] - means[0].square()).clamp_min(0)


def _shared(effective: Tensor, others: Tensors) -> tuple[Tensor, Tensors]:
    """The same parameters, whose gradients are summed over the processes, in a single message."""
    tensors = (effective, *others.values())
    flat = shared(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    shaped = [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
    return shaped[0], dict(zip(others, shaped[1:], strict=True))


TWICE = (
    "`micro_batch` cannot be used with a penalty that differentiates the network twice, such as 'iga': it "
    "needs all of the batch at once. Use several processes, or another penalty."
)


def differentiable_once(reason: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors, through which no gradient can be differentiated again.

    Args:
        reason: what the `SettingError` says that is raised by an attempt.
        *tensors: any tensors.

    Returns:
        A view of each. If one of them gets a gradient, the others get one as well, of zeros.
    """
    same: tuple[Tensor, ...] = _Once.apply(reason, *tensors)
    return same


class _Once(Function):
    @staticmethod
    def forward(ctx: Any, reason: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.reason = reason
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SettingError(ctx.reason)
        return None, *grads
