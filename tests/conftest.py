"""One thread, repeatable hypotheses, and where tests on real images find them: in SPARSEIRM_DATA."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def _root_with(collection: str) -> str:
    root = os.environ.get("SPARSEIRM_DATA")
    if not root:
        pytest.skip(f"SPARSEIRM_DATA is not set; name the folder that holds {collection}/raw")
    if not Path(root, collection, "raw", "train-images-idx3-ubyte").is_file():
        pytest.skip(f"SPARSEIRM_DATA={root} holds no {collection}/raw")
    return root


@pytest.fixture
def mnist_root() -> str:
    """The folder that holds MNIST, or a skip."""
    return _root_with("MNIST")


@pytest.fixture
def fashion_root() -> str:
    """The folder that holds Fashion-MNIST, or a skip."""
    return _root_with("FashionMNIST")
