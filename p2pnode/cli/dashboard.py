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
        from p2pnode.gateway.dashboard.access import new_links

        data = data_of(data_dir)
        running = data.running_gateway()
        if running is None:
            msg = f"no gateway runs on {data.root}: start one with {output.command('gateway')}"
            raise ConfigError(msg)
        for link in new_links(data.dashboard, running.url, time.time()):
            if as_json:
                output.event("dashboard", {"url": link})
            else:
                output.result(link)

    run_async(run, on_error=output.failed)
