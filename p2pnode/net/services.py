"""``ServiceManager``: runs the library's services (gossip, DHT) as tasks of our nursery.

The library's own manager searches its whole task tree for every task it starts, lets one task's error end the
service, and ends in nested exception groups. Here a task's error ends that task and is logged, and a loop
that the whole service needs is started again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from p2pnode.tasks import Guard

RESTART_S: Final = 1.0
"""Before a loop that failed starts again: what a peer made it fail on may still be there."""


class ServiceManager:
    """Used in place of ``libp2p.tools.anyio_service``'s manager: the part that the services use."""

    def __init__(self, nursery: trio.Nursery, guard: Guard) -> None:
        self.is_running = True
        self.is_started = True
        self.is_finished = False
        self.is_cancelled = False
        self._nursery, self._guard = nursery, guard
        self._finished = trio.Event()

    def run_task(
        self,
        function: Callable[..., Awaitable[Any]],
        *args: Any,
        name: str | None = None,
        daemon: bool = False,
    ) -> None:
        """Start a task whose errors end nothing else. A ``daemon`` is the service's own loop."""
        if self.is_running:
            run = self._keep_running if daemon else self._guard.run
            self._nursery.start_soon(run, function, *args, name=name)

    def run_daemon_task(
        self, function: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None
    ) -> None:
        """Start a loop that runs as long as the service."""
        self.run_task(function, *args, name=name, daemon=True)

    async def wait_finished(self) -> None:
        """Wait for :meth:`stop`."""
        await self._finished.wait()

    async def wait_started(self) -> None:
        """Return at once: there is nothing to wait for."""
        await trio.lowlevel.checkpoint()

    def cancel(self) -> None:
        """Start no more tasks, and let ``run`` return."""
        self.is_running = False
        self.is_finished = True
        self.is_cancelled = True
        self._finished.set()

    async def stop(self) -> None:
        """As ``cancel``; the tasks themselves end with the nursery."""
        self.cancel()
        await trio.lowlevel.checkpoint()

    async def _keep_running(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run a loop again after a failure: without its heartbeat a node is on no mesh, and nothing would
        show it."""
        failed = True

        async def once() -> None:
            nonlocal failed
            try:
                await function(*args)
            except trio.ClosedResourceError:  # the service has closed its own channel: it has ended
                failed = False
                raise
            failed = False

        while failed and self.is_running:
            await self._guard.run(once)
            if failed:
                await trio.sleep(RESTART_S)


def attach(service: Any, name: str, nursery: trio.Nursery, guard: Guard) -> ServiceManager:
    """Give ``service`` a manager and run it in ``nursery``."""
    manager = ServiceManager(nursery, guard)
    service._manager = manager  # noqa: SLF001  the library offers no other way in
    manager.run_task(service.run, name=f"{name}.run")
    return manager
