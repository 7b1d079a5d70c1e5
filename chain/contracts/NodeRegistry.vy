# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# pragma nonreentrancy on
"""
@title NodeRegistry: a host's stake for one peer key and one receipt key
@license Apache-2.0
@notice Stake says that a host has something to lose. It is lost by signing two different receipts for one
        place in one session, which an honest host never does; anyone may show the two.
@dev Records are keyed by the host's wallet, and say nothing about who else claims a peer key (the wallet's
     signed HostBinding does that). Attack: a host evicts a rival by duplicate ids. There is no such id here:
     nobody's record can be taken, blocked or changed by another. No owner, no pause, no upgrade.
"""

from ethereum.ercs import IERC20
import signatures
from interfaces import IJobMarketplace


interface Burnable:
    def burn(amount: uint256): nonpayable


struct Node:
    peer_key: bytes32
    receipt_key: address
    stake: uint256
    unbonding: uint256
    unbonds_at: uint256


# A link of a session's receipt chain and the host's signature of it; see protocols/inference/receipts.py.
struct Receipt:
    previous: bytes32
    tokens_in: uint64
    tokens_out: uint64
    token_hash: bytes32
    fingerprint_hash: bytes32
    signature: Bytes[65]


event Registered:
    host: indexed(address)
    peer_key: indexed(bytes32)
    receipt_key: indexed(address)
    stake: uint256


event Staked:
    host: indexed(address)
    stake: uint256


event Unbonding:
    host: indexed(address)
    amount: uint256
    unbonds_at: uint256


event Withdrawn:
    host: indexed(address)
    to: indexed(address)
    amount: uint256


event Slashed:
    host: indexed(address)
    reporter: indexed(address)
    session: indexed(bytes32)
    amount: uint256
    reward: uint256


RECEIPT_TAG: constant(bytes32) = keccak256("p2pnode/receipt/1")

# What a registered host has at stake at the least.
STAKE_MIN: public(constant(uint256)) = 1000 * 10**18

# Longer than any session and its challenge can last (JobMarketplace: 5 days + 1 day), so that a stake is
# still here when the last receipt it stood for can be judged.
UNBONDING: public(constant(uint256)) = 604_800

REPORTER_BPS: constant(uint256) = 1000
BPS: constant(uint256) = 10_000

fab: public(immutable(address))
market: public(immutable(address))

_nodes: HashMap[address, Node]

# Every receipt key a host ever registered: changing keys doesn't wash away what the old one signed.
is_receipt_key: public(HashMap[address, HashMap[address, bool]])

# Places (session, epoch, seq) a host was slashed for already.
is_punished: public(HashMap[bytes32, bool])


@deploy
def __init__(fab_: address, market_: address):
    """
    @notice Fix the stake token and the market whose sessions count, for ever.
    @param fab_ FAB.
    @param market_ JobMarketplace.
    """
    assert fab_.is_contract and market_.is_contract, "NodeRegistry: no code"
    fab = fab_
    market = market_


@external
@view
def node(host: address) -> Node:
    """
    @notice A host's record.
    @param host Its wallet.
    @return Keys, stake, and what is unbonding until when. Only `stake` backs the host.
    """
    return self._nodes[host]


@internal
def _add(host: address, amount: uint256) -> uint256:
    """
    @notice Take FAB from a host and add it to its stake.
    @param host Who stakes, with an allowance for this contract.
    @param amount May be zero.
    @return Its stake now, never below the least.
    """
    staked: uint256 = self._nodes[host].stake + amount
    assert staked >= STAKE_MIN, "NodeRegistry: stake too low"
    self._nodes[host].stake = staked
    if amount > 0:
        assert extcall IERC20(fab).transferFrom(host, self, amount), "NodeRegistry: transfer failed"
    return staked


@external
def register(peer_key: bytes32, receipt_key: address, amount: uint256):
    """
    @notice Register, or change keys; add to the stake in the same call.
    @param peer_key The Ed25519 key inside the host's PeerId.
    @param receipt_key Signs its receipts in sessions from now on.
    @param amount FAB to add; the stake must reach the least.
    """
    assert peer_key != empty(bytes32) and receipt_key != empty(address), "NodeRegistry: zero key"
    staked: uint256 = self._add(msg.sender, amount)
    self._nodes[msg.sender].peer_key = peer_key
    self._nodes[msg.sender].receipt_key = receipt_key
    self.is_receipt_key[msg.sender][receipt_key] = True
    log Registered(host=msg.sender, peer_key=peer_key, receipt_key=receipt_key, stake=staked)


@external
def add_stake(amount: uint256):
    """
    @notice Add to the stake of a registered host.
    @param amount FAB.
    """
    assert self._nodes[msg.sender].receipt_key != empty(address), "NodeRegistry: not registered"
    log Staked(host=msg.sender, stake=self._add(msg.sender, amount))


