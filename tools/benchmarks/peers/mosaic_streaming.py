"""MosaicML streaming: StreamingDataset on MDS shards from the local disk, shuffled, in PyTorch's DataLoader.

Files are stored as bytes and decoded by torchvision to tensors, faster than its "jpeg" columns, which decode with PIL.
"""

from __future__ import annotations

from typing import Any

from one_run import epoch_images, one_run, parser
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torchvision_crops import decode, loader_of, random_crop

args = parser().parse_args()


class Images(StreamingDataset):  # type: ignore[misc]
    """The stored images, cropped."""

    crop = random_crop()

    def __getitem__(self, index: Any) -> Any:
        """Return an image and its label."""
        stored = super().__getitem__(index)
        return self.crop(decode(stored["image"])), stored["class"]


def loader() -> Any:
    """Open the shards; images repeat within one long epoch."""
    size = epoch_images(args.batch, args.batches)
    images = Images(local=str(args.data), epoch_size=size, shuffle=True, batch_size=args.batch)
    return loader_of(images, args.batch, args.threads)


if args.write:
    with MDSWriter(out=str(args.data), columns={"image": "bytes", "class": "int"}) as writer:
        for label, folder in enumerate(sorted((args.write / "train").iterdir())):
            for file in sorted(folder.iterdir()):
                writer.write({"image": file.read_bytes(), "class": label})
else:
    clean_stale_shared_memory()  # of a run that was killed
    one_run(loader, args.batch, args.batches)
