"""A core does one thing after another."""

from __future__ import annotations

from p2pnode.simulations.cpu import Cpu, CpuQueue
from p2pnode.simulations.event_loop import EventLoop


def test_what_comes_while_the_core_is_busy_waits_in_order() -> None:
    loop, done = EventLoop(), []
    cpu = CpuQueue(loop)

    def work(name: str, more_s: float = 0.0) -> None:
        cpu.charge(more_s)
        done.append((name, loop.now, cpu.done_at()))

    for name in "abc":
        loop.at(1.0, cpu.run, 0.5, work, name, 0.25)
    loop.at(9.0, cpu.run, 0.5, work, "d")
    loop.run_until(10)
    assert done == [("a", 1.0, 1.75), ("b", 1.75, 2.5), ("c", 2.5, 3.25), ("d", 9.0, 9.5)]
    assert (cpu.busy_s, cpu.free_at) == (2.75, 9.5)


def test_a_faster_core_takes_less() -> None:
    assert Cpu(speed=2.0).seconds(0.5) == 0.25
