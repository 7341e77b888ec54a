"""Where the tasks of a pipeline run: processes of this machine, or a Ray cluster. What they make is the same.

Work is a module-level function and a picklable argument; results are small, for work goes from file to file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, Self

from sigma_data.errors import ConfigError

EngineName = Literal["local", "ray"]


class Engine(Protocol):
    """Runs tasks; a context manager."""

    @property
    def workers(self) -> int:
        """Most tasks at a time."""

    @property
    def peak_bytes(self) -> int:
        """Largest resident size that any worker has reported."""

    def at_work(self) -> str:
        """Where tasks are at work, for a progress line, e.g. "2 nodes, 16 tasks"; "" where that goes without saying."""

    def run(
        self, function: Callable[[Any], Any], tasks: Sequence[Any], done: Callable[[int, Any], None], *, what: str
    ) -> None:
        """Call `function(task)` for each task, `done(index, result)` in the order of completion.

        An exception in a task is raised here. A task whose process native code killed twice has the result
        `process_pool.Crashed`. `what` names the work in errors.
        """

    def __enter__(self) -> Self: ...
    def __exit__(self, *failure: Any) -> None: ...


def open_engine(
    name: EngineName, workers: int | None, *, address: str | None = None, resources: str | None = None
) -> Engine:
    """The engine of a command; `workers` is the most tasks at a time, by default one a core.

    `resources` are what Ray sets aside for a task (see `ray_engine.parse_resources`). Raises ConfigError for what is
    Ray's without Ray, and where Ray is not installed or does not answer.
    """
    if name == "ray":
        from pipelines.common.ray_engine import RayEngine

        return RayEngine(workers, address=address, resources=resources)
    if address is not None:
        raise ConfigError("--address is that of a Ray cluster: add --engine ray")
    if resources is not None:
        raise ConfigError("--task-resources are those of a Ray cluster: add --engine ray")
    from pipelines.common.process_pool import ProcessPool, default_workers

    return ProcessPool(workers or default_workers())
