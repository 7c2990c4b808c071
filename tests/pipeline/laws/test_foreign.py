"""Noise that shows other images: which image, which label, and what is refused."""

import dataclasses
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray as Array
from scipy.stats import chisquare

from kernels.crops import flips, shifts
from kernels.images import gather_shift
from kernels.permutation import permute_plain
from kernels.philox import FOREIGN
from kernels.white import white_plain
from pipeline.builder import build
from pipeline.console import run
from pipeline.counts import Counts
from pipeline.dataset import DamagedImageError, DilutedSet, dilute, open_shards, view
from pipeline.describe import summary_table
from pipeline.errors import UserError
from pipeline.laws import Foreign, Formula, Law, Uniform, White
from pipeline.loaders import open_batches, open_evaluation
from pipeline.plan import Options, plan_build
from pipeline.sources.folder import open_folder
from pipeline.sources.synthetic import synthetic
from pipeline.sources.types import Item, Source
from pipeline.verify import verify
from pipeline.votes import expected_vote
from train.assemble import build_learner
from train.checkpoint import load_state
from train.cli import train
from train.evaluate import evaluate
from train.experiment import run_experiment
from train.outcome import result_table
from train.recipes import Recipe

N, M, K, ALPHA = 30, 17, 4, 3
SOURCE = synthetic(num_train=N, num_test=8, height=8, width=8, channels=1, num_classes=K)
OTHERS = dataclasses.replace(
    synthetic(num_train=M, num_test=3, height=8, width=8, channels=1, num_classes=7, seed=1), name="others"
)
FALSE_ALARM = 1e-6  # seeds are fixed, so a test that passes goes on passing


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny nets on two busy cores wait more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def diluted(law: str, alpha: int = ALPHA, **changes: Any) -> DilutedSet:
    return dilute(
        SOURCE,
        alpha=alpha,
        law=White() if law == "white" else Foreign("others", M),
        foreign=OTHERS if law == "foreign" else None,
        **{"noise_seed": 3, **changes},
    )


def everything(dataset: DilutedSet, **how: Any) -> tuple[Array, Array]:
    """Return images (not normalised) and labels of all examples in the order of their ids."""
    batches = list(open_evaluation(dataset, "train", stream="examples", **how))
    images = torch.cat([batch.images for batch in batches]).numpy()
    mean, std = (np.array(x).reshape(-1, 1, 1) for x in (dataset.mean, dataset.std))
    return np.rint((images * std + mean) * 255), torch.cat([batch.labels for batch in batches]).numpy()


