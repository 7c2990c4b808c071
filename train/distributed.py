"""The processes of a run, and how they agree; a single one is a world of its own.

`torchrun` starts them and says who they are. Gradients are averaged by torch (`Learner`); what stands here is what they
need besides: sums of scores, a common decision to save or stop, and one voice for a mistake that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from pipeline.console import console
from pipeline.errors import UserError

Made = TypeVar("Made")
_NUMBERS: Final = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
_START: Final = "start several processes with torchrun, or unset WORLD_SIZE for a single one"
# What gloo, NCCL and torch's store say where another process is no more, in small letters.
_LOST: Final = (
    *("connection closed", "connection reset", "connection was", "connection refused", "broken pipe", "by peer"),
    *("timed out", "timeout", "pair closure", "remote process", "remote server", "communicator was aborted"),
)
_PATIENCE: Final = timedelta(minutes=10)  # a checkpoint may be written to slow storage while the others wait


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Args:
        rank: This process, in [0, size).
        size: Number of processes.
        local_rank: This process on its own host, which is also its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def device(self) -> torch.device:
        """Return where this process computes: its GPU, or the CPU where there is none."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def sum(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Add up every process's tensor, in place; on a GPU the host does not wait."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def rows(self, own: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "all ..."]:
        """Put together every process's rows, by rank; all have as many. On a GPU the host does not wait."""
        if self.size == 1:
            return own
        every = own.new_empty(self.size * len(own), *own.shape[1:])
        dist.all_gather_into_tensor(every, own.contiguous())
        return every

    def largest(self, *values: float) -> list[float]:
        """Return the largest of every process's numbers, one by one; the hosts wait for each other."""
        if self.size == 1:
            return [*values]
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers.tolist()

    def gather(self, value: Made) -> list[Made]:
        """Return every process's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Made) -> Made:
        """Return the first process's value to every process; tensors should lie on the CPU."""
        if self.size == 1:
            return value
        values = [value if self.is_first else None]
        dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]  # type: ignore[return-value]

    def end_of_all(self, error: UserError) -> BaseException:
        """Return what to raise where every process sees the same mistake: the first one says it."""
        return error if self.is_first else SystemExit(2)

    def together(self, make: Callable[[], Made]) -> Made:
        """Make something in every process; if some cannot, all end and the first of those says why.

        Args:
            make: Called in every process; must not wait for other processes.

        Raises:
            UserError: In the first of the processes whose `make` raised it.
            SystemExit: In all others.
        """
        error: UserError | None = None
        made: list[Made] = []
        try:
            made.append(make())
        except UserError as mistake:
            if self.size == 1:
                raise
            error = mistake
        failed = [rank for rank, fails in enumerate(self.gather(error is not None)) if fails]
        if not failed:
            return made[0]
        if error is not None and self.rank == failed[0]:
            raise error
        raise SystemExit(2)


ALONE: Final = World()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started, if it did; only the first one prints.

    Raises:
        UserError: If what the environment says of the processes is not whole, they do not find each other, or another
            one ended before its time.
    """
    world = _told(os.environ)
    if world.size == 1:
        yield ALONE
        return
    device = world.device()
    if device.type == "cuda":
        if world.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {world.local_rank} of this host has no GPU of its own, there are "
                f"{torch.cuda.device_count()}; give torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(device)
    # What lies on a CPU goes by gloo, which notices at once when a process dies; NCCL would wait for it.
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {world.rank}: the {world.size} processes did not meet at {where} ({_first_line(error)}); {_START}"
        ) from error
    console.quiet = not world.is_first
    try:
        yield world
    except UserError as error:
        error.args = (f"rank {world.rank}: {error}",)
        raise
    except RuntimeError as error:
        if not _is_of_processes(error):
            raise
        if _is_lost(error):
            raise UserError(
                f"rank {world.rank}: another process of this run ended ({_first_line(error)}); its own message says "
                "why; the same command with --resume goes on from the last checkpoint"
            ) from error
        more = "; with NCCL_DEBUG=INFO in the environment NCCL says more" * ("NCCL" in str(error))
        raise UserError(f"rank {world.rank}: the processes cannot work together: {_first_line(error)}{more}") from error
    else:
        dist.destroy_process_group()


def _told(environment: Mapping[str, str]) -> World:
    """Return what a launcher said of this process.

    Raises:
        UserError: If it said too little, or what cannot be.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return ALONE
    size = f"WORLD_SIZE is {environment['WORLD_SIZE']}"
    if missing := [name for name in (*_NUMBERS, "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]:
        raise UserError(f"{size}, but the environment lacks {', '.join(missing)}; {_START}")
    wrong = [f"{name} is {environment[name]}" for name in _NUMBERS if not environment[name].isdecimal()]
    if wrong:
        raise UserError(f"{', '.join(wrong)}, no whole number; {_START}")
    world = World(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if world.rank >= world.size:
        raise UserError(f"RANK is {world.rank} and {size}; ranks are 0 to {world.size - 1}; {_START}")
    return world


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:160]


def _is_lost(error: RuntimeError) -> bool:
    """Say whether an error of what connects the processes is that of one that is no more."""
    return any(word in str(error).lower() for word in _LOST)


def _is_of_processes(error: RuntimeError) -> bool:
    """Say whether an error comes from what connects the processes."""
    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "Gloo", "Connection", "NCCL")
    )
