"""``p2pnode gateway``, and ``join --gateway``: programs ask it, and it ends in order."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.cli.support import LISTEN, Program, give, join, run, start, wallet

pytestmark = pytest.mark.long
ASK = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}


def check(url: str, *, key: str = "") -> None:
    """An answer streams to a program, and the place that the gateway says is right."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = httpx.post(f"{url}/v1/chat/completions", json=ASK, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"][0]["message"]["content"]) == 9


def test_a_gateway_answers_says_where_it_is_and_leaves_nothing(host: Program, tmp_path: Path) -> None:
    data = tmp_path / "data"
    flags = ("--listen", "127.0.0.1:0", "--bootstrap", host.multiaddr, "--no-mdns", "--json")
    with start(tmp_path, "gateway", ("gateway", *flags, "--data-dir", data)) as program:
        told = program.wait_event("gateway")
        assert json.loads((data / "gateway.json").read_text())["url"] == told["url"]
        check(told["url"])
        second = run("gateway", *flags, "--data-dir", data)
        assert (second.code, "another gateway runs" in second.out) == (1, True)
        assert run("status", "--data-dir", data, "--json").events[0]["gateway"]["url"] == told["url"]
        assert run("stop", "--data-dir", data).code == 0
        assert program.wait() == 0
    assert run("stop", "--data-dir", data).err.startswith("p2pnode: no node and no gateway runs on")
    assert not (data / "gateway.json").exists()


def test_a_node_serves_programs_beside_its_peers_and_needs_a_key_beyond_this_machine(tmp_path: Path) -> None:
    with join(tmp_path, "host", "--gateway", "0.0.0.0:0", "--listen", LISTEN) as node:
        told = node.wait_event("gateway")
        url = told["url"].replace("0.0.0.0", "127.0.0.1")
        assert told["keys_required"]
        assert httpx.get(f"{url}/v1/models").status_code == 401
        check(url, key=Path(told["key_file"]).read_text().strip())
        status = run("status", "--data-dir", tmp_path / "host")
        assert f"gateway    {told['url']}/v1, with a key" in status.out
        node.interrupt()
        assert node.wait() == 0


def test_a_request_is_paid_and_told_what_it_cost_or_what_to_fund(
    paid_host: Program, profile: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    address = wallet(data)
    first = ("--bootstrap", paid_host.multiaddr, "--no-mdns", "--data-dir", data)
    with start(
        tmp_path, "paying", ("gateway", "--listen", "127.0.0.1:0", "--chain", profile, *first)
    ) as program:
        told = program.wait_event("gateway")
        assert told["keys_required"]
        headers = {"authorization": f"Bearer {Path(told['key_file']).read_text().strip()}"}
        with httpx.Client(base_url=told["url"], timeout=60) as http:
            path = "/v1/chat/completions"
            assert http.post(path, json=ASK).status_code == 401
            poor = http.post(path, json=ASK, headers=headers)
            assert (poor.status_code, poor.json()["error"]["type"]) == (402, "insufficient_quota")
            assert "USDC" in poor.json()["error"]["message"]
            give(profile, address, usdc="1")
            dear = http.post(path, json={**ASK, "p2pnode": {"max_cost": "0.0005"}}, headers=headers)
            assert (dear.status_code, "0.0005 USDC" in dear.text) == (503, True), dear.text
            paid = http.post(path, json=ASK, headers=headers)
            assert paid.status_code == 200, paid.text
            assert paid.headers["x-p2pnode-price-out"] == "0.000007"
            assert paid.json()["usage"]["p2pnode"]["cost"] == "0.001001"  # the fee, and a unit
            more = http.post(path, json=ASK, headers=headers)
            assert more.json()["usage"]["p2pnode"]["cost"] in {"0.00", "0.000001"}  # no second fee
            assert more.headers["x-p2pnode-session"] == paid.headers["x-p2pnode-session"]
        program.interrupt()
        assert program.wait() == 0


def test_without_a_wallet_a_priced_host_is_a_payment_that_is_missing(
    paid_host: Program, tmp_path: Path
) -> None:
    first = ("--bootstrap", paid_host.multiaddr, "--no-mdns", "--data-dir", tmp_path / "data")
    with start(tmp_path, "poor", ("gateway", "--listen", "127.0.0.1:0", *first)) as program:
        url = program.wait_event("gateway")["url"]
        answer = httpx.post(f"{url}/v1/messages", json=ASK, timeout=60)
        assert (answer.status_code, answer.json()["error"]["type"]) == (402, "billing_error")
        assert "p2pnode wallet new" in answer.text
        program.interrupt()
        assert program.wait() == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--listen", "here"), "--listen: 'here' is no HOST:PORT"),
        (("--alias", "x"), "--alias: 'x' is no PATTERN=MODEL"),
        (("--alias", "x=nonesuch"), "--alias: unknown model 'nonesuch'"),
        (("--origin", "page"), "--origin: "),
    ],
)
def test_a_flag_that_makes_no_sense_is_named(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    ran = run("gateway", *flags, "--data-dir", tmp_path)
    assert ran.code == 2
    assert words in ran.err
