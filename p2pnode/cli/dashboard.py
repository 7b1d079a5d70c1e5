"""``p2pnode dashboard``: a link that lets a browser into the dashboard."""

from __future__ import annotations

from p2pnode.cli.options import DataDirOption, JsonOption, LogOption, configure, data_of
from p2pnode.cli.output import Output


def dashboard(
    data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error"
) -> None:
    """Print a link to the dashboard of the gateway that runs here. It works once, within a day."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        import time

        from p2pnode.errors import ConfigError
        from p2pnode.gateway.dashboard.access import LISTENS_ON_ALL, near_url, new_link
        from p2pnode.net.address_policy import interface_addresses

        data = data_of(data_dir)
        running = data.running_gateway()
        if running is None:
            msg = f"no gateway runs on {data.root}: start one with {output.command('gateway')}"
            raise ConfigError(msg)
        urls = [near_url(running.url)]
        if LISTENS_ON_ALL in running.url:  # a phone needs an address of the network, and a link of its own
            found = [each.partition("/")[0] for each in interface_addresses()]
            v4 = [each for each in found if ":" not in each and each != "127.0.0.1"]
            urls += [running.url.replace(LISTENS_ON_ALL, f"//{each}:") for each in v4]
        for url in urls:
            link = new_link(data.dashboard, url, time.time())
            if as_json:
                output.event("dashboard", {"url": link})
            else:
                output.result(link)

    run_async(run, on_error=output.failed)
