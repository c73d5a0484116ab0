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


@pytest.fixture(scope="session")
def cifar_root() -> str:
    """The folder that holds CIFAR-10 and MNIST, or a skip."""
    root = _root_with("MNIST")
    if not any(Path(root, name).exists() for name in ("cifar10", "cifar-10-batches-py")):
        pytest.skip(f"SPARSEIRM_DATA={root} holds no cifar10/ and no cifar-10-batches-py/")
    return root


@pytest.fixture(scope="session")
def coco_sample() -> Path:
    """A folder with COCO's annotations and some of its images, or a skip."""
    folder = Path(os.environ.get("SPARSEIRM_DATA", ""), "coco-sample")
    if not (folder / "annotations").is_dir():
        pytest.skip("SPARSEIRM_DATA names no folder that holds coco-sample/annotations")
    return folder
