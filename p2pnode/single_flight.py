"""``SingleFlight``: what many ask for at the same time is done once, and all of them have its outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

K = TypeVar("K")
V = TypeVar("V")


class _Flight(Generic[V]):
    """One call that is under way."""

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.outcome: tuple[V] | Exception | None = None
        """Its value, alone in a tuple, or what it raised; None also where its caller was cancelled."""


class SingleFlight(Generic[K, V]):
    """Calls by key, of which one of a key is under way at a time."""

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[V]] = {}

    async def do(self, key: K, call: Callable[[], Awaitable[V]]) -> V:
        """What ``call`` returns, or what the call of this key returns that is under way.

        A call runs in the task that asked first. Where that one is cancelled, the next one calls anew, so
        that each keeps to its own deadline. Raises what the call raises, in all that wait for it.
        """
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            match flight.outcome:
                case (value,):
                    return value
                case Exception() as error:
                    raise error
                case None:
                    pass  # its caller was cancelled
        flight = self._flights[key] = _Flight()
        try:
            value = await call()
        except Exception as error:
            flight.outcome = error
            raise
        else:
            flight.outcome = (value,)
            return value
        finally:
            del self._flights[key]
            flight.landed.set()
