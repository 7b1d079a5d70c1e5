"""Parsers of what strangers send, in-process: each refuses with one kind of error, whatever it is given."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from multiaddr import Multiaddr

from p2pnode.chain.abi import artifact, type_of
from p2pnode.chain.deployment_plan import Addresses
from p2pnode.chain.dev.jsonrpc import JsonRpc
from p2pnode.chain.evm.calls import market_events, registry_events
from p2pnode.chain.evm.node import Log
from p2pnode.chain.evm.rpc_answers import (
    RpcError,
    UnusableError,
    read_answer,
    refusal_of,
    revert_reason,
    shape_of,
)
from p2pnode.chain.profile import load_profile, profile_of, profile_text
from p2pnode.config import load_config
from p2pnode.errors import ChainError, ConfigError, ProtocolError, StorageError
from p2pnode.ids import PeerId
from p2pnode.models.catalogue import parse_catalogue
from p2pnode.models.child.http import ChildGoneError, ChildRefusedError, FrameParser
from p2pnode.models.gguf import read_header
from p2pnode.models.manifest import model_id_text, parse_model_id, scripted_model_id
from p2pnode.models.model_list import parse_list
from p2pnode.models.vocabulary import load_vocabulary
from p2pnode.net import mdns, multiaddrs
from p2pnode.net.address_policy import scope_of
from p2pnode.net.saved_peers import SavedPeers
from p2pnode.node.invite import make_invite, read_bootstrap
from p2pnode.protocols.adverts.book import Book
from p2pnode.protocols.adverts.messages import CODEC as ADVERTS
from p2pnode.protocols.adverts.signatures import decode_gossip, read_sheet, sheet_hash
from p2pnode.protocols.adverts.signatures import parse as parse_advert
from p2pnode.protocols.blob.messages import CODEC as BLOB
from p2pnode.protocols.checkpoint.messages import CODEC as CHECKPOINT
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.framing.codec import FrameDecoder, check_shape, pack_frame
from p2pnode.protocols.inference.messages import CODEC as INFERENCE
from p2pnode.protocols.s5.entries import parse_entry, parse_key
from p2pnode.protocols.s5.ids import (
    BlobId,
    from_multibase,
    hash_of,
    multihash_text,
    parse_id,
    parse_id_bytes,
    parse_multihash_text,
)
from p2pnode.protocols.s5.locations import parse_location
from p2pnode.protocols.s5.messages import decode, decode_statement
from p2pnode.protocols.s5.nodes import parse_node
from p2pnode.protocols.wire import decode_record, encode
from p2pnode.storage.conversations.records import (
    INDEX_CODEC,
    WRITER_BYTES,
    Link,
    Manifest,
    Piece,
    SavedConversation,
    Segment,
    SegmentRef,
    WriterSeq,
)
from p2pnode.storage.s5.wire import entry_json, entry_of, key_of
from tests.chain.memory_world import MEMORY_DOMAINS
from tests.fuzz.conftest import Counted
from tests.fuzz.corpus import SOMEBODY, kad, messages, vectors
from tests.fuzz.mutations import Mutate, by_bytes, inputs, json_values, msgpack_values
from tests.models.gguf_files import TINY
from tests.models.lists import document, table

FULL = f"/ip4/192.0.2.7/tcp/4001/p2p/{SOMEBODY}"
ADDRESSES = [
    FULL.encode(), b"/ip6/::1/tcp/1/ws", b"/ip6zone/lo/ip6/fe80::1/tcp/1", b"/dns4/host.test/tcp/443/wss",
    b"/unix/tmp/x",
    b"/ip4/1.2.3.4/udp/1/quic-v1/webtransport/certhash/uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g",
    b"/onion3/" + b"v" * 56 + b":1234/tcp/1", b"/memory/7", b"/ipcidr/8",
    b"/garlic64/" + b"A" * 516, b"/garlic32/" + b"566niximlxdzpanmn4qouucvua3k7neniwss47li5r6ugoertzuq",
]  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """``parse`` of ``corpus`` raises nothing but ``refuses``."""

    name: str
    parse: Callable[[bytes], object]
    corpus: list[bytes]
    refuses: tuple[type[Exception], ...] = (ProtocolError,)
    mutate: Mutate = by_bytes


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "surrogateescape"))


def _frames(data: bytes) -> None:
    decoder = FrameDecoder()
    for payload in decoder.feed(data):
        check_shape(payload)
    decoder.check()


def _hexes(*keys: str) -> list[bytes]:
    found: Any = vectors("s5")
    for key in keys:
        found = found[key]
    return [bytes.fromhex(each["hex"]) for each in found if each.get("hex")]


def _mdns(data: bytes) -> None:
    record: dict[bytes, bytes | None] = {}
    for part in data.split(b"\n"):
        key, _, value = part.partition(b"=")
        record[key] = value
    found = mdns.read(record, ("10.0.0.9/8",))
    assert found is None or all(multiaddrs.is_valid(each) for each in found.addrs)


def _kad_address(data: bytes) -> None:
    # A DHT record's addresses are binary; they are used as text.
    try:
        text = str(Multiaddr(data))
    except Exception:  # noqa: BLE001  the library's own way to say no, which our callers catch
        return
    scope_of(text)


def _model_of_a_list(data: bytes) -> None:
    """One line of a list: what is JSON is written in canonical form, so that its values are looked at."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = data.decode("latin-1")
    try:
        made = document([values])
    except RecursionError:  # deeper than can be written
        return
    parse_list(made)


