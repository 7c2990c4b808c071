"""FFCV's own Loader, with the decoder and the flip of its ImageNet example.

Its random resized crop reduces with OpenCV's INTER_AREA; batches are uint8, which its example normalises on the GPU, or
(`--float`) float32, as ours. Pages come from the operating system's cache, as its guide advises for data that fit.
The first batch waits for Numba to compile the pipeline: FFCV does so in every process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage
from one_run import MEAN, SIZE_PX, STD, epoch_images, one_run, parser

from pipeline.formats.beton_reader import read_beton

command = parser()
command.add_argument("--float", action="store_true")
args = command.parse_args()
beton = read_beton(args.data)


def loader() -> Any:
    """Open a beton; its images are listed over and over, so that no epoch ends while the clock runs."""
    image = [RandomResizedCropRGBImageDecoder((SIZE_PX, SIZE_PX)), RandomHorizontalFlip()]
    if args.float:
        mean, std = 255 * np.array(MEAN), 255 * np.array(STD)
        image.append(NormalizeImage(mean, std, np.float32))
    pipelines: dict[str, Any] = dict.fromkeys(beton.rows.dtype.names or ())  # other fields are not read
    pipelines["image"] = [*image, ToTensor(), ToTorchImage()]
    pipelines["label"] = [IntDecoder(), ToTensor(), Squeeze()]
    num_epochs = -(-epoch_images(args.batch, args.batches) // len(beton.rows))
    return Loader(
        str(args.data),
        batch_size=args.batch,
        num_workers=args.threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        indices=np.tile(np.arange(len(beton.rows)), num_epochs),
        pipelines=pipelines,
    )


one_run(loader, args.batch, args.batches)
