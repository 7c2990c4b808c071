"""A progress bar that counts images and bytes."""

from __future__ import annotations

import time

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.console import console


class ImageBar:
    """A bar a stage, with images/s, MB/s and the time that is left; gone when its block ends.

    Attributes:
        images: Images that went by, over all stages.
    """

    def __init__(self, total: int) -> None:
        self.images = 0
        self._total = total
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} images"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._began = time.monotonic()
        self._stages: dict[str, tuple[int, float]] = {}  # the bar's number, and when it began
        self._bytes = 0

    def __enter__(self) -> ImageBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, stage: str, images: int, num_bytes: int) -> None:
        """Move the bar of a stage on."""
        if stage not in self._stages:
            began = time.monotonic() if self._stages else self._began
            self._stages[stage] = self._bar.add_task(stage, total=self._total, speed=""), began
            self._bytes = 0
        self.images += images
        self._bytes += num_bytes
        task, began = self._stages[stage]
        elapsed = max(time.monotonic() - began, 1e-3)
        self._bar.advance(task, images)  # type: ignore[arg-type]
        done = self._bar.tasks[task].completed
        speed = f"{done / elapsed:,.0f} images/s" + (
            f", {self._bytes / elapsed / 1e6:,.0f} MB/s" if self._bytes else ""
        )
        self._bar.update(task, speed=speed)  # type: ignore[arg-type]
