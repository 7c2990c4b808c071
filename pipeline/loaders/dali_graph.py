"""Crops that are decoded, resized, flipped and normalised by DALI itself, on a GPU.

On a CPU the same graph serves as its test; there `DaliPixels` with `kernels.resize` is faster.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray as Array
from torch import Tensor

from kernels.jit import MAX_THREADS
from pipeline.crops import Crops, centre_crops, random_crops
from pipeline.dataset import DilutedSet, ImageSplit, decode
from pipeline.errors import DamagedImageError
from pipeline.formats.png import encode_png
from pipeline.loaders.augmented import rgb
from pipeline.loaders.dali_files import parses
from pipeline.loaders.types import How, Shown
from pipeline.sources.types import Item
from pipeline.stream import Places

MAX_BATCH = 4_096  # of a pipeline, which is built for so many


class DaliGraph:
    """A loader of images of any size whose batches are made by one DALI pipeline.

    Args:
        dali: The modules nvidia.dali, nvidia.dali.fn and nvidia.dali.types.
        dataset: Where formula and statistics come from.
        split: Its training or its test split.
        how: How batches are made; augmentation is of kind "window" or "centre".
        backend: Where the graph runs; "gpu" decodes with nvJPEG on the device of `how`.
    """

    def __init__(
        self, dali: Any, dataset: DilutedSet, split: ImageSplit, how: How, backend: Literal["cpu", "gpu"]
    ) -> None:
        self.shown, self.formula, self.how = Shown(dataset, split), dataset.formula, how
        self.training = split is dataset.train
        self.mean, self.std = dataset.mean, dataset.std
        self._dali, self._backend = dali, backend
        self._stream = torch.cuda.Stream(how.device) if backend == "gpu" else None  # type: ignore[no-untyped-call]
        self._pipeline = self._build()

    def images(
        self, places: Places, example_ids: Int64[Array, " b"]
    ) -> tuple[Float32[Tensor, "b c h w"], Bool[Array, " b"]]:
        """Make a batch of the images at some places, and say which of them could not be read."""
        shown = self._numbers(places)
        shapes, size = self.shown.shapes(shown), self.how.augmentation.size_px
        if self.how.augmentation.kind == "window":
            flip = self.how.augmentation.flip
            known = np.maximum(shapes, 1)
            crops = random_crops(self.how.seed, places.epochs, example_ids, known, size=size, flip=flip)
        else:
            crops = centre_crops(np.maximum(shapes, 1), size=size)
        items: list[Item | None] = []
        for number, shape in zip(shown.tolist(), shapes.tolist(), strict=True):
            if not all(shape):  # its header cannot be read
                items.append(None)
                continue
            try:
                items.append(_file(self.shown.item(number)))
            except DamagedImageError:
                items.append(None)
        try:
            return self._run(items, crops)
        except RuntimeError:  # one image ends the whole batch, and the pipeline with it
            self._pipeline = self._build()
        return self._run([item if item and self._decodes(item) else None for item in items], crops)

    def expect(self, places: Places) -> None:
        """Hear of some places that will be asked for later."""
        self.shown.expect(self._numbers(places))

    def close(self) -> None:
        """Let go of DALI's threads and memory."""
        self._pipeline = None
        self.shown.close()

    def _numbers(self, places: Places) -> Int64[Array, " b"]:
        return self.formula.shown(places.image_ids, places.copies) if self.training else places.image_ids

    def _run(self, items: list[Item | None], crops: Crops) -> tuple[Float32[Tensor, "b c h w"], Bool[Array, " b"]]:
        rows = np.arange(len(items))
        made = [self._run_part(items[part], crops.at(rows[part])) for part in parts(len(items))]
        if len(made) == 1:
            return made[0]
        return torch.cat([images for images, _ in made]), np.concatenate([bad for _, bad in made])

    def _run_part(self, items: list[Item | None], crops: Crops) -> tuple[Float32[Tensor, "b c h w"], Bool[Array, " b"]]:
        bad = np.array([item is None for item in items], dtype=np.bool_)
        size = self.how.augmentation.size_px
        if bad.all():
            return torch.zeros(len(items), 3, size, size, device=self.how.device), bad
        good = next(item for item in items if item is not None)
        boxes = crops.boxes.astype(np.float32)
        boxes[bad] = 0, 0, 1 / size, 1 / size  # a pixel of another image, which stands in for none
        self._pipeline.feed_input("files", [np.frombuffer((item or good).data, dtype=np.uint8) for item in items])
        self._pipeline.feed_input("starts", list(boxes[:, :2]))
        self._pipeline.feed_input("ends", list(boxes[:, :2] + boxes[:, 2:] * np.float32(size)))
        self._pipeline.feed_input("mirrors", list(crops.flips.astype(np.int32)))
        (made,) = self._pipeline.run()
        return self._copied(made).permute(0, 3, 1, 2).to(self.how.device, non_blocking=True), bad

    def _copied(self, made: Any) -> Float32[Tensor, "b h w c"]:
        """Copy what DALI made and wait for the copy: the next run writes into the same memory.

        On a GPU the copy has a stream of its own, as in that of the training it would lie behind steps to come.
        """
        if self._stream is None:
            return torch.utils.dlpack.from_dlpack(made.as_tensor()).clone()
        with torch.cuda.stream(self._stream):
            images = torch.utils.dlpack.from_dlpack(made.as_tensor()).clone()
        self._stream.synchronize()
        images.record_stream(torch.cuda.current_stream(self.how.device))  # its memory is free when training had it
        return images

    def _decodes(self, item: Item) -> bool:
        try:
            self._run([item], centre_crops(np.ones((1, 2), dtype=np.int64), size=self.how.augmentation.size_px))
        except RuntimeError:
            self._pipeline = self._build()
            return False
        return True

    def _build(self) -> Any:
        dali, fn, types = self._dali
        gpu = self._backend == "gpu"
        size = self.how.augmentation.size_px
        pipeline = dali.Pipeline(
            batch_size=MAX_BATCH,
            num_threads=MAX_THREADS,
            device_id=(self.how.device.index or 0) if gpu else None,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        with pipeline:
            files = fn.external_source(name="files", dtype=types.UINT8, ndim=1, no_copy=True)
            starts = fn.external_source(name="starts", dtype=types.FLOAT, ndim=1)
            ends = fn.external_source(name="ends", dtype=types.FLOAT, ndim=1)
            mirrors = fn.external_source(name="mirrors", dtype=types.INT32, ndim=0)
            images = fn.decoders.image(
                files, device="mixed" if gpu else "cpu", output_type=types.RGB, adjust_orientation=False
            )
            images = fn.resize(
                images,
                size=[size, size],
                roi_start=starts,
                roi_end=ends,
                interp_type=types.INTERP_LINEAR,
                antialias=self.how.antialias,
                dtype=types.FLOAT,
            )
            images = fn.crop_mirror_normalize(
                images,
                mirror=mirrors,
                mean=[value * 255 for value in self.mean],
                std=[value * 255 for value in self.std],
                dtype=types.FLOAT,
                output_layout="HWC",
            )
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline


def parts(number: int) -> list[slice]:
    """Cut so many images into parts that a pipeline takes."""
    return [slice(first, first + MAX_BATCH) for first in range(0, number, MAX_BATCH)]


def _file(item: Item) -> Item:
    """Return a file that DALI may be shown: the item's own, or a PNG of its pixels.

    Raises:
        DamagedImageError: If it does not decode.
    """
    if item.encoding != "raw" and parses(item):
        return item
    pixels = rgb(decode(item))
    return Item(encode_png(pixels), "png", *pixels.shape)
