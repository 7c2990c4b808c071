"""What came out of a run: result.json, and a table for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.console import console
from pipeline.loaders import Evaluation
from pipeline.stream import images_of
from pipeline.votes import known_vote
from train.evaluate import TOP, best_by_noisy_validation, columns, confusion
from train.loop import Run, all_replaced


def outcome(run: Run) -> dict[str, Any]:
    """Return what goes into result.json."""
    chosen = best_by_noisy_validation(run.evaluations)
    best = {} if chosen is None else run.evaluations[chosen]
    matrix = confusion(run.learner, run.test, run.dataset.num_classes)
    last = run.evaluations[-1]
    seen = run.world.gather((len(run.noisy_val) if run.noisy_val is not None else 0, len(run.test)))
    num_noisy_val, num_test = (sum(numbers) for numbers in zip(*seen, strict=True))
    unreadable = {name: int(last.get(f"eval/num_unreadable_{name}", 0)) for name in ("noisy_val", "test")}
    num_noisy_val, num_test = num_noisy_val - unreadable["noisy_val"], num_test - unreadable["test"]
    noisy_val = {"num_noisy_val_images": num_noisy_val}
    if run.noisy_val is not None and run.noisy_val.own_labels:
        noisy_val = {"num_noisy_val_images": held_out_images(run.noisy_val), "num_noisy_val_examples": num_noisy_val}
    replaced = all_replaced(run)
    return {
        "top1_accuracy": columns(run.evaluations),
        "top5_accuracy": last.get("eval/top5_accuracy"),
        "class_accuracy": (matrix.diagonal() / matrix.sum(axis=1).clip(min=1)).round(6).tolist(),
        "memorisation": defined({name: last.get(f"memorisation/{name}") for name in ("given", "true")}),
        "noisy_val_loss": best.get("eval/noisy_val_loss"),
        "noisy_val_loss_se": best.get("eval/noisy_val_loss_se"),
        **noisy_val,
        "num_test_images": num_test,
        "num_unreadable": unreadable,
        "vote_baseline": known_vote(run.dataset),
        "observed_labels": run.dataset.observed,
        "uses_clean_labels": run.method.uses_clean_labels,
        "examples": run.clock.examples,
        "epochs": run.clock.epoch,
        "num_replaced": replaced["num_replaced"],
        "replaced_image_ids": replaced["replaced"],
        "wall_s": round(run.clock.wall_s, 3),
        **run.pace.totals(),
    }


def held_out_images(examples: Evaluation) -> int:
    """Return of how many images some examples are that are evaluated, whatever they show."""
    if examples.example_ids is None:
        return len(examples.images)
    return len(images_of(examples.example_ids, examples.formula.num_images))


def defined(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Turn nan into None: JSON has no nan."""
    return {name: None if value is None or math.isnan(value) else value for name, value in values.items()}


def result_table(result: dict[str, Any], title: str) -> Table:
    """Lay out a result for people."""
    accuracy = result["top1_accuracy"]
    last = percent(accuracy["last"])
    if result["top5_accuracy"] is not None:
        last += f" (among the first {TOP}: {percent(result['top5_accuracy'])})"
    rows = [
        ("test accuracy, last", last),
        ("test accuracy, mean of the last 10", percent(accuracy["last10"])),
        ("test accuracy, best by noisy validation", percent(accuracy["best_noisy_val"])),
        ("test accuracy, best on test (oracle)", percent(accuracy["best_test"])),
        ("vote over an image's labels", vote_words(result)),
    ]
    if result["noisy_val_loss"] is not None:
        loss = f"{result['noisy_val_loss']:.5f} ± {result['noisy_val_loss_se']:.5f}"
        seen = f"{result['num_noisy_val_images']:,} images"
        if "num_noisy_val_examples" in result:
            seen = f"{result['num_noisy_val_examples']:,} examples of {seen}"
        rows.append(("lowest noisy validation loss", f"{loss} ({seen})"))
    if selection := result.get("selection"):
        rows.append(("selected", f"{selection['kept']:,} of {selection['judged']:,} examples"))
        if "label_precision" in selection:
            known = [percent(selection[name]) for name in ("label_precision", "label_recall")]
            rows.append(("of those right, of the right ones selected", ", ".join(known)))
    if result["num_replaced"]:
        ids = result["replaced_image_ids"]
        named = ", ".join(map(str, ids[:5])) + (" …" if len(ids) > 5 else "")
        rows.append(("examples replaced, unreadable", f"{result['num_replaced']:,} (image ids {named})"))
    if any(unreadable := result["num_unreadable"].values()):
        noisy_val, test = unreadable
        rows.append(("left out, unreadable", f"{test:,} test images, {noisy_val:,} of noisy validation"))
    rows.append(("examples", f"{result['examples']:,} ({result['epochs']:.1f} epochs)"))
    speed = f"{result['speed/examples_per_s']:,.0f} examples/s"
    rows.append(("speed", f"{speed}, {result['data/wait_frac']:.0%} waiting for data"))
    table = Table(title=title + (" (uses clean labels)" if result["uses_clean_labels"] else ""), box=None)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def vote_words(result: dict[str, Any]) -> str:
    """Say what a vote over an image's labels finds."""
    if result.get("observed_labels"):
        return "unknown: labels are as observed"
    return "not defined: it has one" if result["vote_baseline"] is None else percent(result["vote_baseline"])


def percent(share: float | None) -> str:
    """Write a share for people."""
    return "not measured" if share is None else f"{100 * share:.1f} %"


def show_result(result: dict[str, Any], title: str, folder: Path) -> None:
    """Print a result and where it lies."""
    console.print(result_table(result, title))
    console.print(f"run folder: {folder}", soft_wrap=True)
