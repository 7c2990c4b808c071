import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.laws import Formula, Uniform
from pipeline.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    File,
    Manifest,
    Shard,
    SplitFiles,
    from_json,
    read_manifest,
    to_json,
)
from pipeline.sources.types import Augmentation

WORDS = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = st.integers(0, 2**62)
FILES = st.builds(File, WORDS, NUMBERS, WORDS)
# Built in the test, not as it is drawn: checking a tuple's types takes random numbers, which hypothesis forbids there.
SPLITS = st.tuples(
    NUMBERS,
    FILES,
    st.lists(st.builds(Shard, WORDS, NUMBERS, WORDS, NUMBERS, NUMBERS), max_size=3).map(tuple),
    st.lists(FILES, max_size=3).map(tuple),
)
FLOATS = st.lists(st.floats(0, 1), min_size=1, max_size=3).map(tuple)
FIELDS = st.fixed_dictionaries(
    {
        "name": WORDS,
        "classes": st.lists(WORDS, max_size=4).map(tuple),
        "formula": st.builds(
            Formula,
            num_images=st.integers(1, 2**40),
            num_classes=st.integers(1, 65_535),
            alpha=st.integers(0, 1_000),
            law=st.just(Uniform()),
            noise_seed=st.integers(0, 2**64 - 1),
        ),
        "train": SPLITS,
        "test": SPLITS,
        "image_shape": st.none() | st.tuples(NUMBERS, NUMBERS, NUMBERS),
        "mean": FLOATS,
        "std": FLOATS,
        "augmentation": st.builds(
            Augmentation, st.sampled_from(["shift", "window", "none"]), st.integers(0, 9), st.booleans()
        ),
        "num_right": NUMBERS,
        "counts": FILES,
        "info": st.none() | FILES,
        "build": st.dictionaries(WORDS, st.none() | NUMBERS | WORDS, max_size=3),
        "encodings": st.dictionaries(WORDS, NUMBERS, max_size=3),
        "foreign": st.none() | SPLITS,
        "format": WORDS,
        "layout": WORDS,
        "rows": WORDS,
        "encoder": st.none() | WORDS,
        "observed": st.booleans(),
        "quarantine": st.lists(st.fixed_dictionaries({"source": NUMBERS, "reason": WORDS}), max_size=2).map(tuple),
    }
)
MANIFEST = Manifest(
    name="set",
    classes=("a", "β"),
    formula=Formula(3, 2, 4),
    train=SplitFiles(3, File("train.index.npy", 1, "00"), (Shard("train-000000.tar", 2, "01", 0, 3),)),
    test=SplitFiles(1, File("test.index.npy", 3, "02"), (Shard("test-000000.tar", 4, "03", 0, 1),)),
    image_shape=(5, 6, 1),
    mean=(0.1,),
    std=(0.3,),
    augmentation=Augmentation("shift", shift_px=2),
    num_right=7,
    counts=File("counts.npz", 5, "04"),
    info=File("_info.json", 6, "05"),
    build={"name": "set", "shard_images": 8},
    encodings={"png": 4},
)


def sealed(fields: dict[str, Any]) -> str:
    """Write fields the way `to_json` does, whatever they are."""
    body = json.dumps(fields, indent=1)[:-2]
    return f'{body},\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def fields_of(manifest: Manifest) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(to_json(manifest))
    del fields["sha256"]
    return fields


@given(FIELDS)
def test_a_manifest_survives_the_way_through_json(fields: dict[str, Any]) -> None:
    splits = {name: fields[name] and SplitFiles(*fields[name]) for name in ("train", "test", "foreign")}
    manifest = Manifest(**{**fields, **splits})
    text = to_json(manifest)
    assert from_json(text, where="here") == manifest
    assert to_json(from_json(text, where="here")) == text


