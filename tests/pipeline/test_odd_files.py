"""Every odd file of real data sets, on its way from a source's folder into shards."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import BAD, ODD, encode, write_tree

from pipeline.builder import build
from pipeline.dataset import decode, dilute, open_shards
from pipeline.errors import UserError
from pipeline.manifest import FILE_NAME, read_manifest
from pipeline.order import balanced_order
from pipeline.plan import Options, Plan, plan_build
from pipeline.sources import Source, open_source
from pipeline.verify import verify

STRENGTH = ("none", "header", "decode")
FORMATS: dict[str, dict[str, Any]] = {
    "webdataset": {},
    "expanded": {"layout": "expanded"},
    "ffcv": {"format": "ffcv"},
}


def plan(source: Source, *, alpha: int = 2, **options: Any) -> Plan:
    return plan_build(source, dilute(source, alpha=alpha), Options(shard_images=4, **options))


def found_by(name: str, check: str) -> bool:
    return STRENGTH.index(check) >= STRENGTH.index(BAD[name][1])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- odd, but good ----


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Source:
    more = {f"{part}/{'ab'[n % 2]}/{name}": ODD[name][0] for part in ("train", "test") for n, name in enumerate(ODD)}
    return open_source("folder", write_tree(tmp_path_factory.mktemp("odd"), more=more))


@pytest.mark.parametrize("check", STRENGTH)
def test_odd_files_keep_their_bytes_and_are_called_what_they_are(odd: Source, tmp_path: Path, check: str) -> None:
    manifest = build(plan(odd, check=check), tmp_path)
    assert manifest.encodings == {"jpg": 14 + 2 * 3, "png": 2 * 2, "webp": 2 * 1}
    assert manifest.quarantine == ()
    assert verify(tmp_path) == []
    dataset = open_shards(tmp_path)
    for split, clean in ((dataset.train, odd.train), (dataset.test, odd.test)):
        for image_id, index in enumerate(split.source_ids.tolist()):
            item = split.item(image_id)
            assert item.data == clean.item(index).data
            shape = (0, 0, 0) if check == "none" else decode(item).shape
            assert (item.height, item.width, item.channels) == shape
            name = Path(clean.name_of(index)).name
            if name in ODD:
                assert (item.encoding, item.channels) == (ODD[name][1], 0 if check == "none" else ODD[name][2])


@pytest.mark.parametrize("check", STRENGTH)
def test_a_beton_holds_jpegs_as_they_are_and_all_else_as_rgb_pixels(odd: Source, tmp_path: Path, check: str) -> None:
    manifest = build(plan(odd, format="ffcv", check=check), tmp_path)
    assert manifest.encodings == {"raw": 2 * 4, "jpg": 14 + 2 * 2}
    assert verify(tmp_path) == []
    dataset = open_shards(tmp_path)
    for split, clean in ((dataset.train, odd.train), (dataset.test, odd.test)):
        for image_id, index in enumerate(split.source_ids.tolist()):
            item, given = split.item(image_id), clean.item(index)
            if item.encoding == "jpg":
                assert item.data == given.data
                assert Path(clean.name_of(index)).name != "cmyk.JPEG"  # which FFCV's decoder would not take
            else:
                assert np.array_equal(decode(item), np.broadcast_to(decode(given), decode(item).shape))


# ---- bad ----


@pytest.mark.parametrize("check", STRENGTH)
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_bad_file_ends_the_build_and_is_named_with_the_reason(
    tmp_path: Path, split: str, name: str, check: str
) -> None:
    more = {f"{split}/b/{name}": BAD[name][0]}
    source = open_source("folder", write_tree(tmp_path / "in", more=more))
    if not found_by(name, check):
        build(plan(source, check=check), tmp_path / "out")
        assert any(problem.file.startswith(split) for problem in verify(tmp_path / "out"))
        return
    said = rf"^{split} image {split}/b/{name}: .*{BAD[name][2]}.*; mend or remove it, or give --on-bad skip to leave"
    with pytest.raises(UserError, match=said):
        build(plan(source, check=check), tmp_path / "out")
    assert not (tmp_path / "out" / FILE_NAME).exists()
    (tmp_path / "in" / split / "b" / name).unlink()
    mended = open_source("folder", tmp_path / "in")
    with pytest.raises(UserError, match=r"holds another data set: .*source_sha256 is"):
        build(plan(mended, check=check), tmp_path / "out")  # not mixed with what the build before wrote
    build(plan(mended, check=check), tmp_path / "out", force=True)
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["truncated.jpg", "bomb.png", "damaged.png"])
@pytest.mark.parametrize("options", [{"format": "ffcv"}, {"max_side": 9}, {"format": "ffcv", "max_side": 9}])
def test_what_must_be_decoded_is_refused_without_any_check(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    source = open_source("folder", write_tree(tmp_path / "in", more={f"train/a/{name}": BAD[name][0]}))
    with pytest.raises(UserError, match=rf"^train image train/a/{name}: .*mend or remove it"):
        build(plan(source, check="none", **options), tmp_path / "out")


@pytest.fixture
def spoilt(tmp_path: Path) -> Source:
    """Write 13 training images of which 4 are bad, and 6 for the test with one bad."""
    places = [
        "train/a/003x-empty.jpg",
        "train/b/text.jpg",
        "train/a/000-truncated.jpg",
        "test/b/bomb.png",
        "train/b/damaged.png",
    ]
    more = {place: BAD[name][0] for place, name in zip(places, BAD, strict=True)}
    return open_source("folder", write_tree(tmp_path / "in", num_train=9, num_test=5, more=more))


@pytest.mark.parametrize(
    ("check", "options"),
    [("decode", FORMATS["webdataset"]), ("decode", FORMATS["expanded"]), ("decode", FORMATS["ffcv"]), ("header", {})],
)
def test_skipped_files_are_listed_and_the_order_of_the_others_stays(
    spoilt: Source, tmp_path: Path, check: str, options: dict[str, Any]
) -> None:
    manifest = build(plan(spoilt, check=check, on_bad="skip", **options), tmp_path / "out")
    left_out: dict[str, list[int]] = {"train": [], "test": []}
    reasons = {}
    for entry in manifest.quarantine:
        split = spoilt.train if entry["split"] == "train" else spoilt.test
        assert entry["name"] == split.name_of(entry["source"])
        left_out[entry["split"]].append(entry["source"])
        reasons[entry["name"].rpartition("-")[2].rpartition("/")[2]] = entry["reason"]
    wanted = {name: BAD[name][2] for name in BAD if found_by(name, check)}
    assert set(reasons) == set(wanted)
    assert all(wanted[name] in reason for name, reason in reasons.items())
    dataset = open_shards(tmp_path / "out")
    for name, stored, clean in (("train", dataset.train, spoilt.train), ("test", dataset.test, spoilt.test)):
        order = balanced_order(clean.labels, 2)
        assert stored.source_ids[: stored.num_images].tolist() == [i for i in order.tolist() if i not in left_out[name]]
        assert stored.num_images == len(clean) - len(left_out[name])
    assert (manifest.formula.num_images, manifest.formula.num_examples) == (
        dataset.train.num_images,
        3 * dataset.train.num_images,
    )
    problems = verify(tmp_path / "out")
    assert (problems == []) == (check == "decode")
    assert read_manifest(tmp_path / "out") == manifest


def test_a_bad_file_whose_name_is_no_text_is_left_out_like_others(tmp_path: Path) -> None:
    source = open_source("folder", write_tree(tmp_path / "in", more={"train/a/\udce9.jpg": b""}))
    manifest = build(plan(source, on_bad="skip"), tmp_path / "out")
    assert [entry["name"] for entry in manifest.quarantine] == ["train/a/\\udce9.jpg"]
    assert read_manifest(tmp_path / "out") == manifest


def test_skipping_by_headers_says_which_check_finds_the_rest(spoilt: Source, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"damaged\.png: does not decode.*; mend or remove it, or give --check decode to"
    ):
        build(plan(spoilt, check="header", on_bad="skip", format="ffcv"), tmp_path / "out")


def test_a_data_set_without_bad_images_is_the_same_with_and_without_skipping(tmp_path: Path) -> None:
    source = open_source("folder", write_tree(tmp_path / "in"))
    seen: list[tuple[str, int]] = []
    build(plan(source), tmp_path / "error")
    build(
        plan(source, on_bad="skip"), tmp_path / "skip", progress=lambda stage, images, _: seen.append((stage, images))
    )
    assert seen == [(stage, images) for stage in ("check", "write") for images in (4, 4, 2, 4)]
    error, skip = content(tmp_path / "error"), content(tmp_path / "skip")
    assert {name for name in error if error[name] != skip.get(name)} == {FILE_NAME}  # which says how it was built


def test_a_prefix_without_its_bad_images_is_no_longer_than_asked_for(spoilt: Source, tmp_path: Path) -> None:
    dataset = dilute(spoilt, alpha=1, clean=8)
    manifest = build(plan_build(spoilt, dataset, Options(on_bad="skip")), tmp_path / "out")
    bad = [entry for entry in manifest.quarantine if entry["split"] == "train"]
    assert manifest.formula.num_images == 8 - len(bad) < 8


def test_a_split_of_nothing_but_bad_images_is_an_error(tmp_path: Path) -> None:
    more = {f"test/{name}/x.jpg": encode()[:-9] for name in "ab"}
    source = open_source("folder", write_tree(tmp_path / "in", num_test=0, more=more))
    with pytest.raises(UserError, match=r"^all 2 images of the test split are bad; the first: truncated"):
        build(plan(source, on_bad="skip"), tmp_path / "out")


class StopError(Exception):
    pass


def stop_in(stage: str, calls: int) -> Callable[[str, int, int], None]:
    def progress(now: str, images: int, num_bytes: int) -> None:
        nonlocal calls
        calls -= now == stage
        if not calls:
            raise StopError

    return progress


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("stage", "calls"), [("check", 2), ("write", 1), ("write", 3)])
def test_skipping_that_was_interrupted_goes_on_with_the_same_list(
    spoilt: Source, tmp_path: Path, stage: str, calls: int, options: dict[str, Any]
) -> None:
    wanted = plan(spoilt, on_bad="skip", **options)
    build(wanted, tmp_path / "undisturbed")
    with pytest.raises(StopError):
        build(wanted, tmp_path / "out", progress=stop_in(stage, calls))
    stages: list[str] = []
    build(wanted, tmp_path / "out", progress=lambda now, images, num_bytes: stages.append(now))
    assert ("check" in stages) == (stage == "check")  # all images are looked at once
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
    build(wanted, tmp_path / "out", progress=lambda *_: pytest.fail("there is nothing to do"))


@pytest.mark.slow
def test_workers_find_the_same_bad_images(spoilt: Source, tmp_path: Path) -> None:
    for workers in (1, 2):
        build(plan(spoilt, on_bad="skip"), tmp_path / str(workers), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_a_file_that_goes_away_while_others_are_written_is_named(tmp_path: Path) -> None:
    source = open_source("folder", write_tree(tmp_path / "in"))

    def progress(stage: str, images: int, num_bytes: int) -> None:
        shutil.rmtree(tmp_path / "in" / "test", ignore_errors=True)

    with pytest.raises(UserError, match=r"^test image test/[ab]/00\d\.jpg: cannot be read: No such file or directory"):
        build(plan(source), tmp_path / "out", progress=progress)
