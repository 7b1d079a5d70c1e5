"""Each SPEC says what the code does: every message and field with its bounds, every vector, every code."""

from __future__ import annotations

import json
import re
import types
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

import pytest

from p2pnode.client.question import KnownModel
from p2pnode.contract_rules import DURATION_MAX_S
from p2pnode.errors import STORE_CODES, WIRE_CODES, EngineError, ProtocolError
from p2pnode.ids import ModelId, SessionId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.validation import validate_sampling
from p2pnode.payments import settlement_policy as policy
from p2pnode.payments.session_signer import EXPIRY_S, VALID_S
from p2pnode.protocols.adverts import messages as adverts
from p2pnode.protocols.adverts.book import Book, Verdict
from p2pnode.protocols.blob import allowance as rates
from p2pnode.protocols.blob import client as blob_client
from p2pnode.protocols.blob import messages as blob
from p2pnode.protocols.blob import server as blob_server
from p2pnode.protocols.checkpoint import client as fetch_client
from p2pnode.protocols.checkpoint import host as fetch_host
from p2pnode.protocols.checkpoint import messages as checkpoint
from p2pnode.protocols.count import messages as count
from p2pnode.protocols.crypto import peer_id_of, verify_peer
from p2pnode.protocols.framing import codec
from p2pnode.protocols.framing.codec import FrameDecoder, check_shape, pack_frame
from p2pnode.protocols.gossipsub import messages as gossipsub
from p2pnode.protocols.gossipsub.cache import OVERHEAD
from p2pnode.protocols.gossipsub.commands import FAULT_WEIGHTS
from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.protocols.identify import identifier
from p2pnode.protocols.identify import messages as identify
from p2pnode.protocols.inference import messages as inference
from p2pnode.protocols.inference import open_rules as payment
from p2pnode.protocols.inference import turn_memory
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.client_turn import ClientTimes
from p2pnode.protocols.inference.embeddings import texts_hash, vector_numbers
from p2pnode.protocols.inference.host_open import PROBE_S
from p2pnode.protocols.inference.host_turn import AHEAD_MAX
from p2pnode.protocols.inference.prompts import PROMPT_RATE_MIN
from p2pnode.protocols.inference.receipts import (
    NO_FINGERPRINT,
    Leaf,
    ReceiptChain,
    ids_hash,
    request_hash,
    token_hash,
)
from p2pnode.protocols.lookup import messages as lookup
from p2pnode.protocols.s5.entries import DATA_MAX, EntryKey
from p2pnode.protocols.wire import Codec, Range, Size, decode_record, encode, wire_keys, wire_name
from p2pnode.storage.conversations import records
from p2pnode.storage.store import BLOB_MAX
from tests.protocols.make_vectors import AREAS, all_vectors, folder_of, text_of
from tests.protocols.strategies import largest

PROTOCOLS = [
    "transport",
    "framing",
    "adverts",
    "lookup",
    "kademlia",
    "inference",
    "checkpoint",
    "count",
    "blob",
    "s5",
    "gossipsub",
    "identify",
]
SPECS = [*PROTOCOLS, *AREAS]
STORED_RECORDS = (
    records.Piece,
    records.Segment,
    records.SegmentRef,
    records.Link,
    records.WriterSeq,
    records.Manifest,
)
ADVERT_RECORDS = (
    adverts.Advert,
    adverts.Binding,
    adverts.Address,
    adverts.Offer,
    adverts.Load,
    adverts.Sheet,
    adverts.SheetOffer,
    adverts.Profile,
)
INFERENCE_RECORDS = (
    inference.Receipt,
    inference.SessionTerms,
    inference.TurnEnd,
    inference.TokenLogprob,
    inference.TopToken,
    inference.PromptBody,
    inference.ChatMessage,
    inference.Part,
    inference.ToolCall,
    inference.Tool,
    inference.ResponseFormat,
    inference.SamplingParams,
    inference.LogitBias,
)
DESCRIBED: list[tuple[str, type]] = [
    *[("adverts", cls) for cls in (*adverts.CODEC.classes, adverts.SignedAdvert, *ADVERT_RECORDS)],
    *[("inference", cls) for cls in (*inference.CODEC.classes, *INFERENCE_RECORDS)],
    *[("blob", cls) for cls in blob.CODEC.classes],
    *[("checkpoint", cls) for cls in checkpoint.CODEC.classes],
    *[("count", cls) for cls in count.CODEC.classes],
    *[("storage", cls) for cls in (*records.INDEX_CODEC.classes, *STORED_RECORDS)],
]
NAMED_NUMBERS = {2**32 - 1: "2^32-1", 2**63 - 1: "2^63-1", 1 << 24: "2^24", 1 << 21: "2^21", 1 << 20: "2^20"}


