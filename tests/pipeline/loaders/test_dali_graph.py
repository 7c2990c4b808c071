"""The graph that makes whole batches on a GPU; here it runs on the CPU, against the reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diluted import odd_photos, photos

from pipeline.dataset import dilute
from pipeline.loaders import open_batches
from pipeline.loaders.dali import dali_modules, open_dali
from pipeline.loaders.dali_graph import DaliGraph
from pipeline.loaders.resident import open_resident
from pipeline.loaders.types import How, Loader
from pipeline.stream import Places


def places(image_ids: list[int], epoch: int = 0) -> Places:
    ids = np.array(image_ids, dtype=np.int64)
    return Places(np.full_like(ids, epoch), ids, np.zeros_like(ids))


@pytest.mark.parametrize("part", ["train", "test"])
def test_it_makes_the_batches_of_the_reference(tmp_path: Path, part: str) -> None:
    dataset = dilute(photos(tmp_path), alpha=2)
    split = dataset.train if part == "train" else dataset.test
    how = dataset.augmentation if part == "train" else dataset.augmentation.for_evaluation()
    graph = DaliGraph(dali_modules(), dataset, split, How(how, torch.device("cpu"), seed=3), "cpu")
    reference = open_resident(dataset, split, How(how, torch.device("cpu"), seed=3))
    for epoch in range(3):
        where = places(list(range(split.num_images)), epoch)
        (made, bad), (wanted, _) = (loader.images(where, where.image_ids) for loader in (graph, reference))
        assert not bad.any()
        difference = (made - wanted).abs() * torch.tensor(dataset.std)[:, None, None] * 255
        assert difference.mean() < 1  # the filters differ at the edges of a window only
        assert difference.flatten().quantile(0.99) < 4
    graph.close()


def test_odd_images_are_shown_and_bad_ones_named(tmp_path: Path) -> None:
    source = odd_photos(tmp_path)
    dataset = dilute(source, alpha=0)
    names = [source.train.name_of(int(index)) for index in dataset.train.source_ids]
    broken = names.index("train/a/000.jpg")
    path = tmp_path / names[broken]
    data = bytearray(path.read_bytes())
    tables = data.find(b"\xff\xc4")
    data[tables + 4 : tables + 64] = b"\x55" * 60  # its header says a size, but nothing decodes
    path.write_bytes(data)
    graph = DaliGraph(dali_modules(), dataset, dataset.train, How(dataset.augmentation, torch.device("cpu")), "cpu")
    where = places(list(range(dataset.train.num_images)))
    images, bad = graph.images(where, where.image_ids)
    reference = open_resident(dataset, dataset.train, How(dataset.augmentation, torch.device("cpu")))
    wanted, also_bad = reference.images(where, where.image_ids)
    assert np.flatnonzero(bad).tolist() == np.flatnonzero(also_bad).tolist() == [broken]
    difference = (images - wanted).abs()[~torch.from_numpy(bad)]
    assert difference.mean() < 3 / 255 / 0.225  # other decoders of CMYK and palettes
    graph.close()


@pytest.mark.parametrize("by_graph", [False, True])
def test_a_batch_larger_than_a_pipeline_comes_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_graph: bool
) -> None:
    source = odd_photos(tmp_path)  # some of them are none of DALI's
    dataset = dilute(source, alpha=0)
    how = How(dataset.augmentation, torch.device("cpu"), seed=3)

    def made() -> tuple[torch.Tensor, np.ndarray]:
        if by_graph:
            loader: Loader = DaliGraph(dali_modules(), dataset, dataset.train, how, "cpu")
        else:
            loader = open_dali(dataset, dataset.train, how)
        where = places(list(range(dataset.train.num_images)))
        found = loader.images(where, where.image_ids)
        loader.close()
        return found

    whole, bad = made()
    for module in ("dali", "dali_graph"):
        monkeypatch.setattr(f"pipeline.loaders.{module}.MAX_BATCH", 4)
    pipeline, built = dali_modules()[0].Pipeline, list[int]()

    def counted(batch_size: int, **rest: Any) -> Any:
        built.append(batch_size)
        return pipeline(batch_size=batch_size, **rest)

    monkeypatch.setattr("nvidia.dali.Pipeline", counted)
    images, also_bad = made()
    assert built == [4]  # what does not fit ends a pipeline
    assert torch.equal(images, whole)
    assert not bad.any()
    assert not also_bad.any()


@pytest.mark.gpu
def test_a_gpu_makes_the_batches_of_the_reference(tmp_path: Path) -> None:
    dataset = dilute(photos(tmp_path), alpha=2)
    made, wanted = (
        next(open_batches(dataset, batch=32, loader=loader, device=device))
        for loader, device in (("dali", "cuda"), ("resident", "cpu"))
    )
    assert torch.equal(made.rows, wanted.rows)
    difference = (made.images.cpu() - wanted.images).abs() * 0.225 * 255
    assert difference.mean() < 3  # nvJPEG's chroma upsampling is another one


@pytest.mark.gpu
def test_a_gpu_that_is_behind_gets_the_pixels_of_each_batch(tmp_path: Path) -> None:
    dataset = dilute(photos(tmp_path), alpha=2)
    wanted = open_batches(dataset, batch=32, loader="dali", device="cuda")
    behind = open_batches(dataset, batch=32, loader="dali", device="cuda")
    steps = torch.randn(8_192, 8_192, device="cuda")
    for _ in range(8):
        for _ in range(20):  # a training step that takes longer than a batch
            steps = torch.tanh(steps @ steps)
        late = next(behind).images.clone()
        torch.cuda.synchronize()
        now = next(wanted).images.clone()
        torch.cuda.synchronize()
        assert torch.equal(late, now)
    wanted.close()
    behind.close()
