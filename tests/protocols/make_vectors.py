"""Writes ``vectors.json`` beside each SPEC: ``python -m tests.protocols.make_vectors``.

Keys are 32 known bytes and guard nothing. A test checks that the files are what this makes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

import coincurve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.adverts import messages as adverts
from p2pnode.protocols.adverts.signatures import (
    BindingTerms,
    bind,
    binding_digest,
    encode_sheet,
    profile_hash,
    seal,
    sheet_hash,
)
from p2pnode.protocols.blob import messages as blob
from p2pnode.protocols.checkpoint import messages as checkpoint
from p2pnode.protocols.checkpoint.messages import fetch_digest
from p2pnode.protocols.count import messages as count
from p2pnode.protocols.crypto import address_of, peer_id_of, sign_digest
from p2pnode.protocols.framing.codec import pack_frame
from p2pnode.protocols.gossipsub import messages as gossipsub
from p2pnode.protocols.identify import messages as identify
from p2pnode.protocols.inference import messages as inference
from p2pnode.protocols.inference.channel import ClientPayment, exact_voucher, resume_digest
from p2pnode.protocols.inference.embeddings import texts_hash, vector_bytes
from p2pnode.protocols.inference.prompt_rules import call_seed
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.inference.receipts import (
    NO_FINGERPRINT,
    Leaf,
    ReceiptChain,
    ids_hash,
    request_hash,
    token_hash,
)
from p2pnode.protocols.kademlia import messages as kademlia
from p2pnode.protocols.lookup.messages import provider_key
from p2pnode.protocols.s5.entries import EntryKey, make_entry, pointer_to
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.protocols.typed_data import (
    Domain,
    authorisation_digest,
    market_domain,
    session_id,
    voucher_digest,
)
from p2pnode.protocols.wire import encode, wire_keys, wire_name
from tests.models.vectors import models_vectors
from tests.net.vectors import transport_vectors
from tests.protocols.s5.vectors import s5_vectors
from tests.storage.vectors import storage_vectors

decode: Final = inference.CODEC.decode
ROOT: Final = Path(__file__).resolve().parents[2]
AREAS: Final = ("storage", "models")
"""Areas with a SPEC of their own: what they specify is bytes at rest, not a protocol."""
PEER_SECRET: Final = bytes(range(32))
WALLET_SECRET: Final = b"\x01" * 32
OWNER_SECRET: Final = b"\x0b" * 32
MODEL: Final = ModelId(hashlib.sha256(b"model").digest())
OTHER_MODEL: Final = ModelId(hashlib.sha256(b"other model").digest())
GONE_MODEL: Final = ModelId(hashlib.sha256(b"gone model").digest())
SESSION: Final = SessionId(b"\x5e" * 32)
SALT: Final = b"\x5a" * 32
EPOCH: Final = 7
SEED: Final = bytes(range(16))
HOLDER: Final = b"\x48" * 16
ISSUED_AT: Final = 1_700_000_000

_KEY = Ed25519PrivateKey.from_private_bytes(PEER_SECRET)
PEER: Final = peer_id_of(_KEY.public_key().public_bytes_raw())
CLIENT: Final = peer_id_of(Ed25519PrivateKey.from_private_bytes(b"\x05" * 32).public_key().public_bytes_raw())
WALLET: Final = address_of(coincurve.PrivateKey(WALLET_SECRET).public_key.format(compressed=False))


def plain(value: Any) -> Any:
    """A message as JSON shows it: by wire keys, bytes as hex."""
    if is_dataclass(value) and not isinstance(value, type):
        keys = wire_keys(type(value))
        held = {keys[f.name]: getattr(value, f.name) for f in fields(value)}
        return {key: plain(each) for key, each in held.items() if each is not None}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


def vector(value: Any, name: str = "") -> dict[str, Any]:
    """One message: what it says, and its bytes (without the frame's length)."""
    kind = wire_name(type(value)) or type(value).__name__
    return {"name": name or kind, "type": kind, "fields": plain(value), "hex": encode(value).hex()}


def framing() -> dict[str, Any]:
    """Frames that pass and frames that don't."""
    payloads = {
        "one byte": b"\xc0",
        "127 bytes": bytes(127),
        "128 bytes": bytes(128),
        "300 bytes": bytes(300),
    }
    return {
        "frames": [
            {"name": name, "payload": payload.hex(), "frame": pack_frame(payload).hex()}
            for name, payload in payloads.items()
        ],
        "refused_frames": [
            {"name": "length zero", "frame": "00"},
            {"name": "length 65537", "frame": "818004"},
            {"name": "length not minimal", "frame": "8100"},
            {"name": "length of five bytes", "frame": "8080808001"},
        ],
        "payloads": [
            {"name": "eight levels", "hex": "91" * 8 + "c0"},
            {"name": "a map", "hex": "81a174a470696e67"},
        ],
        "refused_payloads": [
            {"name": "nothing", "hex": ""},
            {"name": "nine levels", "hex": "91" * 9 + "c0"},
            {"name": "an array of four billion", "hex": "ddffffffff"},
            {"name": "a byte too many", "hex": "c0c0"},
            {"name": "an extension", "hex": "d40000"},
            {"name": "the unused byte", "hex": "c1"},
        ],
    }


def binding() -> adverts.Binding:
    """The wallet's word for the peer."""
    terms = BindingTerms(receipt_key=b"\x11" * 20, seq=7, expires_at=ISSUED_AT + 86_400)
    return bind(PEER, WALLET, terms, lambda digest: sign_digest(WALLET_SECRET, digest))


def advert() -> adverts.Advert:
    """A host with one model."""
    return adverts.Advert(
        peer=PEER,
        instance=b"\x01\x02\x03\x04\x05\x06\x07\x08",
        seq=ISSUED_AT * 1000,
        issued_at=ISSUED_AT,
        expires_at=ISSUED_AT + 90,
        binding=binding(),
        addresses=(adverts.Address(multiaddr="/ip4/192.0.2.1/tcp/4001"),),
        offers=(
            adverts.Offer(
                model=MODEL,
                n_ctx=8192,
                price_out=10,
                session_fee=2500,
                caps=int(adverts.Capability.TOOLS | adverts.Capability.KEEP_TIME),
                profile=profile_hash(PROFILE),
            ),
            adverts.Offer(model=OTHER_MODEL, n_ctx=4096, warm_in=-300),
            adverts.Offer(model=GONE_MODEL, n_ctx=0),
        ),
        load=adverts.Load(slots=4, active=1),
        sheet=sheet_hash(encode_sheet(sheet())),
        release_min=1,
    )


PROFILE: Final = adverts.Profile(
    engine="llamacpp",
    build="2026.10.11549",
    batch=64,
    kv_types="f16/f16",
    samplers=("penalties", "top_k", "top_p", "min_p", "temperature"),
    arithmetic=b"\xa5" * 32,
)


def sheet() -> adverts.Sheet:
    """What that host says at length."""
    offer = adverts.SheetOffer(model=MODEL, name="small", quantisation="Q8_0", profile=PROFILE, slots=4)
    return adverts.Sheet(
        peer=PEER,
        offers=(offer,),
        addresses=("/ip4/192.0.2.1/tcp/4001", "/ip4/192.0.2.1/tcp/4002/ws"),
        keep_s=432_000,
        settle_above=50_000,
        evidence=(adverts.RECEIPTS,),
    )


def adverts_vectors() -> dict[str, Any]:
    """Every message, and what is signed."""
    signed = seal(advert(), _KEY.sign)
    terms = BindingTerms(receipt_key=b"\x11" * 20, seq=7, expires_at=ISSUED_AT + 86_400)
    return {
        "peer_secret": PEER_SECRET.hex(),
        "peer": PEER,
        "wallet_secret": WALLET_SECRET.hex(),
        "wallet": WALLET.hex(),
        "binding_digest": binding_digest(PEER, terms).hex(),
        "messages": [
            vector(adverts.GetAdvert(peer=PEER)),
            vector(adverts.SampleAdverts(count=8, model=MODEL)),
            vector(adverts.SampleAdverts(), "sample of any model"),
            vector(
                adverts.SampleAdverts(model=MODEL, caps=int(adverts.Capability.TOOLS)), "sample with tools"
            ),
            vector(signed),
            vector(adverts.Adverts(adverts=(signed,))),
            vector(adverts.Adverts(adverts=()), "adverts, none"),
            vector(adverts.GetSheet(hash=sheet_hash(encode_sheet(sheet())))),
            vector(adverts.SheetAnswer(body=encode_sheet(sheet()))),
            vector(adverts.SheetAnswer(body=b""), "sheet, not kept"),
        ],
        "records": [vector(advert()), vector(sheet()), vector(PROFILE)],
        "sheet_hash": sheet_hash(encode_sheet(sheet())).hex(),
        "profile_hash": profile_hash(PROFILE).hex(),
        "topic": adverts.topic_of(MODEL),
    }


def lookup() -> dict[str, Any]:
    """The only bytes of its own that lookup has."""
    return {"provider_keys": [{"model": MODEL.hex(), "key": provider_key(MODEL).hex()}]}


def kademlia_vectors() -> dict[str, Any]:
    """Every kind of message, and where keys and peers lie."""
    m = kademlia
    key = m.record_key(provider_key(MODEL))
    own = m.KadPeer(peer=PEER, addresses=(bytes.fromhex("04c0000201060fa1"),), connected=True)
    other = m.KadPeer(peer=CLIENT, addresses=(bytes.fromhex("04c0000202060fa1"), b"\x01"))
    said = [
        m.Message(kind="ping"),
        m.Message(kind="find_node", key=m.bytes_of(PEER)),
        m.Message(kind="find_node", key=m.bytes_of(PEER), closer=(own, other)),
        m.Message(kind="get_providers", key=key),
        m.Message(kind="get_providers", key=key, closer=(other,), providers=(own,)),
        m.Message(kind="add_provider", key=key, providers=(own,)),
        m.Message(kind="get_value", key=b"key"),
        m.Message(kind="put_value", key=b"key"),
    ]

    def plain_peers(peers: tuple[m.KadPeer, ...]) -> list[dict[str, Any]]:
        return [
            {"id": each.peer, "addrs": [a.hex() for a in each.addresses], "connected": each.connected}
            for each in peers
        ]

    return {
        "messages": [
            {
                "kind": each.kind, "key": each.key.hex(), "closer": plain_peers(each.closer),
                "providers": plain_peers(each.providers), "hex": m.encode(each).hex(),
            }
            for each in said
        ],
        "keys": [
            {"of": of.hex(), "record_key": m.record_key(of).hex()} for of in (provider_key(MODEL), b"short")
        ],
        "distances": [
            {"peer": peer, "key": key.hex(), "distance": f"{m.point_of(peer) ^ m.point_of_key(key):064x}"}
            for peer in (PEER, CLIENT)
        ],
    }  # fmt: skip


def prompt() -> inference.PromptBody:
    """A short conversation."""
    return inference.PromptBody(
        messages=(
            inference.ChatMessage.of("system", "Be brief."),
            inference.ChatMessage.of("user", "Grüße"),
        ),
        sampling=inference.SamplingParams(tokens_max=3, temperature=0.0, stop=("\n",)),
        seed=bytes(16),
    )


def continuation() -> inference.PromptBody:
    """The same when a host died that had sent three ids, and text for two of them."""
    return replace(prompt(), prefix=(1, 2, 49_151), text_bytes=5)


def tool_turn() -> inference.PromptBody:
    """The turn that follows a call of a tool, with most of what a prompt can say."""
    m = inference
    return m.PromptBody(
        messages=(
            m.ChatMessage.of("user", "Weather in Köln?"),
            m.ChatMessage(
                role="assistant",
                tool_calls=(m.ToolCall(id="c1", name="weather", arguments='{"city":"Köln"}'),),
            ),
            m.ChatMessage(role="tool", content=(m.Part(text="rain"),), tool_call_id="c1"),
        ),
        tools=(
            m.Tool(
                name="weather",
                description="What falls from the sky.",
                parameters='{"type":"object","properties":{"city":{"type":"string"}}}',
            ),
        ),
        tool_choice="name:weather",
        parallel_tool_calls=False,
        sampling=m.SamplingParams(
            tokens_max=64, presence_penalty=0.5, logit_bias=(m.LogitBias(id=7, bias=-1.5),)
        ),
        seed=SEED,
        logprobs=2,
        cache_key=b"\x6b" * 16,
        now=ISSUED_AT - ISSUED_AT % 86_400,
    )


def embeddings() -> dict[str, Any]:
    """A turn that embeds two texts, as it is told, and its leaf."""
    ids, numbers = ((71, 114), (72,)), ((1.0, -0.5), (0.25, 2.0))
    leaf = Leaf(
        turn=3,
        first=0,
        request=request_hash(encode(embeddings_prompt())),
        prompt=texts_hash(ids),
        ended="stop",
    )
    frames = [inference.Vector(turn=3, index=at, data=vector_bytes(each)) for at, each in enumerate(numbers)]
    for frame in frames:
        leaf.add(frame)
    return {
        "prompt": EMBEDS, "turn": 3, "ids": ids, "prompt_hash": texts_hash(ids).hex(), "vectors": numbers,
        "frames": [vector(frame) for frame in frames], "ended": "stop", "leaf": leaf.digest().hex(),
    }  # fmt: skip


EMBEDS = "PromptBody of texts to embed"


def embeddings_prompt() -> inference.PromptBody:
    """Two texts to embed."""
    return inference.PromptBody(embed=("Grüße", "x"), seed=bytes(16))


def inference_vectors() -> dict[str, Any]:
    """Every message; one receipt over two turns of a free session; a paid session, whole; seeds of calls."""
    m, raw, ids, prompt_ids = inference, encode(prompt()), (1, 2, 49_151), (11, 12, 13, 14, 15)
    chain, rendered = ReceiptChain.begin(SESSION, MODEL, SALT, EPOCH), ids_hash(prompt_ids)
    frames = (
        m.Tokens(turn=1, index=0, ids=ids, text="Hi!"),
        m.Tokens(turn=2, index=64, ids=(7, 8), text="", start="credit"),
        m.Tokens(turn=2, index=66, ids=(9,), text="", channel="call", call=0, name="weather"),
        m.Tokens(turn=2, index=67, ids=(), text='{"city":"Köln"', channel="call", call=0),
    )
    leaves = [
        Leaf(turn=1, first=0, request=request_hash(raw), prompt=rendered, ended="length"),
        Leaf(turn=2, first=64, request=b"\x72" * 32, prompt=b"\x70" * 32),
    ]
    for frame in frames:
        leaves[frame.turn - 1].add(frame)
    root_0, hashed = chain.root, token_hash([leaf.digest() for leaf in leaves])
    root_1 = chain.advance(10, 6, hashed, NO_FINGERPRINT)
    signature, digest = _KEY.sign(chain.digest()), chain.digest()
    receipt = m.Checkpoint(
        seq=1, tokens_in=10, tokens_out=6, token_hash=hashed, fingerprint_hash=NO_FINGERPRINT, root=root_1,
        signature=signature, ended=(m.TurnEnd(turn=1, reason="length"),),
    )  # fmt: skip
    terms = m.SessionTerms(
        payer=b"\x01" * 20, host=b"\x02" * 20, voucher_key=b"\x03" * 20, receipt_key=b"\x11" * 20,
        model=MODEL,
        deposit=1_000_000, price_in=5, price_out=10, session_fee=2500, tip=100,
        expiry=ISSUED_AT + 3600, salt=SALT,
    )  # fmt: skip
    said: list[tuple[str, Any]] = [
        ("", m.Open(model=MODEL, salt=SALT, holder=HOLDER)),
        ("open, paid", m.Open(
            model=MODEL, salt=SALT, holder=HOLDER, terms=terms, authorisation=bytes(65),
            valid_before=ISSUED_AT + 300,
        )),
        ("", m.Resume(session=SESSION, holder=HOLDER, received=3, turn=4, turns=(2, 4), proof=bytes(65))),
        ("resume without a proof", m.Resume(session=SESSION, holder=HOLDER, received=3, turn=1)),
        ("", m.Challenge(nonce=b"\x43" * 32)),
        ("", m.Accept(
            session=SESSION, nonce=b"\x4e" * 32, epoch=EPOCH, n_ctx=8192, window=288, turns_max=8,
        )),
        ("", m.Refuse(code="capacity", detail="full: try again later", retry_after_s=2.5)),
        ("", m.Prompt(turn=1, part=0, last=True, total=len(raw), body=raw)),
        ("", m.PromptReceived(turn=1, bytes=len(raw))),
        ("", m.Quote(turn=1, tokens_in=5, prompt_hash=rendered)),
        ("", m.Progress(turn=1, processed=5, total=5)),
        *[("", frame) for frame in frames],
        ("tokens with logarithms of probabilities", m.Tokens(
            turn=1, index=3, ids=(5,), text="…",
            logprobs=(m.TokenLogprob(logprob=-0.5, top=(m.TopToken(id=5, logprob=-0.5),)),),
        )),
        ("", m.Vector(turn=3, index=0, data=bytes.fromhex("0000803f000000bf"))),
        ("", m.Credit(turn=1, upto=512)),
        ("", receipt),
        ("", m.Ack(seq=3)),
        ("", m.Voucher(
            seq=1, tokens_in=5, tokens_out=3, amount=2501, root=root_1, signature=bytes(65), turn=2,
        )),
        ("", m.Cancel(turn=1)),
        ("", m.Done(turn=1, reason="stop", tokens_in=5, reused=0, tokens_out=3)),
        ("done at a stop string",
         m.Done(turn=1, reason="stop", tokens_in=5, reused=0, tokens_out=3, stop="\n\n")),
        ("", m.Ping(nonce=1)),
        ("", m.Pong(nonce=1)),
        ("", m.Leave(until=ISSUED_AT + 3600)),
        ("", m.Left(until=ISSUED_AT + 3600, generation=1, settle_above=50_000)),
        ("", m.Close()),
        ("error of a turn", m.Error(code="context_overflow", detail="too long", turn=2)),
        ("error of the session", m.Error(code="shutting_down")),
    ]  # fmt: skip
    return {
        "messages": [vector(message, name) for name, message in said],
        "records": [
            vector(prompt()),
            vector(continuation()),
            vector(tool_turn(), "PromptBody after a call of a tool"),
            vector(embeddings_prompt(), EMBEDS),
            vector(m.Receipt(epoch=EPOCH, previous=root_0, checkpoint=receipt)),
        ],
        "receipts": {
            "session": SESSION.hex(), "model": MODEL.hex(), "salt": SALT.hex(), "epoch": EPOCH,
            "root_0": root_0.hex(), "request_hash": request_hash(raw).hex(),
            "prompt_ids": list(prompt_ids), "prompt_hash": rendered.hex(),
            "frames": [vector(frame) for frame in frames],
            "leaves": [
                {
                    "turn": leaf.turn, "first": leaf.first, "request": leaf.request.hex(),
                    "prompt": leaf.prompt.hex(), "ended": leaf.ended or "", "leaf": leaf.digest().hex(),
                }
                for leaf in leaves
            ],
            "token_hash": hashed.hex(), "root_1": root_1.hex(), "digest": digest.hex(),
            "peer": PEER, "signature": signature.hex(),
        },
        "embeddings": embeddings(),
        "paid": paid_session(),
        "seeds": [
            {"seed": SEED.hex(), "start": start, "call": call_seed(SEED, start)} for start in (0, 3, 300)
        ],
    }  # fmt: skip


def checkpoint_vectors() -> dict[str, Any]:
    """Every message; the receipts are those of the paid session of inference."""
    c, paid = checkpoint, paid_session()
    session, secret = SessionId(bytes.fromhex(paid["session"])), bytes.fromhex(paid["secrets"]["voucher_key"])
    said = {each["type"]: decode(bytes.fromhex(each["hex"])) for each in paid["turn"]}
    receipt = inference.Receipt(
        epoch=EPOCH, previous=bytes.fromhex(paid["root_0"]), checkpoint=said["checkpoint"]
    )
    nonce = b"\x43" * 32
    digest = fetch_digest(nonce, session, PEER, CLIENT)
    return {
        "host_peer": PEER, "client_peer": CLIENT, "voucher_key_secret": secret.hex(),
        "fetch_digest": digest.hex(),
        "messages": [
            vector(c.Fetch(session=session)),
            vector(c.Challenge(nonce=nonce)),
            vector(c.Prove(proof=sign_digest(secret, digest))),
            vector(c.Page(receipts=(receipt,), voucher=said["voucher"], last=True)),
            vector(c.Page(receipts=(), last=True), "page, nothing left"),
            vector(c.More(epoch=EPOCH, seq=1)),
            vector(c.Refuse(code="bad_request", detail="no such session here")),
        ],
    }  # fmt: skip


def count_vectors() -> dict[str, Any]:
    """Every message; the prompt is the one of inference."""
    c, raw = count, encode(prompt())
    return {
        "messages": [
            vector(c.Count(model=MODEL, total=len(raw))),
            *[vector(part) for part in prompt_parts(1, raw)],
            vector(c.Counted(tokens_in=5, n_ctx=2048)),
            vector(inference.Refuse(code="context_overflow", detail="it takes 2135 tokens of 2048")),
        ],
    }


def domain(told: Domain) -> dict[str, Any]:
    """Who verifies a signature."""
    return {
        "name": told.name,
        "version": told.version,
        "chain_id": told.chain_id,
        "contract": told.contract.hex(),
    }


def paid_session() -> dict[str, Any]:
    """A paid session of one turn, five tokens in, three out; a resume; one whose host had restarted, where
    the second turn, of five tokens more, was broken off after two, which no receipt covers; and, as if
    ``accept`` had granted a day, one that is left after its turn and resumed by a journal, whole or old.
    """
    m, raw = inference, encode(prompt())
    rendered, tokens = (
        ids_hash((11, 12, 13, 14, 15)),
        m.Tokens(turn=1, index=0, ids=(1, 2, 49_151), text="Hi!"),
    )
    market = market_domain(31_337, b"\x4d" * 20)
    token = Domain(name="USDC", version="2", chain_id=31_337, contract=b"\x55" * 20)
    secrets = {
        "payer": b"\x02" * 32,
        "host": WALLET_SECRET,
        "voucher_key": b"\x03" * 32,
        "receipt_key": b"\x04" * 32,
    }
    parties = {
        name: address_of(coincurve.PrivateKey(secret).public_key.format(compressed=False))
        for name, secret in secrets.items()
    }
    terms = m.SessionTerms(
        **parties, model=MODEL, deposit=1_000_000, price_in=300_000, price_out=1_700_000, session_fee=2_500,
        tip=1_000, expiry=ISSUED_AT + 3600, salt=b"\x07" * 32,
    )  # fmt: skip
    session, valid_before = session_id(market, terms), ISSUED_AT + 300
    authorised = authorisation_digest(
        token,
        payer=terms.payer,
        to=market.contract,
        amount=terms.deposit,
        valid_before=valid_before,
        nonce=session,
    )
    payment = ClientPayment(
        market=market, terms=terms, valid_before=valid_before,
        authorisation=sign_digest(secrets["payer"], authorised),
        sign=lambda digest: sign_digest(secrets["voucher_key"], digest),
    )  # fmt: skip
    chain = ReceiptChain.begin(session, MODEL, SALT, EPOCH)
    leaf = Leaf(turn=1, first=0, request=request_hash(raw), prompt=rendered, ended="length")
    leaf.add(tokens)
    root_0, hashed = chain.root, token_hash([leaf.digest()])
    for_input = exact_voucher(payment, session, seq=0, tokens_in=5, tokens_out=0, root=root_0, turn=1)
    root_1 = chain.advance(5, 3, hashed, NO_FINGERPRINT)
    receipt = m.Checkpoint(
        seq=1, tokens_in=5, tokens_out=3, token_hash=hashed, fingerprint_hash=NO_FINGERPRINT, root=root_1,
        signature=sign_digest(secrets["receipt_key"], chain.digest()),
        ended=(m.TurnEnd(turn=1, reason="length"),),
    )  # fmt: skip
    for_all = exact_voucher(payment, session, seq=1, tokens_in=5, tokens_out=3, root=root_1)
    nonce, again = b"\x4e" * 32, b"\x4f" * 32
    resumed = resume_digest(nonce, session, PEER, CLIENT)
    accept = m.Accept(session=session, nonce=nonce, epoch=EPOCH, n_ctx=8192, session_fee=terms.session_fee)
    said: list[tuple[str, Any]] = [
        ("client", m.Open(
            model=MODEL, salt=SALT, holder=HOLDER, terms=terms, authorisation=payment.authorisation,
            valid_before=valid_before,
        )),
        ("host", accept),
        ("client", m.Prompt(turn=1, part=0, last=True, total=len(raw), body=raw)),
        ("host", m.PromptReceived(turn=1, bytes=len(raw))),
        ("host", m.Quote(turn=1, tokens_in=5, prompt_hash=rendered)),
        ("client", for_input),
        ("host", tokens),
        ("host", receipt),
        ("client", for_all),
        ("host", m.Done(turn=1, reason="length", tokens_in=5, reused=0, tokens_out=3)),
    ]  # fmt: skip
    proof = sign_digest(secrets["voucher_key"], resumed)
    resume = m.Resume(session=session, holder=HOLDER, received=4, turn=1, proof=proof)
    back: list[tuple[str, Any]] = [
        ("client", resume), ("host", replace(accept, nonce=again, voucher=for_all)), ("client", m.Close()),
    ]  # fmt: skip
    drawn = b"\x43" * 32
    challenged = resume_digest(drawn, session, PEER, CLIENT)
    final = exact_voucher(payment, session, seq=1, tokens_in=10, tokens_out=5, root=root_1)
    asks = m.Resume(session=session, holder=HOLDER, received=6, turn=2, turns=(2,))
    shows = replace(
        asks,
        proof=sign_digest(secrets["voucher_key"], challenged),
        receipt=m.Receipt(epoch=EPOCH, previous=root_0, checkpoint=receipt),
        voucher=final,
    )
    recovery: list[tuple[str, Any]] = [
        ("client", asks), ("host", m.Challenge(nonce=drawn)), ("client", shows),
        ("host", replace(accept, nonce=b"\x50" * 32, epoch=EPOCH + 1)), ("client", m.Close()),
    ]  # fmt: skip
    until = ISSUED_AT + 2_000
    leaving: list[tuple[str, Any]] = [
        ("client", m.Leave(until=until)),
        ("host", m.Left(until=until, generation=0, settle_above=100_000)),
    ]
    asked = m.Resume(session=session, holder=b"\x0c" * 16, received=0, turn=0)
    old = replace(asked, proof=shows.proof, voucher=for_input)
    whole = replace(old, receipt=shows.receipt, voucher=for_all)
    given = replace(
        accept,
        nonce=b"\x50" * 32,
        epoch=EPOCH + 1,
        generation=1,
        voucher=for_all,
        receipt=shows.receipt,
        keep_s=86_400,
        settle_above=100_000,
    )

    def taken_up(shown: m.Resume) -> list[tuple[str, Any]]:
        challenge = m.Challenge(nonce=drawn)
        return [
            ("client", asked),
            ("host", challenge),
            ("client", shown),
            ("host", given),
            ("client", m.Close()),
        ]

    return {
        "secrets": {name: secret.hex() for name, secret in secrets.items()},
        "market": domain(market), "token": domain(token), "host_peer": PEER, "client_peer": CLIENT,
        "session": session.hex(),
        "authorisation_digest": authorised.hex(),
        "root_0": root_0.hex(), "receipt_digest": chain.digest().hex(),
        "voucher_digests": [voucher_digest(market, session, each).hex() for each in (for_input, for_all)],
        "final_voucher_digest": voucher_digest(market, session, final).hex(),
        "resume_digest": resumed.hex(), "challenge_digest": challenged.hex(),
        "turn": [{"from": side, **vector(message)} for side, message in said],
        "resume": [{"from": side, **vector(message)} for side, message in back],
        "recovery": [{"from": side, **vector(message)} for side, message in recovery],
        "leave": [{"from": side, **vector(message)} for side, message in leaving],
        "resume_left": [{"from": side, **vector(message)} for side, message in taken_up(whole)],
        "resume_left_old": [{"from": side, **vector(message)} for side, message in taken_up(old)],
    }  # fmt: skip


def blob_vectors() -> dict[str, Any]:
    """Every message; what a claim signs, and where providers of an entry are looked for."""
    m, data = blob, b"ciphertext"
    owner = Ed25519PrivateKey.from_private_bytes(OWNER_SECRET)
    key = EntryKey(owner.public_key().public_bytes_raw())
    digest = hash_of(data)
    claimed = m.claim_digest(CLIENT, PEER)
    old, new = (make_entry(key, revision, pointer_to(digest), owner.sign).to_bytes() for revision in (1, 2))
    said: list[tuple[str, Any]] = [
        ("", m.Claim(owner=key, signature=owner.sign(claimed))),
        ("", m.Admit(id=0)),
        ("put, inline", m.Put(id=1, hash=digest, size=len(data), lease_s=2_678_400, data=data)),
        ("put, data follows", m.Put(id=2, hash=digest, size=len(data), lease_s=2_678_400)),
        ("data, more to come", m.Data(id=2, data=data[:4])),
        ("data, the last", m.Data(id=2, data=data[4:], last=True)),
        ("", m.Credit(id=2, received=4)),
        ("get, all of it", m.Get(id=3, hash=digest)),
        ("get, a part", m.Get(id=4, hash=digest, offset=4, length=6)),
        ("", m.Blob(id=4, size=len(data))),
        ("", m.Has(id=5, hashes=(digest, hash_of(b"")))),
        ("", m.Sizes(id=5, sizes=(len(data), -1))),
        ("", m.Pin(id=6, hash=digest, lease_s=2_678_400)),
        ("", m.Unpin(id=7, hash=digest)),
        ("", m.GetEntry(id=8, key=key)),
        ("", m.EntryIs(id=8, entry=new)),
        ("entry, none", m.EntryIs(id=8)),
        ("", m.SetEntry(id=9, entry=old)),
        ("", m.Stale(id=9, current=new)),
        ("", m.Done(id=1)),
        ("", m.Cancel(id=3)),
        ("", m.Failed(id=3, code="cancelled")),
        ("failed, try later", m.Failed(id=11, code="rate_limited", detail="slower", retry_after_s=0.5)),
    ]  # fmt: skip
    return {
        "owner_secret": OWNER_SECRET.hex(), "client": CLIENT, "server": PEER, "claim_digest": claimed.hex(),
        "provider_keys": [{"entry_key": key.hex(), "key": m.provider_key(key).hex()}],
        "files_keys": [{"model": MODEL.hex(), "key": m.files_key(MODEL).hex()}],
        "messages": [vector(message, name) for name, message in said],
    }  # fmt: skip


def gossipsub_vectors() -> dict[str, Any]:
    """RPCs of every kind; signed messages, and ones that no node takes."""
    g, topic, data = gossipsub, adverts.topic_of(MODEL).encode(), encode(seal(advert(), _KEY.sign))
    public = _KEY.public_key().public_bytes_raw()
    author, seqno = bytes.fromhex("002408011220") + public, (ISSUED_AT * 1000).to_bytes(8, "big")
    signed = g.signed_bytes(author, data, seqno, topic)

    def message(**changes: bytes) -> gossipsub.Message:
        made = {"author": author, "seqno": seqno, "topic": topic, "data": data}
        return g.Message.of(**{**made, "signature": _KEY.sign(signed), **changes})

    nothing = _KEY.sign(g.signed_bytes(author, b"", seqno, topic))
    cases = [
        ("an advert", message(), True),
        ("with its key beside it", message(key=bytes.fromhex("08011220") + public), True),
        ("of no bytes", message(data=b"", signature=nothing), True),
        ("signed for another topic", message(topic=b"other"), False),
        ("without a signature", message(signature=b""), False),
    ]
    rpcs = [
        ("subscribe", g.encode_subscriptions({topic: True})),
        ("unsubscribe", g.encode_subscriptions({topic: False})),
        ("graft", g.Control(graft={topic: None}).encode()),
        ("prune", g.Control(prune={topic: 60}).encode()),
        ("ihave", g.Control(ihave={topic: [message().id]}).encode()),
        ("iwant", g.Control(iwant=[message().id]).encode()),
        ("idontwant", g.Control(idontwant=[message().id]).encode()),
        ("publish", message().encode()),
    ]
    return {
        "peer_secret": PEER_SECRET.hex(), "peer": PEER, "topic": topic.decode(),
        "rpcs": [
            {"name": name, "hex": raw.hex(), "entries": g.RPC.count(raw, entries_max=g.ENTRIES_MAX)}
            for name, raw in rpcs
        ],
        "messages": [
            {
                "name": name, "hex": each.encode().hex(), "id": each.id.hex(), "holds": holds,
                "signed": g.signed_bytes(each.author, each.data, each.seqno, each.topic).hex(),
            }
            for name, each, holds in cases
        ],
    }  # fmt: skip


def identify_vectors() -> dict[str, Any]:
    """Messages as a node and others send them, and ones that are refused."""
    m = identify
    tcp, ws = bytes.fromhex("04c0000201060fa1"), bytes.fromhex("04c0000201060fa2dd03")
    public = bytes.fromhex("08011220") + _KEY.public_key().public_bytes_raw()
    said = m.Statement((tcp, ws), frozenset({m.PROTOCOL, m.PUSH, "/p2pnode/adverts/1"}))
    whole = m.encode(said, public_key=public, observed=tcp, agent="p2pnode/1", signed_record=b"\x0a\x00")
    many = [b"\x04" + bytes([192, 0, 2, n]) + b"\x06\x0f\xa1" for n in range(m.ADDRESSES_MAX + 4)]
    cases = {
        "of a node": whole,
        "nothing": b"",
        "with a field that nobody knows": whole + bytes.fromhex("aa3f03616263"),
        "too many addresses": m.IDENTIFY.make(listen_addrs=many).SerializeToString(),
        "an address twice, and one too long": m.IDENTIFY.make(
            listen_addrs=[tcp, bytes(m.ADDRESS_MAX + 1), tcp, ws]
        ).SerializeToString(),
        "a name that is no text": m.IDENTIFY.make(protocols=[b"/a/\xff", b"/b"]).SerializeToString(),
    }
    return {
        "messages": [
            {
                "name": name, "hex": data.hex(),
                "addresses": [each.hex() for each in m.decode(data).addresses],
                "protocols": sorted(m.decode(data).protocols),
            }
            for name, data in cases.items()
        ],
        "refused": [
            {"name": "cut", "hex": whole[:-1].hex()},
            {"name": "a length beyond the end", "hex": "12ff7f04"},
            {"name": "too many fields", "hex": (b"\x1a\x00" * (m.ENTRIES_MAX + 1)).hex()},
        ],
    }  # fmt: skip


def all_vectors() -> dict[str, dict[str, Any]]:
    """By protocol, then by area."""
    return {
        "transport": transport_vectors(),
        "framing": framing(),
        "adverts": adverts_vectors(),
        "lookup": lookup(),
        "kademlia": kademlia_vectors(),
        "inference": inference_vectors(),
        "blob": blob_vectors(),
        "s5": s5_vectors(),
        "checkpoint": checkpoint_vectors(),
        "count": count_vectors(),
        "gossipsub": gossipsub_vectors(),
        "identify": identify_vectors(),
        "storage": storage_vectors(),
        "models": models_vectors(),
    }


def folder_of(name: str) -> Path:
    """Where the SPEC of a protocol or an area stands."""
    return ROOT / name if name in AREAS else ROOT / "protocols" / name


def text_of(vectors: dict[str, Any]) -> str:
    """As it stands in the file."""
    return json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all of them."""
    for name, vectors in all_vectors().items():
        (folder_of(name) / "vectors.json").write_text(text_of(vectors), encoding="utf-8")


if __name__ == "__main__":
    main()