def test_a_manifest_on_disk_is_read_with_all_its_signs(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(to_json(MANIFEST).encode())
    assert read_manifest(tmp_path) == MANIFEST


def test_a_manifest_vouches_for_every_file() -> None:
    names = {file.name for file in MANIFEST.files()}
    assert names == {
        "train.index.npy",
        "train-000000.tar",
        "test.index.npy",
        "test-000000.tar",
        "counts.npz",
        "_info.json",
    }


def test_a_manifest_vouches_for_what_only_some_data_sets_have() -> None:
    foreign = SplitFiles(2, File("foreign.index.npy", 7, "06"), (Shard("foreign-000000.tar", 8, "07", 0, 2),))
    more = dataclasses.replace(MANIFEST, foreign=foreign, law_array=File("law.npy", 9, "08"), info=None)
    assert {file.name for file in more.files()} ^ {file.name for file in MANIFEST.files()} == {
        "foreign.index.npy",
        "foreign-000000.tar",
        "law.npy",
        "_info.json",
    }
    assert list(more.splits) == ["train", "test", "foreign"]


def test_a_split_of_the_expanded_layout_has_more_rows_than_images() -> None:
    files = SplitFiles(3, File("i", 1, "00"), (Shard("a", 2, "01", 0, 4), Shard("b", 2, "02", 4, 2)))
    assert files.num_rows == 6


def test_the_text_holds_neither_dates_nor_paths() -> None:
    assert set(fields_of(MANIFEST)) == {"format_version", *(field.name for field in dataclasses.fields(Manifest))}


def test_the_tests_own_writer_is_the_real_one() -> None:
    assert from_json(sealed(fields_of(MANIFEST)), where="here") == MANIFEST


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99, FORMAT_VERSION - 1, 0, "1", 1.5, None])
def test_another_format_version_is_refused_with_what_to_do(version: object) -> None:
    fields = {**fields_of(MANIFEST), "format_version": version, "unheard-of": 1}
    with pytest.raises(UserError, match=rf"^here has format version {version}; .* reads {FORMAT_VERSION}: use the ver"):
        from_json(sealed(fields), where="here")


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '"x"', "{}", "null", "\0" * 9, '{"format_version": 1'])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^here is no data set manifest .* build the data set again"):
        from_json(text, where="here")


@given(st.data())
def test_every_change_of_one_character_is_refused(data: st.DataObject) -> None:
    text = to_json(MANIFEST)
    place = data.draw(st.integers(0, len(text) - 1))
    sign = data.draw(st.characters(codec="ascii").filter(lambda sign: sign != text[place]))
    with pytest.raises(UserError, match=r"^here "):
        from_json(text[:place] + sign + text[place + 1 :], where="here")


def test_a_line_end_that_became_another_one_is_refused(tmp_path: Path) -> None:
    data = to_json(MANIFEST).encode()
    for place in [place for place, byte in enumerate(data) if byte == ord("\n")]:
        (tmp_path / FILE_NAME).write_bytes(data[:place] + b"\r" + data[place + 1 :])
        with pytest.raises(UserError, match=r"dataset\.json was changed"):
            read_manifest(tmp_path)


def test_a_manifest_edited_by_hand_is_refused() -> None:
    text = to_json(MANIFEST).replace('"alpha": 4', '"alpha": 5')
    with pytest.raises(UserError, match=r"^here was changed after it was written .* build the data set again"):
        from_json(text, where="here")


@pytest.mark.parametrize(
    "change",
    [
        {"formula": None},
        {"formula": {}},
        {"train": 3},
        {"train": {"num_images": 3}},
        {"counts": {"name": "x"}},
        {"mean": 1},
        {"surplus": 1},
    ],
)
def test_a_manifest_with_wrong_fields_is_called_damaged(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^here is damaged .* build the data set again"):
        from_json(sealed({**fields_of(MANIFEST), **change}), where="here")


def test_a_law_that_is_not_on_the_menu_is_named() -> None:
    fields = fields_of(MANIFEST)
    fields["formula"]["law"] = {"name": "chance"}
    with pytest.raises(UserError, match="unknown law 'chance'; the laws are: uniform"):
        from_json(sealed(fields), where="here")


def test_a_folder_without_a_manifest_is_called_unfinished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no finished data set \(dataset.json is missing\); give a folder"):
        read_manifest(tmp_path)


def test_what_cannot_be_opened_is_no_reason_to_build_again(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    file.write_text(to_json(MANIFEST))
    with pytest.raises(UserError, match=rf"^{file} is a file; give the folder of a data set"):
        read_manifest(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"dataset.json cannot be read: Is a directory; give a folder whose files"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"dataset.json cannot be read .* build the data set again"):
        read_manifest(tmp_path)
