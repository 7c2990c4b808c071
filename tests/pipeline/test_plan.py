"""What makes two builds the same one, and which builds there are."""

import dataclasses
import os
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import encode, write_tree

from pipeline.builder import build
from pipeline.dataset import dilute, open_shards
from pipeline.encode import encoder_version
from pipeline.errors import UserError
from pipeline.formats.tar_members import Member
from pipeline.laws import Foreign, Given, Matrix, StoredArray, White
from pipeline.manifest import LAW_FILE, read_manifest
from pipeline.plan import Options, Plan, plan_build
from pipeline.sources import Source, open_source
from pipeline.sources.files import TarSplit
from pipeline.sources.synthetic import synthetic
from pipeline.verify import verify


def plan(source: Source, **options: Any) -> Plan:
    return plan_build(source, dilute(source, alpha=1), Options(**options))


# ---- options ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "zip"}, "--format zip: choose one of webdataset, ffcv"),
        ({"layout": "flat"}, "--layout flat: choose one of shared, expanded"),
        ({"index": "rows"}, "--index rows: choose one of images, examples"),
        ({"check": "twice"}, "--check twice: choose one of decode, header, none"),
        ({"on_bad": "ignore"}, "--on-bad ignore: choose one of error, skip"),
        ({"format": "ffcv", "layout": "expanded"}, "--layout expanded is for --format webdataset"),
        ({"layout": "expanded", "index": "examples"}, "leave --index examples out"),
        ({"check": "none", "on_bad": "skip"}, "--on-bad skip needs a check .*: give --check decode or header"),
        ({"max_side": 0}, "--max-side 0; give at least 1 px"),
        ({"quality": 50}, "--quality is for images that --max-side shrinks; give both"),
        ({"max_side": 9, "quality": 0}, "--quality 0; give 1 to 100"),
        ({"max_side": 9, "quality": 101}, "--quality 101; give 1 to 100"),
        ({"shard_images": 0}, "0 images a shard; give at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused_with_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Options(**options)


@pytest.mark.parametrize("options", [{"layout": "expanded"}, {"index": "examples"}])
@pytest.mark.parametrize("law", [White(), Foreign("other", 9)])
def test_stock_readers_are_not_shown_clean_images_as_noise(law: White | Foreign, options: dict[str, Any]) -> None:
    source = synthetic(num_train=12, num_test=4, height=5, width=6, channels=1)
    other = dataclasses.replace(synthetic(num_train=9, num_test=4, height=5, width=6, channels=1, seed=1), name="other")
    foreign = other if isinstance(law, Foreign) else None
    dataset = dilute(source, alpha=1, law=law, foreign=foreign)
    with pytest.raises(UserError, match=f"law {law.name} .*leave --layout and --index out"):
        plan_build(source, dataset, Options(**options), foreign=foreign)


def test_every_option_makes_another_plan() -> None:
    source = synthetic(num_train=12, num_test=4, height=5, width=6, channels=1)
    other: dict[str, Any] = {
        "format": "ffcv",
        "layout": "expanded",
        "index": "examples",
        "check": "none",
        "on_bad": "skip",
        "max_side": 9,
        "shard_images": 3,
    }
    assert {*other, "quality"} == {field.name for field in dataclasses.fields(Options)}
    plans = [plan(source).describe(), *(plan(source, **{name: value}).describe() for name, value in other.items())]
    plans.append(plan(source, max_side=9, quality=7).describe())
    assert all(a != b for number, a in enumerate(plans) for b in plans[:number])


# ---- sources ----


def rename(root: Path) -> None:
    (root / "train/a/000.jpg").rename(root / "train/a/000x.jpg")


def resize(root: Path) -> None:
    with (root / "train/a/000.jpg").open("ab") as file:
        file.write(b"\0")


def swap_classes(root: Path) -> None:
    (root / "test/a/000.jpg").rename(root / "test/b/000.jpg")


def rename_a_class(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "b").rename(root / part / "c")


@pytest.mark.parametrize("change", [rename, resize, swap_classes, rename_a_class])
def test_a_changed_file_makes_another_source(tmp_path: Path, change: Callable[[Path], None]) -> None:
    before = plan(open_source("folder", write_tree(tmp_path))).source_sha256
    assert plan(open_source("folder", tmp_path)).source_sha256 == before
    change(tmp_path)
    assert plan(open_source("folder", tmp_path)).source_sha256 != before


def test_a_tree_at_another_place_and_of_another_time_is_the_same_source(tmp_path: Path) -> None:
    one, other = write_tree(tmp_path / "one"), write_tree(tmp_path / "far" / "other")
    os.utime(other / "train/a/000.jpg", (1, 1))
    assert plan(open_source("folder", one)).source_sha256 == plan(open_source("folder", other)).source_sha256


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    source = open_source("folder", write_tree(tmp_path))
    (tmp_path / "test/a/000.jpg").unlink()
    with pytest.raises(UserError, match=r"test/a/000\.jpg: cannot be read: No such file or directory; put it back"):
        plan(source)


@pytest.mark.parametrize("change", ["name", "size", "place", "none"])
def test_a_changed_member_makes_another_archive(tmp_path: Path, change: str) -> None:
    def write(path: Path, members: dict[str, bytes]) -> bytes:
        with tarfile.open(path, "w") as archive:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, BytesIO(data))
        with tarfile.open(path) as archive:
            places = [[Member(member.name, member.offset_data, member.size) for member in archive]]
        found: list[bytes] = []
        TarSplit(path, ["class"], places).fingerprint(found.append)
        return b"".join(found)

    members = {"a.jpg": encode(0), "b.jpg": encode(1)}
    changed = {
        "name": {"a.jpg": encode(0), "c.jpg": encode(1)},
        "size": {"a.jpg": encode(0), "b.jpg": encode(1) + b"\0"},
        "place": {"a.jpg": encode(0) + bytes(600), "b.jpg": encode(1)},
        "none": members,
    }[change]
    same = write(tmp_path / "one.tar", members) == write(tmp_path / "two.tar", changed)
    assert same == (change == "none")


