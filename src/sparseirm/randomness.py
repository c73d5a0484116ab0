"""Randomness as a function of names: no global state, nothing to save, the same on every machine rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def seed_of(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose, independent for every purpose and every seed.

    >>> seed_of(0, "gates", 7) == seed_of(0, "gates", 7), seed_of(0, "gates", 7) == seed_of(1, "gates", 7)
    (True, False)
    """
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `seed_of`.

    >>> torch.rand(1, generator=generator(0, "a")) == torch.rand(1, generator=generator(0, "a"))
    tensor([True])
    """
    return torch.Generator(device).manual_seed(seed_of(seed, *names))


@contextmanager
def global_draws(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Lend the generators that modules draw from (initial weights, dropout): the CPU's and one device's.

    Args:
        device: where the modules are; generators of other devices are not touched.

    Yields:
        Callable[[int], None]: what seeds them. They get back their old state when the context ends.
    """
    lent = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        lent.append(torch.cuda.default_generators[device.index or 0])
    elif device.type == "mps":
        lent.append(torch.mps._get_default_mps_generator())
    before = [generator.get_state() for generator in lent]

    def seed_all(seed: int) -> None:
        for generator in lent:
            generator.manual_seed(seed)

    try:
        yield seed_all
    finally:
        for generator, state in zip(lent, before, strict=True):
            generator.set_state(state)
