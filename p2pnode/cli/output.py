"""What commands print. Answers and results go to stdout, text for people to stderr, ``--json`` to stdout.

With ``--json`` stdout holds one object per line and nothing else. Names and fields are stable::

    ask, chat   host{peer, model} signing{words, …} deposit.waiting{peer, waited_s, most_s}
                chain.waiting{chain}: it has not answered for two seconds
                prefill{processed, total} text{text}
                tool_call{index, arguments, id?, name?}: a piece of a call, the first with its id and name
                reasoning{text}; not_checked{}: calls were not compared with the tokens that were paid for
                hedge{from, to}: the first token of one is late, and the other is asked, too
                host.failed{peer, reason, retrying} failover{from, to, held, reason}
                slept{peer, seconds, reason}: this machine did; host.slow{peer, tokens_per_s, leaving}
                engine.restarted{peer, held}: a host's engine died after so many tokens, and went on there
                session.left{peer}: a session that was left with it is resumed;
                session.gone{peer, paid, reason}: it has that no more;
                session.in_use{peer, wait_s}, session.elsewhere{peer}: another command has it
                answer.cut{held, reason}: nobody can go on; so many tokens of the answer are kept
                done{host, checkpoints, tokens_in, reused, tokens_out, cost, reason, ttft_s, total_s,
                context_used, n_ctx, stop, bill}: the conversation takes so much of the last host's context,
                and stop is the stop string that the answer came to
                bill: [{peer, session, tokens_in, reused, tokens_out, cost, reason}], an item for each host
                in the order of use; the sums over it are tokens_in, reused, tokens_out and cost
                voucher{session, outcome, detail}: a host that had vanished is owed one, and got it or not
                conversation.kept{conversation, replicas, kept, waiting, weak, refused, cut, gone},
                conversation.moved{conversation, branched}, conversation.not_kept{reason}
                stranger{peer}: no host that you trust is there, and this one is asked
                context.dropped{messages, left}: so many of the oldest messages were left out of the prompt
    ask         with --dry-run estimate{peer, tokens_in_max, tokens_out_max, cost_in, cost_out, fee, cost_max,
                priced, n_ctx, trusted, excluded}, for each host
                interrupted{text} cut_short{conversation, held}: `sessions resume` goes on with it
    embed       embedding{index, embedding} for each text, then done or cut_short{vectors, tokens_in, cost,
                bill}; hosts and sessions as ask
    chat        chat{} help{} new{} asking{}: Ctrl-C again leaves; nothing_to_retry{} nothing_to_go_on{}
                unknown_command{command} stopped{} turn.failed{error, message, code?}
                result_wanted{id, name, arguments}: the next line is the result of this call;
                running{id, name, program}: --tool-command does, for this call;
                result{id, name, result}: of --tool-command; calls_left{}: they got no results
    hosts       host{model, model_id, peer, wallet, addresses, engine, quantisation, can, turns_max, keep_s,
                n_ctx, price_in, price_out, session_fee, state, warm_in_s, slots, active, queued, score,
                cost, trusted, stake, goes_first, reputation, excluded}: seconds and token units that a
                typical answer is expected to take, FAB in its smallest unit; reputation is {low, high,
                kept, broken, receipted, faults, unanswered, left_closed, failures_in_a_row, ttft_s,
                tokens_per_s}; and with --why not_found{peer, reason}
                and, for each model of which it is known, quality{name, model, …}: as models evaluate
    join        identity.making{data_dir, making} identity{peer_id, new}
                chain{chain_id, name, account, ether_wei, session_wei} model.pulling{name}
                model.progress{name, done, total} model{name, id} listening{multiaddrs}
                context{name, n_ctx, slots, memory, at_hand, why, on_demand}: of one request; memory in bytes
                model.no_embeddings{name, reason} gpus{gpus}: of each its name, total and free bytes
                upstream{name, url, build, n_ctx}: of --upstream; on a terminal upstream.found{url, model,
                models}: a server that could be
                model.warm{name, seconds} model.cold{name} model.withdrawn{name, reason}: while it runs
                with --auto auto.plan{memory, cores, hosts_seen, models} auto.left_out{name, why}
                auto.serves{name, tokens_per_s, price_in, price_out, why}
                ready{peer_id, multiaddrs, invite, reach, store_for, models}
                addresses{multiaddrs, invite, reach}: they changed; reach is {code, detail, remedy}
                s5{url} metrics{url} stopping{} stopped{} background{pid, log}
                with --suggest-price suggestion{asked, price_in, price_out, gas_cost, session_fee}
                answered{peer, tokens_in, tokens_out, reason, cost} settled{session, amount}
    join also   model.sick{name, reason} model.well{name, reason} machine.used{why} machine.idle{why}
    pause, resume  paused{why} resumed{why} not_paused{why}: also told by the node that runs
    service     service.installed{path} service.removed{path} service{path, running, said}
                service.plan{path, text, commands}: with --dry-run
    block       blocked{peer, new, reason}; unblock: unblocked{peer}; blocked: peer{peer, since, reason}
    models      list, search: model{name, id, list, aliases, description, remarks, architecture, size_bytes,
                quantisation, n_ctx, licence, licence_url, licence_sha256, tasks, memory, path, quality,
                hosts?}; hosts is {count, price_in, price_out}; pull: licence{name, licence, url}
                model.progress{…} and model{name, id, path};
                verify: verified{name, path, files}
                evaluate: item{task, index, right, answer, lost} evaluated{model, task_set, seed, tasks,
                scores, overall, engine, build, kv_types, measured, asked, answered, lost, kept}: quality is
                the same down to measured, and by: whose figure it is, empty for this machine's;
                with --peer before that cost{items, cost_max}, and what ask tells of hosts and payments
                recommend: machine{memory, cores, disk, gpu_memory, weights_per_s} and, for each model, the
                most promising first, recommendation{name, id, fits, why, memory, tokens_per_s, would_fit,
                here, size_bytes, quantisation, licence, tasks, quality}; show: model{…, as recommendation
                has, path, description, manifest, qualities}
                lists: list{name, key, revision, entries, left_out, created, description, taken_at, asked_at};
                lists subscribe, refresh, import: list.taken{…, reasons} list.unchanged{…}
                list.stays{name, reason, hostile}; publish, withdraw: list.published{name, key, revision,
                entries, size, places}; unsubscribe: list.given_up{name, key};
                export: list.exported{name, path, size}
                calibrate: calibrated{name, threads, batch, prefill_s, decode_s}
                offer: as join, model.offered{name, id, price_in, price_out, session_fee, memory,
                gpu_memory, pinned, state}; withdraw: model.withdrawn{name, reason}
                propose, vote, unlock, bond, attest: plan{calls, gas, gas_price_wei, cost_wei, cost, untried,
                dry_run} and, for each transaction, sent{call, transaction, gas, fee_wei}; then, as
                proposals, proposal{number, model, model_id, proposer, state, ends_at, votes_for,
                votes_against, bond, locked?, manifest?}, or attestation{model, model_id, attester,
                statement, matches?}
    stake, unstake
                plan{…} sent{…} as models vote, then, as stake status, stake{wallet, peer, receipt_key, stake,
                unbonding, unbonds_at, fab, staked, here}; slash: slashed{host, amount, reward, transaction}
    status      status{peer_id, pid, multiaddrs, reach, models, slots, active, queued, draining, served,
                ether_usd, earned, owed, gateway, paused, chain_reachable, idle}; gateway is
                {url, pid, keys_required, socket} or null, and alone where no node runs; served is
                {since, sessions, turns, tokens_in, tokens_out} or null; idle is {reasons, offers}, with
                --why-idle
    invite      invite{invite, reach}
    gateway     gateway{url, keys_required, key_file} dashboard{url}: with a token that works once
    dashboard   dashboard{url}
    wallet      wallet.made{…} wallet{…} wallet.exported{…}
    connect     connect{program, url, model, environment, unset, arguments, file?, merge?, source}
    keys        new: key.made{secret, …} as key; list, show, set: key{id, name, state, budget, per_day, spent,
                spent_day, claimed, price_in_max, price_out_max, models, made_at, expires_at, revoked_at}:
                token units, null for no limit; revoke: key.revoked{…} as key
    funds       funds{account, wallet, ether_wei, authorised, escrow, signed, spent, owed, earned,
                withdrawable, elsewhere, elsewhere_open, stuck} settlement.waiting{}
                withdrawn{to, amount, transaction}; send: plan{…} sent{…} as models vote
    funds, sessions close, sessions evidence, chain deploy
                order.waiting{transaction, order, kind, nonce, sent_at}: sent, not seen yet, never sent twice;
                withdraw: order.ended{order, ending}: what became of one that an earlier command sent
    chain       deploy: chain.offer{chain_id, deployer, contracts, gas, cost_max_wei, treasury, usdc}
                contract{name, address, transaction, gas} chain.deployed{profile};
                dev: chain.ready{url, chain_id, profile, state, new, block} wallets{host, client};
                dev, faucet: funded{address, usdc, ether_wei, fab}
    sessions    conversation{conversation, title, created, updated, model, …; show: branches, turns}
                session{session, as, state, peer, deposit, amount, …} closed{session, outcome, until}
                recovered{conversations, sessions, replicas, failed, revision}
                loss{kind, conversation, revision, detail} forgotten{conversation} evidence{…}
                receipts{session, problem, same, unknown, withheld, conflicts} submitted{…, reward};
                resume: as ask and chat
    storage     ls: blob{id, size, leases, entries} (a lease {owner, until, pointed}), entry{key, revision,
                points_at}; put: stored{id, size, until}; get: got{id, size, path};
                pin, unpin: pinned{id, until} unpinned{id}; gc: gc.progress{folders, of}
                collected{leases, blobs, bytes, files, lost}; stats: store{path, blobs, bytes, charged,
                bytes_max, leases, keys, owner_bytes_max} owner{owner, charged, leases, keys}
    doctor      finding{check, verdict, code, detail, remedy}
    simulate    run.ended{done, total}: of a sweep; result{out, seed, trace_hash, figures} of a run,
                whose out is null where its folder could not be written;
                result{out, runs} of a sweep; deterministic{trace_hash, events};
                list: scenario{scenario, nodes, duration_s, description};
                compare: figure{figure, a, b}; calibrate: cpu{message_s, decode_s, sign_s, check_s, speed}
    all         failed{error, message, exit_code, code?} is the last line of a command that fails
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

from p2pnode.streams import screen_of
from p2pnode.words import one_line, printable

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from p2pnode.cli.markdown import MarkdownStream
    from p2pnode.errors import P2PNodeError

_NO_WRAP: Final = 1000
_READER_LEFT: Final = frozenset({errno.EPIPE, errno.EIO})
"""What a pipe without a reader says, and a terminal that was closed."""
_SHOWN: Final = 12
_CELL_MAX: Final = 1000
_ERROR_MAX: Final = 2000
_WORD: Final = re.compile(r"(?:`[^`]*`|\S)+")
"""A word, or a command with what stands at its quotes."""
_NAME: Final = re.compile(r".{0,16}\s{2,}")
"""What stands before a line's text, as in a table, of one column or two; or its indent."""
_INDENT: Final = 2
_COMMAND: Final = re.compile(r"`p2pnode ((?!chain\b|demo\b|bench\b)(?![^`]*--data-dir)[a-z][^`]*)`")
"""A command that takes a data dir, in a text. Those of a chain are left out: they need none."""


