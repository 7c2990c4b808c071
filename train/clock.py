"""The time of a run, counted in examples seen."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UserError


@dataclass(slots=True)
class Clock:
    """How far a run has come; everything that happens "every so many examples" asks it.

    Args:
        batch: Examples a step over all ranks.
        total_examples: Length of the run, rounded up to whole steps.
        examples_per_epoch: Length of one pass over the training part.
        examples: Examples seen so far, which is also the position in the stream.
        earlier_s: Seconds that earlier processes of this run worked.
    """

    batch: int
    total_examples: int
    examples_per_epoch: int
    examples: int = 0
    earlier_s: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.total_examples = -(-self.total_examples // self.batch) * self.batch

    @property
    def step(self) -> int:
        """Number of steps done, which is the index of the step at work."""
        return self.examples // self.batch

    @property
    def epoch(self) -> float:
        """Passes over the training part so far."""
        return self.examples / self.examples_per_epoch

    @property
    def progress(self) -> float:
        """Where in the run the middle of the step at work lies, in (0, 1).

        The middle, so that a learning rate summed over examples hardly depends on the batch size.
        """
        return (self.examples + self.batch / 2) / self.total_examples

    @property
    def finished(self) -> bool:
        """Whether all examples were seen."""
        return self.examples >= self.total_examples

    @property
    def wall_s(self) -> float:
        """Seconds that all processes of this run worked."""
        return self.earlier_s + time.monotonic() - self._started

    def tick(self) -> None:
        """Count one step."""
        self.examples += self.batch

    def passed(self, every_examples: int) -> bool:
        """Say whether the step just counted reached or passed a multiple of `every_examples` (or the end)."""
        return self._crosses(self.examples - self.batch, every_examples)

    def passing(self, every_examples: int) -> bool:
        """Say whether the step at work, once counted, will have `passed` a multiple of `every_examples`."""
        return self._crosses(self.examples, every_examples)

    def _crosses(self, before: int, every_examples: int) -> bool:
        after = before + self.batch
        return after >= self.total_examples or after // every_examples > before // every_examples

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"examples": self.examples, "wall_s": self.wall_s, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: If its steps are of another size.
        """
        if state["batch"] != self.batch:
            raise UserError(
                f"the checkpoint is of batches of {state['batch']}, and as few examples as were selected make batches "
                f"of {self.batch} in so many processes; resume with the number of processes that the run began with"
            )
        self.examples, self.earlier_s, self._started = state["examples"], state["wall_s"], time.monotonic()
