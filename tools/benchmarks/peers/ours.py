"""Ours, run as its peers are: a whole loader, or (`--until`) only the first steps of loader dali."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import nvidia.dali  # noqa: F401 - before the clock starts, as its peers import what they need
import torch
from one_run import one_run, parser

from pipeline.crops import random_crops
from pipeline.dataset import open_shards, view
from pipeline.loaders import Batches, open_batches
from pipeline.loaders.augmented import Augmented
from pipeline.loaders.dali import open_dali
from pipeline.loaders.types import How, Shown
from pipeline.passes import BLOCK_IMAGES
from pipeline.stream import Stream

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WINDOW = 2  # blocks; smaller than the default, so that a run of whole windows is short

command = parser()
command.add_argument("--loader", default="dali")
command.add_argument("--resize", default="antialias")
command.add_argument("--order", default="full")
command.add_argument("--reuse", type=int, default=1)
command.add_argument("--alpha", type=int)
command.add_argument("--no-check", action="store_true", help="do not compare checksums")
command.add_argument("--until", choices=("read", "decode", "augment", "copy"))
args = command.parse_args()


def whole() -> Batches:
    """Open a loader as a user does; float32 batches, channels last."""
    return open_batches(
        view(open_shards(args.data, check_reads=not args.no_check), alpha=args.alpha),
        batch=args.batch,
        order=args.order,
        window=WINDOW,
        reuse=args.reuse,
        loader=args.loader,
        resize=args.resize,
        device=DEVICE,
    )


def steps() -> Iterator[Any]:
    """Do the first steps of loader dali: read and check the bytes, + decode, + crop and normalise, + copy."""
    dataset = open_shards(args.data, check_reads=not args.no_check)
    how, num_images = How(dataset.augmentation, torch.device("cpu")), dataset.formula.num_images
    loader, shown = open_dali(dataset, dataset.train, how), Shown(dataset, dataset.train)
    assert isinstance(loader, Augmented)
    order = Stream(range(num_images), 1 + dataset.formula.alpha, how.seed)
    for start in count(0, args.batch):
        places = order.at(np.arange(start, start + args.batch))
        ids, rows = places.image_ids, places.copies * num_images + places.image_ids
        if args.until == "read":
            yield [shown.item(image_id) for image_id in ids.tolist()]
        elif args.until == "decode":
            shapes, size = loader.pixels.shapes(ids), dataset.augmentation.size_px
            crops = random_crops(how.seed, places.epochs, rows, shapes, size=size, flip=True)
            yield loader.pixels.decode(ids, crops.bounds)
        else:
            images, _ = loader.images(places, rows)
            yield images.to(DEVICE) if args.until == "copy" else images


batches = args.batches
if args.reuse > 1:  # whole windows: images are decoded in the first of their sweeps alone
    images = min(WINDOW * BLOCK_IMAGES, open_shards(args.data).formula.num_images)
    window = args.reuse * images
    batches = -(-batches * args.batch // window) * window // args.batch
one_run(steps if args.until else whole, args.batch, batches)
