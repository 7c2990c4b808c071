"""The sets that text files list, and what is said when the lists or their images are not as they should be."""

import dataclasses
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from listed import CLEAN, NAMES, NOISY, SYNSETS, WEB_TRAIN, WEB_VAL, write_clothing1m, write_webvision
from matplotlib.text import Text
from rich.console import Console

from pipeline.builder import build
from pipeline.dataset import dilute, open_shards
from pipeline.describe import summary_table
from pipeline.errors import UserError
from pipeline.histograms import class_table, count_labels, matrix_table
from pipeline.pictures import heat_map, sample_grid
from pipeline.plan import plan_build
from pipeline.sources import SOURCES, Split, name_of_set, open_source
from pipeline.sources.lists import read_labels
from pipeline.verify import verify

MINI_TRAIN, MINI_VAL = ([row for row in rows if row[1] < 50] for rows in (WEB_TRAIN, WEB_VAL))
WRITERS = {"webvision": write_webvision, "mini_webvision": write_webvision, "clothing1m": write_clothing1m}
TRAIN, VAL = "info/train_filelist_google.txt", "info/val_filelist.txt"


def check(split: Split, root: Path, rows: list[tuple[str, int]]) -> None:
    """Compare a split with the lines of its list and the files that they name."""
    assert split.labels.tolist() == [label for _, label in rows]
    assert [split.name_of(index) for index in range(len(split))] == [name for name, _ in rows]
    assert [split.item(index).data for index in range(len(split))] == [(root / name).read_bytes() for name, _ in rows]


@pytest.mark.parametrize(
    ("name", "num_classes", "train", "val"),
    [("webvision", 1_000, WEB_TRAIN, WEB_VAL), ("mini_webvision", 50, MINI_TRAIN, MINI_VAL)],
)
def test_webvision_is_what_its_lists_say_line_for_line(
    name: str, num_classes: int, train: list[tuple[str, int]], val: list[tuple[str, int]], tmp_path: Path
) -> None:
    source = open_source(name, write_webvision(tmp_path))
    assert (source.name, source.observed) == (name, True)
    assert source.classes == tuple(SYNSETS[:num_classes])
    check(source.train, tmp_path, train)
    check(source.test, tmp_path, [(f"val_images_256/{image}", label) for image, label in val])


def test_the_mini_version_needs_no_image_of_the_other_classes(tmp_path: Path) -> None:
    write_webvision(tmp_path)
    (tmp_path / "google/q1631/last.jpg").unlink()
    assert len(open_source("mini_webvision", tmp_path).train) == 4
    with pytest.raises(UserError, match=r"line 6 names google/q1631/last\.jpg, and .* is missing"):
        open_source("webvision", tmp_path)


@pytest.mark.parametrize("lists", ["", "annotations"])
def test_clothing1m_trains_on_the_noisy_images_and_tests_on_the_clean_ones(lists: str, tmp_path: Path) -> None:
    source = open_source("clothing1m", write_clothing1m(tmp_path, lists))
    assert (source.name, source.observed) == ("clothing1m", True)
    assert source.classes == tuple(NAMES.split())
    check(source.train, tmp_path, NOISY)
    check(source.test, tmp_path, CLEAN[5:])


