# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# pragma nonreentrancy on
"""
@title ProofSystem: where hosts commit to what they computed
@license Apache-2.0
@notice A host puts the hash of a session's activations on record, once, before anyone asks to see them.
@dev Attack: payment is blocked when a prover fails, or a stranger replays a proof and blocks the host.
     JobMarketplace never asks this contract: nothing here can hold up a settlement.
"""

from interfaces import IJobMarketplace
from interfaces import IProofSystem

implements: IProofSystem

# As JobMarketplace has it.
OPEN: constant(uint256) = 1

market: public(immutable(address))

# By session; zero is none.
commitment_of: public(HashMap[bytes32, bytes32])


@deploy
def __init__(market_: address):
    """
    @notice Fix the market whose sessions count, for ever.
    @param market_ JobMarketplace.
    """
    assert market_.is_contract, "ProofSystem: no code"
    market = market_


@external
def commit(terms: IJobMarketplace.SessionTerms, commitment: bytes32):
    """
    @notice Put a session's commitment on record. It can't be changed.
    @dev Attack: a stranger commits to nonsense in a host's name. Only the session's host may.
         Attack: a host waits until it knows what will be asked. It commits while it serves: not after the
         session was settled, nor while it is being closed, nor past its expiry.
    @param terms The session's.
    @param commitment Not zero.
    """
    assert msg.sender == terms.host, "ProofSystem: not the host"
    assert commitment != empty(bytes32), "ProofSystem: empty commitment"
    session: bytes32 = staticcall IJobMarketplace(market).session_id(terms)
    state: IJobMarketplace.SessionState = staticcall IJobMarketplace(market).session(session)
    assert state.status == OPEN, "ProofSystem: not open"
    assert state.closing_at == 0, "ProofSystem: closing"
    assert block.timestamp < convert(terms.expiry, uint256), "ProofSystem: expired"
    assert self.commitment_of[session] == empty(bytes32), "ProofSystem: already committed"
    self.commitment_of[session] = commitment
    log IProofSystem.Committed(session=session, host=msg.sender, commitment=commitment)
