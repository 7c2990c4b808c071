"""The figures: what each runs at which scale, what the paper says of it, and how our rows are held against that.

The paper is Rolnick et al. 2017 (arXiv 1705.10694) where a figure names no other. `train.figures.protocol.SOURCES` says
what the marks of its numbers mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from train.figures.agreement import QUADRATIC_LAW
from train.figures.batch_and_rate import BATCH_AND_RATE, LEARNING_RATES
from train.figures.clean_labels import CLEAN_LABELS, NEEDED
from train.figures.coteaching import COTEACHING
from train.figures.digits import DIGITS, MASSIVE
from train.figures.incv_iterations import INCV_ITERATIONS
from train.figures.noise_scales import NOISE_SCALES
from train.figures.points import Figure, Section
from train.figures.rows import grouped, read_rows, where
from train.figures.rsl_precision import RSL_PRECISION
from train.figures.structure import SOURCE_OF_NOISE, STRUCTURED
from train.figures.uniform import UNIFORM_CIFAR, UNIFORM_IMAGENET, UNIFORM_SMALL

FIGURES: Final[dict[str, Figure]] = {
    "fig1": UNIFORM_SMALL,
    "fig2": UNIFORM_CIFAR,
    "fig3": UNIFORM_IMAGENET,
    "fig4": STRUCTURED,
    "fig5": SOURCE_OF_NOISE,
    "fig6": CLEAN_LABELS,
    "fig7": NEEDED,
    "fig8": BATCH_AND_RATE,
    "fig9": LEARNING_RATES,
    "fig10": NOISE_SCALES,
    "digits": DIGITS,
    "massive": MASSIVE,
    "quadratic-law": QUADRATIC_LAW,
    "incv-iterations": INCV_ITERATIONS,
    "rsl-precision": RSL_PRECISION,
    "coteaching": COTEACHING,
}


def sections(path: Path) -> list[Section]:
    """Read what was run: a section for every data set and scale of a figure, one without rows if there are none.

    Args:
        path: What `train.figures.rows.merge_rows` wrote, or none yet.
    """
    rows = read_rows(path)
    made = []
    for name, figure in FIGURES.items():
        of_figure = where(rows, experiment=name)
        found = grouped(of_figure) or {(figure.datasets[0], "cpu"): []}
        others = grouped(of_figure, candidates=True)
        made += [Section(name, figure, *key, found[key], others.get(key, [])) for key in found]
    return made
