"""Files that DALI decodes; the one place where nvidia.dali enters.

Our stream says which bytes DALI gets, so that it reads no shard and keeps no index. On a CPU it decodes just the window
of each image that is shown, and `kernels.resize` does the rest: DALI's own resizing takes longer than its decoding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8
from numpy import ndarray as Array

from kernels.jit import MAX_THREADS
from pipeline.dataset import DilutedSet, ImageSplit, decode
from pipeline.errors import DamagedImageError, UserError
from pipeline.loaders.augmented import Augmented
from pipeline.loaders.dali_files import parses
from pipeline.loaders.dali_graph import MAX_BATCH, DaliGraph, parts
from pipeline.loaders.kept import Kept
from pipeline.loaders.types import Decoded, How, Loader, Shown
from pipeline.sources.types import Item


def open_dali(dataset: DilutedSet, split: ImageSplit, how: How) -> Loader:
    """Open a split whose files DALI decodes.

    Raises:
        UserError: If DALI is not installed.
    """
    if how.device.type == "cuda" and how.augmentation.kind in ("window", "centre") and not how.keep:
        return DaliGraph(dali_modules(), dataset, split, how, "gpu")
    shown = Shown(dataset, split)
    pixels = DaliPixels(shown, channels=1 if dataset.image_shape and dataset.image_shape[2] == 1 else 3)
    return Augmented(Kept(pixels, how.keep) if how.keep else pixels, dataset, split, how)


class DaliPixels:
    """Decodes files on the CPU with DALI.

    Args:
        shown: The images.
        channels: 1 to decode to grey, 3 to RGB.

    Raises:
        UserError: If DALI is not installed.
    """

    def __init__(self, shown: Shown, *, channels: int) -> None:
        self._shown, self._channels = shown, channels
        self._pipelines: dict[bool, Any] = {}  # with windows, without
        self._dali = dali_modules()

    def shapes(self, ids: Int64[Array, " b"]) -> Int64[Array, "b 2"]:
        """Return (height, width) of some images."""
        return self._shown.shapes(ids)

    def decode(self, ids: Int64[Array, " b"], bounds: Int32[Array, "b 4"] | None) -> Decoded:
        """Decode the wanted part of some images."""
        bad = np.zeros(len(ids), dtype=np.bool_)
        images: list[UInt8[Array, "_h _w _c"]] = [np.zeros((1, 1, self._channels), dtype=np.uint8)] * len(ids)
        origins = np.zeros((len(ids), 2), dtype=np.int32)
        files: list[tuple[int, Item]] = []
        for row, number in enumerate(ids.tolist()):
            try:
                item = self._shown.item(number)
                if parses(item):
                    files.append((row, item))
                else:
                    images[row] = decode(item)
            except DamagedImageError:
                bad[row] = True
        rows = np.array([row for row, _ in files], dtype=np.int64)
        windows = None if bounds is None else bounds[rows]
        for row, image in zip(rows.tolist(), self._decode([item for _, item in files], windows), strict=True):
            if image is None:
                bad[row] = True
            else:
                images[row] = image
        if bounds is not None and len(rows):
            origins[rows] = bounds[rows][:, [0, 2]]
        return Decoded(images, origins, bad)

    def expect(self, ids: Int64[Array, " b"]) -> None:
        """Hear of some images that will be asked for later."""
        self._shown.expect(ids)

    def close(self) -> None:
        """Let go of DALI's threads."""
        self._pipelines.clear()
        self._shown.close()

    def _decode(self, items: list[Item], bounds: Int32[Array, "b 4"] | None) -> list[UInt8[Array, "_h _w _c"] | None]:
        """Decode files; None stands for one that does not decode."""
        found: list[UInt8[Array, "_h _w _c"] | None] = []
        for part in parts(len(items)):
            found += self._decode_part(items[part], None if bounds is None else bounds[part])
        return found

    def _decode_part(
        self, items: list[Item], bounds: Int32[Array, "b 4"] | None
    ) -> list[UInt8[Array, "_h _w _c"] | None]:
        try:
            return [*self._run(items, bounds)]
        except RuntimeError:  # one image ends the whole batch, and the pipeline with it
            self._pipelines.clear()
        if len(items) == 1:  # Pillow has the last word, as it had when the image was stored
            try:
                image = decode(items[0])
            except DamagedImageError:
                return [None]
            top, bottom, left, right = (0, None, 0, None) if bounds is None else bounds[0].tolist()
            return [image[top:bottom, left:right]]
        found: list[UInt8[Array, "_h _w _c"] | None] = []
        for part in (slice(0, len(items) // 2), slice(len(items) // 2, None)):
            found += self._decode_part(items[part], None if bounds is None else bounds[part])
        return found

    def _run(self, items: list[Item], bounds: Int32[Array, "b 4"] | None) -> list[UInt8[Array, "_h _w _c"]]:
        pipeline = self._pipeline(bounds is not None)
        pipeline.feed_input("files", [np.frombuffer(item.data, dtype=np.uint8) for item in items])
        if bounds is not None:
            anchors = np.ascontiguousarray(bounds[:, [0, 2]])
            pipeline.feed_input("anchors", list(anchors))
            pipeline.feed_input("shapes", list(bounds[:, [1, 3]] - anchors))
        (decoded,) = pipeline.run()
        return [np.asarray(decoded[row]) for row in range(len(items))]  # views; at() would copy

    def _pipeline(self, windowed: bool) -> Any:
        if windowed not in self._pipelines:
            dali, fn, types = self._dali
            colour = types.GRAY if self._channels == 1 else types.RGB
            pipeline = dali.Pipeline(
                batch_size=MAX_BATCH,
                num_threads=MAX_THREADS,
                device_id=None,
                prefetch_queue_depth=1,
                exec_dynamic=True,  # its outputs are the caller's for as long as he holds them
            )
            with pipeline:
                files = fn.external_source(name="files", dtype=types.UINT8, ndim=1, no_copy=True)
                if windowed:
                    anchors = fn.external_source(name="anchors", dtype=types.INT32, ndim=1)
                    shapes = fn.external_source(name="shapes", dtype=types.INT32, ndim=1)
                    images = fn.decoders.image_slice(
                        files,
                        start=anchors,
                        shape=shapes,
                        axes=[0, 1],
                        device="cpu",
                        output_type=colour,
                        adjust_orientation=False,
                    )
                else:
                    images = fn.decoders.image(files, device="cpu", output_type=colour, adjust_orientation=False)
                pipeline.set_outputs(images)
            pipeline.build()
            self._pipelines[windowed] = pipeline
        return self._pipelines[windowed]


def dali_modules() -> tuple[Any, Any, Any]:
    """Import DALI.

    Raises:
        UserError: If it is not installed.
    """
    try:
        from nvidia import dali
        from nvidia.dali import fn, types
    except ImportError:
        raise UserError("--loader dali needs NVIDIA DALI, which is not installed; choose another --loader") from None
    return dali, fn, types