def spec(protocol: str) -> str:
    return (folder_of(protocol) / "SPEC.md").read_text(encoding="utf-8")


def stored(protocol: str) -> dict[str, Any]:
    vectors: dict[str, Any] = json.loads((folder_of(protocol) / "vectors.json").read_text(encoding="utf-8"))
    return vectors


def section(protocol: str, title: str) -> str:
    """From one heading to the next."""
    found = re.search(rf"^### `{re.escape(title)}`.*?(?=^##|\Z)", spec(protocol), re.MULTILINE | re.DOTALL)
    assert found, f"{protocol}/SPEC.md has no section on {title}"
    return found.group()


def rows(text: str) -> list[list[str]]:
    """The cells of a table, without its heads."""
    lines = [line.strip("| \n").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def title_of(cls: type) -> str:
    return wire_name(cls) or cls.__name__


def describe(hint: Any, marks: tuple[Any, ...] = ()) -> str:
    """A field's type and bounds as the SPECs write them."""
    if isinstance(hint, NewType):
        return describe(hint.__supertype__, marks)
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return describe(inner, (*marks, *more))
    if get_origin(hint) in (Union, types.UnionType):
        return describe(next(arg for arg in get_args(hint) if arg is not type(None)), marks)
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if set(choices) in (WIRE_CODES, STORE_CODES):
            return "code"
        return "one of " + ", ".join(f'"{each}"' for each in choices)
    if is_dataclass(hint):
        return f"map {hint.__name__}"  # type: ignore[union-attr]
    if hint is bool:
        return "bool"
    bound = next(mark for mark in reversed(marks) if isinstance(mark, Range | Size))
    low, number = bound.low, bound.high
    high = f"{number:g}" if hint is float else NAMED_NUMBERS.get(int(number), str(number))
    lengths = str(low) if isinstance(bound, Size) and bound.low == bound.high else f"{low}..{high}"
    if get_origin(hint) is tuple:
        return f"list {lengths} of {describe(get_args(hint)[0])}"
    return f"{hint.__name__} {lengths}"


def default_of(cls: type, field: Any) -> str:
    if field.default is MISSING:
        return "required"
    if field.default is None:
        return "absent"
    if is_dataclass(field.default):
        return "defaults"
    if isinstance(field.default, bytes):
        assert not any(field.default)
        return "zeros" if field.default else '""'
    return json.dumps(field.default)


def described_rows(cls: type) -> list[list[str]]:
    """What the table of a message must hold: field, key, type, default."""
    hints = get_type_hints(cls, include_extras=True)
    keys = wire_keys(cls)
    return [
        [f"`{f.name}`", f"`{keys[f.name]}`", describe(hints[f.name]), default_of(cls, f)] for f in fields(cls)
    ]


@pytest.mark.parametrize(("protocol", "cls"), DESCRIBED, ids=[f"{p} {cls.__name__}" for p, cls in DESCRIBED])
def test_each_message_and_field_stands_in_its_spec_with_its_bounds(protocol: str, cls: type) -> None:
    found = rows(section(protocol, title_of(cls)))
    assert [row[:4] for row in found] == described_rows(cls)
    assert all(row[4] for row in found), "every field has a meaning"


def test_no_spec_describes_a_message_that_does_not_exist() -> None:
    for protocol in ("adverts", "inference", "checkpoint", "count", "blob", "storage"):
        titles = set(re.findall(r"^### `(\w+)`", spec(protocol), re.MULTILINE))
        assert titles == {title_of(cls) for name, cls in DESCRIBED if name == protocol}


@pytest.mark.parametrize("protocol", SPECS)
def test_each_spec_has_the_same_sections(protocol: str) -> None:
    heads = re.findall(r"^## (.+)$", spec(protocol), re.MULTILINE)
    assert heads == ["Purpose", "Messages", "States", "Limits", "Errors", "Timers", "Security", "Vectors"]


@pytest.mark.parametrize(("protocol", "codes"), [("inference", WIRE_CODES), ("blob", STORE_CODES)])
def test_every_error_code_stands_in_the_spec_of_its_protocol(protocol: str, codes: frozenset[str]) -> None:
    text = spec(protocol).split("## Errors")[1].split("## Timers")[0]
    assert {row[0].strip("`") for row in rows(text)} == codes


def test_every_fault_stands_in_the_spec_of_gossip_with_its_weight() -> None:
    text = spec("gossipsub").split("## Errors")[1].split("## Timers")[0]
    assert {row[0].strip("`"): float(row[1]) for row in rows(text)} == FAULT_WEIGHTS


def test_every_fault_stands_in_the_spec_of_identify_with_its_weight() -> None:
    text = spec("identify").split("## Errors")[1].split("## Timers")[0]
    assert {row[0].strip("`"): float(row[1]) for row in rows(text)} == identifier.FAULT_WEIGHTS


def test_the_score_of_the_spec_is_that_of_the_code() -> None:
    score, told = MESH.score, " ".join(spec("gossipsub").split())
    for sentence in (
        f"{score.mesh_weight} for each minute in a mesh (P1, {score.mesh_minutes_max:g} count)",
        f"{score.first_weight} for each message that it brought first (P2, {score.first_max:g} count)",
        f"{score.invalid_weight:g} for the square of P4",
        f"{score.behaviour_weight:g} for the square of what P7 is above {score.behaviour_tolerance:g}",
        f"P2, P4 and P7 halve in {score.half_life_s:g} s",
        f"below {score.gossip_threshold:g} it is neither offered nor asked for messages",
        f"below {score.publish_threshold:g} we don't flood to it",
        f"below {score.graylist_threshold:g} nothing",
        f"Every {MESH.opportunistic_s:g} s with a heartbeat",
        f"below {score.opportunistic_graft_threshold} grafts up to {MESH.opportunistic_peers}",
        f"While fewer than {MESH.degree_low} others",
        f"keeps its {MESH.degree_score} best peers by score, others at random, and {MESH.degree_out} that",
        f"while a message is offered ({MESH.gossip_window} heartbeats)",
        f"the last message is no longer served ({MESH.promise_heartbeats} more)",
        f"What was offered is served for {MESH.promise_heartbeats} heartbeats",
        f"a random wait of at most {MESH.forward_delay_s} s",
        f"more than {MESH.degree_high}, and is cut to {MESH.degree} ",
    ):
        assert sentence in told, sentence


def test_every_capability_stands_in_the_spec_of_adverts_with_its_bit() -> None:
    text = spec("adverts").split("### Capabilities")[1].split("### ")[0]
    told = {name: (int(bit), int(value)) for bit, value, name, _meaning in rows(text)}
    known = {adverts.capability_names(each)[0]: each for each in adverts.Capability}
    assert told == {name: (int(each).bit_length() - 1, int(each)) for name, each in known.items()}


def test_every_verdict_stands_in_the_spec_of_adverts() -> None:
    text = spec("adverts").split("## Errors")[1].split("## Timers")[0]
    assert {row[0].strip("`") for row in rows(text)} == set(get_args(Verdict))


def test_the_readme_names_each_protocol_and_event() -> None:
    text = (folder_of("") / "README.md").read_text(encoding="utf-8")
    events = ["Received", "HalfClosed", "Closed", "TimerFired", "Command"]
    effects = ["Send", "SetTimer", "CancelTimer", "Emit"]
    assert all(f"`{word}" in text for word in [*PROTOCOLS, *events, *effects])


# ---- vectors


@pytest.mark.parametrize("protocol", SPECS)
def test_the_vectors_are_those_the_generator_makes(protocol: str) -> None:
    path = folder_of(protocol) / "vectors.json"
    assert path.read_text(encoding="utf-8") == text_of(all_vectors()[protocol])


@pytest.mark.parametrize(
    ("protocol", "codec"),
    [
        ("adverts", adverts.CODEC),
        ("inference", inference.CODEC),
        ("checkpoint", checkpoint.CODEC),
        ("count", count.CODEC),
        ("blob", blob.CODEC),
    ],
)
def test_every_message_has_a_vector_that_round_trips(protocol: str, codec: Any) -> None:
    seen = set()
    for vector in stored(protocol)["messages"]:
        payload = bytes.fromhex(vector["hex"])
        if vector["type"] == "advert":
            assert encode(decode_record(adverts.SignedAdvert, payload)) == payload
        else:
            message = codec.decode(payload)
            assert codec.encode(message) == payload
            assert wire_name(type(message)) == vector["type"]
            (again,) = FrameDecoder().feed(pack_frame(payload))
            assert again == payload
        seen.add(vector["type"])
    assert seen >= {wire_name(cls) for cls in codec.classes}


@pytest.mark.parametrize(
    ("protocol", "classes"),
    [
        ("adverts", [adverts.Advert, adverts.Sheet, adverts.Profile]),
        ("inference", [*[inference.PromptBody] * 4, inference.Receipt]),
    ],
)
def test_the_records_round_trip(protocol: str, classes: list[type]) -> None:
    for vector, cls in zip(stored(protocol)["records"], classes, strict=True):
        payload = bytes.fromhex(vector["hex"])
        assert encode(decode_record(cls, payload)) == payload


def test_the_frames_pass_and_the_refused_ones_do_not() -> None:
    vectors = stored("framing")
    for each in vectors["frames"]:
        frame, payload = bytes.fromhex(each["frame"]), bytes.fromhex(each["payload"])
        assert FrameDecoder().feed(frame) == [payload]
    for each in vectors["refused_frames"]:
        with pytest.raises(ProtocolError):
            FrameDecoder().feed(bytes.fromhex(each["frame"]))
    for each in vectors["payloads"]:
        check_shape(bytes.fromhex(each["hex"]))
    for each in vectors["refused_payloads"]:
        with pytest.raises(ProtocolError):
            check_shape(bytes.fromhex(each["hex"]))


def test_the_signed_advert_is_accepted_while_it_lives() -> None:
    vectors = stored("adverts")
    data = bytes.fromhex(next(v["hex"] for v in vectors["messages"] if v["type"] == "advert"))
    verdict, advert = Book().offer_gossip(data, vectors["peer"], 1_700_000_010)
    assert verdict == "accepted"
    assert advert is not None
    assert advert.binding.wallet.hex() == vectors["wallet"]
    assert Book().offer_gossip(data, vectors["peer"], 1_700_000_210)[0] == "expired"


def test_the_provider_key_is_the_one_in_the_file() -> None:
    for each in stored("lookup")["provider_keys"]:
        assert lookup.provider_key(ModelId(bytes.fromhex(each["model"]))).hex() == each["key"]


def test_the_claim_and_the_provider_key_of_blobs_are_those_in_the_file() -> None:
    told = stored("blob")
    digest = blob.claim_digest(told["client"], told["server"])
    assert digest.hex() == told["claim_digest"]
    assert blob.claim_digest(told["server"], told["client"]) != digest
    claim = blob.CODEC.decode(bytes.fromhex(told["messages"][0]["hex"]))
    assert verify_peer(peer_id_of(claim.owner), digest, claim.signature)
    for each in told["provider_keys"]:
        assert blob.provider_key(EntryKey(bytes.fromhex(each["entry_key"]))).hex() == each["key"]
    for each in told["files_keys"]:
        assert blob.files_key(ModelId(bytes.fromhex(each["model"]))).hex() == each["key"]


def test_the_largest_blob_and_frame_are_those_of_the_store_and_of_framing() -> None:
    assert blob.SIZE_MAX == BLOB_MAX
    assert largest(blob.Entry) == bytes(b"x" * (blob.ENTRY_MIN + DATA_MAX))
    sizes = [len(encode(largest(cls))) for cls in blob.CODEC.classes]
    assert max(sizes) <= blob.FRAME_MAX


def test_the_receipts_can_be_built_from_what_the_file_says() -> None:
    told = stored("inference")["receipts"]
    session, model = SessionId(bytes.fromhex(told["session"])), ModelId(bytes.fromhex(told["model"]))
    chain = ReceiptChain.begin(session, model, bytes.fromhex(told["salt"]), told["epoch"])
    assert chain.root.hex() == told["root_0"]
    assert ids_hash(told["prompt_ids"]).hex() == told["prompt_hash"]
    leaves = [
        Leaf(
            turn=each["turn"],
            first=each["first"],
            request=bytes.fromhex(each["request"]),
            prompt=bytes.fromhex(each["prompt"]),
            ended=each["ended"] or None,
        )
        for each in told["leaves"]
    ]
    for frame in told["frames"]:
        message = inference.CODEC.decode(bytes.fromhex(frame["hex"]))
        next(leaf for leaf in leaves if leaf.turn == message.turn).add(message)
    assert [leaf.digest().hex() for leaf in leaves] == [each["leaf"] for each in told["leaves"]]
    hashed = token_hash([leaf.digest() for leaf in leaves])
    assert hashed.hex() == told["token_hash"]
    assert chain.advance(10, 6, hashed, NO_FINGERPRINT).hex() == told["root_1"]
    assert chain.digest().hex() == told["digest"]
    assert verify_peer(told["peer"], chain.digest(), bytes.fromhex(told["signature"]))


def test_the_leaf_of_an_embeddings_turn_can_be_built_from_what_the_file_says() -> None:
    told = stored("inference")["embeddings"]
    body = next(each["hex"] for each in stored("inference")["records"] if each["name"] == told["prompt"])
    assert texts_hash(told["ids"]).hex() == told["prompt_hash"]
    leaf = Leaf(
        turn=told["turn"],
        first=0,
        request=request_hash(bytes.fromhex(body)),
        prompt=bytes.fromhex(told["prompt_hash"]),
        ended=told["ended"],
    )
    for frame, numbers in zip(told["frames"], told["vectors"], strict=True):
        message = inference.CODEC.decode(bytes.fromhex(frame["hex"]))
        assert list(vector_numbers(message.data)) == numbers
        leaf.add(message)
    assert leaf.digest().hex() == told["leaf"]


# ---- the numbers of limits and timers


MESH = Parameters()
TIMES, TERMS = ClientTimes(), HostTerms(n_ctx=1)
NUMBERS: dict[tuple[str, str], dict[str, list[float]]] = {
    ("framing", "Limits"): {
        "payload of a frame": [codec.FRAME_MAX],
        "levels of maps and arrays in one another (an empty one is no level)": [codec.DEPTH_MAX],
        "values in a payload, keys and containers counted": [codec.ITEMS_MAX],
    },
    ("inference", "Limits"): {
        "window": [inference.WINDOW, inference.CHECKPOINT_EVERY, 1],
        "checkpoint": [inference.CHECKPOINT_EVERY],
        "turns at once": [inference.TURNS_MAX],
        "read credit": [inference.READ_CREDIT, inference.VECTOR_CREDIT],
        "texts to embed": [inference.EMBED_MAX, inference.EMBED_TOKENS_MAX],
        "vectors that wait at the host": [inference.VECTOR_CREDIT, inference.VECTOR_MAX],
        "ids that wait at the host": [AHEAD_MAX],
        "memory of turns, by the host's reckoning": [turn_memory.MEMORY_BYTES, turn_memory.SESSION_BYTES],
        "prompts not confirmed": [inference.UNCONFIRMED_MAX],
        "a prompt": [
            inference.PROMPT_BYTES_PER_CTX,
            inference.PROMPT_SLACK_BYTES,
            1,
            inference.PROMPT_PART_MAX,
        ],
        "values in a `PromptBody`": [codec.ITEMS_MAX],
        "text of a turn": [inference.TEXT_SLACK_BYTES, inference.TEXT_PER_TOKEN_MAX],
        "a session that can be resumed": [DEFAULT_LIMITS.linger_s],
        "a session that is left": [policy.KEEP_MAX_S, DEFAULT_LIMITS.expiry_margin_s],
        "sessions left with a host": [policy.LEFT_PER_PAYER, policy.LEFT_PER_ORIGIN, policy.LEFT_MAX],
        "`settle_above`": [policy.SETTLE_ABOVE_FEES, policy.settle_above(0)],
        "`expiry` in `terms`": [payment.EXPIRY_MIN_S, DURATION_MAX_S],
        "`valid_before` in `open`": [payment.VALID_MIN_S, payment.VALID_MAX_S],
        "`detail`": [inference.DETAIL_MAX],
    },
    ("inference", "Timers"): {
        "host `open`": [TERMS.open_s],
        "host `relay`": [TERMS.relay_s],
        "host `probe`": [PROBE_S],
        "host `idle`": [TERMS.idle_s],
        "host `prompt`": [TERMS.stall_s, PROMPT_RATE_MIN],
        "host `read`": [TERMS.read_stall_s],
        "host `stall`": [TERMS.stall_s],
        "client `open`": [TIMES.open_s, TIMES.open_paid_s],
        "client `progress`": [TIMES.first_token_s, TIMES.stall_s],
        "client `silence`": [TIMES.stall_s / 3],
    },
    ("checkpoint", "Limits"): {
        "receipts of a page": [checkpoint.PAGE_MAX],
        "receipts a client takes of one session": [checkpoint.RECEIPTS_MAX],
    },
    ("checkpoint", "Timers"): {
        "host `wait`": [fetch_host.WAIT_S],
        "client `answer`": [fetch_client.ANSWER_S],
    },
    ("gossipsub", "Limits"): {
        "an RPC": [gossipsub.RPC_MAX],
        "fields of an RPC, nested ones included": [gossipsub.ENTRIES_MAX],
        "entries of one list that are looked at": [MESH.entries_per_list],
        "message ids of one RPC that are looked at": [MESH.ids_per_rpc, MESH.wants_per_rpc],
        "bytes a second": [MESH.bytes_per_s, MESH.bytes_burst],
        "fields a second": [MESH.entries_per_s, MESH.entries_burst, MESH.refused_graft_entries],
        "signatures checked that led to no accepted message": [MESH.checks_per_s, MESH.checks_burst],
        "rejected messages": [MESH.forgeries_max, MESH.forgery_window_s],
        "names of topics remembered": [MESH.topics_per_peer],
        "RPCs with IHAVE looked at in a heartbeat": [MESH.offers_per_heartbeat],
        "ids asked for in a heartbeat": [MESH.wants_per_heartbeat, MESH.asks_per_message, MESH.promise_s],
        "messages sent because it asked, in a heartbeat": [MESH.answer_bytes_per_heartbeat],
        "ids that it does not want": [MESH.unwanted_max, MESH.promise_s],
        "bytes that wait to be sent to it": [DEFAULT_LIMITS.gossip_send_bytes],
        "back-offs, of one peer": [MESH.backoffs_max, MESH.backoff_max_s],
        "ids seen, of all peers": [MESH.seen_max, MESH.seen_s],
        "adverts accepted, of all peers": [MESH.duplicates_max, MESH.duplicate_s],
        "messages kept to be served, of all peers": [MESH.cache_messages_max, MESH.cache_bytes_max, OVERHEAD],
        "messages that wait to be forwarded, of all peers": [MESH.forwards_max],
        "promises watched, of all peers": [MESH.promises_max],
        "peers that left whose faults are remembered": [MESH.scores_kept_max],
    },
    ("identify", "Limits"): {
        "bytes of a message": [identify.MESSAGE_MAX],
        "fields of a message": [identify.ENTRIES_MAX],
        "addresses that are kept, bytes of each": [identify.ADDRESSES_MAX, identify.ADDRESS_MAX],
        "protocols that are kept, bytes of a name": [identify.PROTOCOLS_MAX, identify.PROTOCOL_NAME_MAX],
        "bytes of a peer's addresses and protocols in all": [identify.KEPT_MAX],
        "pushes of a peer at once, then one in so many seconds": [
            identifier.PUSHES_BURST,
            identifier.PUSH_EVERY_S,
        ],
        "questions to one peer": [identifier.ASKS_MAX],
    },
    ("identify", "Timers"): {
        "each `message`": [DEFAULT_LIMITS.request_deadline_s],
        "who asks `retry`": [identifier.RETRY_S],
        "who changed `push`": [identifier.CHANGES_EVERY_S],
    },
    ("blob", "Limits"): {
        "size of a blob": [blob.SIZE_MAX],
        "a frame": [blob.FRAME_MAX],
        "requests of a stream without a final answer; refused uploads that were not ended count": [
            blob.IN_FLIGHT_MAX
        ],
        "bytes of inline blobs without a final answer": [blob.PENDING_MAX],
        "uploads in pieces at a time": [blob.UPLOADS_MAX],
        "bytes of an upload past its last `credit`": [blob.UPLOAD_WINDOW],
        "requests of one peer": [rates.REQUESTS_PER_S, rates.REQUESTS_BURST],
        "signatures (claims, entries) of one peer": [rates.CHECKS_PER_S, rates.CHECKS_BURST],
        "bytes of one peer, either way": [rates.BYTES_PER_S, rates.BYTES_BURST],
        "questions that wait at a client": [blob_client.QUEUE_MAX],
    },
    ("blob", "Timers"): {
        "server `idle`": [blob_server.IDLE_S],
        "server `upload` *id*": [blob_server.UPLOAD_S, blob_server.UPLOAD_BYTES_PER_S, blob_server.UPLOAD_S],
        "client `silence`": [blob_client.SILENCE_S],
        "client `dropped` *id*": [blob_client.CANCELLED_S],
    },
}
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}


