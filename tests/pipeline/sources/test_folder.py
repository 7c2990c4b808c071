import os
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import DamagedImageError, UserError
from pipeline.sources import Augmentation, open_source
from pipeline.sources.files import Names

KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".JPG": "JPEG", ".JPEG": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def encoded(kind: str, grey: int = 0) -> bytes:
    out = BytesIO()
    Image.new("RGB", (4, 3), (grey, 0, 0)).save(out, kind)
    return out.getvalue()


def write(root: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(KINDS.get(path.suffix, "PNG"), number))


def small_tree(root: Path) -> None:
    write(root, ["train/cat/1.jpg", "train/cat/2.png", "train/dog/1.webp", "test/cat/a.jpg", "test/dog/b.JPEG"])


part = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=5
)
words = part.filter(lambda text: text not in (".", ".."))
paths = st.builds(
    lambda folder, inner, stem, suffix: "/".join([folder, *inner, stem + suffix]),
    words.map(lambda text: f"c{text}"),
    st.lists(words.map(lambda text: f"f{text}"), max_size=2),
    words,
    st.sampled_from(sorted(KINDS)),
)


@settings(max_examples=40)
@given(names=st.lists(paths, min_size=1, max_size=12, unique=True))
def test_classes_and_order_are_those_of_torchvision(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    image_folder = pytest.importorskip("torchvision.datasets").ImageFolder
    root = tmp_path_factory.mktemp("tree")
    write(root, [f"train/{name}" for name in names] + ["val/" + names[0]])
    source = open_source("folder", root)
    theirs = image_folder(root / "train")
    assert source.classes == tuple(theirs.classes)
    ours = [(str(root / source.train.name_of(i)), int(y)) for i, y in enumerate(source.train.labels)]
    assert ours == theirs.samples
    assert [source.train.item(i).data for i in range(len(source.train))] == [
        Path(path).read_bytes() for path, _ in theirs.samples
    ]


def test_the_images_of_a_class_are_sorted_by_folder_and_name(tmp_path: Path) -> None:
    names = [f"train/a/{number}.jpg" for number in range(30)] + [f"train/a/1/{number}.jpg" for number in range(30)]
    write(tmp_path, [*reversed(names), "test/a/1.jpg"])
    train = open_source("folder", tmp_path).train
    assert [train.name_of(i) for i in range(60)] == sorted(names[:30]) + sorted(names[30:])


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=20))
def test_names_are_kept(names: list[str]) -> None:
    kept = Names()
    for name in names:
        kept.append(name)
    assert [kept[i] for i in range(len(kept))] == names


def test_a_tree_is_described(tmp_path: Path) -> None:
    small_tree(tmp_path)
    source = open_source("folder", tmp_path)
    assert source.name == "folder"
    assert source.classes == ("cat", "dog")
    assert source.augmentation == Augmentation("window", flip=True, size_px=224)
    assert source.train.labels.dtype == np.uint16
    assert source.train.labels.tolist() == [0, 0, 1]
    assert source.test.labels.tolist() == [0, 1]
    assert [source.train.item(i).encoding for i in range(3)] == ["jpg", "png", "webp"]
    assert source.train.name_of(2) == "train/dog/1.webp"
    item = source.train.item(0)
    assert (item.height, item.width, item.channels) == (0, 0, 0)


def test_the_encoding_is_that_of_the_bytes_not_of_the_name(tmp_path: Path) -> None:
    small_tree(tmp_path)
    (tmp_path / "train/cat/1.jpg").write_bytes(encoded("PNG"))
    assert open_source("folder", tmp_path).train.item(0).encoding == "png"


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "zero bytes"), (b"<html>", "not a JPEG"), (None, "cannot be read: No such file")]
)
def test_a_file_that_is_no_image_is_damaged_when_it_is_asked_for(
    data: bytes | None, reason: str, tmp_path: Path
) -> None:
    small_tree(tmp_path)
    source = open_source("folder", tmp_path)
    if data is None:
        (tmp_path / "train/cat/1.jpg").unlink()
    else:
        (tmp_path / "train/cat/1.jpg").write_bytes(data)
    with pytest.raises(DamagedImageError, match=reason):
        source.train.item(0)
    assert source.train.item(1).encoding == "png"


