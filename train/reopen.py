"""A finished run and its data, opened again from what its folder says."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.dataset import DilutedSet
from pipeline.errors import UserError
from pipeline.laws import law_from_json
from train.data import facts, open_data
from train.recipes import Recipe

_SAME = ("num_images", "num_classes", "alpha", "law", "noise_seed", "source_labels_crc32")


def reopen(folder: Path, *, shards: str | None = None, source: Path | None = None) -> tuple[Recipe, DilutedSet]:
    """Open the data of a finished run, and return it with the run's recipe.

    Args:
        folder: Of the run.
        shards: Where its shards lie now; where they lay if None.
        source: Where its clean set lies now; likewise.

    Raises:
        UserError: If there is no finished run, or its data cannot be found or are others.
    """
    if not (folder / "result.json").exists():
        raise UserError(f"{folder} holds no finished run; give the folder of one, or finish it with --resume")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data, recipe = config["data"], Recipe(**config["recipe"])
    if any(isinstance(value, dict) for value in data["law"].values()) or data["law"]["name"] == "foreign":
        raise UserError(f"law {data['law']['name']} has files of its own, which a run folder does not hold")
    window = data["augmentation"]["kind"] == "window"
    dataset = open_data(
        recipe.dataset,
        shards=shards or recipe.shards,
        alpha=data["alpha"],
        law=law_from_json(data["law"]),
        noise_seed=data["noise_seed"],
        clean=data["num_images"],
        source=source or (Path(recipe.source) if recipe.source and shards is None else None),
        size=data["augmentation"]["size_px"] if window else None,
    )
    now = json.loads(json.dumps(facts(dataset)))
    changed = [name for name in _SAME if now[name] != data[name]]
    if changed:
        raise UserError(f"the data are not those of {folder} ({changed[0]} differs); give its own --shards or --source")
    return recipe, dataset