@pytest.mark.parametrize("name", WRITERS)
def test_class_names_may_be_left_out(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    for file in ("info/synsets.txt", "category_names_eng.txt"):
        (tmp_path / file).unlink(missing_ok=True)
    source = open_source(name, tmp_path)
    assert source.classes == tuple(map(str, range(len(source.classes))))


@pytest.mark.parametrize("name", WRITERS)
def test_a_listed_split_travels_to_other_processes(name: str, tmp_path: Path) -> None:
    split = open_source(name, WRITERS[name](tmp_path)).train
    copy = pickle.loads(pickle.dumps(split))
    assert copy.labels.tolist() == split.labels.tolist()
    assert [copy.item(index) for index in range(len(copy))] == [split.item(index) for index in range(len(split))]


def test_another_file_size_is_another_split(tmp_path: Path) -> None:
    def fingerprint() -> bytes:
        found: list[bytes] = []
        open_source("clothing1m", tmp_path).train.fingerprint(found.append)
        return b"".join(found)

    write_clothing1m(tmp_path)
    before = fingerprint()
    assert fingerprint() == before
    (tmp_path / NOISY[-1][0]).write_bytes(b"x")
    assert fingerprint() != before


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("alpha", [0, 2])
def test_shards_hold_the_listed_bytes_and_labels_and_say_that_nobody_checked_these(
    name: str, alpha: int, tmp_path: Path
) -> None:
    source = open_source(name, WRITERS[name](tmp_path / "in"))
    memory = dilute(source, alpha=alpha)
    manifest = build(plan_build(source, memory), tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    assert (manifest.name, manifest.observed, shards.observed, memory.observed) == (name, True, True, True)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["observed"] is True
    for split, stored in ((source.train, shards.train), (source.test, shards.test)):
        assert sorted(stored.source_ids) == list(range(len(split)))
        for image_id, line in enumerate(stored.source_ids.tolist()):
            assert stored.item(image_id).data == (tmp_path / "in" / split.name_of(line)).read_bytes()
            assert stored.source_labels[image_id] == split.labels[line]
    ids = np.arange(len(source.train))
    first = shards.formula.labels(ids, np.zeros_like(ids), shards.train.source_labels)
    assert (first == shards.train.source_labels).all()
    added = shards.formula.noisy_labels(ids, shards.train.source_labels)
    assert added.shape == (len(ids), alpha)
    np.testing.assert_array_equal(added, memory.formula.noisy_labels(ids, memory.train.source_labels))
    assert verify(tmp_path / "out") == []


def test_what_a_stock_reader_sees_is_the_file_and_its_observed_label(tmp_path: Path) -> None:
    source = open_source("mini_webvision", write_webvision(tmp_path / "in"))
    build(plan_build(source, dilute(source, alpha=0)), tmp_path / "out")
    with tarfile.open(tmp_path / "out/train-000000.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    found = {data: int(label) for (_, data), (_, label) in zip(members[::2], members[1::2], strict=True)}
    assert found == {(tmp_path / "in" / name).read_bytes(): label for name, label in MINI_TRAIN}


def test_a_summary_claims_no_right_labels_where_nobody_checked_them(tmp_path: Path) -> None:
    source = open_source("mini_webvision", write_webvision(tmp_path / "in"))
    for observed in (True, False):
        folder = tmp_path / f"out-{observed}"
        same = dataclasses.replace(source, observed=observed)
        manifest = build(plan_build(same, dilute(same, alpha=3)), folder)
        dataset = open_shards(folder)
        histograms = count_labels(dataset)
        console = Console(width=200)
        with console.capture() as capture:
            console.print(summary_table(manifest, folder))
            console.print(class_table(dataset, histograms))
            console.print(matrix_table(dataset, histograms))
        text = capture.get()
        for figure in (heat_map(dataset, histograms), sample_grid(dataset, np.arange(4))):
            text += " ".join(found.get_text() for found in figure.findobj(Text))  # type: ignore[attr-defined]
        assert ("unknown: training images have the labels they were found with" in text) is observed
        assert ("labels that equal the observed one" in text) is observed
        assert (" as observed" in text) is observed
        assert (" right" in text) is not observed
        assert ("labels of each observed class" in text) is observed
        for words in ("right labels", "clean images", "vote over", "share right", "source labels", "source class"):
            assert (words in text) is not observed


@pytest.mark.parametrize("ending", ["\r\n", "\t\n", "\n"])
def test_line_ends_and_empty_lines_at_the_end_do_not_matter(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(f"images/0/a b.jpg\t 5{ending}".encode() + b"images/\xff.jpg 13" + 2 * ending.encode())
    assert read_labels(path, 14) == {"images/0/a b.jpg": 5, os.fsdecode(b"images/\xff.jpg"): 13}


def with_a_latin_letter(file: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        first, second, rest = (root / file).read_bytes().split(b"\n", 2)
        (root / file).write_bytes(b"\n".join([first, second + b"\xe9", rest]))

    return change


def edited(file: str, edit: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """Return what changes the lines of a file."""

    def change(root: Path) -> None:
        lines = (root / file).read_text().splitlines()
        (root / file).write_text("".join(f"{line}\n" for line in edit(lines)))

    return change


def removed(file: str) -> Callable[[Path], None]:
    return lambda root: (root / file).unlink()


BROKEN: dict[str, list[tuple[Callable[[Path], None], str]]] = {
    "webvision": [
        (removed(TRAIN), r"info/train_filelist_google\.txt is missing; put the data set's original file there$"),
        (removed(VAL), r"info/val_filelist\.txt is missing"),
        (removed("google/q0071/x.jpg"), r"google\.txt: line 4 names google/q0071/x\.jpg, .*; unpack all of google_res"),
        (
            removed("val_images_256/val000002.jpg"),
            r"line 2 names val000002\.jpg, and .*/val_images_256/val000002\.jpg ",
        ),
        (
            edited(TRAIN, lambda lines: [*lines, "google/q0001/n.jpg 1000"]),
            r"line 7 gives google/q0001/n\.jpg the class",
        ),
        (
            edited(VAL, lambda lines: [*lines, "n.jpg -1"]),
            r"val_filelist\.txt: line 5 gives n\.jpg the class -1; allow",
        ),
        (
            edited(TRAIN, lambda lines: [*lines, "google/q0001/Zz.jpg 1"]),
            r"line 7 names google/q0001/Zz\.jpg, as line 3",
        ),
        (edited(TRAIN, lambda lines: [*lines, "google/q0001/Zz.jpg"]), r"line 7 is 'google/q0001/Zz\.jpg', not an im"),
        (edited(TRAIN, lambda lines: [*lines, "/etc/passwd 1"]), r"line 7 names '/etc/passwd', an absolute path"),
        (
            edited(TRAIN, lambda lines: [*lines, "google/../../x 1"]),
            r"line 7 names 'google/../../x', an absolute path or",
        ),
        (edited(TRAIN, lambda lines: [lines[0], "", *lines[1:]]), r"line 2 is empty; get the original file"),
        (edited(TRAIN, lambda lines: []), r"train_filelist_google\.txt: line 1 is empty"),
        (edited("info/synsets.txt", lambda lines: lines[:-1]), r"synsets\.txt: 999 names for 1,000 classes; give the"),
        (
            with_a_latin_letter("info/synsets.txt"),
            r"synsets\.txt: line 2 is 'n0.*\\udce9', no UTF-8 text; give the orig",
        ),
    ],
    "mini_webvision": [
        (edited(TRAIN, lambda lines: lines[-2:]), r"google\.txt lists no image of the classes 0 to 49"),
        (edited(TRAIN, lambda lines: [*lines, "google/q0001/n.jpg 1000"]), r"allowed are 0 to 999"),
        (removed("google/q0001/Zz.jpg"), r"line 3 names google/q0001/Zz\.jpg, and "),
    ],
    "clothing1m": [
        (removed("noisy_train_key_list.txt"), r"noisy_train_key_list\.txt is missing"),
        *(
            (removed(f"{name}.txt"), rf"{name}\.txt is missing; put the data set's original file there$")
            for name in (
                "noisy_label_kv",
                "clean_label_kv",
                "clean_train_key_list",
                "clean_val_key_list",
                "clean_test_key_list",
            )
        ),
        (
            removed(NOISY[6][0]),
            r"noisy_train_key_list\.txt: line 7 names images/0/6,66\.jpg, and .* is missing; unpack",
        ),
        (removed(CLEAN[7][0]), r"clean_test_key_list\.txt: line 3 names images/0/27,2727\.jpg, and .* is missing"),
        (
            edited("noisy_label_kv.txt", lambda lines: [*lines, "x.jpg 14"]),
            r"line 23 gives x\.jpg the class 14; .* 13:",
        ),
        (
            edited("clean_label_kv.txt", lambda lines: [*lines, lines[1]]),
            r"clean_label_kv\.txt: line 10 names .* line 2 ",
        ),
        (
            edited("noisy_train_key_list.txt", lambda lines: [*lines, lines[4]]),
            r"line 21 names images/1/4,44.*, as line 5",
        ),
        (
            edited("noisy_label_kv.txt", lambda lines: lines[2:]),
            r"line 20 names .*, which noisy_label_kv\.txt gives no cl",
        ),
        *(
            (
                edited(f"clean_{part}_key_list.txt", lambda lines: [*lines, NOISY[9][0]]),
                rf"clean_{part}_key_list\.txt: line {line} names images/0/9,99\.jpg, as line 10 of noisy_train",
            )
            for part, line in (("train", 4), ("val", 3), ("test", 5))
        ),
        (edited("category_names_eng.txt", lambda lines: [*lines, "Sock"]), r"15 names for 14 classes"),
        (
            with_a_latin_letter("category_names_eng.txt"),
            r"eng\.txt: line 2 is 'Shirt\\udce9', no UTF-8 text; .*leave it",
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "break_it", "message"), [(name, *case) for name, cases in BROKEN.items() for case in cases]
)
def test_what_is_wrong_is_said_with_the_line_of_the_list(
    name: str, break_it: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    break_it(WRITERS[name](tmp_path))
    with pytest.raises(UserError, match=message) as raised:
        open_source(name, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", WRITERS)
def test_without_the_folder_they_say_what_to_pass(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{name} needs --source DIR"):
        open_source(name)
    with pytest.raises(UserError, match=rf"^{name}: no folder .*absent; --source names"):
        open_source(name, tmp_path / "absent")


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_webvision(tmp_path)
    (tmp_path / VAL).unlink()
    (tmp_path / VAL).mkdir()
    with pytest.raises(UserError, match=r"val_filelist\.txt: cannot be read: Is a directory"):
        open_source("webvision", tmp_path)


def test_the_mini_flag_names_a_set_of_its_own() -> None:
    assert name_of_set("webvision", mini=True) == "mini_webvision"
    assert [name_of_set(name, mini=False) for name in SOURCES] == list(SOURCES)
    with pytest.raises(UserError, match="--mini is for webvision, and clothing1m has no such part; leave it out"):
        name_of_set("clothing1m", mini=True)
