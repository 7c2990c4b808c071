"""Every law through shards: build, verify, open, load."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray as Array

from pipeline.builder import build
from pipeline.dataset import DilutedSet, dilute, open_shards, view
from pipeline.describe import summary_table
from pipeline.errors import UserError
from pipeline.laws import Given, Law, Map, Matrix, Pair, StoredArray, Structured, Symmetric, SymmetricInclusive, Uniform
from pipeline.laws import confusing_order as ranked
from pipeline.loaders import open_batches, open_evaluation
from pipeline.manifest import read_manifest
from pipeline.plan import Options, plan_build
from pipeline.sources.synthetic import synthetic
from pipeline.verify import verify
from pipeline.votes import expected_vote, vote_baseline

SOURCE = synthetic(num_train=120, num_test=20, height=4, width=5, channels=1)
NOISY = ((SOURCE.train.labels + np.arange(120) % 3) % 10).astype(np.uint16)
T = np.random.default_rng(0).dirichlet(np.full(10, 0.5), 10)
LAWS = [
    Uniform(),
    Structured(0.4, "random", order_seed=7),
    Structured(1.0, "confusing", StoredArray(ranked(T))),
    Structured(0.4, "reverse", StoredArray(ranked(T))),
    Symmetric(0.4),
    SymmetricInclusive(0.4),
    Pair(0.45),
    Map(0.4),
    Matrix(StoredArray(T)),
    Given(StoredArray(NOISY)),
]


def diluted(law: Law, **changes: Any) -> DilutedSet:
    return dilute(SOURCE, **{"alpha": 0 if law.replaces else 4, "law": law, "noise_seed": 3, **changes})


def table(dataset: DilutedSet) -> Array:
    return dataset.formula.all_labels(np.arange(dataset.formula.num_images), dataset.train.source_labels)


def copy_0_on_disk(folder: Path) -> list[int]:
    found = []
    for path in sorted(folder.glob("train-*.tar")):
        with tarfile.open(path) as archive:
            members = [member for member in archive if member.name.endswith(".cls")]
            found += [int(archive.extractfile(member).read()) for member in members]  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_a_set_under_any_law_survives_its_shards(law: Law, tmp_path: Path) -> None:
    memory = diluted(law)
    manifest = build(plan_build(SOURCE, memory, Options(shard_images=50)), tmp_path)
    assert verify(tmp_path) == []
    assert read_manifest(tmp_path) == manifest
    shards = open_shards(tmp_path)
    assert shards.formula == memory.formula
    labels = table(memory)
    np.testing.assert_array_equal(table(shards), labels)
    assert copy_0_on_disk(tmp_path) == labels[:, 0].tolist()
    np.testing.assert_array_equal(shards.train.source_labels, SOURCE.train.labels[memory.train.source_ids])
    assert manifest.num_right == (labels == shards.train.source_labels[:, None]).sum()
    with np.load(tmp_path / "counts.npz") as counts:
        assert counts["counts"].sum() == labels.size
        assert np.trace(counts["counts"]) == manifest.num_right
    assert build(plan_build(SOURCE, memory, Options(shard_images=50)), tmp_path) == manifest  # nothing to do
    assert law.name in "".join(str(cell) for cell in summary_table(manifest, tmp_path).columns[1].cells)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_a_view_under_a_law_is_the_set_built_with_it(law: Law, tmp_path: Path) -> None:
    build(plan_build(SOURCE, diluted(Pair(0.2)), Options(shard_images=50)), tmp_path)
    found = view(open_shards(tmp_path), alpha=None if law.replaces else 4, law=law, clean=30)
    wanted = diluted(law, clean=30)
    assert found.formula == wanted.formula
    np.testing.assert_array_equal(table(found), table(wanted))


def test_a_flip_over_diluted_shards_takes_alpha_0_by_itself_and_no_other(tmp_path: Path) -> None:
    build(plan_build(SOURCE, diluted(Uniform())), tmp_path)
    shards = open_shards(tmp_path)
    assert view(shards, law=Pair(0.2)).formula.alpha == 0
    assert view(shards, noise_seed=9).formula.alpha == 4
    with pytest.raises(UserError, match="it goes with alpha 0, not 4"):
        view(shards, law=Pair(0.2), alpha=4)


def test_given_labels_survive_the_shards_of_fewer_images(tmp_path: Path) -> None:
    memory = diluted(LAWS[-1], clean=37)
    build(plan_build(SOURCE, memory), tmp_path)
    assert verify(tmp_path) == []
    np.testing.assert_array_equal(table(open_shards(tmp_path))[:, 0], NOISY[memory.train.source_ids])


def test_a_change_of_the_law_is_another_data_set(tmp_path: Path) -> None:
    build(plan_build(SOURCE, diluted(LAWS[-1])), tmp_path)
    other = NOISY.copy()
    other[5] = (other[5] + 1) % 10
    with pytest.raises(UserError, match=r"holds another data set: law is \{'name': 'given', 'labels': \{'sha256': "):
        build(plan_build(SOURCE, diluted(Given(StoredArray(other)))), tmp_path)
    build(plan_build(SOURCE, diluted(Uniform())), tmp_path, force=True)
    assert not (tmp_path / "law.npy").exists()
    assert verify(tmp_path) == []


def refused(folder: Path) -> bool:
    try:
        return bool(verify(folder))
    except UserError:
        return True


def test_a_changed_byte_of_a_laws_array_is_noticed(tmp_path: Path) -> None:
    build(plan_build(SOURCE, diluted(LAWS[-1])), tmp_path)
    path = tmp_path / "law.npy"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        assert refused(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="labels of law given is missing"):
        open_shards(tmp_path)


def test_a_label_of_copy_0_that_is_not_the_formulas_is_noticed(tmp_path: Path) -> None:
    memory = diluted(Pair(0.45))
    build(plan_build(SOURCE, memory, Options(shard_images=50)), tmp_path)
    row = int(np.flatnonzero(table(memory)[:, 0] != memory.train.source_labels)[0])
    path = tmp_path / f"train-{row // 50:06d}.tar"
    with tarfile.open(path) as archive:
        place = archive.getmember(f"{row:09d}.cls").offset_data
    data = bytearray(path.read_bytes())
    data[place] = ord(str(memory.train.source_labels[row]))  # put the source label back
    path.write_bytes(data)
    assert any(problem.image_id == row and "the formula gives" in problem.reason for problem in verify(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("law", [LAWS[2], LAWS[-1]], ids=repr)
def test_the_bytes_do_not_depend_on_the_number_of_workers(law: Law, tmp_path: Path) -> None:
    for workers in (1, 2):
        build(plan_build(SOURCE, diluted(law), Options(shard_images=50)), tmp_path / str(workers), workers=workers)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / str(w)).iterdir()} for w in (1, 2))
    assert one == two


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_loaders_show_the_formulas_labels(law: Law) -> None:
    dataset = diluted(law)
    labels, num_images = table(dataset), dataset.formula.num_images
    batches = open_batches(dataset, batch=60)
    for _ in range(batches.num_examples // 60):
        batch = next(batches)
        copies, ids = np.divmod(batch.rows.numpy(), num_images)
        np.testing.assert_array_equal(batch.labels.numpy(), labels[ids, copies])
    batch = next(open_batches(dataset, batch=60, stream="images"))
    np.testing.assert_array_equal(batch.labels.numpy(), labels[batch.rows.numpy()])
    for part in (range(100, num_images), None):
        for batch in open_evaluation(dataset, "train", images=part):
            np.testing.assert_array_equal(batch.labels.numpy(), dataset.train.source_labels[batch.rows.numpy()])


def test_a_vote_of_one_label_is_that_label() -> None:
    dataset = diluted(Given(StoredArray(NOISY)))
    assert expected_vote(dataset.formula, dataset.train.source_labels) == 40 / 120
    assert expected_vote(diluted(Map(0.4)).formula, dataset.train.source_labels) == pytest.approx(0.8)


def test_a_vote_under_structure_0_is_that_of_the_uniform_law() -> None:
    dataset = diluted(Uniform(), alpha=5)
    assert expected_vote(dataset.formula, dataset.train.source_labels) == vote_baseline(10, 5)
    source = synthetic(num_train=12_000, num_test=20, height=1, width=1, channels=1)
    dataset = dilute(source, alpha=5, law=Structured(0.0, "random"))
    found = expected_vote(dataset.formula, dataset.train.source_labels)
    assert found == pytest.approx(vote_baseline(10, 5), abs=5 * 0.005)  # five standard errors


def test_a_vote_between_two_classes_of_which_one_has_more_is_the_majoritys() -> None:
    dataset = diluted(Structured(1.0, "random"), alpha=40)
    labels, true = table(dataset), dataset.train.source_labels
    right = []
    for row, answer in zip(labels.tolist(), true.tolist(), strict=True):
        most = max(row.count(label) for label in row)
        winners = {label for label in row if row.count(label) == most}
        right.append((answer in winners) / len(winners))
    assert expected_vote(dataset.formula, true) == pytest.approx(float(np.mean(right)))