def numbers_of(cell: str) -> list[float]:
    """The numbers of a cell, in order, without those that are parts of names."""
    found = re.findall(r"(?<![\w`^])(\d[\d,]*)(?:\s*(KiB|MiB))?(?!\w)", cell)
    return [float(number.replace(",", "")) * UNITS[unit] for number, unit in found]


def table_of(protocol: str, part: str) -> dict[str, list[float]]:
    """The rows that state numbers: a limit's by its name, a timer's by side and name."""
    text = spec(protocol).split(f"## {part}\n")[1].split("\n## ")[0]
    found = {}
    for row in rows(text):
        name, cells = (row[0], row[1:]) if part == "Limits" else (" ".join(row[:2]), row[2:3])
        if stated := [number for cell in cells for number in numbers_of(cell)]:
            found[name] = stated
    return found


@pytest.mark.parametrize(("protocol", "part"), NUMBERS, ids=[" ".join(each) for each in NUMBERS])
def test_the_limits_and_timers_of_a_spec_are_those_of_the_code(protocol: str, part: str) -> None:
    assert table_of(protocol, part) == NUMBERS[protocol, part]


@pytest.mark.parametrize(
    ("field", "low", "high", "said"),
    [
        ("tokens_max", 1, 2**20, "to 2^20"),
        ("temperature", 0, 2, "to 2"),
        ("top_p", 0.01, 1, "from 0.01 to 1"),
        ("top_k", 0, 100_000, "to 100,000"),
        ("min_p", 0, 1, "to 1"),
        ("repeat_penalty", 0.5, 2, "from 0.5 to 2"),
    ],
)
def test_what_an_engine_takes_of_sampling_is_what_the_spec_says(
    field: str, low: float, high: float, said: str
) -> None:
    text = spec("inference").split("An engine may take less")[1].split("### Continuing")[0]
    assert f"`{field}` {said}" in " ".join(text.split())
    whole = inference.SamplingParams()
    for taken in (low, high):
        validate_sampling(replace(whole, **{field: taken}))  # type: ignore[arg-type]
    for beyond in (low - 0.5, high + 1):
        with pytest.raises(EngineError, match=field):
            validate_sampling(replace(whole, **{field: beyond}))  # type: ignore[arg-type]