@external
def unbond(amount: uint256):
    """
    @notice Begin to take stake out: it backs nothing from now on, can still be slashed, and leaves in 7 days.
    @dev Attack: instant unstake dodges slashing. The delay outlasts every session the stake stood for.
         Attack: unbond on the first day and keep a way out open for ever. What unbonds no longer counts as
         stake; asking for more starts the 7 days again for all of it.
    @param amount FAB; what is left must be nothing or at least the least.
    """
    staked: uint256 = self._nodes[msg.sender].stake
    assert 0 < amount and amount <= staked, "NodeRegistry: bad amount"
    left: uint256 = staked - amount
    assert left == 0 or left >= STAKE_MIN, "NodeRegistry: stake too low"
    unbonding: uint256 = self._nodes[msg.sender].unbonding + amount
    unbonds_at: uint256 = block.timestamp + UNBONDING
    self._nodes[msg.sender].stake = left
    self._nodes[msg.sender].unbonding = unbonding
    self._nodes[msg.sender].unbonds_at = unbonds_at
    log Unbonding(host=msg.sender, amount=unbonding, unbonds_at=unbonds_at)


@external
def rebond():
    """
    @notice Put back to work all that is unbonding. To take it out again takes 7 days again.
    """
    amount: uint256 = self._nodes[msg.sender].unbonding
    assert amount > 0, "NodeRegistry: nothing unbonding"
    staked: uint256 = self._nodes[msg.sender].stake + amount
    assert staked >= STAKE_MIN, "NodeRegistry: stake too low"
    self._nodes[msg.sender].unbonding = 0
    self._nodes[msg.sender].unbonds_at = 0
    self._nodes[msg.sender].stake = staked
    log Staked(host=msg.sender, stake=staked)


@external
def withdraw(to: address):
    """
    @notice Take out all that has unbonded.
    @param to Any address but the zero address, this contract and FAB.
    """
    assert to not in [empty(address), self, fab], "NodeRegistry: bad recipient"
    amount: uint256 = self._nodes[msg.sender].unbonding
    assert amount > 0, "NodeRegistry: nothing unbonding"
    assert block.timestamp >= self._nodes[msg.sender].unbonds_at, "NodeRegistry: too early"
    self._nodes[msg.sender].unbonding = 0
    self._nodes[msg.sender].unbonds_at = 0
    log Withdrawn(host=msg.sender, to=to, amount=amount)
    assert extcall IERC20(fab).transfer(to, amount), "NodeRegistry: transfer failed"


@internal
@pure
def _root(seq: uint64, receipt: Receipt) -> bytes32:
    """
    @notice The chain root a receipt signs.
    @param seq Its place.
    @param receipt Its link.
    @return 32 bytes.
    """
    return keccak256(
        abi_encode(
            receipt.previous,
            seq,
            receipt.tokens_in,
            receipt.tokens_out,
            receipt.token_hash,
            receipt.fingerprint_hash,
        )
    )


@external
def slash(terms: IJobMarketplace.SessionTerms, epoch: uint64, seq: uint64, a: Receipt, b: Receipt):
    """
    @notice Show two different receipts that one host signed for one place of one session: it loses all its
            stake, what is unbonding included. A tenth goes to the caller, the rest is burned.
    @dev Attack: a payer names a receipt key of its own in the terms, signs two receipts and slashes an honest
         host. The key must be one that the host itself registered.
         Attack: invented sessions. The session must have been opened on the chain.
         Attack: the same evidence twice (swapped, or with a third receipt). Each place counts once.
         Attack: a host reports itself to get its stake out. It earns nothing so, and through a friend it
         loses nine tenths; nothing is at stake afterwards.
         Attack: a restart is taken for a lie. The epoch of the host's start is in every receipt.
    @param terms The session's; its host is the one that is slashed.
    @param epoch Of both receipts.
    @param seq Of both receipts.
    @param a One receipt.
    @param b The other, with another root.
    """
    session: bytes32 = staticcall IJobMarketplace(market).session_id(terms)
    state: IJobMarketplace.SessionState = staticcall IJobMarketplace(market).session(session)
    assert state.status != 0, "NodeRegistry: no such session"
    assert self.is_receipt_key[terms.host][terms.receiptKey], "NodeRegistry: not the host's key"
    place: bytes32 = keccak256(abi_encode(session, epoch, seq))
    assert not self.is_punished[place], "NodeRegistry: already punished"
    root_a: bytes32 = self._root(seq, a)
    root_b: bytes32 = self._root(seq, b)
    assert root_a != root_b, "NodeRegistry: no conflict"
    digest_a: bytes32 = keccak256(abi_encode(RECEIPT_TAG, session, epoch, root_a))
    digest_b: bytes32 = keccak256(abi_encode(RECEIPT_TAG, session, epoch, root_b))
    # A registered key is never zero, so a failed recovery can't match.
    assert signatures._recover(digest_a, a.signature) == terms.receiptKey, "NodeRegistry: bad signature"
    assert signatures._recover(digest_b, b.signature) == terms.receiptKey, "NodeRegistry: bad signature"
    amount: uint256 = self._nodes[terms.host].stake + self._nodes[terms.host].unbonding
    assert amount > 0, "NodeRegistry: nothing at stake"
    self.is_punished[place] = True
    self._nodes[terms.host].stake = 0
    self._nodes[terms.host].unbonding = 0
    self._nodes[terms.host].unbonds_at = 0
    reward: uint256 = 0
    if msg.sender != terms.host:
        reward = amount * REPORTER_BPS // BPS
    log Slashed(host=terms.host, reporter=msg.sender, session=session, amount=amount, reward=reward)
    extcall Burnable(fab).burn(amount - reward)
    if reward > 0:
        assert extcall IERC20(fab).transfer(msg.sender, reward), "NodeRegistry: transfer failed"
