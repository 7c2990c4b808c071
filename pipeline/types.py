"""What flows through the pipeline.

Dims: n images, a copies (1 + alpha), b batch, c h w channels height width, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float32, Int64
from torch import Tensor

Encoding = Literal["jpg", "png", "webp", "raw"]


@dataclass(frozen=True, slots=True)
class Item:
    """One image as its source has it.

    Args:
        data: The encoded file, or for "raw" uint8 pixels in h w c order.
        encoding: What `data` is.
        height: In px; 0 where it is not known without decoding.
        width: In px; 0 where it is not known without decoding.
        channels: 0 where it is not known without decoding.
    """

    data: bytes
    encoding: Encoding
    height: int = 0
    width: int = 0
    channels: int = 0


@dataclass(slots=True)
class Batch:
    """What one training or evaluation step sees.

    Args:
        images: Normalised pixels on the training device.
        labels: One label a row; for a stream of images one column per copy.
        rows: The example_id of each row, on the CPU (the image_id for a stream of images and in evaluation);
            metrics and selectors look ids, copies and source labels up from it.
        replaced: Rows of this batch whose own image could not be read, on the CPU.
    """

    images: Float32[Tensor, "b c h w"]
    labels: Int64[Tensor, " b"] | Int64[Tensor, "b a"]
    rows: Int64[Tensor, " b"]
    replaced: Int64[Tensor, " r"]
