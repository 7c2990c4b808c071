import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import UInt16
from numpy import ndarray as Array

from pipeline.formats.hashed import write_hashed
from pipeline.formats.tar import write_shard
from pipeline.formats.types import CODES, Record, Written
from pipeline.manifest import INDEX_DTYPE, File
from pipeline.sources.types import Item
from pipeline.storage import open_folder
from pipeline.stream import copies_in_pass

Labels = UInt16[Array, "n copies"]


def records(sizes: list[int], first: int) -> Iterator[Record]:
    generator = np.random.default_rng(0)
    for row, size in enumerate(sizes):
        item = Item(generator.bytes(size), ("jpg", "png", "webp")[row % 3], row + 1, 65_535 - row, 3)
        yield Record(f"{first + row:09d}", item, 2**32 - 1 - row, row * 7_000)


def labels_of(sizes: list[int], alpha: int, num_classes: int = 65_536) -> Labels:
    return np.random.default_rng(1).integers(0, num_classes, (len(sizes), 1 + alpha), dtype=np.uint16)


# ---- what tarfile, NumPy and plain arithmetic make of a shard ----


@given(
    st.lists(st.integers(0, 2_000), min_size=1, max_size=5),
    st.integers(0, 300),
    st.integers(0, 10**9 - 6),
    st.sampled_from([0, 1, 12]),
)
def test_tarfile_reads_back_every_member(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], alpha: int, first: int, dictionary: int
) -> None:
    path = tmp_path_factory.mktemp("shard") / "train-000000.tar"
    labels = labels_of(sizes, alpha, dictionary or 65_536)
    written = write_shard(
        open_folder(path.parent), path.stem, records(sizes, first), labels, first=first, dictionary=dictionary
    )
    wanted = list(records(sizes, first))
    with tarfile.open(path, "r:") as archive:
        members = archive.getmembers()
        content = [(member.name, archive.extractfile(member).read()) for member in members]  # type: ignore[union-attr]
    names = [f"__labels__/{label:04d}.lbl" for label in range(dictionary)]
    for record in wanted:
        suffixes = [record.item.encoding, "cls", "labels.npy"][: 3 if alpha else 2]
        names += [f"{record.key}.{suffix}" for suffix in suffixes]
    assert [name for name, _ in content] == names
    data = dict(content)
    assert [data[name] for name in names[:dictionary]] == [label.to_bytes(4, "little") for label in range(dictionary)]
    for record, row in zip(wanted, labels, strict=True):
        assert data[f"{record.key}.{record.item.encoding}"] == record.item.data
        assert data[f"{record.key}.cls"] == str(row[0]).encode()
        if alpha:
            noisy = np.load(BytesIO(data[f"{record.key}.labels.npy"]), allow_pickle=False)
            assert noisy.dtype == np.uint16
            assert np.array_equal(noisy, row[1:])
    for member in members:
        assert (member.mode, member.uid, member.gid, member.mtime, member.uname) == (0o644, 0, 0, 0, "")
        assert member.isreg()
        assert member.offset_data % 512 == 0  # what DALI's index asks for
    check_description(path, written, members, wanted, labels, dictionary)


def check_description(
    path: Path,
    written: Written,
    members: list[tarfile.TarInfo],
    wanted: list[Record],
    labels: Labels,
    dictionary: int = 0,
) -> None:
    """Compare what `write_shard` says of its files with the files."""
    shard, first = written.shard, int(wanted[0].key)
    assert (shard.name, shard.first, shard.count) == (path.name, first, len(wanted))
    for file in (shard, *written.extras):
        data = (path.parent / file.name).read_bytes()
        assert (file.num_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    num_members = 3 if labels.shape[1] > 1 else 2
    entries, images = members[:dictionary], members[dictionary::num_members]
    assert written.index.dtype == INDEX_DTYPE
    assert written.index.tolist() == [
        (
            member.offset_data,
            len(item.data),
            zlib.crc32(item.data),
            source,
            source_label,
            item.height,
            item.width,
            3,
            CODES[item.encoding],
        )
        for member, (_, item, source, source_label, _) in zip(images, wanted, strict=True)
    ]

    def column(member: tarfile.TarInfo) -> str:
        return f"{member.name.split('.', 1)[1]} {member.offset_data} {member.size}"

    cuts = [*range(dictionary, len(members), num_members), len(members)]
    rows = [" ".join(map(column, members[start:end])) for start, end in pairwise(cuts)]
    assert path.with_suffix(".idx").read_text() == "\n".join([f"v1.1 {len(rows)}", *rows, ""])
    assert len(written.extras) == (2 if dictionary else 1)
    if dictionary:  # one row an example, pass after pass: the image beside its label's place in the dictionary
        image_ids, num_copies = np.arange(first, first + len(wanted)), labels.shape[1]
        shown = (copies_in_pass(number, image_ids, num_copies=num_copies) for number in range(num_copies))
        rows = [
            f"{column(images[row])} {column(entries[labels[row, copy]])}"
            for copies in shown
            for row, copy in enumerate(copies)
        ]
        text = (path.parent / f"{path.stem}.diluted.idx").read_text()
        assert text == "\n".join([f"v1.1 {labels.size}", *rows, ""])


def test_a_shard_larger_than_the_write_buffer_is_whole(tmp_path: Path) -> None:
    sizes = [3 << 20, 3 << 20, 5]  # the buffer holds 4 MiB
    labels = labels_of(sizes, 3)
    written = write_shard(open_folder(tmp_path), "a", records(sizes, 0), labels, first=0)
    with tarfile.open(tmp_path / "a.tar") as archive:
        members = archive.getmembers()
    check_description(tmp_path / "a.tar", written, members, list(records(sizes, 0)), labels)


def test_only_finished_files_have_their_names(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Record]:
        yield from records([10, 5_000_000], 0)
        raise KeyboardInterrupt

    folder = open_folder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_shard(folder, "a", interrupted(), labels_of([0] * 3, 2), first=0)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".part")] == []
    write_shard(folder, "a", records([10], 0), labels_of([10], 2), first=0)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".part")) == ["a.idx", "a.tar"]


def test_a_small_file_replaces_the_one_that_was_there(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    write_hashed(folder, "a", b"a long text")
    assert write_hashed(folder, "a", b"short") == File("a", 5, hashlib.sha256(b"short").hexdigest())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"short"}