def test_what_the_roles_ask_and_wait_is_what_the_spec_says() -> None:
    limits = DEFAULT_LIMITS
    assert TERMS.open_s == limits.first_frame_deadline_s
    assert TERMS.relay_s == payment.VALID_MIN_S == limits.escrow_deadline_s + limits.chain_deadline_s
    assert (TERMS.idle_s, TERMS.stall_s) == (limits.idle_session_s, limits.stall_s)
    assert 2 * limits.expiry_margin_s == payment.EXPIRY_MIN_S
    assert TIMES.open_s == limits.request_deadline_s
    assert TIMES.open_paid_s == limits.request_deadline_s + TERMS.relay_s
    assert (TIMES.first_token_s, TIMES.stall_s) == (limits.first_token_deadline_s, limits.stall_s)
    assert payment.EXPIRY_MIN_S <= EXPIRY_S <= DURATION_MAX_S
    assert payment.VALID_MIN_S <= VALID_S <= payment.VALID_MAX_S


def test_what_a_prompt_allows_is_the_clients_bound() -> None:
    messages = [inference.ChatMessage.of("user", content) for content in ("é", "a")]
    body = inference.PromptBody(messages=tuple(messages), prefix=(1, 2), seed=bytes(16))
    stated = re.search(r"has none, (\d+) tokens and (\d+) for each message", spec("inference"))
    assert stated is not None
    template, each = (int(number) for number in stated.groups())
    assert KnownModel(ModelId(bytes(32))).input_max(body) == 3 + 2 + template + 2 * each


@pytest.mark.parametrize(
    ("protocol", "message", "codes"),
    [
        ("inference", inference.Refuse(code="capacity"), inference.CODEC),
        ("inference", inference.Error(code="capacity"), inference.CODEC),
        ("checkpoint", checkpoint.Refuse(code="bad_request"), checkpoint.CODEC),
        ("blob", blob.Failed(id=0, code="quota"), blob.CODEC),
    ],
    ids=["refuse", "error", "receipts", "blobs"],
)
def test_a_code_that_does_not_stand_in_the_spec_is_malformed(
    protocol: str, message: Any, codes: Codec
) -> None:
    assert "does not stand" in spec(protocol).split("## Errors")[1].split("## Timers")[0]
    raw = codes.encode(message)
    assert codes.decode(raw) == message
    told = message.code.encode()
    with pytest.raises(ProtocolError):
        codes.decode(raw.replace(told, b"x" * len(told)))
