"""CIFAR-10: 50,000 + 10,000 photos of 32 × 32 in 10 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.sources.cifar import Cifar, Official, Version, open_cifar
from pipeline.sources.types import Source

CIFAR10: Final = Cifar(
    "cifar10",
    10,
    (
        Version(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            tuple(f"data_batch_{number}" for number in range(1, 6)),
            "test_batch",
            "batches.meta",
            label_key="labels",
            names_key="label_names",
        ),
        Version(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            "test_batch.bin",
            "batches.meta.txt",
            label_bytes=1,
        ),
    ),
    {
        "cifar-10-python.tar.gz": Official(170_498_071, "c58f30108f718f92721af3b95e74349a"),
        "cifar-10-binary.tar.gz": Official(170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"),
        "data_batch_1": Official(31_035_704, "c99cafc152244af753f735de768cd75f"),
        "data_batch_2": Official(31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
        "data_batch_3": Official(31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
        "data_batch_4": Official(31_035_696, "634d18415352ddfa80567beed471001a"),
        "data_batch_5": Official(31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
        "test_batch": Official(31_035_526, "40351d587109b95175f43aff81a1287e"),
    },
)


def open_cifar10(path: Path | None = None) -> Source:
    """Open CIFAR-10.

    Args:
        path: cifar-10-python.tar.gz, cifar-10-binary.tar.gz, or a folder of either or of what it unpacks to; by
            default where `tools/fetch cifar10` puts it.

    Raises:
        UserError: If there is nothing to read, or a file is missing, damaged, or an official one with another MD5.
    """
    return open_cifar(CIFAR10, path)
