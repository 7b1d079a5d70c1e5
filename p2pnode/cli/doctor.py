"""``p2pnode doctor``: what is wrong, and what to do about it."""

from __future__ import annotations

from typing import Final

from p2pnode.cli.options import (
    BootstrapOption,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    blaming,
    build_config,
    configure,
)
from p2pnode.cli.output import Output
from p2pnode.words import one_line

_DETAIL_MAX: Final = 2000


def doctor(
    data_dir: DataDirOption = None,
    bootstrap: BootstrapOption = None,
    mdns: MdnsOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Check keys, disk, ports, model, money, what is kept, peers, clock; exit code 1 on a problem."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from dataclasses import asdict

        from p2pnode.doctor.doctor import examine
        from p2pnode.errors import LocalError
        from p2pnode.node.invite import read_bootstrap

        with blaming("--bootstrap"):
            for each in bootstrap or ():
                read_bootstrap(each)
        problems = []
        marks = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}
        async for finding in examine(build_config(data_dir, bootstrap=bootstrap, mdns=mdns)):
            if as_json:
                output.event("finding", asdict(finding))
            else:
                code = "" if finding.code == "ok" else f" [{finding.code}]"
                detail = output.with_data_dir(one_line(finding.detail, _DETAIL_MAX))
                output.lines(f"{marks[finding.verdict]}  {finding.check:<9} {detail}{code}")
                if finding.remedy:
                    output.lines(f"         {'':<9} → {output.with_data_dir(finding.remedy)}")
            if finding.verdict == "problem":
                problems.append(finding.code)
        if problems:
            count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
            msg = f"found {count}: {', '.join(problems)}; each has its remedy above"
            raise LocalError(msg)

    run_async(run, on_error=output.failed)