class OutputLostError(Exception):
    """Standard output can't be written. ``left``: its reader has gone, which is nobody's fault."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or type(error).__name__)
        self.left = error.errno in _READER_LEFT


class Output:
    """One per command run."""

    def __init__(self, *, as_json: bool, data_dir: Path | None = None) -> None:
        self.as_json = as_json
        self._data_dir = data_dir
        self._console: Console | None = None
        self._line_open = False
        self._later: list[str] = []
        """Texts that are printed when the line ends."""

    @property
    def console(self) -> Console:
        """Rich on stderr, made when first used."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=screen_of(sys.stderr), highlight=False, emoji=False)
        return self._console

    @cached_property
    def _markdown(self) -> MarkdownStream:
        from rich.console import Console

        from p2pnode.cli.markdown import MarkdownStream

        return MarkdownStream(Console(highlight=False, emoji=False), partial(_write, flush=True))

    def event(
        self, name: str, fields: dict[str, Any] | None = None, *, text: str = "", later: bool = False
    ) -> None:
        """A JSON line, or ``text`` for people when there is any; with ``later`` not in mid-answer.

        What is said between an answer's pieces never gets into the answer: a terminal shows it on a line of
        its own, a file or pipe gets the answer alone. Raises ``OutputLostError``.
        """
        if self.as_json:
            _write(json.dumps({"event": name, **(fields or {})}) + "\n", flush=True)
        elif text and later and self._line_open:
            self._later.append(text)
        elif text:
            if sys.stdout.isatty():
                self.end_line()
            self._say(text)

    def command(self, words: str) -> str:
        """A command for the same data dir as this one's, to be run as it is printed."""
        where = f" --data-dir {shlex.quote(str(self._data_dir))}" if self._data_dir is not None else ""
        return f"`p2pnode {words}{where}`"

    def with_data_dir(self, text: str) -> str:
        """A text in which each command is one for the same data dir as this one's."""
        return _COMMAND.sub(lambda found: self.command(found[1]), text)

    def report(
        self, name: str, fields: dict[str, Any] | None = None, *, text: str = "", later: bool = False
    ) -> None:
        """An event from inside of work that must go on when nobody reads of it."""
        with suppress(OutputLostError):
            self.event(name, fields, text=text, later=later)

    def _say(self, text: str) -> None:
        shown = printable(text)
        if self.console.is_terminal and not self.console.is_dumb_terminal:  # whose width rich makes up
            shown = wrapped(shown, self.console.width)
        self.console.print(shown, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a text for people only: scripts are told the same by an event."""
        if not self.as_json:
            self._say(text)

    def piece(self, text: str) -> None:
        """Print a piece of an answer as it streams."""
        if self.as_json:
            self.event("text", {"text": text})
        elif text:
            shown = printable(text)  # also into a pipe: `| tee` leads to a terminal
            if draws():
                self._markdown.feed(shown)
                self._line_open = True
            else:
                _write(shown, flush=True)
                self._line_open = not text.endswith("\n")

    def end_line(self) -> None:
        """End the line of an answer, so that what is printed next begins on a line of its own."""
        if self._line_open:
            self._line_open = False
            with suppress(OutputLostError):  # an answer that was lost is told when its next piece is
                if draws():
                    self._markdown.end()
                else:
                    _write("\n", flush=True)
        later, self._later = self._later, []
        for text in later:
            self._say(text)

    def result(self, text: str) -> None:
        """Print a line that scripts may want, to stdout."""
        _write(printable(text) + "\n")

    def lines(self, text: str) -> None:
        """Print lines for people to stdout: a terminal gets them broken between words, a file as they are."""
        shown = printable(text)
        if draws():
            from rich.console import Console

            shown = wrapped(shown, Console().width)
        _write(shown + "\n")

    def end_echo(self) -> None:
        """Begin a new line after the ^C that a terminal has echoed."""
        if not self.as_json and sys.stderr.isatty():
            screen_of(sys.stderr).write("\n")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, folds: str = "") -> None:
        """Columns on stdout; on a terminal the one called ``folds`` gives way, elsewhere none need."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column != folds)
        for row in rows:
            table.add_row(*(Text(one_line(cell, _CELL_MAX)) for cell in row))
        self.show(table, width=None if sys.stdout.isatty() else _NO_WRAP)

    def show(self, *what: Any, width: int | None = None) -> None:
        """What rich draws, on stdout. Raises ``OutputLostError``, where rich would end the process."""
        from rich.console import Console

        console = Console(highlight=False, emoji=False, width=width)
        with console.capture() as drawn:
            console.print(*what, soft_wrap=all(isinstance(each, str) for each in what))
        _write(drawn.get())

    @staticmethod
    def raw(data: bytes) -> None:
        """Write bytes to stdout as they are. Raises ``OutputLostError``."""
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as error:
            raise OutputLostError(error) from error

    def failed(self, error: P2PNodeError, code: int) -> None:
        """Print the error; nothing is printed after it."""
        self.end_line()
        self.event("failed", {**error_fields(error), "exit_code": code}, text=self.error_text(error))

    def error_text(self, error: P2PNodeError) -> str:
        """An error for people: a stranger's words on one line, commands for the same data dir as this one."""
        from p2pnode.errors import RemoteError

        words = one_line(str(error), _ERROR_MAX) if isinstance(error, RemoteError) else str(error)
        return f"p2pnode: {self.with_data_dir(words)}"


def error_fields(error: P2PNodeError) -> dict[str, Any]:
    """An error for scripts: its class, its message, and the wire code where there is one."""
    fields = {"error": type(error).__name__, "message": str(error)}
    wire_code = getattr(error, "code", None)
    return fields if wire_code is None else {**fields, "code": wire_code}


def wrapped(text: str, width: int) -> str:
    """The text with its lines broken between words, but not in a command: that is copied as one line.

    What goes on from the line above is indented, under its text where a name stands before that: so no
    stranger's words look like a line of ours. What is longer than a line is left to the terminal.
    """
    from rich.cells import cell_len

    lines = []
    for line in text.split("\n"):
        name = _NAME.match(line)
        hanging = " " * (name.end() if name is not None else _INDENT)
        begin = end = 0
        indent = ""
        for word in _WORD.finditer(line):
            is_full = end > begin and len(indent) + cell_len(line[begin : word.end()]) > width
            if is_full and len(hanging) + cell_len(word[0]) <= width:
                lines.append(indent + line[begin:end])
                begin, indent = word.start(), hanging
            end = word.end()
        lines.append(indent + line[begin:])
    return "\n".join(lines)


def draws() -> bool:
    """Whether standard output can show more than lines of plain text."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def _write(text: str, *, flush: bool = False) -> None:
    try:
        sys.stdout.write(text)
        if flush:
            sys.stdout.flush()
    except OSError as error:
        raise OutputLostError(error) from error


def shorten(peer: str) -> str:
    """A peer id that fits a table: ids of one kind begin alike, so their ends are shown."""
    return f"{peer[:4]}…{peer[-6:]}" if len(peer) > _SHOWN else peer


def price_of(offer: Mapping[str, Any]) -> str:
    """What an offer with ``price_in`` and ``price_out`` costs, in words."""
    from p2pnode.money import price_text

    return price_text(offer["price_in"], offer["price_out"], offer.get("session_fee", 0))
