"""Runs the library's services (gossip, DHT) as tasks of our nursery.

The library's own manager searches its whole task tree for every task it starts, lets one task's error
end the service, and ends in nested exception groups. Here a task's error ends that task, as an event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

log = structlog.get_logger()


class ServiceManager:
    """Stands in for ``libp2p.tools.anyio_service``'s manager: the part that the services use."""

    def __init__(self, name: str, nursery: trio.Nursery) -> None:
        self.is_running = True
        self.is_started = True
        self.is_finished = False
        self.is_cancelled = False
        self._name = name
        self._nursery = nursery
        self._finished = trio.Event()

    def run_task(
        self,
        function: Callable[..., Awaitable[Any]],
        *args: Any,
        name: str | None = None,
        daemon: bool = False,
    ) -> None:
        """Start a task that can't take anything else down. A ``daemon`` that ends is no error here."""
        del daemon
        if self.is_running:
            self._nursery.start_soon(self._guarded, function, args, name=name)

    def run_daemon_task(
        self, function: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None
    ) -> None:
        """The same: no task of ours is allowed to end the service."""
        self.run_task(function, *args, name=name)

    async def wait_finished(self) -> None:
        """Until :meth:`stop`."""
        await self._finished.wait()

    async def wait_started(self) -> None:
        """At once: there is nothing to wait for."""
        await trio.lowlevel.checkpoint()

    def cancel(self) -> None:
        """Start no more tasks, and let ``run`` return."""
        self.is_running = False
        self.is_finished = True
        self.is_cancelled = True
        self._finished.set()

    async def stop(self) -> None:
        """The same; the tasks themselves end with the nursery."""
        self.cancel()
        await trio.lowlevel.checkpoint()

    async def _guarded(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        try:
            await function(*args)
        except Exception as error:  # noqa: BLE001  one peer's trouble must not end the service
            log.debug(
                "service.task_failed",
                service=self._name,
                task=getattr(function, "__name__", repr(function)),
                error=f"{type(error).__name__}: {error}",
            )


def attach(service: Any, name: str, nursery: trio.Nursery) -> ServiceManager:
    """Give ``service`` a manager and run it in ``nursery``."""
    manager = ServiceManager(name, nursery)
    service._manager = manager  # noqa: SLF001  the library offers no other way in
    manager.run_task(service.run, name=f"{name}.run")
    return manager
