from pathlib import Path

import numpy as np
import pytest

from pipeline.builder import build
from pipeline.dataset import DilutedSet, dilute
from pipeline.errors import UserError
from pipeline.laws import Symmetric
from pipeline.plan import plan_build
from pipeline.sources.synthetic import synthetic
from train.data import facts, open_data

SOURCE = synthetic(num_train=24, num_test=8, height=8, width=8, channels=1, num_classes=4)


def labels(dataset: DilutedSet) -> np.ndarray:
    ids = np.arange(dataset.formula.num_images)
    return dataset.formula.all_labels(ids, dataset.train.source_labels)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("shards/synthetic-alpha3")
    build(plan_build(SOURCE, dilute(SOURCE, alpha=3)), folder)
    return folder


def test_the_only_shards_of_a_set_need_no_flag(shards: Path) -> None:
    assert facts(open_data("synthetic")) == facts(open_data("synthetic", shards=shards))
    assert open_data("synthetic").formula.alpha == 3


def test_shards_and_memory_are_the_same_data(shards: Path) -> None:
    assert facts(open_data("synthetic")) == facts(dilute(SOURCE, alpha=3))
    assert np.array_equal(labels(open_data("synthetic")), labels(dilute(SOURCE, alpha=3)))


def test_alpha_noise_seed_and_clean_make_a_view_of_shards(shards: Path) -> None:
    seen = open_data("synthetic", shards=shards, alpha=5, noise_seed=9, clean=16)
    made = dilute(SOURCE, alpha=5, noise_seed=9, clean=16)
    assert facts(seen) == facts(made)
    assert np.array_equal(labels(seen), labels(made))


def test_other_flags_without_alpha_are_a_view_of_the_only_shards(shards: Path) -> None:
    assert open_data("synthetic", noise_seed=9).formula == dilute(SOURCE, alpha=3, noise_seed=9).formula


def test_several_shards_are_listed(shards: Path) -> None:
    build(plan_build(SOURCE, dilute(SOURCE, alpha=1)), Path("shards/synthetic-alpha1"))
    with pytest.raises(UserError, match=r"synthetic-alpha1, shards/synthetic-alpha3; choose one with --shards"):
        open_data("synthetic")
    assert open_data("synthetic", shards=shards).formula.alpha == 3


def test_an_unfinished_build_is_no_data_set(shards: Path) -> None:
    Path("shards/synthetic-alpha9").mkdir()
    assert open_data("synthetic").formula.alpha == 3


def test_what_is_no_finished_data_set_is_called_what_it_is(shards: Path) -> None:
    Path("file").write_text("mine")
    for file in ("file", shards / "dataset.json"):
        with pytest.raises(
            UserError, match=rf"^{file} is a file; give --shards a folder that tools/build_shards wrote$"
        ):
            open_data("synthetic", shards=file)
    with pytest.raises(UserError, match=r"^no holds no finished data set; 'tools/build_shards synthetic .*--out no' b"):
        open_data("synthetic", shards="no")

    def killed(stage: str, images: int, num_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(plan_build(SOURCE, dilute(SOURCE, alpha=1)), "half", progress=killed)
    with pytest.raises(UserError, match=r"^half holds no .* not finished; the same tools/build_shards command goes on"):
        open_data("synthetic", shards="half")


def test_no_shards_show_the_command_that_builds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="tools/build_shards synthetic --alpha 20"):
        open_data("synthetic")


def test_shards_that_lie_there_are_named_where_files_are_missing(shards: Path) -> None:
    with pytest.raises(UserError, match="imagenet needs --source DIR") as none_there:
        open_data("imagenet", alpha=5)
    assert "--shards" not in str(none_there.value)
    shards.rename("shards/imagenet-alpha3")
    with pytest.raises(
        UserError, match=r"imagenet needs --source DIR.*; or give --shards shards/imagenet-alpha3, which"
    ):
        open_data("imagenet", alpha=5)


def test_mnist5k_needs_no_shards_and_is_diluted_with_alpha_20(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = open_data("mnist5k")
    assert (dataset.formula.alpha, dataset.formula.num_images, dataset.test.num_images) == (20, 4_000, 1_000)


def test_shards_of_another_set_are_refused(shards: Path) -> None:
    with pytest.raises(UserError, match="holds synthetic, not mnist5k"):
        open_data("mnist5k", shards=shards)


def test_images_come_from_shards_or_from_a_source_but_not_from_both(shards: Path) -> None:
    with pytest.raises(UserError, match="leave one out"):
        open_data("synthetic", shards=shards, source=Path("x"))


def test_unknown_names_list_the_menu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for alpha in (None, 5):
        with pytest.raises(UserError, match=r"nonsense.*mnist5k, mnist, fashion_mnist.*synthetic"):
            open_data("nonsense", alpha=alpha)


def test_a_law_that_flips_labels_needs_no_alpha() -> None:
    dataset = open_data("mnist5k", law=Symmetric(rate=0.5))
    assert (dataset.formula.alpha, dataset.formula.law.name) == (0, "symmetric")
    true = dataset.train.source_labels
    labels = dataset.formula.labels(np.arange(4000), np.zeros(4000, dtype=np.int64), true)
    assert 0.45 < (labels != true).mean() < 0.55  # six standard deviations


def test_facts_tell_sources_of_one_name_apart() -> None:
    other = synthetic(num_train=24, num_test=8, height=8, width=8, channels=1, num_classes=3)
    first, second = facts(dilute(SOURCE, alpha=3)), facts(dilute(other, alpha=3))
    assert first["source_labels_crc32"] != second["source_labels_crc32"]
