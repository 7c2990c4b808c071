"""Training as it is commonly written: torchvision's data sets and transforms, DataLoader, float32, SGD, `loss.item()`.

DATA is a tree of photos, whose train/ ImageFolder reads; a folder of shards of images of one size; or the name of a
clean set, which is diluted with α = 20 in memory. The net is the one that ours trains. A batch is counted after its
step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from one_run import ROOT, SIZE_PX, epoch_images, one_run, parser
from torch import nn
from torch.utils.data import RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision_crops import loader_of, random_crop

sys.path += [str(ROOT), str(ROOT / "tools")]

from benchmarks.load_small import Expanded

from pipeline.dataset import dilute, open_shards
from pipeline.sources import open_source
from train.models import build_model

ALPHA = 20
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

command = parser()
command.add_argument("--model", default="resnet18")
args = command.parse_args()


def data() -> tuple[Any, tuple[int, int, int], int]:
    """Open the training images; return them with the shape of one and the number of classes."""
    if (args.data / "train").is_dir():
        photos = ImageFolder(str(args.data / "train"), random_crop(v2.PILToTensor()))
        return photos, (SIZE_PX, SIZE_PX, 3), len(photos.classes)
    folder = (args.data / "dataset.json").exists()
    dataset = open_shards(args.data) if folder else dilute(open_source(args.data.name), alpha=ALPHA)
    return Expanded(dataset), dataset.batch_shape, dataset.num_classes


def training() -> Iterator[float]:
    """Train, step after step."""
    images, shape, num_classes = data()
    sampler = RandomSampler(images, num_samples=epoch_images(args.batch, args.batches))  # permutation after permutation
    loader = loader_of(images, args.batch, args.threads, sampler=sampler, pin_memory=DEVICE.type == "cuda")
    net = build_model(args.model, shape, num_classes, seed=0).to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()
    total = 0.0
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = criterion(net(inputs.to(DEVICE)), labels.to(DEVICE))
        loss.backward()
        optimizer.step()
        total += loss.item()
        yield total


one_run(training, args.batch, args.batches)
