"""How the runs of a section were made, in a line that stands beside what came out of them."""

from __future__ import annotations

from typing import Final

from train.figures.points import Section
from train.figures.rows import Row, where, words
from train.figures.runs import CARRIED_ALPHA, LARGEST_SE

# Where what is known of a paper's number comes from; every claim names one of them.
SOURCES: Final = {
    "as read": "in the abstract or slides of the paper",
    "read off a figure": "by eye, to ±0.01",
    "the authors' README": "beside their code",
    "derived": "computed from what was read",
    "second hand": "from a review or a report on it",
    "from memory": "checked by nobody, not to be taken for the paper's",
}
LEGEND: Final = f"Where it is known from: {'; '.join(f'{mark}, {place}' for mark, place in SOURCES.items())}."
BANDS: Final = (
    "Accuracy is top-1 on test images after the last step, the mean over seeds with its range; nothing is chosen with "
    "test images. Bands in the pictures are 95 % confidence intervals of the mean (Student's t); of two seeds, their "
    "range; one seed has none. A seed draws both the noisy labels and the training, so that the spread is of both "
    "together, unless a noise seed is named (--noise-seed)."
)


def protocol_of(section: Section) -> str:
    """Say what was trained on what and for how long, how rates were found, and what differs from the paper.

    Args:
        section: With rows or without.
    """
    return f"{_runs(section.rows)} {section.figure.protocol}" if section.rows else section.figure.protocol


def seeds_of(rows: list[Row]) -> str:
    """Name the seeds of some rows, and those of the noise where they are others."""
    seeds = _listed({row["seed"] for row in rows})
    if all(row["noise_seed"] == row["seed"] for row in rows):
        return seeds
    return f"{seeds} (noise {_listed({row['noise_seed'] for row in rows})})"


def hours_of(section: Section) -> str:
    """Add up the time of all runs of a section, candidates among them; below a tenth of an hour in two digits."""
    hours = sum(row["wall_s"] for row in (*section.rows, *section.candidates)) / 3_600
    return f"{hours:.1f} h" if hours >= 0.1 else f"{hours:.2f} h"


def _runs(rows: list[Row]) -> str:
    models = ", ".join(dict.fromkeys(row["model"] for row in rows))
    methods = ", ".join(words("method", method) for method in dict.fromkeys(row["method"] for row in rows))
    clean, examples = (_range({row[name] for row in rows}) for name in ("clean", "examples"))
    return f"{models}; {methods}; {clean} clean labels; {examples} examples a run; {_rates(rows)}."


def _rates(rows: list[Row]) -> str:
    """Say how learning rates were found."""
    given = ", ".join(f"{rate:g}" for rate in sorted({row["lr"] for row in where(rows, rate="given")}))
    last = all(row["noisy_val_loss_last"] is not None for row in where(rows, rate=("chosen", "carried")))
    by = "the last" if last else "the lowest"  # rows of before have no other
    told = {
        "recipe": "the recipe's learning rate",
        "given": f"given learning rates: {given}",
        "chosen": f"learning rates chosen by the loss on noisy validation of seed 0, {by} of a run",
        "carried": f"where that loss has a standard error above {LARGEST_SE:g}, the rate chosen at α = {CARRIED_ALPHA}",
    }
    found = {row["rate"] for row in rows}
    return "; ".join(how for rate, how in told.items() if rate in found)


def _listed(seeds: set[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def _range(numbers: set[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