def test_opening_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tree(tmp_path)
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("opening a tree must not open a file"))
    assert len(open_source("folder", tmp_path).train) == 3


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    small_tree(tmp_path)
    for name in ("train/notes.txt", "train/cat/Thumbs.db", "train/cat/jpg", "train/dog/x.gif"):
        (tmp_path / name).write_bytes(b"x")
    assert len(open_source("folder", tmp_path).train) == 3


def test_links_are_followed_and_loops_refused(tmp_path: Path) -> None:
    small_tree(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere", ["x.jpg"])
    (tmp_path / "train/dog/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/dog/0.jpg").symlink_to(tmp_path / "elsewhere/x.jpg")
    source = open_source("folder", tmp_path)
    assert [source.train.name_of(i) for i in range(2, 5)] == [
        "train/dog/0.jpg",
        "train/dog/1.webp",
        "train/dog/more/x.jpg",
    ]
    assert source.train.item(4).encoding == "jpg"
    (tmp_path / "train/dog/loop").symlink_to(tmp_path / "train/dog")
    with pytest.raises(UserError, match="is a link to a folder above it"):
        open_source("folder", tmp_path)


def test_val_is_the_test_split_where_test_has_no_classes(tmp_path: Path) -> None:
    small_tree(tmp_path)
    write(tmp_path, ["val/cat/v.jpg"])
    assert open_source("folder", tmp_path).test.name_of(0) == "test/cat/a.jpg"
    for name in ("test/cat/a.jpg", "test/dog/b.JPEG"):
        (tmp_path / name).unlink()
        (tmp_path / name).parent.rmdir()
    write(tmp_path, ["test/unlabelled.jpg"])
    source = open_source("folder", tmp_path)
    assert source.test.name_of(0) == "val/cat/v.jpg"
    assert source.test.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "folder: no folder .*train; --source names the folder that holds train/ and test/"),
        (["train/a/1.jpg"], "neither .*/test nor .*/val holds class folders"),
        (["train/a/1.jpg", "test/b/1.jpg"], r"test: class 'b' \(and 0 more\) is not in the training split"),
        (["train/a/1.jpg", "train/b/notes.txt", "test/a/1.jpg"], "train/b holds no image"),
        (["train/a/1.jpg", "train/a/2.bmp", "test/a/1.jpg"], r"train/a/2\.bmp: an image of a kind that is not read"),
        (["train/a/1.jpg", "train/a/2.TIFF", "test/a/1.jpg"], r"train/a/2\.TIFF: an image of a kind"),
        (["train/1.jpg", "test/a/1.jpg"], "train: 0 class folders; allowed are 1 to 65,536"),
        (
            ["train/\udce9/1.jpg", "test/\udce9/1.jpg"],
            r"train: the name of class folder '\\udce9' is no UTF-8 text; rename",
        ),
    ],
)
def test_another_tree_is_refused(names: list[str], message: str, tmp_path: Path) -> None:
    write(tmp_path, names)
    with pytest.raises(UserError, match=message):
        open_source("folder", tmp_path)


def test_without_a_path_it_says_what_to_pass() -> None:
    with pytest.raises(UserError, match="folder needs --source DIR"):
        open_source("folder")


def test_a_split_travels_to_other_processes(tmp_path: Path) -> None:
    small_tree(tmp_path)
    split = open_source("folder", tmp_path).train
    copy = pickle.loads(pickle.dumps(split))
    assert [copy.name_of(i) for i in range(3)] == [split.name_of(i) for i in range(3)]
    assert copy.item(1) == split.item(1)


def test_a_million_names_cost_their_bytes_and_eight_more() -> None:
    names = Names()
    for i in range(10_000):
        names.append(f"ILSVRC2012_val_{i:08d}.JPEG")
    assert len(pickle.dumps(names)) < 10_000 * (28 + 8) + 1_000


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tree(tmp_path)
    scan = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "cat":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="train/cat: cannot be read: Permission denied"):
        open_source("folder", tmp_path)
