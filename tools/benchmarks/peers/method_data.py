"""What the plain scripts of methods share: their arguments, a DataLoader of a set with wrong labels, and nets."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from one_run import ROOT, epoch_images
from one_run import parser as common
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision_crops import loader_of

sys.path += [str(ROOT), str(ROOT / "tools")]

from benchmarks.load_small import Expanded

from pipeline.dataset import dilute
from pipeline.laws import Symmetric
from pipeline.sources import open_source
from train.models import build_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RATE = 0.5


def parser() -> argparse.ArgumentParser:
    """Return what the scripts understand."""
    made = common()
    made.add_argument("--model", required=True)
    return made


def batches_of(args: argparse.Namespace, num_nets: int) -> tuple[DataLoader[Any], list[nn.Module]]:
    """Open the batches, and build nets of different initial weights."""
    dataset = dilute(open_source(args.data.name), alpha=0, law=Symmetric(RATE))
    images = Expanded(dataset)
    sampler = RandomSampler(images, num_samples=epoch_images(args.batch, args.batches))  # permutation after permutation
    loader = loader_of(images, args.batch, args.threads, sampler=sampler, pin_memory=DEVICE.type == "cuda")
    nets = [
        build_model(args.model, dataset.batch_shape, dataset.num_classes, seed=0, learner=number).to(DEVICE)
        for number in range(num_nets)
    ]
    return loader, nets
