"""DALI as its documentation shows it for WebDataset and ImageNet: its own reader of tars, on the CPU.

Shuffle buffer of 1,024 images, random crop in the decoder, resize (antialiased by default), mirror, normalise to
float32, channels last as ours. `--decode` only reads and decodes whole images: what a loader that does so cannot beat.
"""

from __future__ import annotations

from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from one_run import MEAN, SIZE_PX, STD, one_run, parser

command = parser()
command.add_argument("--decode", action="store_true")
args = command.parse_args()


@pipeline_def(batch_size=args.batch, num_threads=args.threads, device_id=None, prefetch_queue_depth=2)
def pipeline() -> Any:
    """Read, decode, crop, resize, mirror, normalise."""
    tars = sorted(args.data.glob("train-*.tar"))
    files, labels = fn.readers.webdataset(
        paths=[str(path) for path in tars],
        index_paths=[str(path.with_suffix(".idx")) for path in tars],
        ext=["jpg;png;webp", "cls"],
        random_shuffle=True,
        initial_fill=1_024,
        missing_component_behavior="error",
        name="reader",
    )
    if args.decode:
        return fn.decoders.image(files, device="cpu", output_type=types.RGB)
    images = fn.decoders.image_random_crop(
        files, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
    )
    images = fn.resize(images, size=[SIZE_PX, SIZE_PX])
    images = fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="HWC",
        mean=[255 * mean for mean in MEAN],
        std=[255 * std for std in STD],
        mirror=fn.random.coin_flip(),
    )
    return images, fn.pad(labels, shape=[8])  # labels are texts of one to five digits


def whole() -> Any:
    """Open the iterator that DALI ships for PyTorch."""
    return DALIGenericIterator([pipeline()], ["images", "labels"], auto_reset=True)


def decoding() -> Any:
    """Run the pipeline itself: whole images have many shapes."""
    built = pipeline()
    built.build()
    return iter(built.run, None)


one_run(decoding if args.decode else whole, args.batch, args.batches)
