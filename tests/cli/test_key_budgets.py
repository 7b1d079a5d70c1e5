"""A key's budget over real processes: three hosts on a chain, and a gateway that is killed under way."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from p2pnode.node.datadir import DataDir
from p2pnode.payments.journal.journal import Journal
from p2pnode.words import KEY_SECRET
from tests.cli.support import DEADLINE_S, Program, give, join, run, start, wallet

FEE = 5_000
"""0.005 USDC; a token costs one unit as input and three as output."""
BUDGET = 6 * FEE + 20_000
ASKERS = 16
PRICES = (
    "--price-in",
    "1",
    "--price-out",
    "3",
    "--session-fee",
    "0.005",
    "--scripted-tokens-per-s",
    200,
    "--slots",
    8,
)


@pytest.fixture
def hosts(tmp_path: Path, profile: Path) -> Iterator[list[Program]]:
    with ExitStack() as stack:
        programs = []
        for number in range(3):
            give(profile, wallet(tmp_path / f"h{number}"), usdc="0", ether="1")
            program = join(tmp_path, f"h{number}", *PRICES, "--chain", profile)
            programs.append(stack.enter_context(program))
        yield programs


@contextmanager
def gateway(data_dir: Path, profile: Path, hosts: Sequence[Program], name: str) -> Iterator[Program]:
    firsts = [flag for each in hosts for flag in ("--bootstrap", each.multiaddr)]
    flags = ["--listen", "127.0.0.1:0", "--no-mdns", "--chain", profile, "--data-dir", data_dir]
    with start(data_dir.parent, name, ["gateway", *flags, *firsts]) as program:
        program.ready = program.wait_event("gateway")
        yield program


class Asker:
    """Asks again and again; a second host is asked, too, by the gateway, where the first one is late."""

    def __init__(self, url: str, secret: str, seed: int) -> None:
        self._url, self._draw, self._stop = url, random.Random(seed), threading.Event()
        self._headers = {"Authorization": f"Bearer {secret}", "x-p2pnode-hedge": "always"}
        self.statuses: list[int] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def is_refused(self) -> bool:
        return 402 in self.statuses

    def _run(self) -> None:
        while not (self._stop.is_set() or self.is_refused):
            self._ask()

    def _ask(self) -> None:
        body = {
            "model": "scripted", "max_tokens": self._draw.choice([4, 40, 120, 400]), "stream": True,
            "messages": [{"role": "user", "content": "hello"}],
        }  # fmt: skip
        try:
            with httpx.stream(
                "POST", f"{self._url}/v1/chat/completions", json=body, headers=self._headers,
                timeout=DEADLINE_S,
            ) as answer:  # fmt: skip
                self.statuses.append(answer.status_code)
                for _ in answer.iter_raw():
                    if self._stop.is_set():
                        return
        except httpx.HTTPError:
            self._stop.set()  # the gateway was killed

    def join(self) -> None:
        self._thread.join(2 * DEADLINE_S)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        self._stop.set()
        self.join()


@contextmanager
def stopped_in_turn(hosts: Sequence[Program]) -> Iterator[None]:
    """One host after the other stands still for two seconds: its first tokens are late."""
    over = threading.Event()

    def stop_each() -> None:
        for each in itertools.cycle(hosts):
            if over.wait(1.0):
                return
            each.process.send_signal(signal.SIGSTOP)
            over.wait(2.0)
            each.process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=stop_each)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def spent(data_dir: Path) -> tuple[int, int]:
    """What the key has spent, and what hosts can claim by what was signed."""
    journal = Journal.open(DataDir(data_dir).journal)
    try:
        (key,) = journal.all_keys()
        used = journal.key_usage(key.id, int(time.time()))
        assert used.total + used.claimed <= BUDGET
        sessions = [each for each in journal.purchases() if each.state != "expired"]
        claims = (max(FEE, each.voucher.amount if each.voucher else 0) for each in sessions)
        return used.total, sum(claims)
    finally:
        journal.close()


def check_books_of(hosts: Sequence[Path], data_dir: Path) -> None:
    """No host holds more than the client's books say that it may claim."""
    ours = Journal.open(DataDir(data_dir).journal)
    try:
        claims = {each.session: each.voucher for each in ours.purchases()}
    finally:
        ours.close()
    held = 0
    for host in hosts:
        theirs = Journal.open(DataDir(host).journal)
        try:
            for each in theirs.hosted():
                most = claims[each.session]
                held += 1
                assert (each.voucher.amount if each.voucher else 0) <= (most.amount if most else 0)
        finally:
            theirs.close()
    assert held > 1, "more than one host was paid"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_budget_holds_over_three_hosts_16_hedged_askers_and_kills_of_the_gateway(
    data_dir: Path, tmp_path: Path, profile: Path, hosts: list[Program], seed: int
) -> None:
    give(profile, wallet(data_dir), usdc="1")
    made = run("keys", "new", "codex", "--budget", str(BUDGET / 1e6), "--data-dir", data_dir)
    secret, draw = made.out.strip(), random.Random(seed)
    assert KEY_SECRET.fullmatch(secret)
    refused, total, hedged = False, 0, 0
    for begun in range(8):
        with gateway(data_dir, profile, hosts, f"gateway{begun}") as program:
            with stopped_in_turn(hosts):
                url = str(program.ready["url"])
                askers = [Asker(url, secret, 100 * begun + number) for number in range(ASKERS)]
                if begun < 2:
                    until = time.monotonic() + DEADLINE_S
                    most = spent(data_dir)[0] + draw.randrange(3_000, 2 * FEE + 6_000)
                    while spent(data_dir)[0] < most and not all(each.is_refused for each in askers):
                        assert time.monotonic() < until, [each.statuses for each in askers]
                        time.sleep(0.02)
                    program.process.send_signal(signal.SIGKILL)
                    program.wait()
                for each in askers:
                    each.stop() if begun < 2 else each.join()
            refused = begun >= 2 and all(each.is_refused for each in askers)
            hedged += program.names.count("hedge")
        total, claims = spent(data_dir)
        assert total == claims <= BUDGET
        if refused:
            break
    assert refused, "in the end the budget was used up"
    assert hedged, "second hosts were asked"
    assert total > BUDGET - 2 * FEE, "and made use of"
    with gateway(data_dir, profile, hosts, "again") as program:
        body = {"model": "scripted", "max_tokens": 400, "messages": [{"role": "user", "content": "hello"}]}
        headers = {"Authorization": f"Bearer {secret}"}
        url = f"{program.ready['url']}/v1/chat/completions"
        answer = httpx.post(url, json=body, headers=headers, timeout=DEADLINE_S)
        assert (answer.status_code, answer.json()["error"]["code"]) == (402, "key_total")
    (shown,) = run("keys", "list", "--json", "--data-dir", data_dir).events
    assert shown["spent"] == total
    for host in hosts:
        host.kill()
    check_books_of([tmp_path / f"h{number}" for number in range(len(hosts))], data_dir)