def _rpc(data: bytes) -> None:
    answer = read_answer(data, 1, "eth_getTransactionReceipt")
    for method in ("eth_getTransactionReceipt", "eth_getBlockByNumber", "eth_getLogs", "eth_feeHistory"):
        shape_of(method)(answer)


def _rpc_error(data: bytes) -> None:
    try:
        read_answer(data, 1, "eth_call")
    except RpcError as error:
        revert_reason(error)
        refusal_of(error)


def _sse(data: bytes) -> None:
    parser = FrameParser()
    parser.feed(data)
    parser.check()


def _sheet(data: bytes) -> None:
    """As of a host whose advert names just these bytes: its owner may write what it likes."""
    (body,) = (each for each in vectors("adverts")["messages"] if each["type"] == "advert")
    advert = parse_advert(decode_gossip(bytes.fromhex(body["hex"])))
    sheet = read_sheet(data, replace(advert, sheet=sheet_hash(data)))
    assert sheet.peer == advert.peer


def _book(data: bytes) -> None:
    Book(size_max=8, privileged=lambda _peer: False).offer_gossip(data, PeerId(SOMEBODY), 1_700_000_001.0)


LOG_ADDRESS = bytes(20)


def _words(data: bytes) -> list[bytes]:
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def _log_of(name: str, topics_count: int, words: int) -> bytes:
    """A log's topics and data, one after another, after the number of topics."""
    of = {"Slashed": "NodeRegistry", "Proposed": "ModelRegistry"}
    contract = artifact(of.get(name, "JobMarketplace"))
    entry = next(each for each in contract.abi if each["type"] == "event" and each["name"] == name)
    kinds = ",".join(type_of(field) for field in entry["inputs"])
    first = keccak256(f"{name}({kinds})".encode())
    return bytes([topics_count]) + first + bytes(32) * (topics_count - 1) + bytes(32) * words


def _chain_log(read: Callable[[bytes, list[Log]], object]) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        count = data[0] % 6 if data else 0
        parts = _words(data[1:])
        log = Log(
            contract=LOG_ADDRESS, topics=tuple(parts[:count]), data=b"".join(parts[count:]), block=1, index=0
        )
        return read(LOG_ADDRESS, [log])

    return parse


_MODELS = Path(__file__).parents[2] / "models" / "vectors.json"
_RPC = [
    json.dumps({"jsonrpc": "2.0", "id": 1, **each}).encode()
    for each in (
        {"result": "0x1"},
        {"result": None},
        {
            "result": [
                {
                    "address": "0x" + "11" * 20,
                    "topics": [],
                    "data": "0x",
                    "blockNumber": "0x1",
                    "logIndex": "0x0",
                }
            ]
        },
        {"result": {"transactionHash": "0x" + "11" * 32, "blockNumber": "0x1", "status": "0x1", "logs": []}},
        {
            "error": {
                "code": 3,
                "message": "execution reverted",
                "data": "0x08c379a0" + "00" * 31 + "20" + "00" * 32,
            }
        },
        {"error": {"code": -32000, "message": "nonce too low"}},
    )
]
_MDNS = f"peer={SOMEBODY}\na0=/ip4/10.0.0.1/tcp/4001\na1=/ip6/::1/tcp/1/ws".encode()
_DEV = [
    b'{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[{"to":"0x00"},"latest"]}',
    b"[]",
    b'[{"id":1}]',
]
_CONFIG = b'model = "smollm2"\nlisten = ["/ip4/0.0.0.0/tcp/4001"]\nn_ctx = 2048\nmdns = true\n'
_CATALOGUE = (Path(__file__).parents[2] / "models" / "catalogue.toml").read_bytes()


