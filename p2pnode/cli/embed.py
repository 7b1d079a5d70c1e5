"""``p2pnode embed``: the vectors of texts, one JSON line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from p2pnode.cli.ask import (
    CloseOption,
    DiscoveryOption,
    MaxCostOption,
    MaxSpendOption,
    MinReputationOption,
    NeverOption,
    OnlyOption,
    PeerOption,
    VerifiedOption,
    WaitOption,
    make_filters,
)
from p2pnode.cli.client import open_client
from p2pnode.cli.options import (
    BootstrapOption,
    ChainOption,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    ModelOption,
    blaming,
    configure,
)
from p2pnode.cli.output import Output
from p2pnode.cli.user_input import read_bytes
from p2pnode.words import count_of


def embed(
    texts: Annotated[
        list[str], typer.Argument(help="The texts; - reads them from standard input, one a line.")
    ],
    model: ModelOption = None,
    peer: PeerOption = None,
    no_discovery: DiscoveryOption = False,
    bootstrap: BootstrapOption = None,
    chain: ChainOption = None,
    max_spend: MaxSpendOption = None,
    max_cost: MaxCostOption = None,
    only: OnlyOption = None,
    never: NeverOption = None,
    verified: VerifiedOption = None,
    min_reputation: MinReputationOption = 0.0,
    close: CloseOption = False,
    wait: WaitOption = 0.0,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Print the vector of each text as a line of JSON; everything else goes to stderr."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        given = await _given(output, texts)
        filters = make_filters(max_cost, only, never, verified=verified, min_reputation=min_reputation)
        async with open_client(
            output, data_dir, bootstrap, model=model, peer=peer, no_discovery=no_discovery, mdns=mdns,
            chain=chain, spend_session_max=max_spend, closes=close, wait_s=wait,
        ) as client:  # fmt: skip
            with blaming(""):
                embedding = client.embed(given, model=model, peer=peer, filters=filters)
            try:
                async with embedding:
                    await _print(output, embedding)
            finally:
                _finish(output, embedding, len(given))

    run_async(run, on_error=output.failed)


async def _given(output: Output, texts: Sequence[str]) -> list[str]:
    """The texts of the arguments, or the lines of standard input. Raises ``UsageError``."""
    return lines_of(await read_bytes(sys.stdin, output)) if list(texts) == ["-"] else list(texts)


def lines_of(data: bytes) -> list[str]:
    """The lines of an input, each a text. Raises ``UsageError`` that names a line which is none.

    A line ends with a line feed and nothing else, so that the number of a text is that of its line.
    """
    from p2pnode.errors import UsageError

    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    if not lines:
        raise UsageError("standard input is empty: give texts, one a line")
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"line {number} is no UTF-8: convert it first, as with iconv") from error
        if not text.strip():
            raise UsageError(
                f"line {number} is empty, and each line is a text: take it out, so that numbers of vectors "
                "stay those of lines"
            )
        texts.append(text)
    return texts


async def _print(output: Output, embedding: Any) -> None:
    import trio

    from p2pnode.errors import P2PNodeError

    printed = 0
    try:
        async for vector in embedding:
            _print_one(output, printed, vector)
            printed += 1
    except (P2PNodeError, trio.Cancelled):
        # Those of a turn that was cut short are paid, and counted among those that came.
        for index, vector in enumerate(embedding.vectors[printed:], printed):
            _print_one(output, index, vector)
        raise


def _print_one(output: Output, index: int, vector: Sequence[float]) -> None:
    fields = {"index": index, "embedding": list(vector)}
    if output.as_json:
        output.event("embedding", fields)
    else:
        output.result(json.dumps(fields))


def _finish(output: Output, embedding: Any, asked: int) -> None:
    """Tell scripts the bill, and people what came and what it cost."""
    from p2pnode.money import usdc_text

    came = len(embedding.vectors)
    items = [{**asdict(item), "session": item.session.hex()} for item in embedding.bill]
    cost = f", {usdc_text(embedding.cost)}" if embedding.cost else ""
    what = count_of(came, "vector") if came == asked else f"{came} of {count_of(asked, 'vector')}"
    fields = {"vectors": came, "tokens_in": embedding.tokens_in, "cost": embedding.cost, "bill": items}
    text = f"[{what}, {count_of(embedding.tokens_in, 'token')} in{cost}]" if items else ""
    output.event("done" if came == asked else "cut_short", fields, text=text)
