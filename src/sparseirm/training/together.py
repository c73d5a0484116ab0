"""Many runs trained as one: their networks in one pass, their weights in one tensor, every result its own.

A small network leaves most of a step to what happens between its operations, and R runs together need no more
of that than one. What they do not share are rows: of weights, of what sparsifiers and optimisers remember, of
samples. Every run's `State` keeps its tensors, which become views of such rows; so whatever looks at a run
between two steps (evaluation, checkpoints) finds what it always finds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from sparseirm.core import (
    Loss,
    Memory,
    Moment,
    Outputs,
    Penalty,
    SettingError,
    Sparsifier,
    Tensors,
    first_line,
    takes_rows,
)
from sparseirm.data.environments import Batch, Batches
from sparseirm.models import Network
from sparseirm.randomness import generator
from sparseirm.training.loop import Record, at_rest, objective, train, update
from sparseirm.training.precision import autocast, fast_matmul, kept_memory
from sparseirm.training.state import Plan, State, clear_gradients, forget


@dataclass
class Member:
    """One of the runs that are trained together: arguments of `sparseirm.training.loop.train`.

    Attributes:
        batches: its samples.
        penalty: its penalty.
        sparsifier: how its weights are masked.
        plan: its optimiser and schedules.
        state: where it starts; changed in place.
        seed: seed of gates and the penalty's draws.
        on_step: called after each of its steps. An `Exception` that it raises ends this run and no other.
        failure: why it ended early, or None.
    """

    batches: Batches
    penalty: Penalty
    sparsifier: Sparsifier
    plan: Plan
    state: State
    seed: int = 0
    on_step: Callable[[State, Record], None] = lambda state, record: None
    failure: Exception | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.failure is not None or self.state.step >= self.plan.steps


def train_together(
    network: Network, loss: Loss, members: Sequence[Member], between: Callable[[], None] = lambda: None
) -> None:
    """Run all members to the end of their plans, as `sparseirm.training.loop.train` would run each.

    All draws are those each would make alone. Products of stacked matrices may be added up in another order,
    so results differ from those of single runs by rounding, which grows in long runs. A run whose numbers
    are not finite goes on alone, and fails as it would have; all do where the pass of all is not to be had,
    be it for a penalty's error in one of them or for want of memory.

    Args:
        network: the network of all of them, of which only the structure matters.
        loss: the loss per sample.
        members: the runs, which `why_apart` has nothing against; their failures are noted in them.
        between: called between two steps, when all states are whole; it may note failures in members.
    """
    with fast_matmul(), kept_memory(sum(member.batches.nbytes for member in members)):
        while left := [member for member in members if not member.over]:
            for member in left:
                if at_rest(member.state.step, member.sparsifier, member.plan):
                    member.state.step = member.plan.steps - 1
            first = min(member.state.step for member in left)
            abreast = [member for member in left if member.state.step == first]
            ahead = [member.state.step for member in left if member.state.step > first]
            _advance(_Stack(network, loss, abreast), min(ahead + [m.plan.steps for m in abreast]), between)


def why_apart(network: Network, loss: Loss, members: Sequence[Member]) -> str | None:
    """Why runs cannot be trained together, or None if they can.

    Networks with running statistics or draws of their own (dropout), and penalties on gradients by the
    weights, need each run's own pass. Everything else can be stacked: a penalty or sparsifier that does not
    take several runs at once is called for one after the other.

    Args:
        network: as in `train_together`.
        loss: as there.
        members: as there; none of their values changes.

    Returns:
        The reason.
    """
    if any(member.state.buffers for member in members):
        return "its network has buffers, such as running statistics"
    if len({_shapes(member) for member in members}) > 1:
        return "their batches, weights or precisions differ"
    try:
        _Stack(network, loss, members).outputs()
    except (RuntimeError, SettingError) as error:
        return first_line(error)
    return None


def _shapes(member: Member) -> tuple[object, ...]:
    """What all members must have in common."""
    samples, state = member.batches.samples, member.state
    size = member.batches.batch_size or len(samples)
    batch = (size, samples.x.shape[1:], samples.y.dtype, samples.weight is None, member.batches.n_envs)
    others = tuple((name, tensor.shape) for name, tensor in state.others.items())
    return *batch, state.weights.shape, others, member.plan.precision


def _advance(stack: _Stack, until: int, between: Callable[[], None]) -> None:
    """Take steps until a member is at rest, ends, or meets others that are ahead."""
    while stack.step < until and not any(block.resting for block in stack.blocks):
        strays = stack.take_step()
        for member in strays:
            _alone(stack.network, stack.loss, member, between)
        if strays:
            return
        between()
        if any(member.failure for member in stack.members):
            return


def _alone(network: Network, loss: Loss, member: Member, between: Callable[[], None]) -> None:
    """Run one member to its end by itself."""
    state = member.state

    def on_step(state: State, record: Record) -> None:
        member.on_step(state, record)
        between()

    for optimizer in state.optimizers.values():
        for slots in optimizer.state.values():  # the count of steps is still that of all
            slots.update({name: slot.clone() for name, slot in slots.items() if isinstance(slot, Tensor)})
    with _noted([member]):
        train(
            *(network, member.batches, loss, member.penalty, member.sparsifier, member.plan, state),
            *(member.seed, on_step),
        )


@contextmanager
def _noted(members: Sequence[Member]) -> Iterator[None]:
    """Exceptions end these members, and nothing else."""
    try:
        yield
    except Exception as error:
        for member in members:
            member.failure = error


class _Rows(NamedTuple):
    """What several runs have of something: a row each (dimension 0), or all the same (None)."""

    values: Any
    dim: int | None = None

    def part(self, rows: slice) -> _Rows:
        return self if self.dim is None else _Rows(self.values[rows], 0)

    def row(self, at: int) -> Any:
        return self.values if self.dim is None else self.values[at]


def _stacked(values: Sequence[Tensor | None]) -> _Rows:
    first, present = values[0], [value for value in values if value is not None]
    return _Rows(first) if all(value is first for value in values) else _Rows(torch.stack(present), 0)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat([*pieces])


class _Stack:
    """Members at the same step: one pass through the network, then what differs block by block."""

    def __init__(self, network: Network, loss: Loss, members: Sequence[Member]) -> None:
        self.network, self.loss = network, loss
        alike: dict[object, list[Member]] = {}
        for member in members:
            alike.setdefault((member.penalty, member.sparsifier, member.plan), []).append(member)
        self.blocks = [_Block(group) for group in alike.values()]
        self.members = [member for block in self.blocks for member in block.members]
        self.found: list[Batch] = []

    @property
    def step(self) -> int:
        """Steps taken by every member."""
        return self.members[0].state.step

    def take_step(self) -> list[Member]:
        """Take one step; or none, and return the members that cannot take it with the others."""
        try:
            fine = self._gradients()
        except Exception:  # whose it is will show as each goes on alone
            return self.members
        if not all(fine):
            return [member for member, ok in zip(self.members, fine, strict=True) if not ok]
        for block in self.blocks:
            block.finish_step()
        return []

    def _gradients(self) -> list[bool]:
        """One pass forth and, if all losses are finite, back; which of them are."""
        self.outputs()
        losses = torch.cat([block.losses() for block in self.blocks])
        fine: list[bool] = torch.isfinite(losses.detach()).tolist()
        if all(fine):
            for block in self.blocks:
                clear_gradients(block.state)
            torch.autograd.backward(losses.sum())
        return fine

    def outputs(self) -> None:
        """One pass of all; every block then knows its members' risks and penalties."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vmap says where it has to loop
            self._outputs()

    def _outputs(self) -> None:
        x, *rest = self._samples()
        effective = _joined([block.draw() for block in self.blocks])
        named = [block.state.others for block in self.blocks]
        others = {name: _joined([each[name] for each in named]) for name in named[0]}
        with autocast(self.members[0].plan.precision, effective.device):
            logits, *features = torch.vmap(self._pass, (x.dim, 0, 0))(x.values, effective, others)
        at, n_envs = 0, self.members[0].batches.n_envs
        for block in self.blocks:
            rows = slice(at, at + len(block.members))
            given = [_Rows(logits, 0), _Rows(features[0], 0) if features else _Rows(None), *rest]
            block.judge([each.part(rows) for each in given], n_envs, self.loss)
            at = rows.stop

    def _pass(self, x: Tensor, effective: Tensor, others: Tensors) -> tuple[Tensor, ...]:
        logits, features = self.network.outputs(x, effective, others, {})
        features = features() if callable(features) else features
        return (logits,) if features is None else (logits, features)

    def _samples(self) -> tuple[_Rows, ...]:
        """Inputs, labels, environments and weights of the step."""
        found = [member.batches.at(self.step) for member in self.members]
        if len(self.found) != len(found) or any(a is not b for a, b in zip(found, self.found, strict=True)):
            env = found[0].env
            same = all(batch.env is env or torch.equal(batch.env, env) for batch in found)
            self.found = found
            self.stacked = (
                _stacked([batch.x for batch in found]),
                _stacked([batch.y for batch in found]),
                _Rows(env) if same else _stacked([batch.env for batch in found]),
                _stacked([batch.weight for batch in found]),
            )
        return self.stacked


