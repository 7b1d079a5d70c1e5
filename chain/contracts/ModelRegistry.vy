# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# pragma nonreentrancy on
"""
@title ModelRegistry: what holders of FAB, and anyone, think of a model
@license Apache-2.0
@notice A model's id is the hash of its manifest, so an id can't be taken, renamed or given to other weights.
        Proposals, votes and attestations are opinions on the record: they gate nothing.
@dev Attack: a host evicts a rival by a duplicate id or by votes. A proposal shuts out no other proposal, also
     of the same model; nothing here removes anything; JobMarketplace never asks this contract. No owner.
"""

from ethereum.ercs import IERC20

# Bytes of a manifest: of a model of two hundred files or so.
MANIFEST_MAX: constant(uint256) = 32_768


struct Proposal:
    model_id: bytes32
    proposer: address
    ends_at: uint256
    votes_for: uint256
    votes_against: uint256
    bond: uint256


event Proposed:
    proposal: indexed(uint256)
    model_id: indexed(bytes32)
    proposer: indexed(address)
    manifest: Bytes[MANIFEST_MAX]


event Voted:
    proposal: indexed(uint256)
    voter: indexed(address)
    support: bool
    amount: uint256


event Unlocked:
    proposal: indexed(uint256)
    voter: indexed(address)
    amount: uint256


event BondReturned:
    proposal: indexed(uint256)
    proposer: indexed(address)
    amount: uint256


event Attested:
    model_id: indexed(bytes32)
    attester: indexed(address)
    statement: bytes32


BOND: public(constant(uint256)) = 1000 * 10**18

# Votes for that a proposal needs: 1% of what FAB there ever was.
QUORUM: public(constant(uint256)) = 10_000_000 * 10**18
VOTING: public(constant(uint256)) = 604_800

fab: public(immutable(address))

# Proposals count from 1.
proposal_count: public(uint256)
_proposals: HashMap[uint256, Proposal]

# FAB that a voter has locked in a proposal.
locked: public(HashMap[uint256, HashMap[address, uint256]])

# What an attester says of a model: a hash of its statement; zero is nothing.
attestation: public(HashMap[bytes32, HashMap[address, bytes32]])


@deploy
def __init__(fab_: address):
    """
    @notice Fix the token that votes, for ever.
    @param fab_ FAB.
    """
    assert fab_.is_contract, "ModelRegistry: no code"
    fab = fab_


@internal
@pure
def _model_id(manifest: Bytes[MANIFEST_MAX]) -> bytes32:
    """
    @notice The id of a model, as nodes compute it (models/manifest.py).
    @param manifest Canonical JSON.
    @return sha256 over a tag and the manifest.
    """
    return sha256(concat(b"p2pnode/model/1\x00", manifest))


@external
@view
def proposal(id: uint256) -> Proposal:
    """
    @notice A proposal.
    @param id From 1.
    @return Its fields; all zero if there is none.
    """
    return self._proposals[id]


@external
@view
def is_accepted(id: uint256) -> bool:
    """
    @notice Did the vote end in favour?
    @param id From 1.
    @return Only after its end: a majority for it, and a quorum. A tie is a no.
    """
    p: Proposal = self._proposals[id]
    return (
        p.ends_at != 0
        and block.timestamp >= p.ends_at
        and p.votes_for > p.votes_against
        and p.votes_for >= QUORUM
    )


@external
def propose(manifest: Bytes[MANIFEST_MAX]) -> uint256:
    """
    @notice Put a model to the vote, with a bond that comes back whatever the outcome.
    @dev Attack: an id without a model. The id is computed here from the manifest itself.
    @param manifest Canonical JSON.
    @return The proposal's number.
    """
    assert len(manifest) > 0, "ModelRegistry: no manifest"
    id: uint256 = self.proposal_count + 1
    self.proposal_count = id
    model_id: bytes32 = self._model_id(manifest)
    self._proposals[id] = Proposal(
        model_id=model_id,
        proposer=msg.sender,
        ends_at=block.timestamp + VOTING,
        votes_for=0,
        votes_against=0,
        bond=BOND,
    )
    log Proposed(proposal=id, model_id=model_id, proposer=msg.sender, manifest=manifest)
    assert extcall IERC20(fab).transferFrom(msg.sender, self, BOND), "ModelRegistry: transfer failed"
    return id


@external
def vote(id: uint256, support: bool, amount: uint256):
    """
    @notice Vote with FAB, which stays here until the vote ends.
    @dev Attack: vote, pass the tokens on, vote again (or borrow them for one block). They are locked.
    @param id The proposal.
    @param support For or against.
    @param amount FAB; may be added to.
    """
    ends_at: uint256 = self._proposals[id].ends_at
    assert ends_at != 0, "ModelRegistry: no such proposal"
    assert block.timestamp < ends_at, "ModelRegistry: vote is over"
    assert amount > 0, "ModelRegistry: bad amount"
    self.locked[id][msg.sender] += amount
    if support:
        self._proposals[id].votes_for += amount
    else:
        self._proposals[id].votes_against += amount
    log Voted(proposal=id, voter=msg.sender, support=support, amount=amount)
    assert extcall IERC20(fab).transferFrom(msg.sender, self, amount), "ModelRegistry: transfer failed"


@external
def unlock(id: uint256, voter: address):
    """
    @notice Give a voter its FAB back once the vote is over. Anyone may call.
    @param id The proposal.
    @param voter Who gets its own tokens.
    """
    ends_at: uint256 = self._proposals[id].ends_at
    assert ends_at != 0 and block.timestamp >= ends_at, "ModelRegistry: vote is on"
    amount: uint256 = self.locked[id][voter]
    assert amount > 0, "ModelRegistry: nothing locked"
    self.locked[id][voter] = 0
    log Unlocked(proposal=id, voter=voter, amount=amount)
    assert extcall IERC20(fab).transfer(voter, amount), "ModelRegistry: transfer failed"


@external
def return_bond(id: uint256):
    """
    @notice Give the proposer its bond back once the vote is over. Anyone may call.
    @param id The proposal.
    """
    p: Proposal = self._proposals[id]
    assert p.ends_at != 0 and block.timestamp >= p.ends_at, "ModelRegistry: vote is on"
    assert p.bond > 0, "ModelRegistry: bond is back"
    self._proposals[id].bond = 0
    log BondReturned(proposal=id, proposer=p.proposer, amount=p.bond)
    assert extcall IERC20(fab).transfer(p.proposer, p.bond), "ModelRegistry: transfer failed"


@external
def attest(model_id: bytes32, statement: bytes32):
    """
    @notice Say something of a model in your own name; say zero to take it back.
    @param model_id Any.
    @param statement Hash of what is said.
    """
    self.attestation[model_id][msg.sender] = statement
    log Attested(model_id=model_id, attester=msg.sender, statement=statement)
