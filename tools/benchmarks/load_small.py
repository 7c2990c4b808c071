"""Stage load-small: training batches of the embedded digits (or of the user's own shards), without a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.measure import Settings, Variant
from kernels.jit import num_threads
from pipeline.dataset import DilutedSet, decode, dilute, open_shards
from pipeline.loaders import open_batches
from pipeline.sources import open_source


class Expanded(Dataset):  # type: ignore[type-arg]
    """What a torchvision user writes: images in memory, PIL, transforms; one item an example."""

    def __init__(self, dataset: DilutedSet) -> None:
        ids = np.arange(dataset.formula.num_images)
        self.pixels = [decode(dataset.train.item(int(i))) for i in ids]
        self.labels = dataset.formula.all_labels(ids, dataset.train.source_labels).T.reshape(-1)
        shape, augmentation = dataset.image_shape, dataset.augmentation
        assert shape is not None, "stage load-small needs images of one size"
        steps: list[Callable[..., object]] = [transforms.RandomCrop(shape[:2], padding=augmentation.shift_px)]
        if augmentation.flip:
            steps.append(transforms.RandomHorizontalFlip())
        steps += [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[object, int]:
        pixels = self.pixels[index % len(self.pixels)]
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(image), int(self.labels[index])


def dataset_of(settings: Settings) -> DilutedSet:
    """Open the user's shards, or dilute the embedded digits with α = 20."""
    return open_shards(settings.shards) if settings.shards else dilute(open_source("mnist5k"), alpha=20)


def variants(settings: Settings) -> list[Variant]:
    """Compare the resident loader with torchvision's transforms in a DataLoader of as many workers."""
    warnings.filterwarnings("ignore", "'pin_memory' argument")
    dataset = dataset_of(settings)
    num_batches = max(1, min(dataset.formula.num_examples, 42_000) // settings.batch)
    batches = open_batches(dataset, batch=settings.batch)
    loader = DataLoader(Expanded(dataset), settings.batch, shuffle=True, num_workers=settings.threads)
    running: list[object] = []

    def resident() -> float:
        with num_threads(settings.threads):
            for _ in range(num_batches):
                next(batches)
        return num_batches * settings.batch

    def start() -> None:  # workers start outside the time
        running[:] = [iter(loader)]
        next(running[0])  # type: ignore[call-overload]

    def torchvision() -> float:
        for _ in range(num_batches - 1):
            next(running[0])  # type: ignore[call-overload]
        return (num_batches - 1) * settings.batch

    torch.set_num_threads(settings.threads)
    return [
        Variant("ours/resident", "examples/s", resident, against="peer/torchvision-dataloader"),
        Variant("peer/torchvision-dataloader", "examples/s", torchvision, prepare=start),
    ]
