"""Coding agents as their makers ship them, on three hosts, in a network that is loopback alone.

``make test-programs`` fetches them and runs this in a namespace of its own (``loopback_only.sh``). Each does
one small edit, which the scripted engine asks for with the agent's own tools, and the host that answers is
killed in the middle of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pnode.config import NodeConfig
from p2pnode.gateway.server import GatewayOptions, serving_gateway
from tests.client.failing import seeds
from tests.gateway.support import LIMITS, until
from tests.launch.real.agents import AFTER, AGENTS, BEFORE, FILE, Agent
from tests.launch.real.name_server import serve_names
from tests.node.world import Member, scripted_host, world

pytestmark = pytest.mark.programs
ROOT = Path(__file__).parents[3]
BINARIES = (ROOT / "build" / "programs" / "node_modules" / ".bin", ROOT / ".venv-aider" / "bin")
N_CTX = 1 << 18
"""Of the scripted engine a token is a byte, and an agent's instructions have tens of thousands."""
_BEGUN = 40
"""Tokens of its answer that the host has made when it is killed; the shortest answer has a hundred."""


def repository(path: Path) -> Path:
    """A scratch repository with one file that has a mistake."""
    path.mkdir()
    (path / FILE).write_text(BEFORE)
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "Begin"]):
        subprocess.run(["git", *command], cwd=path, check=True, env=environment(path.parent))
    return path


def environment(home: Path) -> dict[str, str]:
    """What a program sees: a home of its own, nothing of the user's."""
    return {
        "PATH": ":".join([*map(str, BINARIES), os.environ["PATH"]]),
        "HOME": str(home),
        "TERM": "dumb",
        "LANG": "C.UTF-8",
        "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
        "IS_SANDBOX": "1",
    }  # fmt: skip


@pytest.mark.parametrize("agent", AGENTS, ids=lambda each: each.name)
async def test_an_agent_does_a_small_edit_while_its_host_is_killed(agent: Agent, tmp_path: Path) -> None:
    if os.environ.get("P2PNODE_LOOPBACK_ONLY") != "1":
        pytest.skip("`make test-programs` fetches the programs and shuts the network off")
    where, asked = repository(tmp_path / "work"), set[str]()
    begun = trio.Event()
    async with world(limits=LIMITS) as w, trio.open_nursery() as nursery:
        await nursery.start(serve_names, asked)
        members: list[Member] = []
        for _ in range(3):
            model = scripted_host(script=agent.script(begun.set), tokens_per_s=150.0, n_ctx=N_CTX)
            bootstrap = members[0].node.multiaddrs[:1] if members else ()
            members.append(await w.add([replace(model, n_ctx=N_CTX)], bootstrap=bootstrap))
        config = NodeConfig(data_dir=tmp_path / "data")
        async with w.client(seeds(members), config=config) as client:
            await client.hosts("scripted")
            options = GatewayOptions(listen="127.0.0.1:0")
            async with serving_gateway(client, options, limits=LIMITS) as served:
                command = [sys.executable, "-P", "-m", "p2pnode", "run", agent.name, "--model", "scripted"]
                command += ["--data-dir", str(config.data_dir), "--", *agent.arguments]
                killed: list[Member] = []

                async def kill_the_host() -> None:
                    await begun.wait()
                    await until(lambda: any(tokens_of(each) > _BEGUN for each in members), 60)
                    killed.extend(each for each in members if tokens_of(each) > _BEGUN)
                    w.crash(killed[0])

                nursery.start_soon(kill_the_host)
                with trio.fail_after(300):
                    ran = await trio.run_process(
                        command, cwd=where, env=environment(tmp_path), check=False, stdin=b"",
                        capture_stdout=True, stderr=subprocess.STDOUT,
                    )  # fmt: skip
                said = ran.stdout.decode(errors="replace")
                assert (where / FILE).read_text() == AFTER, said[-4000:]
                assert ran.returncode == 0, said[-4000:]
                assert killed, said
                assert served.gateway.statistics().requests, said
        nursery.cancel_scope.cancel()
    print(f"\n{agent.name} asked for: {', '.join(sorted(asked)) or 'no name'}")  # noqa: T201


def tokens_of(member: Member) -> int:
    """How many tokens the engine of a host has made."""
    assert member.host is not None
    return member.host.statistics().models[0].tokens_out
