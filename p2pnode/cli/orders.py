"""How commands tell of orders to the chain that were sent and are not seen yet.

JSON event::

    order.waiting{transaction, order, kind, nonce, sent_at}: sent, not seen yet
    order.ended{order, ending}: what became of one that an earlier command sent
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2pnode.chain.evm.order_book import SentOrder
    from p2pnode.cli.output import Output
    from p2pnode.payments.orders import Tell


def telling(output: Output) -> Tell:
    """Says each on a line of its own."""

    def tell(order: SentOrder) -> None:
        fields = {
            "transaction": _hash(order), "order": order.order.words, "kind": order.order.kind,
            "nonce": order.nonce, "sent_at": order.sent_at,
        }  # fmt: skip
        output.event("order.waiting", fields, text=waiting_text(order))

    return tell


def waiting_text(order: SentOrder) -> str:
    """A line for people."""
    return f"sent, not seen yet: {_hash(order)} ({order.order.words}); it is not ordered a second time"


def ended_text(order: SentOrder) -> str:
    """What became of an order that was on its way."""
    shown = "0x" + order.transaction.hex() if order.transaction is not None else "no transaction"
    said = {
        "done": f"was carried out ({shown})",
        "failed": f"was refused by the contract ({shown})",
        "displaced": f"was not carried out: another transaction of this wallet has its nonce ({shown})",
        "given up": "was given up",
        None: "is on its way",
    }
    return f"{order.order.words}: {said[order.ending]}"


def _hash(order: SentOrder) -> str:
    return "0x" + order.versions[-1].hash.hex() if order.versions else "?"
