"""ImageNet's layouts: the tree, the tars, Kaggle's and the development kit, with the odd files that it holds."""

import csv
import io
import pickle
import shutil
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset import decode
from pipeline.errors import DamagedImageError, UserError
from pipeline.images import check_item
from pipeline.sources import Augmentation, Source, open_source

WNIDS = ["n01440764", "n01443537", "n02123045"]
WORDS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus", "n02123045": "tabby, tabby cat"}
# ILSVRC2012's own ids run in another order than the WordNet ids.
ILSVRC_IDS = {"n02123045": 1, "n01440764": 2, "n01443537": 3}
VAL_WNIDS = ["n02123045", "n01443537", "n01443537", "n01440764", "n02123045"]  # by number of the image


def encoded(kind: str = "JPEG", seed: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(noise).convert(mode).save(out, kind, **options)
    return out.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(exif=exif.tobytes())


ODD = {
    "n01440764_10.JPEG": encoded("PNG"),  # as n02105855_2933.JPEG is
    "n01440764_9.JPEG": encoded(mode="CMYK"),
    "n01440764_8.JPEG": encoded(mode="L"),
    "n01440764_7.JPEG": rotated(),
    "n01440764_6.JPEG": encoded()[:-30],
    "n01440764_5.JPEG": b"",
}
TRAIN = {
    "n01440764": ODD,
    "n01443537": {f"n01443537_{i}.JPEG": encoded(seed=i) for i in (30, 4, 11)},
    "n02123045": {f"n02123045_{i}.JPEG": encoded(seed=i) for i in (2, 1)},
}
VAL = {f"ILSVRC2012_val_{i:08d}.JPEG": encoded(seed=100 + i) for i in range(1, len(VAL_WNIDS) + 1)}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def tar_of(files: dict[str, bytes]) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def train_tree(root: Path) -> None:
    for wnid, files in TRAIN.items():
        write_files(root / "train" / wnid, files)


def train_tar(root: Path) -> None:
    inner = {f"{wnid}.tar": tar_of(files) for wnid, files in reversed(TRAIN.items())}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))


def val_tree(root: Path) -> None:
    for wnid, (name, data) in zip(VAL_WNIDS, VAL.items(), strict=True):
        write_files(root / "val" / wnid, {name: data})


def val_flat(root: Path) -> None:
    write_files(root / "val", VAL)


def val_tar(root: Path) -> None:
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(VAL))


def answers_csv(root: Path, wnids: list[str] = VAL_WNIDS) -> None:
    rows = [[f"ILSVRC2012_val_{i:08d}", f"{wnid} 1 2 30 40 {wnid} 5 6 7 8"] for i, wnid in enumerate(wnids, 1)]
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["ImageId", "PredictionString"], *reversed(rows)])  # in no order, as Kaggle's


def devkit_files() -> dict[str, bytes]:
    """Write the kit's two files; meta.mat lists inner nodes of WordNet too, as the real one does."""
    savemat = pytest.importorskip("scipy.io").savemat
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    rows = [(ILSVRC_IDS[wnid], wnid, WORDS[wnid], "a fish", 0, 0, 0) for wnid in sorted(ILSVRC_IDS, key=ILSVRC_IDS.get)]  # type: ignore[arg-type]
    rows.append((4, "n00000001", "entity", "all", 3, 0, 9))
    synsets = np.array(rows, dtype=[(field, "O") for field in fields]).reshape(-1, 1)
    out = BytesIO()
    savemat(out, {"synsets": synsets})
    truth = "".join(f"{ILSVRC_IDS[wnid]}\n" for wnid in VAL_WNIDS)
    return {"meta.mat": out.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}


def devkit_folder(root: Path) -> None:
    write_files(root / "ILSVRC2012_devkit_t12" / "data", devkit_files())


def devkit_flat(root: Path) -> None:
    write_files(root, devkit_files())


def devkit_archive(root: Path) -> None:
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, data in {"COPYING": b"", **devkit_files()}.items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


Writers = list[Callable[[Path], None]]
LAYOUTS: dict[str, Writers] = {
    "tree": [train_tree, val_tree],
    "train tar": [train_tar, val_tree],
    "flat val with csv": [train_tree, val_flat, answers_csv],
    "flat val with kit": [train_tree, val_flat, devkit_folder],
    "flat val with packed kit": [train_tree, val_flat, devkit_archive],
    "flat val with the kit's files": [train_tree, val_flat, devkit_flat],
    "original archives": [train_tar, val_tar, devkit_archive],
    "archives with csv": [train_tar, val_tar, answers_csv],
}


def written(tmp_path: Path, *writers: Callable[[Path], None]) -> Path:
    for write in writers:
        write(tmp_path)
    return tmp_path


