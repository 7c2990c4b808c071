"""Stage load-alpha: CPU seconds of 1,000 examples at α = 100 and at α = 0, of each of our loaders, in turn."""

from __future__ import annotations

from benchmarks.build import synthetic_tree
from benchmarks.load import ALPHA, build_ours, command, installed, process, temporary_folder
from benchmarks.measure import Settings, Variant


def variants(settings: Settings) -> list[Variant]:
    """Compare α = 100 with α = 0 on the shards of stage load."""
    tar, beton = build_ours(synthetic_tree(), temporary_folder())
    loaders = {"resident": tar, "dali": tar, "webdataset": tar, **({"ffcv": beton} if installed("ffcv") else {})}
    found = []
    for loader, folder in loaders.items():
        order = "passes" if loader == "webdataset" else "full"
        for alpha in (ALPHA, 0):
            name = f"ours/{loader}-alpha-{alpha}"
            choice = ("--loader", loader, "--order", order, "--alpha", str(alpha))
            run = process(name, command("ours", folder, *choice), settings)
            against = f"ours/{loader}-alpha-0" if alpha else None
            found.append(Variant(name, "cpu-s/1000", run.cpu_s, against, run.start))
    return found