def _addresses() -> Addresses:
    names = [each.name for each in fields(Addresses)]
    return Addresses(**{name: bytes([number]) * 20 for number, name in enumerate(names, 1)})


def _all(folder: Path) -> Iterator[Parser]:  # noqa: PLR0915  a list
    def of_file(name: str, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
        path = folder / name

        def parse_bytes(data: bytes) -> object:
            path.write_bytes(data)
            return parse(path)

        return parse_bytes

    config = (ConfigError,)
    yield Parser("multiaddr text", _text(multiaddrs.parse), ADDRESSES, config)
    yield Parser("full multiaddr", _text(multiaddrs.split_peer), ADDRESSES, config)
    yield Parser("address of an advert", _text(scope_of), ADDRESSES, ())
    binary = [multiaddrs.parse(each.decode()).to_bytes() for each in ADDRESSES if b"ip6zone" not in each]
    yield Parser("binary multiaddr", _kad_address, binary, ())
    yield Parser(
        "peer id", _text(multiaddrs.check_peer), [SOMEBODY.encode(), b"QmYyQSo1c1Ym7orWxLYvCrM2"], config
    )
    yield Parser(
        "invite or multiaddr", _text(read_bootstrap), [make_invite([FULL]).encode(), FULL.encode()], config
    )
    yield Parser("mDNS record", _mdns, [_MDNS], ())
    peers = b'{"format": 1, "peers": [{"peer": "%s", "addrs": ["%s"], "last_seen": 1, "failures": 0}]}'
    peers %= (SOMEBODY.encode(), FULL.encode())
    load = of_file("peers.json", lambda path: trio.run(SavedPeers(path, in_thread=False).load))
    yield Parser("saved peers", load, [peers], (), json_values)
    yield Parser("frames", _frames, [pack_frame(each) for each in messages("adverts")])
    for name, codec in (
        ("adverts", ADVERTS),
        ("blob", BLOB),
        ("checkpoint", CHECKPOINT),
        ("inference", INFERENCE),
    ):
        yield Parser(f"{name} message", codec.decode, messages(name), mutate=msgpack_values)
    gossip = [each for each in messages("adverts") if len(each) > 200]
    yield Parser("gossiped advert", _book, gossip, (), msgpack_values)
    sheets = [bytes.fromhex(each["hex"]) for each in vectors("adverts")["records"] if each["type"] == "Sheet"]
    yield Parser("sheet of a host", _sheet, sheets, mutate=msgpack_values)
    segment = Segment(records=(encode(Piece(role="user", text="hello", ids=(1, 2), host=SOMEBODY)),))
    digest = hash_of(b"")
    link = Link(seq=1, hash=digest)
    manifest = Manifest(
        seq=2,
        prev=link,
        next=1,
        segments=(SegmentRef(first=0, last=0, hash=digest, length=99),),
        writer=bytes(WRITER_BYTES),
        writers=(WriterSeq(writer=bytes(WRITER_BYTES), seq=2),),
        branches=(link,),
        title="Title",
    )
    for record in (segment, manifest):
        name, parse = f"{type(record).__name__} of a conversation", partial(decode_record, type(record))
        yield Parser(name, parse, [encode(record)], mutate=msgpack_values)
    piece = partial(decode_record, Piece)
    yield Parser("piece of a conversation", piece, list(segment.records), mutate=msgpack_values)
    index = [encode(SavedConversation(sid=bytes(16), title="Title", created=1, updated=2))]
    yield Parser("record of the index", INDEX_CODEC.decode, index, mutate=msgpack_values)
    yield Parser("S5 frame", decode, [*_hexes("messages"), *_hexes("refused_messages")])
    yield Parser("S5 statement", decode_statement, _hexes("statements"))
    yield Parser("S5 entry", parse_entry, _hexes("entries"))
    yield Parser("S5 key", parse_key, [bytes.fromhex("ed" + "11" * 32)])
    yield Parser("S5 id", _text(parse_id), [BlobId.of(b"x").text().encode()])
    yield Parser("S5 id's bytes", parse_id_bytes, _hexes("ids"))
    yield Parser("S5 multibase", _text(from_multibase), [b"zQm", b"uAAA", b"f00ff", b"baeb"])
    yield Parser("S5 multihash", _text(parse_multihash_text), [multihash_text(hash_of(b"x")).encode()])
    yield Parser(
        "S5 location", parse_location, [each for each in _hexes("messages") if each[0] == 5] or [b"\x05"]
    )
    yield Parser("S5 node id", parse_node, [bytes.fromhex("ed" + vectors("s5")["nodes"]["key"])])
    written = [json.dumps(entry_json(parse_entry(each))).encode() for each in _hexes("entries")]
    yield Parser("registry entry in JSON", entry_of, written, mutate=json_values)
    yield Parser("registry key in a query", _text(key_of), [json.loads(written[0])["pk"].encode()])
    yield Parser("RPC answer", _rpc, _RPC, (RpcError, UnusableError), json_values)
    yield Parser("RPC error", _rpc_error, _RPC, (UnusableError,), json_values)
    logs = [_log_of("SessionClosed", topics, words) for topics in (1, 2, 3, 4) for words in (0, 2, 3, 5, 8)]
    yield Parser("log of the market", _chain_log(market_events), logs, (ChainError,))
    logs = [_log_of("Slashed", topics, words) for topics in (1, 3, 4) for words in (0, 2, 5)]
    of_nodes = _chain_log(lambda at, logs: registry_events(replace(MEMORY_DOMAINS, node_registry=at), logs))
    yield Parser("log of the registry", of_nodes, logs, (ChainError,))
    logs = [_log_of("Proposed", topics, words) for topics in (1, 3, 4) for words in (0, 2, 5)]
    of_models = _chain_log(lambda at, logs: registry_events(replace(MEMORY_DOMAINS, model_registry=at), logs))
    yield Parser("log of proposals", of_models, logs, (ChainError,))
    session = artifact("JobMarketplace").function("session", 1)
    yield Parser("answer of the market", session.decode, [bytes(96), bytes(32), b""], (ChainError,))
    yield Parser(
        "JSON-RPC request", JsonRpc({"eth_call": lambda call, tag: (call, tag)}).answer, _DEV, (), json_values
    )
    yield Parser("engine's events", _sse, [b'data: {"a": 1}\n\n: c\n\nerror: {"code": 1}\n\n'],
                 (ChildGoneError, ChildRefusedError))  # fmt: skip
    yield Parser("GGUF header", of_file("a.gguf", read_header), [TINY], config)
    yield Parser("GGUF vocabulary", of_file("b.gguf", load_vocabulary), [TINY], config)
    yield Parser("model id", _text(parse_model_id), [model_id_text(scripted_model_id()).encode()], config)
    yield Parser("config file", of_file("config.toml", lambda path: load_config(path, {})), [_CONFIG], config)
    lists = [told["document"].encode() for told in json.loads(_MODELS.read_text())["lists"]]
    yield Parser("list of models", parse_list, lists, config)
    entry = table("a", source=["https://example.org/x"], tasks=["chat"], memory={"bytes": 1, "n_ctx": 1})
    yield Parser("model of a list", _model_of_a_list, [json.dumps(entry).encode()], config, json_values)
    yield Parser("catalogue", _text(lambda text: parse_catalogue(text, "here")), [_CATALOGUE], config)
    yield Parser(
        "chain profile",
        of_file("chain.toml", load_profile),
        [
            profile_text(
                profile_of(
                    _addresses(),
                    chain_id=1,
                    rpc_urls=("http://127.0.0.1:1",),
                )
            ).encode()
        ],
        config,
    )
    yield Parser("DHT message as an S5 frame", decode, kad())


_NAMES = [parser.name for parser in _all(Path())]


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: ten thousand small files take half a minute on a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as name:
        yield Path(name)


def _try(parser: Parser, count: int, counted: Counted) -> None:
    with counted(parser.name) as tally:
        for each in inputs(parser.name, count, parser.corpus, parser.mutate):
            with each.told():
                try:
                    parser.parse(each.data)
                except parser.refuses as error:
                    tally.outcomes[type(error).__name__] += 1
                else:
                    tally.outcomes["taken"] += 1


@pytest.mark.long
@pytest.mark.parametrize("name", _NAMES)
def test_a_parser_raises_its_one_kind_of_error(name: str, counted: Counted, folder: Path) -> None:
    [parser] = [each for each in _all(folder) if each.name == name]
    _try(parser, 10_000, counted)


def test_all_parsers_raise_their_one_kind_of_error(counted: Counted, folder: Path) -> None:
    for parser in _all(folder):
        _try(parser, 200, counted)


def test_what_is_expected_of_the_fuzzing_itself_is_found_by_it() -> None:
    """A parser that fails on one byte in an odd place is caught, and the failure names the input."""

    def faulty(data: bytes) -> None:
        if b"\xff" in data[2:]:
            raise StorageError("never allowed")

    def run() -> None:
        for each in inputs("faulty", 300, [b"abcdef"]):
            with each.told():
                faulty(each.data)

    with pytest.raises(StorageError) as caught:
        run()
    assert "FUZZ_SEED=" in caught.value.__notes__[0]