def shown_plain(dataset: DilutedSet, example_id: int) -> Array:
    """Return the pixels of one example as the law defines them."""
    copy, image_id = divmod(example_id, dataset.formula.num_images)
    if copy == 0:
        return SOURCE.train.images[dataset.train.source_ids[image_id]]  # type: ignore[attr-defined]
    if isinstance(dataset.formula.law, White):
        return white_plain(3, example_id, (8, 8, 1), mean=dataset.mean, std=dataset.std)
    q = (copy - 1) * dataset.formula.num_images + image_id
    assert dataset.foreign is not None
    foreign_id = permute_plain(q % M, size=M, seed=3, domain=FOREIGN)
    return OTHERS.train.images[dataset.foreign.source_ids[foreign_id]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("clean", [N, 11])
@pytest.mark.parametrize("law", ["foreign", "white"])
def test_every_example_shows_what_the_definition_says(law: str, clean: int) -> None:
    dataset = diluted(law, clean=clean)
    images, labels = everything(dataset)
    expected = np.stack([shown_plain(dataset, i) for i in range(dataset.formula.num_examples)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(images, expected)
    uniform = dilute(SOURCE, alpha=ALPHA, noise_seed=3, clean=clean)  # labels are those of law uniform
    table = uniform.formula.all_labels(np.arange(clean), uniform.train.source_labels)
    np.testing.assert_array_equal(labels, table.T.reshape(-1))


@given(st.integers(1, 50), st.integers(1, 200), st.integers(0, 2**64 - 1), st.integers(1, 9))
def test_every_foreign_image_is_shown_before_one_is_shown_again(n: int, m: int, seed: int, alpha: int) -> None:
    formula = Formula(n, 10, alpha, Foreign("others", m), seed)
    copies, image_ids = np.divmod(np.arange(n * (1 + alpha)), n)
    shown = formula.shown(image_ids, copies)
    np.testing.assert_array_equal(shown[:n], np.arange(n))
    foreign = shown[n:] - n
    for first in range(0, len(foreign), m):
        part = foreign[first : first + m]
        assert len(set(part.tolist())) == len(part)
        assert part.min() >= 0
        assert part.max() < m


@pytest.mark.parametrize("law", ["foreign", "white"])
def test_a_smaller_alpha_is_a_prefix_of_a_larger_one(law: str) -> None:
    small, large = everything(diluted(law, 3)), everything(diluted(law, 5))
    for a, b in zip(small, large, strict=True):
        np.testing.assert_array_equal(a, b[: 4 * N])
    assert len(large[1]) == 6 * N


@pytest.mark.parametrize("law", ["foreign", "white"])
def test_an_example_is_the_same_in_every_batch_and_on_every_rank(law: str) -> None:
    dataset = diluted(law)
    images, labels = everything(dataset)
    ranks = [everything(dataset, batch=7, rank=rank, world_size=3) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate([rank[0] for rank in ranks]), images)
    np.testing.assert_array_equal(np.concatenate([rank[1] for rank in ranks]), labels)
    part = everything(dataset, images=range(20, 25))  # a held-out part shows what it shows within the whole
    ids = np.concatenate([copy * N + np.arange(20, 25) for copy in range(1 + ALPHA)])
    np.testing.assert_array_equal(part[0], images[ids])
    np.testing.assert_array_equal(part[1], labels[ids])


@pytest.mark.parametrize("law", ["foreign", "white"])
def test_training_batches_shift_and_flip_what_their_rows_show(law: str) -> None:
    dataset = diluted(law)
    images, labels = everything(dataset)
    batch = next(open_batches(dataset, batch=40, seed=9, images=range(20)))
    rows, zeros = batch.rows.numpy(), np.zeros(40, dtype=np.int64)
    assert set(rows % N) <= set(range(20))
    assert (rows >= N).any()
    expected = np.empty_like(batch.images.numpy())
    stored = images.transpose(0, 2, 3, 1).astype(np.uint8)
    shift, flip = shifts(9, zeros, rows, dataset.augmentation.shift_px), flips(9, zeros, rows)
    gather_shift(np.ascontiguousarray(stored), rows, shift, flip, dataset.mean, dataset.std, expected)
    np.testing.assert_array_equal(batch.images.numpy(), expected)
    np.testing.assert_array_equal(batch.labels.numpy(), labels[rows])


@pytest.mark.gpu
@pytest.mark.parametrize("law", ["foreign", "white"])
def test_a_gpu_shows_the_same_images(law: str) -> None:
    here, there = (next(open_batches(diluted(law), batch=100, device=device)) for device in ("cpu", "cuda"))
    assert torch.equal(here.images, there.images.cpu())


def test_labels_of_noise_are_uniform_over_all_classes_whatever_the_image() -> None:
    formula = Formula(20_000, 10, 10, Foreign("others", 1_000), 5)
    labels = formula.noisy_labels(np.arange(20_000), np.zeros(20_000, dtype=np.uint16)).T.reshape(-1)
    assert chisquare(np.bincount(labels, minlength=10)).pvalue > FALSE_ALARM
    shown = formula.shown(np.tile(np.arange(20_000), 10), np.repeat(np.arange(1, 11), 20_000)) - 20_000
    cells = np.bincount(shown * 10 + labels, minlength=10_000)
    assert chisquare(cells).pvalue > FALSE_ALARM  # 20 expected in each


@pytest.mark.parametrize("law", [White(), Foreign("others", M)], ids=repr)
def test_only_source_labels_are_right(law: Law) -> None:
    formula, true = Formula(N, K, ALPHA, law), (np.arange(N) % K).astype(np.uint16)
    counts = Counts.of(true, formula.labels_of_images(np.arange(N), true))
    assert formula.right_share(true) == counts.num_right / formula.num_examples == 1 / (1 + ALPHA)
    realised = counts.dense(K) / np.bincount(true)[:, None]
    np.testing.assert_array_equal(law.matrix(ALPHA, K), realised)
    uniform = Formula(N, K, ALPHA, Uniform())
    np.testing.assert_array_equal(uniform.labels_of_images(np.arange(N), true), uniform.all_labels(np.arange(N), true))


def test_a_view_changes_to_other_noise_and_back() -> None:
    dataset = diluted("foreign")
    white, uniform = view(dataset, law=White()), view(dataset, law=Uniform())
    assert uniform.formula == dilute(SOURCE, alpha=ALPHA, noise_seed=3).formula
    np.testing.assert_array_equal(everything(white)[0], everything(diluted("white"))[0])
    again = view(uniform, law=Foreign("others", M), alpha=5)
    np.testing.assert_array_equal(everything(again)[0], everything(diluted("foreign", 5))[0])
    clean = dilute(SOURCE, alpha=ALPHA, noise_seed=3)
    added = view(clean, law=Foreign("others", M), foreign=OTHERS)
    np.testing.assert_array_equal(everything(added)[0], everything(dataset)[0])


@pytest.mark.parametrize("format", ["webdataset", "ffcv"])
@pytest.mark.parametrize("law", ["foreign", "white"])
def test_shards_show_what_memory_shows_and_store_no_label_of_noise(law: str, format: str, tmp_path: Path) -> None:
    memory = diluted(law)
    plan = plan_build(SOURCE, memory, Options(format=format), foreign=OTHERS if law == "foreign" else None)
    manifest = build(plan, tmp_path)
    assert verify(tmp_path) == []
    assert manifest.num_right == N
    assert manifest.formula == memory.formula
    num_shards, num_stored = (2, N + M) if law == "foreign" else (1, N)
    (words,) = [cell for cell in map(str, summary_table(manifest, tmp_path).columns[1].cells) if " MB in " in cell]
    assert f"{num_shards} shard" in words
    assert f", {num_stored} " in words
    assert not any(b".labels.npy" in path.read_bytes() for path in tmp_path.glob("*.tar"))
    shards = open_shards(tmp_path)
    for a, b in zip(everything(shards), everything(memory), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(everything(view(shards, law=White()))[0], everything(diluted("white"))[0])


@dataclasses.dataclass
class Torn:
    """The foreign images, one of which cannot be read."""

    whole: Any
    bad: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def item(self, image_id: int) -> Item:
        if image_id == self.bad:
            raise DamagedImageError("torn")
        found: Item = self.whole.item(image_id)
        return found

    def prefix(self, num_images: int) -> Any:
        return self.whole.prefix(num_images)


def test_a_damaged_foreign_image_is_replaced_and_named(tmp_path: Path) -> None:
    dataset = diluted("foreign")
    torn = dataclasses.replace(dataset, foreign=Torn(dataset.foreign, 5))
    batches = open_batches(torn, batch=40)
    wanted = [batches.rows_at(first) for first in (0, 40, 80)]
    copies, ids = np.divmod(np.concatenate(wanted), N)
    bad = np.flatnonzero(dataset.formula.shown(ids, copies) == N + 5)
    found = [next(batches) for _ in wanted]
    assert np.concatenate([40 * i + batch.replaced.numpy() for i, batch in enumerate(found)]).tolist() == bad.tolist()
    for batch in found:
        copies, ids = np.divmod(batch.rows.numpy(), N)
        labels = dataset.formula.labels(ids, copies, dataset.train.source_labels[ids])
        np.testing.assert_array_equal(batch.labels.numpy(), labels)
    result = run_experiment(recipe(), torn, tmp_path / "run")
    assert result["replaced_image_ids"] == [N + 5]


def recipe(**given: Any) -> Recipe:
    fields = {"model": "mlp1", "batch": 12, "examples": 480, "eval_every": 240, "precision": "fp32"}
    return Recipe(**{"dataset": "synthetic", **fields, **given})


@pytest.mark.parametrize("law", ["foreign", "white"])
def test_a_run_is_validated_on_all_held_out_examples_and_has_no_vote(law: str, tmp_path: Path) -> None:
    dataset, cpu = diluted(law), torch.device("cpu")
    result = run_experiment(recipe(val_frac=0.2), dataset, tmp_path / "run")
    assert (result["num_noisy_val_images"], result["num_noisy_val_examples"]) == (6, 6 * (1 + ALPHA))
    assert any("examples of 6 images)" in cell for cell in result_table(result, "").columns[1].cells)
    best = build_learner(recipe(), dataset, cpu)
    best.evaluated.load_state_dict(load_state(tmp_path / "run" / "best.pt", cpu))
    held_out = open_evaluation(dataset, "train", stream="examples", images=range(24, 30))
    assert evaluate(best, held_out).loss == pytest.approx(result["noisy_val_loss"])
    assert result["vote_baseline"] is None
    assert "not defined" in list(result_table(result, "").columns[1].cells)[4]
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["law"]["name"] == law


def tree(tmp_path: Path) -> Source:
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.png").touch()
    return open_folder(tmp_path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda folder: open_batches(diluted("white"), batch=4, stream="images"), "law white .*give --method plain"),
        (lambda folder: run_experiment(recipe(method="histogram"), diluted("foreign"), folder / "r"), "--method plain"),
        (lambda folder: run_experiment(recipe(method="h_alpha"), diluted("white"), folder / "r"), "h_alpha is defined"),
        (lambda folder: expected_vote(diluted("white").formula, SOURCE.train.labels), "there is no vote"),
        (lambda folder: dilute(SOURCE, alpha=1, law=Foreign("others", M)), "this data set has 0: give --law foreign"),
        (lambda folder: dilute(SOURCE, alpha=1, law=Foreign("others", M + 1), foreign=OTHERS), "18 images .* has 17"),
        (lambda folder: view(dilute(SOURCE, alpha=1), law=Foreign("others", M)), "this data set has 0"),
        (lambda folder: dilute(SOURCE, alpha=1, law=Foreign("synthetic", N), foreign=SOURCE), "itself; .* law uniform"),
        (
            lambda folder: dilute(SOURCE, alpha=1, foreign=dataclasses.replace(synthetic(num_train=9), name="big")),
            "the images of big are 32 × 32 × 3, those of synthetic 8 × 8 × 1",
        ),
        (lambda folder: dilute(SOURCE, alpha=1, foreign=tree(folder)), "the images of folder differ in size, those of"),
        (lambda folder: dilute(tree(folder), alpha=1, law=White()), "law white draws images of one size"),
        (lambda folder: Foreign("others", 0), "0 foreign images"),
    ],
)
def test_what_such_noise_cannot_do_is_refused_in_one_line(
    what: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        what(tmp_path)
    assert "\n" not in str(refused.value)


def test_another_set_of_the_same_name_may_be_foreign() -> None:
    same_name = dataclasses.replace(OTHERS, name=SOURCE.name)
    dilute(SOURCE, alpha=1, law=Foreign(SOURCE.name, M), foreign=same_name)


def test_images_of_any_size_go_with_a_set_of_images_of_any_size(tmp_path: Path) -> None:
    dataset = dilute(tree(tmp_path), alpha=1, law=Foreign("others", M), foreign=OTHERS)
    assert dataset.foreign is not None
    assert dataset.foreign.num_images == M


def write_idx(folder: Path, num_images: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        images = struct.pack(">IIII", 0x803, num_images, 28, 28) + pixels.tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">II", 0x801, num_images) + (np.arange(num_images) % 10).astype(np.uint8).tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


@pytest.mark.parametrize(
    "flags",
    [["white"], ["foreign", "--foreign", "fashion_mnist", "--foreign-source", "clothes"]],
    ids=["white", "foreign"],
)
def test_real_digits_learn_among_noise_images_from_the_command_line(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clothes").mkdir()
    write_idx(Path("clothes"), 50)
    arguments = ["--alpha", "5", "--clean", "500", "--model", "mlp1", "--examples", "6000", "--out", "r"]
    monkeypatch.setattr(sys, "argv", ["train", "mnist5k", *arguments, "--batch", "60", "--law", *flags])
    with pytest.raises(SystemExit) as ended:
        run(train, name="train")
    assert ended.value.code == 0, capsys.readouterr()
    result = json.loads(Path("r/result.json").read_text())
    assert result["top1_accuracy"]["last"] > 0.5  # chance is 0.1; measured: 0.75 among white noise, 0.70 among clothes
    rows = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["train/loss"]) for row in rows if "train/loss" in row)
    law = json.loads(Path("r/config.json").read_text())["data"]["law"]
    assert law == ({"name": "white"} if flags == ["white"] else {**law, "foreign": "fashion_mnist", "num_foreign": 50})
    assert "not defined" in capsys.readouterr().out
