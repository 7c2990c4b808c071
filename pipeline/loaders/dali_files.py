"""What DALI may be shown: some files would end the whole process."""

from __future__ import annotations

from pipeline.sources.types import Item


def parses(item: Item) -> bool:
    """Say whether DALI may be shown a file: whether markers (chunks) follow each other up to its pixels.

    Where they do not, DALI raises an error while its threads still work on the batch, which ends the process.
    """
    data, at = item.data, 2
    try:
        if item.encoding == "jpg":
            while data[at] == 0xFF:
                while data[at + 1] == 0xFF:  # any number of them may stand before a marker
                    at += 1
                if data[at + 1] == 0xDA:
                    return True
                at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
        elif item.encoding == "png":
            at = 8
            while data[at + 4 : at + 8] != b"IEND":
                if at >= len(data):
                    return False
                at += 12 + int.from_bytes(data[at : at + 4])
            return True
    except IndexError:
        return False
    return item.encoding == "webp"