def content(source: Source) -> list[list[tuple[int, str, bytes]]]:
    """List label, file name and bytes of every image (None where it is no image)."""

    def data(split: Any, index: int) -> bytes:
        try:
            return bytes(split.item(index).data)
        except DamagedImageError as error:
            return str(error).encode()

    return [
        [(int(y), Path(split.name_of(i)).name, data(split, i)) for i, y in enumerate(split.labels)]
        for split in (source.train, source.test)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_hold_the_same_images_in_the_same_order(
    layout: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = open_source("imagenet", written(tmp_path, *LAYOUTS[layout]))
    tree = open_source("imagenet", written(tmp_path_factory.mktemp("tree"), *LAYOUTS["tree"]))
    assert content(source) == content(tree)
    assert [name.split()[0] for name in source.classes] == WNIDS
    assert source.name == "imagenet"
    assert source.augmentation == Augmentation("window", flip=True, size_px=224)
    assert source.train.labels.dtype == np.uint16


def test_the_tree_has_the_order_of_torchvision(tmp_path: Path) -> None:
    image_folder = pytest.importorskip("torchvision.datasets").ImageFolder
    source = open_source("imagenet", written(tmp_path, train_tree, val_tree))
    for part, split in (("train", source.train), ("val", source.test)):
        theirs = image_folder(tmp_path / part)
        assert [(str(tmp_path / split.name_of(i)), int(y)) for i, y in enumerate(split.labels)] == theirs.samples
        assert list(source.classes) == theirs.classes


def kaggle(root: Path) -> None:
    data = root / "ILSVRC/Data/CLS-LOC"
    data.mkdir(parents=True)
    train_tree(data)
    val_flat(data)
    write_files(data / "test", {"ILSVRC2012_test_00000001.JPEG": encoded()})
    answers_csv(root)
    lines = "".join(f"{wnid} {words}\n" for wnid, words in WORDS.items())
    (root / "LOC_synset_mapping.txt").write_text(lines)


@pytest.mark.parametrize("given", [".", "ILSVRC"])
def test_kaggle_s_archive_is_read_as_it_unpacks(given: str, tmp_path: Path) -> None:
    kaggle(tmp_path)
    if given == "ILSVRC":
        shutil.move(tmp_path / "LOC_val_solution.csv", tmp_path / "ILSVRC")
    source = open_source("imagenet", tmp_path / given)
    assert source.test.labels.tolist() == [0, 1, 1, 2, 2]
    if given == ".":
        assert source.classes[0] == "n01440764 tench, Tinca tinca"
        assert source.train.name_of(0) == "ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_10.JPEG"


def test_the_kit_s_ids_are_mapped_to_wordnet_s(tmp_path: Path) -> None:
    source = open_source("imagenet", written(tmp_path, train_tree, val_flat, devkit_folder))
    names = [Path(source.test.name_of(i)).stem for i in range(5)]
    assert names == [f"ILSVRC2012_val_{number:08d}" for number in (4, 2, 3, 1, 5)]
    assert source.classes == tuple(f"{wnid} {WORDS[wnid]}" for wnid in WNIDS)


@pytest.mark.parametrize("layout", ["tree", "train tar"])
def test_odd_files_are_what_their_bytes_are(layout: str, tmp_path: Path) -> None:
    train = open_source("imagenet", written(tmp_path, *LAYOUTS[layout])).train
    at = {Path(train.name_of(i)).name: i for i in range(len(train))}
    png = train.item(at["n01440764_10.JPEG"])
    assert png.encoding == "png"
    assert check_item(png, "decode").channels == 3
    for name, channels in (("n01440764_9.JPEG", 3), ("n01440764_8.JPEG", 1)):
        item = check_item(train.item(at[name]), "decode")
        assert (item.data, item.channels) == (ODD[name], channels)
        assert decode(item).shape == (6, 9, channels)
    turned = check_item(train.item(at["n01440764_7.JPEG"]), "decode")
    assert (turned.height, turned.width) == (6, 9)  # as it is stored, not as it should be looked at
    with pytest.raises(DamagedImageError, match="truncated"):
        check_item(train.item(at["n01440764_6.JPEG"]), "header")
    with pytest.raises(DamagedImageError, match="zero bytes"):
        train.item(at["n01440764_5.JPEG"])


def test_a_split_in_an_archive_travels_to_other_processes(tmp_path: Path) -> None:
    split = open_source("imagenet", written(tmp_path, *LAYOUTS["original archives"])).train
    first = split.item(0)
    copy = pickle.loads(pickle.dumps(split))
    assert copy.item(0) == first
    assert copy.name_of(0) == "ILSVRC2012_img_train.tar/n01440764.tar/n01440764_10.JPEG"


def test_an_archive_that_was_cut_after_opening_gives_a_damaged_image(tmp_path: Path) -> None:
    path = written(tmp_path, *LAYOUTS["original archives"])
    source = open_source("imagenet", path)
    archive = path / "ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes()[:1_100])
    with pytest.raises(DamagedImageError, match="was cut short after it was opened"):
        source.train.item(len(source.train) - 1)
    archive.unlink()
    gone = pickle.loads(pickle.dumps(source.train))
    with pytest.raises(DamagedImageError, match="cannot be read: No such file"):
        gone.item(0)


@pytest.mark.parametrize("name", ["../n01440764_1.JPEG", "/tmp/n01440764_1.JPEG"])
def test_a_member_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    inner = tar_of({"n01440764_2.JPEG": encoded(), name: encoded()})
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of({"n01440764.tar": inner}))
    val_tree(tmp_path)
    with pytest.raises(UserError, match=r"img_train\.tar/n01440764\.tar: member .* has an absolute path or one with"):
        open_source("imagenet", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ILSVRC2012_img_train.tar", "val"]


def write_train(root: Path, files: dict[str, bytes]) -> None:
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(files))


SOME = tar_of({"x.JPEG": encoded()})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"n01440764.tar": SOME[:700]}, r"n01440764\.tar: truncated"),
        ({"n01440764.tar": tar_of({})}, r"n01440764\.tar holds no image"),
        ({"n01440764.tar": b"x" * 2_000}, r"n01440764\.tar: no tar archive"),
        ({"n01440764.tar": tar_of({"./x.JPEG": b"", "x.JPEG": b""})}, r"holds 'x\.JPEG' twice"),
        ({"x.JPEG": encoded()}, r"member 'x\.JPEG'; it must hold one n01234567\.tar a class"),
        ({"cat.tar": SOME}, r"member 'cat\.tar'; it must hold"),
        ({"./n01440764.tar": SOME, "n01440764.tar": SOME}, r"'n01440764\.tar'; it must hold .* each once"),
        ({}, "0 class folders"),
    ],
)
def test_another_train_archive_is_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    write_train(tmp_path, files)
    val_tree(tmp_path)
    with pytest.raises(UserError, match=message):
        open_source("imagenet", tmp_path)


