"""The flags that name a noise law on a command line, and the law that they name.

Kept light: the help text of a command must not wait for the kernels that laws import.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pipeline.console import Option
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.laws import Law
    from pipeline.sources import Source

# Flags of each law, those it cannot do without first.
FLAGS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "uniform": ((), ()),
    "structured": (("delta",), ("order_of_classes", "matrix")),
    "foreign": (("foreign",), ()),
    "white": ((), ()),
    "symmetric": (("rate",), ()),
    "symmetric-inclusive": (("rate",), ()),
    "pair": (("rate",), ()),
    "map": (("rate",), ()),
    "matrix": (("matrix",), ()),
    "given": (("labels",), ()),
}

LawFlag = Annotated[
    str | None,
    Option(
        "--law",
        help="Where noisy labels come from. Added to the clean ones: uniform (over all classes), structured (some "
        "false classes more often: --delta, --order-of-classes). Added with images of their own, under uniform labels: "
        "foreign (those of --foreign), white (noise). In place of the clean ones, with alpha 0: symmetric, "
        "symmetric-inclusive (of the true class), pair (the next class), map (CIFAR-10's five), each with --rate; "
        "matrix (--matrix), given (--labels). [default: uniform, or the shards' own]",
    ),
]
RateFlag = Annotated[
    float | None,
    Option(
        "--rate",
        help="Share of labels that a flip draws anew, in [0, 1); for map, of five classes. "
        "[default: none, a flip needs it]",
    ),
]
DeltaFlag = Annotated[
    float | None,
    Option(
        "--delta",
        help="Degree of structure in [0, 1]: at 0 uniform, at 1 the first false label is as frequent as the right one. "
        "[default: none, structured needs it]",
    ),
]
OrderFlag = Annotated[
    str | None,
    Option(
        "--order-of-classes",
        help="Which false classes come first under structured: confusing, reverse, random. [default: confusing]",
    ),
]
MatrixFlag = Annotated[
    Path | None,
    Option(
        "--matrix",
        help="K×K, .npy or .csv, rows = true class: the transition matrix of law matrix, or the confusion matrix that "
        "orders the classes of law structured. [default: none]",
    ),
]
LabelsFlag = Annotated[
    str | None,
    Option(
        "--labels",
        help="Your own noisy labels, one per training image in the order of the data set's own files: .npy, .csv "
        "(label, or id,label) or CIFAR-N's FILE.pt:KEY. [default: none]",
    ),
]
ForeignFlag = Annotated[
    str | None,
    Option("--foreign", help="Data set whose images law foreign shows as noise. [default: none, foreign needs it]"),
]
ForeignSourceFlag = Annotated[
    Path | None, Option("--foreign-source", help="Its own files, as --source. [default: where Debian puts them]")
]


def foreign_from_flags(foreign: str | None, foreign_source: Path | None) -> Source | None:
    """Open the set that foreign images come from.

    Args:
        foreign: `--foreign`.
        foreign_source: `--foreign-source`.

    Returns:
        None if none is asked for.

    Raises:
        UserError: If there is a path without a name, or the set cannot be opened.
    """
    from pipeline.sources import open_source

    if foreign is None and foreign_source is not None:
        raise UserError(f"--foreign-source {foreign_source} holds the files of which data set? Give --foreign as well")
    try:
        return None if foreign is None else open_source(foreign, foreign_source)
    except UserError as error:
        raise UserError(str(error).replace("--source", "--foreign-source")) from None


def law_from_flags(
    name: str | None,
    *,
    rate: float | None = None,
    delta: float | None = None,
    order_of_classes: str | None = None,
    matrix: Path | None = None,
    labels: str | None = None,
    foreign: Source | None = None,
    order_seed: int = 0,
) -> Law | None:
    """Make the law that a command line names.

    Args:
        name: `--law`.
        rate: `--rate`.
        delta: `--delta`.
        order_of_classes: `--order-of-classes`.
        matrix: `--matrix`.
        labels: `--labels`.
        foreign: What `foreign_from_flags` opened.
        order_seed: Draws the order `random`; commands give their noise seed.

    Returns:
        None if no law is asked for.

    Raises:
        UserError: If flags are missing or too many, out of range, or name a file that cannot be read.
    """
    flags: dict[str, Any] = {
        "rate": rate,
        "delta": delta,
        "order_of_classes": order_of_classes,
        "matrix": matrix,
        "labels": labels,
        "foreign": foreign,
    }
    given = [flag for flag, value in flags.items() if value is not None]
    if name is None:
        if given:
            takers = [law for law, (needed, more) in FLAGS.items() if given[0] in needed + more]
            raise UserError(f"{_flag(given[0])} belongs to a law: give --law {' or '.join(takers)} as well")
        return None
    if name not in FLAGS:
        raise UserError(f"unknown law '{name}'; the laws are: {', '.join(FLAGS)}")
    needed, more = FLAGS[name]
    if surplus := [flag for flag in given if flag not in needed + more]:
        takes = " and ".join(map(_flag, needed + more)) or "no flag of its own"
        raise UserError(f"--law {name} takes {takes}, not {_flag(surplus[0])}; leave it out")
    if missing := [flag for flag in needed if flag not in given]:
        raise UserError(f"--law {name} needs {_flag(missing[0])}; see --help")
    return _make(name, rate, delta, order_of_classes or "confusing", matrix, labels, foreign, order_seed)


def _make(
    name: str,
    rate: float | None,
    delta: float | None,
    order: str,
    matrix: Path | None,
    labels: str | None,
    foreign: Source | None,
    order_seed: int,
) -> Law:
    from pipeline.laws import Foreign, Given, Matrix, StoredArray, Structured, confusing_order, law_from_json
    from pipeline.laws.files import read_labels, read_matrix

    if delta is not None:
        if matrix is None and order in ("confusing", "reverse"):
            raise UserError(
                f"--order-of-classes {order} needs a confusion matrix: give --matrix FILE "
                "(train … --save-confusion FILE measures one), or --order-of-classes random"
            )
        ranking = None if matrix is None else StoredArray(confusing_order(read_matrix(matrix)))
        return Structured(delta, order, ranking, order_seed if order == "random" else 0)
    if matrix is not None:
        return Matrix(StoredArray(read_matrix(matrix)))
    if labels is not None:
        file = read_labels(labels)
        return Given(StoredArray(file.labels.astype("uint16")), file.clean)
    if foreign is not None:
        return Foreign(foreign.name, len(foreign.train))
    return law_from_json({"name": name} if rate is None else {"name": name, "rate": rate})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
