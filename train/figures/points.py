"""What a figure is made of: points to run, scales to run them at, panels to draw and claims to check."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeVar

from train.figures.rows import Row

Choice = TypeVar("Choice")
AUTO_RATE: Final = "chosen"  # on the noisy validation split
VAL_FRAC: Final = 0.1  # of the clean images, held out as that split
HARMLESS: Final = 0.03  # a loss of accuracy below this is called none
BETTER: Final = 0.005  # of two accuracies that differ by less than this, none is called better


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Where the noisy labels of a point come from.

    Args:
        alpha: Noisy labels a clean one.
        law: "uniform", "structured", "foreign" or "white"; "symmetric", "symmetric-inclusive" or "pair", which flip
            labels, at α = 0.
        order: Of the false classes under "structured".
        delta: Degree of structure under "structured".
        foreign: Name of the set whose images "foreign" shows.
        flip_rate: Share of labels that a flip draws anew; None under laws that add labels.
    """

    alpha: int
    law: str = "uniform"
    order: str = ""
    delta: float | None = None
    foreign: str = ""
    flip_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell of a grid; its seeds are its runs.

    Args:
        noise: Of its labels.
        model: A net's name.
        method: A method's name.
        clean: Clean images to use, the held-out ones among them; None is all.
        rate: A learning rate; "recipe" for the recipe's; `AUTO_RATE` for the best of the scale's on noisy validation.
        settings: Other fields of `train.recipes.Recipe`.
        uncut: Run as long as the recipe says, whatever the scale.
        unseen: Train on half of the images, as they are, and judge the labels of the other half.
        augment: Shift and flip the images as is usual for the set, unless `unseen`.
        curves: Keep what changes as the run goes on; `log_every` is then `eval_every`.
    """

    noise: Noise
    model: str = "conv4"
    method: str = "plain"
    clean: int | None = None
    rate: float | Literal["recipe", "chosen"] = "recipe"
    settings: Mapping[str, Any] = field(default_factory=dict)
    uncut: bool = False
    unseen: bool = False
    augment: bool = True
    curves: bool = False


def key_of(point: Point) -> str:
    """Name a point by all that it is but its learning rate."""
    return json.dumps(dataclasses.asdict(dataclasses.replace(point, rate="recipe")), sort_keys=True)


def uniform_points(alphas: Iterable[int], **fields: Any) -> list[Point]:
    """Return a point of uniform noise for every α.

    Args:
        alphas: Noisy labels a clean one.
        fields: The same for all: those of `Point`.
    """
    return [Point(noise=Noise(alpha=alpha), **fields) for alpha in alphas]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much a figure may cost.

    Args:
        name: "smoke", "cpu" or "full".
        seeds: Runs a point by default.
        examples: (fewest, most) forward passes a run; what the recipe asks for is cut to this range.
        rates: Candidates of a learning rate that is chosen.
    """

    name: str
    seeds: int
    examples: tuple[int, int | None]
    rates: tuple[float, ...]

    def pick(self, smoke: Choice, cpu: Choice, full: Choice) -> Choice:
        """Return what is meant for this scale."""
        return {"smoke": smoke, "cpu": cpu, "full": full}[self.name]


SCALES: Final[dict[str, Scale]] = {
    "smoke": Scale(name="smoke", seeds=1, examples=(1_024, 1_024), rates=(1e-3,)),
    "cpu": Scale(name="cpu", seeds=3, examples=(60_000, 300_000), rates=(3e-4, 1e-3, 3e-3)),
    "full": Scale(name="full", seeds=3, examples=(1_000_000, None), rates=(1e-4, 3e-4, 1e-3, 3e-3)),
}


class Finding(NamedTuple):
    """What our runs say of a claim.

    Args:
        ours: Our numbers, for people.
        verdict: "holds", "does not hold", "in part", "cannot be told" or "not run".
    """

    ours: str
    verdict: str


def verdict(holds: bool, *, in_part: bool = False) -> str:
    """Name a verdict."""
    return "holds" if holds else "in part" if in_part else "does not hold"


NOT_RUN: Final = Finding("", "not run")
UNTOLD: Final = "cannot be told"  # a verdict: what is compared lies within its errors


def summed_up(told: list[str], right: list[bool]) -> Finding:
    """Say of a claim about several cases that it holds for all, in part or for none; not run without any.

    Args:
        told: Our numbers, case by case.
        right: Whether the claim holds; a case may say so several times.
    """
    return Finding("; ".join(told), verdict(all(right), in_part=any(right))) if told else NOT_RUN


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and how our rows are held against it.

    Args:
        text: What the paper says, in our words.
        known: Its numbers as far as they are known, with where from.
        check: Looks at the rows of the figure.
    """

    text: str
    known: str
    check: Callable[[list[Row]], Finding]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes: means over seeds against x, a line for each series, a band for their confidence.

    Args:
        y: Column of the rows that is drawn.
        ylabel: With its unit.
        x: Column on the x axis.
        xlabel: With its unit.
        series: Columns that tell the lines apart.
        select: Takes the figure's rows to those that are drawn.
        log: Axes with a logarithmic scale: "", "x", "y" or "xy".
        references: Further lines: name, and y as a function of x and of the first y that is drawn.
        published: What the paper found, y by x, for values of `series`; dashed beside our line.
    """

    y: str = "top1_last"
    ylabel: str = "top-1 test accuracy, last"
    x: str = "alpha"
    xlabel: str = "noisy labels a clean one, α"
    series: tuple[str, ...] = ("model",)
    select: Callable[[list[Row]], list[Row]] = list
    log: str = ""
    references: Mapping[str, Callable[[float, float], float]] = field(default_factory=dict)
    published: Mapping[tuple[Hashable, ...], Mapping[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An experiment of the paper, or one of ours.

    Args:
        title: What it is about.
        datasets: The one it runs on at scales smoke and cpu, and the one at full.
        points: Makes the grid for a data set and a scale; a UserError if it has none for the set.
        panels: What is drawn.
        claims: What is held against the rows.
        protocol: What a reader must know beyond the table: choices, deviations.
        fits: x and y of points that a line is fitted to, by their names; of a figure without panels.
        slopes: Lines through 0 to draw beside those: name and slope.
    """

    title: str
    datasets: tuple[str, str]
    points: Callable[[str, Scale], list[Point]]
    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...]
    protocol: str
    fits: Callable[[list[Row]], dict[str, dict[int, float]]] | None = None
    slopes: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_drawn(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.panels) or self.fits is not None


class Section(NamedTuple):
    """What was run of a figure on one data set at one scale.

    Args:
        name: Of the figure.
        figure: What it is.
        dataset: The clean set.
        scale: Name of the scale.
        rows: Of its runs, candidates left out.
        candidates: Rows of the runs that were made to choose a learning rate, but those that were chosen.
    """

    name: str
    figure: Figure
    dataset: str
    scale: str
    rows: list[Row]
    candidates: Sequence[Row] = ()

    @property
    def label(self) -> str:
        """Its name in tables and of its pictures; the figure's own is on its first data set at scale cpu."""
        other = [self.dataset] if self.dataset != self.figure.datasets[0] else []
        return "-".join([self.name, *other, *([self.scale] if self.scale != "cpu" else [])])