def write_csv(text: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (root / "LOC_val_solution.csv").write_text(text)

    return write


def replace_kit(name: str, data: bytes) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        write_files(root, {**devkit_files(), name: data})

    return write


def broken_kit(root: Path) -> None:
    devkit_archive(root)
    archive = root / "ILSVRC2012_devkit_t12.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-200])


def half_kit(root: Path) -> None:
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("ILSVRC2012_devkit_t12/data/meta.mat"))


def one_more_image(root: Path) -> None:
    write_files(root / "val", {"ILSVRC2012_val_00000006.JPEG": encoded()})


def one_fewer_image(root: Path) -> None:
    (root / "val/ILSVRC2012_val_00000002.JPEG").unlink()


def unknown_class(root: Path) -> None:
    answers_csv(root, [*VAL_WNIDS[:-1], "n03000000"])


@pytest.mark.parametrize(
    ("writers", "message"),
    [
        ([val_flat], "holds neither train/ nor ILSVRC2012_img_train.tar"),
        ([train_tree], "holds neither val/ with images or class folders nor ILSVRC2012_img_val.tar"),
        ([train_tree, val_flat], "neither LOC_val_solution.csv nor ILSVRC2012_devkit_t12"),
        ([train_tree, val_flat, write_csv("a,b\n")], "must begin with the line ImageId,PredictionString"),
        ([train_tree, val_flat, write_csv("")], "must begin with the line"),
        ([train_tree, val_flat, write_csv("ImageId,PredictionString\nx,\n")], "line 2 is no image and its WordNet id"),
        ([train_tree, val_flat, write_csv("ImageId,PredictionString\nx\n")], "line 2 is no image and its WordNet id"),
        ([train_tree, val_flat, answers_csv, one_more_image], r"no answer for ILSVRC2012_val_00000006 \(and 0 more\)"),
        ([train_tree, val_flat, devkit_flat, one_more_image], "no answer for ILSVRC2012_val_00000006"),
        ([train_tree, val_flat, answers_csv, one_fewer_image], "5 answers for 4 images: ILSVRC2012_val_00000002"),
        ([train_tree, val_flat, unknown_class], "ILSVRC2012_val_00000005 is of class n03000000, which the training"),
        ([train_tree, val_flat, replace_kit("meta.mat", b"x" * 500)], r"meta\.mat cannot be read"),
        (
            [train_tree, val_flat, replace_kit("ILSVRC2012_validation_ground_truth.txt", b"n01\n")],
            "must hold one number a line",
        ),
        (
            [train_tree, val_flat, replace_kit("ILSVRC2012_validation_ground_truth.txt", b"9\n" * 5)],
            "is of class ILSVRC2012 id 9, which the training split does not have",
        ),
        ([train_tree, val_flat, broken_kit], r"devkit_t12\.tar\.gz: cannot be read"),
        ([train_tree, val_flat, half_kit], r"does not hold 'ILSVRC2012_validation_ground_truth\.txt'"),
        ([train_tree, lambda root: write_files(root / "val/n09999999", VAL)], "class 'n09999999' .* is not in the tr"),
        (
            [lambda root: write_files(root / "train/cat", VAL), val_tree],
            "train/cat: not a WordNet id such as n01440764",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(writers: Writers, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_source("imagenet", written(tmp_path, *writers))


def test_a_missing_folder_and_no_folder_say_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="imagenet needs --source DIR"):
        open_source("imagenet")
    with pytest.raises(UserError, match=r"imagenet: no folder .*absent"):
        open_source("imagenet", tmp_path / "absent")