class _Block:
    """Members of one penalty, sparsifier and plan: the rows of one `State`."""

    def __init__(self, members: list[Member]) -> None:
        self.members, first = members, members[0]
        self.penalty, self.sparsifier, self.plan = first.penalty, first.sparsifier, first.plan
        self.rows, self.vmapped = takes_rows(first.sparsifier), len(members) > 1
        states = [member.state for member in members]

        def stack(pick: Callable[[State], Tensors]) -> Tensors:
            every = [pick(state) for state in states]
            return {name: torch.stack([each[name].detach() for each in every]) for name in every[0]}

        weights = torch.stack([state.weights.detach() for state in states])
        kept = stack(lambda state: state.memory.kept) if self.rows else {}
        memory = Memory(stack(lambda state: state.memory.learned), kept)
        self.state = State(first.state.step, weights, stack(lambda state: state.others), {}, memory, {})
        for leaf, *own in zip(self.state.leaves, *(state.leaves for state in states), strict=True):
            for row, tensor in zip(leaf, own, strict=True):
                tensor.data = row
            leaf.requires_grad_()
        for name in first.state.optimizers:
            self.state.optimizers[name] = self._optimizer(name)
        self.shared: dict[object, object] = {}
        self._share()

    @property
    def resting(self) -> bool:
        """Whether nothing changes any more but in the last step."""
        step = self.members[0].state.step
        return step < self.plan.steps - 1 and at_rest(step, self.sparsifier, self.plan)

    def draw(self) -> Tensor:
        """The weights ``(b, d)`` of the step, and with them their prices."""
        state, step = self.state, self.members[0].state.step
        noises = [generator(m.seed, "step", step, device=state.weights.device) for m in self.members]
        if self.rows:
            self.nows = [Moment(step, self.plan.steps, noises[0], tuple(noises[1:]))]
            self.effective = self.sparsifier.effective(state.weights, state.memory, self.nows[0])
            self.price = self.sparsifier.price(state.memory)
        else:
            self.nows = [Moment(step, self.plan.steps, noise) for noise in noises]
            memories = [
                Memory({name: rows[at] for name, rows in state.memory.learned.items()}, m.state.memory.kept)
                for at, m in enumerate(self.members)
            ]
            given = zip(state.weights, memories, self.nows, strict=True)
            self.effective = torch.stack([self.sparsifier.effective(*each) for each in given])
            prices = [torch.as_tensor(self.sparsifier.price(memory)) for memory in memories]
            self.price = torch.stack([price.to(self.effective) for price in prices])
        self.effective.retain_grad()
        return self.effective

    def judge(self, given: Sequence[_Rows], n_envs: int, loss: Loss) -> None:
        """Risks and penalties ``(b,)`` from logits, features, labels, environments and weights."""

        def one(noise: Generator, *parts: Any) -> tuple[Tensor, Tensor]:
            logits, features, y, env, weight = parts
            given = (logits, y, env, n_envs, loss, weight)
            out = Outputs(*given, features=features, parameters=_Mixed(), noise=noise)
            return out.risks.mean(), self.penalty(out)

        if self.vmapped:
            try:
                at_once = torch.vmap(partial(one, Generator()), tuple(each.dim for each in given))
                self.risk, self.spread = at_once(*(each.values for each in given))
                return
            except Exception:  # it draws, or what it does depends on values
                self.vmapped = False
        noises = [noise for now in self.nows for noise in now.noises]
        pairs = [one(noise, *(each.row(at) for each in given)) for at, noise in enumerate(noises)]
        self.risk, self.spread = (torch.stack(each) for each in zip(*pairs, strict=True))

    def losses(self) -> Tensor:
        """What each member descends on, ``(b,)``."""
        return objective(self.risk, self.spread, self.price, self.plan, self.members[0].state.step)

    def finish_step(self) -> None:
        """Update the weights, once their gradients are there, and tell the members."""
        step, states = self.members[0].state.step, [member.state for member in self.members]
        update(self.state.optimizers, self.plan, step)
        self._share()
        gradients = self.effective.grad
        with torch.no_grad():
            if self.rows:
                self._after_step(self.members, self.state, self.nows[0], gradients)
            else:
                each = [None] * len(states) if gradients is None else gradients
                for member, *given in zip(self.members, states, self.nows, each, strict=True):
                    self._after_step([member], *given)
        weight, values = self.plan.penalty_weight_at(step), (self.risk.detach(), self.spread.detach())
        for member, risk, spread in zip(self.members, *values, strict=True):
            member.state.step += 1
            if member.failure is None:
                with _noted([member]):
                    member.on_step(member.state, Record(step + 1, risk, spread, weight, self.plan.steps))

    def _after_step(
        self, members: Sequence[Member], state: State, now: Moment, gradient: Tensor | None
    ) -> None:
        with _noted(members):
            forget(state, self.sparsifier.after_step(state.weights, state.memory, now, gradient))
            if self.rows:
                self._share()

    def _optimizer(self, name: str) -> Optimizer:
        """One optimiser for all rows, which remembers what those of the members do."""
        every: list[Any] = [member.state.optimizers[name] for member in self.members]
        place = {id(leaf): at for at, leaf in enumerate(self.members[0].state.leaves)}
        lists = [optimizer.param_groups[0]["params"] for optimizer in every]
        leaves = [self.state.leaves[place[id(leaf)]] for leaf in lists[0]]
        stacked: Optimizer = type(every[0])(leaves, **every[0].defaults)
        for leaf, *own in zip(leaves, *lists, strict=True):
            histories = [each.state.get(row, {}) for each, row in zip(every, own, strict=True)]
            for slot, value in histories[0].items():
                rows = [history[slot] for history in histories]
                stacked.state[leaf][slot] = torch.stack(rows) if _has_rows(slot, value) else value.clone()
        return stacked

    def _share(self) -> None:
        """Let what the members remember be rows of what is remembered here, where that is new."""
        for name, optimizer in self.state.optimizers.items():
            for at, leaf in enumerate(optimizer.param_groups[0]["params"]):
                for slot, value in optimizer.state.get(leaf, {}).items():
                    if self._new((name, at, slot), value):
                        rows = value if _has_rows(slot, value) else [value] * len(self.members)
                        for member, row in zip(self.members, rows, strict=True):
                            own = member.state.optimizers[name]
                            own.state[own.param_groups[0]["params"][at]][slot] = row
        for name, value in self.state.memory.kept.items():
            if self._new(name, value):
                for member, row in zip(self.members, value, strict=True):
                    member.state.memory.kept[name] = row

    def _new(self, key: object, value: object) -> bool:
        old, self.shared[key] = self.shared.get(key), value
        return old is not value


class _Mixed(tuple[Tensor, ...]):
    """The weights of a pass of several runs, which are not those of any single one."""

    def _refuse(self, *key: Any) -> Any:
        raise SettingError("a penalty that reads the weights, or takes gradients by them, needs single runs")

    __len__ = __iter__ = __getitem__ = _refuse


def _has_rows(slot: str, value: object) -> bool:
    """Whether what an optimiser remembers is of the shape of what it optimises."""
    return isinstance(value, Tensor) and slot != "step"