def test_foreign_images_are_part_of_the_source() -> None:
    source = synthetic(num_train=12, num_test=4, height=5, width=6, channels=1)
    plans = []
    for seed in (1, 2):
        other = synthetic(num_train=9, num_test=4, height=5, width=6, channels=1, seed=seed)
        other = dataclasses.replace(other, name="other")
        dataset = dilute(source, alpha=1, law=Foreign("other", 9), foreign=other)
        plans.append(plan_build(source, dataset, foreign=other).source_sha256)
    assert plans[0] != plans[1]


# ---- laws with an array ----


def test_the_array_of_a_law_is_one_of_the_files_and_another_one_is_another_plan(tmp_path: Path) -> None:
    source = synthetic(num_train=12, num_test=4, height=5, width=6, channels=1)
    given = ((source.train.labels + 1) % 10).astype(np.uint16)
    plans = [
        plan_build(source, dilute(source, alpha=0, law=Given(StoredArray(labels))))
        for labels in (given, given[::-1].copy())
    ]
    assert plans[0].describe() != plans[1].describe()
    manifest = build(plans[0], tmp_path)
    assert manifest.law_array is not None
    assert manifest.law_array.name in {file.name for file in manifest.files()}
    assert np.array_equal(np.load(tmp_path / LAW_FILE), given)
    assert read_manifest(tmp_path).formula == manifest.formula


@pytest.mark.parametrize("left", ["rubbish", "an array"])
def test_an_array_that_another_law_left_in_the_folder_is_ignored(tmp_path: Path, left: str) -> None:
    source = synthetic(num_train=12, num_test=4, height=5, width=6, channels=1)
    first = build(plan(source), tmp_path)
    if left == "rubbish":
        (tmp_path / LAW_FILE).write_bytes(b"rubbish")
    else:
        np.save(tmp_path / LAW_FILE, np.eye(10))
    assert read_manifest(tmp_path) == first
    assert open_shards(tmp_path).formula == first.formula
    assert verify(tmp_path) == []
    assert build(plan(source), tmp_path) == first


def test_force_removes_the_array_of_the_law_before(tmp_path: Path) -> None:
    source = synthetic(num_train=12, num_test=4, height=5, width=6, channels=1)
    law = Matrix(StoredArray(np.full((10, 10), 0.1)))
    build(plan_build(source, dilute(source, alpha=0, law=law)), tmp_path)
    assert (tmp_path / LAW_FILE).exists()
    build(plan(source), tmp_path, force=True)
    assert not (tmp_path / LAW_FILE).exists()


# ---- smaller images ----


def test_the_manifest_names_the_encoder_of_images_that_were_made_smaller(tmp_path: Path) -> None:
    source = open_source("folder", write_tree(tmp_path / "in"))
    manifest = build(plan(source, max_side=21, quality=80), tmp_path / "out")
    assert manifest.encoder == encoder_version()
    assert manifest.encoder.startswith("Pillow ")
    assert (manifest.build["encoder"], manifest.build["quality"]) == (manifest.encoder, 80)
    assert verify(tmp_path / "out") == []
    dataset = open_shards(tmp_path / "out")
    for image_id, index in enumerate(dataset.train.source_ids.tolist()):
        item, clean = dataset.train.item(image_id), source.train.item(index)
        width = 20 + int(Path(source.train.name_of(index)).stem)
        if width <= 21:
            assert item.data == clean.data
        else:
            assert (item.encoding, item.width, item.height) == ("jpg", 21, round(17 * 21 / width))
            assert item.data != clean.data


def test_a_data_set_that_another_encoder_wrote_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("folder", write_tree(tmp_path / "in"))
    build(plan(source, max_side=21), tmp_path / "out")
    monkeypatch.setattr("pipeline.plan.encoder_version", lambda: "Pillow 99")
    with pytest.raises(UserError, match=r"encoder is 'Pillow .*', asked for is 'Pillow 99'"):
        build(plan(source, max_side=21), tmp_path / "out")
    assert build(plan(source), tmp_path / "plain").encoder is None  # nothing is encoded: any version goes on
