"""CIFAR-100: 50,000 + 10,000 photos of 32 × 32 in 100 fine classes (the 20 coarse ones are not used)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.sources.cifar import Cifar, Official, Version, open_cifar
from pipeline.sources.types import Source

CIFAR100: Final = Cifar(
    "cifar100",
    100,
    (
        Version(
            "cifar-100-python",
            "cifar-100-python.tar.gz",
            ("train",),
            "test",
            "meta",
            label_key="fine_labels",
            names_key="fine_label_names",
        ),
        Version(
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            ("train.bin",),
            "test.bin",
            "fine_label_names.txt",
            label_bytes=2,  # coarse, fine
        ),
    ),
    {
        "cifar-100-python.tar.gz": Official(169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"),
        "cifar-100-binary.tar.gz": Official(168_513_733, "03b5dce01913d631647c71ecec9e9cb8"),
        "train": Official(155_249_918, "16019d7e3df5f24257cddd939b257f8d"),
    },
)


def open_cifar100(path: Path | None = None) -> Source:
    """Open CIFAR-100 with its fine labels.

    Args:
        path: cifar-100-python.tar.gz, cifar-100-binary.tar.gz, or a folder of either or of what it unpacks to; by
            default where `tools/fetch cifar100` puts it.

    Raises:
        UserError: If there is nothing to read, or a file is missing, damaged, or an official one with another MD5.
    """
    return open_cifar(CIFAR100, path)
