"""``storage/SPEC.md`` says what the code does: keys, objects, logs, and what becomes of two writers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, cast

import pytest

from p2pnode.chain.wallet.phrase import entropy_of, phrase_of, wallet_secret
from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import key_address
from p2pnode.protocols.s5.entries import EntryKey, parse_entry
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.protocols.wire import decode_record, encode
from p2pnode.storage import sealing
from p2pnode.storage.conversations import compaction, reader, records
from p2pnode.storage.conversations.archive import UPDATED_EVERY_S
from p2pnode.storage.conversations.merge import (
    SESSION_KEPT_S,
    better,
    link_of,
    next_step,
    parse_index,
    wins,
)
from p2pnode.storage.conversations.records import TOMBSTONE, Link, Manifest, Piece, Segment
from p2pnode.storage.conversations.schedule import RENEW_S
from p2pnode.storage.keys import LogKeys, StorageKeys
from p2pnode.storage.replication.choice import COPIES, distance
from p2pnode.storage.replication.quorum import QUORUM
from p2pnode.storage.sealing import Kind, SealError, padded, seal, unseal
from p2pnode.storage.store import DAY_S, LEASE_S
from tests.protocols.test_spec import numbers_of, rows, spec
from tests.storage.conversations.worlds import World, texts
from tests.storage.vectors import joined, segments_of

VECTORS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "storage" / "vectors.json").read_text(encoding="utf-8")
)
ENTROPY: Final = bytes.fromhex(VECTORS["phrase"]["entropy"])
KEYS: Final = StorageKeys.from_entropy(ENTROPY)
SID: Final = bytes.fromhex(VECTORS["keys"]["conversation"]["sid"])
LOGS: Final[list[tuple[LogKeys, dict[str, Any]]]] = [
    (log, commit)
    for log, told in (
        (KEYS.conversation(SID), VECTORS["conversation"]),
        (KEYS.index, VECTORS["index"]),
    )
    for commit in told["commits"]
]
COMMITS: Final = [f"{log.sid.hex()[:4]} {commit['revision']}" for log, commit in LOGS]


def sealed(log: LogKeys, told: dict[str, Any], record: bytes) -> bytes:
    """An object of a log, sealed once more with the nonce that the file says."""
    nonce = bytes.fromhex(told["nonce"])
    return seal(log, told["seq"], told["kind"], record, lambda _: nonce)


def objects_of(log: LogKeys, commit: dict[str, Any]) -> list[bytes]:
    """The objects of a commit: its segment, where it has one, and its manifest."""
    manifest = bytes.fromhex(commit["manifest"])
    written = tuple(bytes.fromhex(each) for each in commit["records"])
    plain = [*([encode(Segment(records=written))] if written else []), manifest]
    return [sealed(log, told, record) for told, record in zip(commit["objects"], plain, strict=True)]


# ---- keys


def test_twelve_words_give_the_wallet_and_the_root() -> None:
    told = VECTORS["phrase"]
    assert phrase_of(ENTROPY) == told["words"]
    assert entropy_of(told["words"]) == ENTROPY
    assert wallet_secret(ENTROPY).hex() == told["wallet_secret"]
    assert key_address(wallet_secret(ENTROPY)).hex() == told["wallet"]
    assert KEYS.root.hex() == VECTORS["keys"]["root"]


def test_the_root_gives_all_other_keys() -> None:
    told = VECTORS["keys"]
    assert KEYS.owner_signing.private_bytes_raw().hex() == told["owner_secret"]
    assert KEYS.owner.hex() == told["owner"]
    for log, name in ((KEYS.index, "index"), (KEYS.conversation(SID), "conversation")):
        assert (log.sid.hex(), log.sealing.hex(), log.entry_key.hex()) == tuple(
            told[name][key] for key in ("sid", "sealing", "entry_key")
        )
    named = told["model_list"]
    assert KEYS.model_list(named["name"]).entry_key.hex() == named["entry_key"]


# ---- sealed objects


@pytest.mark.parametrize(("size", "with_padding"), VECTORS["padded"])
def test_an_object_is_padded_to_a_block(size: int, with_padding: int) -> None:
    assert padded(size) == with_padding


def test_an_object_is_sealed_for_its_place() -> None:
    told, log = VECTORS["sealed"], KEYS.conversation(SID)
    record = bytes.fromhex(told["record"])
    data = sealed(log, told, record)
    assert (len(data), hash_of(data).hex()) == (told["size"], told["hash"])
    assert unseal(log, told["seq"], told["kind"], data) == record
    with pytest.raises(SealError):
        unseal(log, told["seq"] + 1, told["kind"], data)


@pytest.mark.parametrize("told", VECTORS["refused"], ids=lambda told: told["name"])
def test_an_object_that_was_not_sealed_so_does_not_open(told: dict[str, str]) -> None:
    with pytest.raises(SealError):
        unseal(KEYS.conversation(SID), 7, "S", bytes.fromhex(told["hex"]))


# ---- logs


@pytest.mark.parametrize(("log", "commit"), LOGS, ids=COMMITS)
def test_a_commit_is_sealed_and_pointed_at(log: LogKeys, commit: dict[str, Any]) -> None:
    objects = objects_of(log, commit)
    for told, data in zip(commit["objects"], objects, strict=True):
        assert hash_of(data).hex() == told.get("hash", hash_of(bytes.fromhex(told.get("hex", ""))).hex())
    entry = parse_entry(bytes.fromhex(commit["entry"]))
    assert entry.holds()
    assert entry.key == log.entry_key
    assert link_of(entry) == Link(seq=commit["revision"], hash=hash_of(objects[-1]))
    manifest = decode_record(Manifest, unseal(log, entry.revision, "M", objects[-1]))
    assert manifest.seq == entry.revision
    if commit["records"]:
        newest = manifest.segments[-1]
        assert (newest.hash, newest.length) == (hash_of(objects[0]), len(objects[0]))
        kind = cast("Kind", commit["objects"][0]["kind"])
        segment = decode_record(Segment, unseal(log, newest.last, kind, objects[0]))
        assert [record.hex() for record in segment.records] == commit["records"]


async def test_a_machine_with_the_words_alone_finds_it_all(tmp_path: Path) -> None:
    """The bytes of the file at one replica, as another implementation would have put them there."""
    world = World(tmp_path)
    there = world.replicas[0].store
    for log, commit in LOGS:
        for data in objects_of(log, commit):
            await there.put(data, owner=KEYS.owner)
        await there.set(parse_entry(bytes.fromhex(commit["entry"])), owner=KEYS.owner)
    async with world.machine().on(keys=KEYS) as archive:
        found = await archive.recover()
        assert [each.sid for each in found.conversations] == [SID]
        assert [(each.session, each.over) for each in found.sessions] == [(bytes([0x5E]) * 32, True)]
        conversation = await archive.open(SID)
        assert texts(conversation.turns) == VECTORS["conversation"]["turns"]
        assert (conversation.losses, found.losses, conversation.missing) == ((), (), ())


@pytest.mark.parametrize("told", VECTORS["records"], ids=lambda told: told["name"])
def test_the_records_round_trip(told: dict[str, Any]) -> None:
    raw = bytes.fromhex(told["hex"])
    read = decode_record(Piece, raw) if told["type"] == "Piece" else parse_index(raw)
    assert encode(read) == raw


def test_a_tombstone_points_at_nothing() -> None:
    told = VECTORS["tombstone"]
    entry = parse_entry(bytes.fromhex(told["entry"]))
    assert entry.holds()
    assert link_of(entry) == Link(seq=told["revision"], hash=TOMBSTONE)


# ---- decisions


@pytest.mark.parametrize("told", VECTORS["merge"], ids=lambda told: told["name"])
def test_of_two_records_one_is_kept(told: dict[str, Any]) -> None:
    one, other = (parse_index(bytes.fromhex(each)) for each in told["of"])
    assert encode(better(one, other)) == encode(better(other, one)) == bytes.fromhex(told["kept"])


@pytest.mark.parametrize("told", VECTORS["forks"], ids=["higher", "lower", "equal"])
def test_of_two_writers_one_wins(told: dict[str, Any]) -> None:
    ours, other = (
        Link(seq=each["revision"], hash=BlobHash(bytes.fromhex(each["hash"])))
        for each in (told["ours"], told["other"])
    )
    assert wins(ours, other) is told["ours_wins"]
    assert wins(other, ours) is not told["ours_wins"]
    assert next_step("fork", ours, other, in_turn=False) == told["step"]


@pytest.mark.parametrize("told", VECTORS["compaction"])
def test_sixteen_segments_of_a_level_are_joined(told: dict[str, Any]) -> None:
    assert joined(segments_of(told["segments"])) == told["joined"]


@pytest.mark.parametrize("told", VECTORS["distances"], ids=lambda told: told["peer"][-4:])
def test_replicas_are_chosen_by_distance(told: dict[str, str]) -> None:
    found = distance(EntryKey(bytes.fromhex(told["entry_key"])), PeerId(told["peer"]))
    assert f"{found:064x}" == told["distance"]


# ---- numbers

NUMBERS: Final = {
    "a sealed object": [sealing.SEALED_MAX],
    "a record": [records.RECORD_BYTES_MAX],
    "records of a new segment": [compaction.NEW_MAX, records.RECORDS_MAX],
    "text of a piece": [records.PIECE_TEXT_MAX, records.PIECE_IDS_MAX],
    "segments of a log": [records.SEGMENTS_MAX],
    "segments of one level that are joined": [compaction.FAN_IN, compaction.MERGED_MAX],
    "levels": [records.LEVEL_MAX + 1],
    "branches that are followed": [reader.BRANCHES_FOLLOWED_MAX],
    "manifests that are read back for a segment": [reader.BACK_MAX],
}
TIMES: Final = {
    "lease": [LEASE_S / DAY_S],
    "renewal": [RENEW_S / DAY_S],
    "list": [UPDATED_EVERY_S],
    "session": [SESSION_KEPT_S / DAY_S],
}


@pytest.mark.parametrize(("part", "wanted"), [("Limits", NUMBERS), ("Timers", TIMES)])
def test_the_numbers_are_those_of_the_code(part: str, wanted: dict[str, list[float]]) -> None:
    text = spec("storage").split(f"## {part}\n")[1].split("\n## ")[0]
    assert {row[0]: numbers_of(row[1]) for row in rows(text)} == wanted


def test_how_many_replicas_are_enough_is_what_the_code_says() -> None:
    text = " ".join(spec("storage").split("**Replicas.**")[1].split("## Limits")[0].split())
    assert f"A commit is kept when {QUORUM} replicas" in text
    assert f"Up to {COPIES} are written to" in text


def test_every_kind_of_loss_stands_in_the_spec() -> None:
    text = spec("storage").split("## Errors")[1].split("## Timers")[0]
    kinds = records.LossKind.__args__  # type: ignore[attr-defined]
    assert {row[0].strip("`") for row in rows(text)} == set(kinds)
