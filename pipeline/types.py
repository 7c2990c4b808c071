"""What flows through the pipeline.

Dims: n images, a copies (1 + alpha), b batch, c h w channels height width, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor


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

    images: Float[Tensor, "b c h w"]
    labels: Int64[Tensor, " b"] | Int64[Tensor, "b a"]
    rows: Int64[Tensor, " b"]
    replaced: Int64[Tensor, " r"]

    def parts(self, num_parts: int) -> list[Batch]:
        """Cut the batch into equal parts, in order; `replaced` stays with the whole."""
        cut = zip(*(each.chunk(num_parts) for each in (self.images, self.labels, self.rows)), strict=True)
        return [Batch(images, labels, rows, self.replaced[:0]) for images, labels, rows in cut]
