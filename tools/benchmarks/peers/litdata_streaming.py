"""LitData: StreamingDataset and StreamingDataLoader on chunks of 64 MB, from the local disk, shuffled.

Files are stored as they are and decoded by torchvision to tensors, as LitData itself does with JPEGs.
"""

from __future__ import annotations

from typing import Any

import litdata
from one_run import one_run, parser
from torchvision_crops import decode, random_crop

TIMES = 5  # every image is listed so often: an epoch of more batches than are timed

args = parser().parse_args()


def record(job: tuple[str, int]) -> dict[str, Any]:
    """Return what is stored of an image."""
    with open(job[0], "rb") as file:
        return {"image": file.read(), "class": job[1]}


class Images(litdata.StreamingDataset):  # type: ignore[misc]
    """The stored images, cropped."""

    crop = random_crop()

    def __getitem__(self, index: Any) -> Any:
        """Return an image and its label."""
        stored = super().__getitem__(index)
        return self.crop(decode(stored["image"])), stored["class"]


def loader() -> Any:
    """Open the chunks; epoch after epoch."""
    images = Images(str(args.data), shuffle=True, drop_last=True)
    made = litdata.StreamingDataLoader(
        images, batch_size=args.batch, num_workers=args.threads, drop_last=True, persistent_workers=True
    )
    while True:
        yield from made


if __name__ == "__main__":  # its writers import this file
    if args.write:
        classes = sorted((args.write / "train").iterdir())
        jobs = [(str(file), label) for label, folder in enumerate(classes) for file in sorted(folder.iterdir())]
        litdata.optimize(record, TIMES * jobs, str(args.data), chunk_bytes="64MB", num_workers=args.threads)
    else:
        one_run(loader, args.batch, args.batches)
