"""torchvision's ImageFolder in PyTorch's DataLoader, as PyTorch's ImageNet example has it: PIL, v2 transforms."""

from __future__ import annotations

from typing import Any

from one_run import epoch_images, one_run, parser
from torch.utils.data import RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision_crops import loader_of, random_crop

args = parser().parse_args()


def loader() -> Any:
    """Open the folder of training images."""
    images = ImageFolder(str(args.data / "train"), random_crop(v2.PILToTensor()))
    sampler = RandomSampler(images, num_samples=epoch_images(args.batch, args.batches))  # permutation after permutation
    return loader_of(images, args.batch, args.threads, sampler=sampler)


one_run(loader, args.batch, args.batches)
