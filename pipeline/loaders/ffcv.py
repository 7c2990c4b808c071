"""Images that FFCV's own decoder decodes; the one place where ffcv enters.

Only FFCV's compiled library is loaded: importing the package sets the number of threads of numba and torch for the
whole process. Not its `Loader`, which holds O(N) orders and ignores what its decoder says of a bad image.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8
from numpy import ndarray as Array

from kernels.jit import MAX_THREADS
from pipeline.dataset import DilutedSet, ImageSplit, decode
from pipeline.errors import DamagedImageError, UserError
from pipeline.loaders.augmented import Augmented
from pipeline.loaders.kept import Kept
from pipeline.loaders.types import Decoded, How, Loader, Shown, Use


def open_ffcv(dataset: DilutedSet, split: ImageSplit, how: How) -> Loader:
    """Open a split whose JPEGs FFCV decodes.

    Raises:
        UserError: If FFCV is not installed.
    """
    pixels = FfcvPixels(Shown(dataset, split))
    return Augmented(Kept(pixels, how.keep) if how.keep else pixels, dataset, split, how)


class FfcvPixels:
    """Decodes JPEGs with FFCV's library (whole: it has no windows), in threads; raw pixels need no decoding.

    Args:
        shown: The images.

    Raises:
        UserError: If FFCV is not installed.
    """

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._library = _library()
        self._memory = threading.local()
        self._threads = ThreadPoolExecutor(MAX_THREADS)

    def shapes(self, ids: Int64[Array, " b"]) -> Int64[Array, "b 2"]:
        """Return (height, width) of some images."""
        return self._shown.shapes(ids)

    def decode(self, ids: Int64[Array, " b"], bounds: Int32[Array, "b 4"] | None) -> Decoded:
        """Decode some images, whole."""
        images: list[UInt8[Array, "_h _w _c"]] = [np.zeros((1, 1, 3), dtype=np.uint8)] * len(ids)

        def keep(row: int, image: UInt8[Array, "_h _w _c"]) -> bool:
            images[row] = image.copy()
            return True

        return Decoded(images, np.zeros((len(ids), 2), dtype=np.int32), ~self.each(ids, keep))

    def each(self, ids: Int64[Array, " b"], use: Use) -> Bool[Array, " b"]:
        """Decode some images, whole, and use each in the thread that decoded it."""
        good = np.zeros(len(ids), dtype=np.bool_)
        waiting = iter(enumerate(zip(ids.tolist(), self.shapes(ids).tolist(), strict=True)))

        def work() -> None:
            for row, (number, shape) in waiting:  # each thread takes the next one
                image = self._image(number, *shape)
                good[row] = image is not None and use(row, image)

        for done in [self._threads.submit(work) for _ in range(MAX_THREADS)]:
            done.result()
        return good

    def expect(self, ids: Int64[Array, " b"]) -> None:
        """Hear of some images that will be asked for later."""
        self._shown.expect(ids)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()
        self._shown.close()

    def _image(self, number: int, height: int, width: int) -> UInt8[Array, "_h _w _c"] | None:
        """Decode an image into memory that this thread uses again for its next one."""
        try:
            item = self._shown.item(number)
            if item.encoding == "jpg":
                size = height * width * 3
                if len(getattr(self._memory, "pixels", b"")) < size:
                    self._memory.pixels = np.empty(size, dtype=np.uint8)
                image: UInt8[Array, "h w 3"] = self._memory.pixels[:size].reshape(height, width, 3)
                failed = self._library.imdecode(
                    item.data, len(item.data), height, width, image.ctypes.data, height, width, 0, 0, 1, 1, False, False
                )
                if not failed:
                    return image
            return decode(item)  # Pillow has the last word: FFCV refuses CMYK, and whatever libjpeg warns of
        except DamagedImageError:
            return None


@cache
def _library() -> Any:
    package = importlib.util.find_spec("ffcv")
    folder = Path(package.origin).parent if package and package.origin else None
    found = next(iter(sorted(folder.glob("_libffcv*.so"))), None) if folder else None
    if found is None:
        raise UserError(
            "--loader ffcv needs FFCV, which is not installed (tools/setup says what it lacks); choose another --loader"
        )
    library = ctypes.CDLL(str(found))
    numbers = (ctypes.c_uint32,) * 6
    library.imdecode.argtypes = [
        ctypes.c_char_p,
        ctypes.c_uint64,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_void_p,
        *numbers,
        ctypes.c_bool,
        ctypes.c_bool,
    ]
    return library
