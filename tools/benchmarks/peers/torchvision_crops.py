"""What the peers that leave images to torchvision share: decoding to tensors and the v2 transforms, on uint8."""

from __future__ import annotations

from typing import Any

import torch
from one_run import MEAN, SIZE_PX, STD
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2


def decode(data: bytes) -> torch.Tensor:
    """Decode to RGB, [3, h, w] uint8."""
    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def random_crop(first: Any = None) -> Any:
    """Return random resized crop (antialiased), flip, float32, normalise."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(SIZE_PX, antialias=True),
            v2.RandomHorizontalFlip(),
            *([first] if first else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def loader_of(dataset: Dataset[Any], batch: int, threads: int, **options: Any) -> DataLoader[Any]:
    """Open PyTorch's loader with as many workers as asked for."""
    return DataLoader(dataset, batch, num_workers=threads, drop_last=True, **options)
