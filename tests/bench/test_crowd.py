"""The crowd of a gateway: who is there, and that one who is gone is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.bench.crowd import Crowd, crowd_hosts
from p2pnode.bench.processes import gateway
from p2pnode.errors import LocalError
from p2pnode.models.child.http import ChildHttp


@pytest.mark.long
async def test_a_crowd_is_there_to_the_end_and_one_that_a_gateway_can_not_serve_is_told(
    tmp_path: Path,
) -> None:
    async with crowd_hosts(tmp_path, quick=True) as crowd:
        assert (crowd.idle, crowd.stalled) == (16, 16)
        known = [f"--bootstrap={each}" for each in crowd.multiaddrs]
        async with gateway(tmp_path, "gateway", known) as running:
            http = ChildHttp(running.port, "none")
            async with crowd.gathered(http, running.pid):
                told = await http.call("/health", None, deadline_s=10)
                assert told["under_way"] >= 32
            nobody = Crowd(model=crowd.model, slow=("12D3KooWNobody",), fast=(), multiaddrs=())
            with pytest.raises((LocalError, ExceptionGroup)):
                async with nobody.gathered(http, running.pid):
                    pass
