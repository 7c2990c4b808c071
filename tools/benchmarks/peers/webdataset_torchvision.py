"""WebDataset with torchvision's v2 transforms in DataLoader workers, decoded to tensors (faster than PIL).

Shards drawn at random for ever, a shuffle buffer of 1,000 images, batches made in the workers, as its documentation
advises for training.
"""

from __future__ import annotations

from typing import Any

import webdataset
from one_run import one_run, parser
from torchvision_crops import decode, random_crop

args = parser().parse_args()


def loader() -> Any:
    """Open the tars in as many workers as asked for."""
    tars = [str(path) for path in sorted(args.data.glob("train-*.tar"))]
    crop = random_crop()
    images = (
        webdataset.WebDataset(tars, resampled=True)
        .shuffle(1_000)
        .to_tuple("jpg;png;webp", "cls")
        .map_tuple(lambda data: crop(decode(data)), int)
        .batched(args.batch)
    )
    return webdataset.WebLoader(images, batch_size=None, num_workers=args.threads)


one_run(loader, args.batch, args.batches)
