"""Shards spread over a Ray cluster; the one place where ray enters.

Every machine must reach the source and the folder to write under the same path or address. A shard whose machine is
lost is written again on another one; its bytes are the same.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.workers import Run

Shared = TypeVar("Shared")


@contextmanager
def spread_over_ray(shared: Shared, address: str | None = None) -> Iterator[Run[Shared]]:
    """Join a Ray cluster as `pipeline.workers.spread` opens worker processes.

    Args:
        shared: Given to every call.
        address: Of the cluster, such as 10.0.0.1:6379; None starts one on this machine, or takes RAY_ADDRESS.

    Raises:
        UserError: If Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install 'dilute[ray]', or leave --engine out") from None
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    try:
        _knock(address or "")
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": path}},  # on a cluster of one file system, our code is found too
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot join a Ray cluster at {address or 'this machine'} ({error}); see --address") from error
    try:
        everywhere = ray.put(shared)
        # A task that fails by itself fails for good; one whose machine or process is lost is tried again.
        call = ray.remote(num_cpus=1, max_retries=20, scheduling_strategy="SPREAD")(_call)

        def run(function: Callable[[Shared, Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
            for result in [call.remote(everywhere, function, task) for task in tasks]:
                try:
                    yield ray.get(result)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, UserError | OSError) else error from None

        yield run
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody answers: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _call(shared: Any, function: Callable[[Any, Any], Any], task: Any) -> Any:
    return function(shared, task)
