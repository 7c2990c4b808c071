from collections.abc import Iterator

import pytest
import torch

from pipeline.dataset import DilutedSet, dilute
from pipeline.sources.synthetic import synthetic


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny nets on two busy cores wait more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> DilutedSet:
    """120 images of 8 × 8 px in 4 classes, alpha = 3."""
    source = synthetic(num_train=120, num_test=40, height=8, width=8, channels=1, num_classes=4)
    return dilute(source, alpha=3)
