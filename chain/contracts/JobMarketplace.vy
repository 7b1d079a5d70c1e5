# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# pragma nonreentrancy on
"""
@title JobMarketplace: one escrow between one payer and one host
@license Apache-2.0
@notice A payer signs terms once; a host is paid for what the payer's voucher key signed, and never more;
        the rest goes back. No owner, no pause, no upgrade: these rules can't be changed.
@dev The terms of a session are not stored. Their EIP-712 digest is the session's id, they come again in
     calldata, and a session's whole state is one storage slot.
     Attack: altered terms. Any change gives another id, which has no escrow.
"""

import eip712
import signatures
import HostEarnings as earnings
from interfaces import IJobMarketplace

implements: IJobMarketplace

initializes: eip712
initializes: earnings[eip712 := eip712]
exports: earnings.__interface__


interface AuthorisedToken:
    def receiveWithAuthorization(
        payer: address,
        to: address,
        amount: uint256,
        valid_after: uint256,
        valid_before: uint256,
        nonce: bytes32,
        signature: Bytes[2048],
    ): nonpayable


# Cumulative over the session. An empty signature means "no voucher" where one may be left out.
struct Voucher:
    seq: uint64
    tokensIn: uint64
    tokensOut: uint64
    amount: uint64
    root: bytes32
    signature: Bytes[65]


struct Claim:
    terms: IJobMarketplace.SessionTerms
    voucher: Voucher


event SessionOpened:
    session: indexed(bytes32)
    payer: indexed(address)
    host: indexed(address)
    terms: IJobMarketplace.SessionTerms


event SessionClosed:
    session: indexed(bytes32)
    payer: indexed(address)
    host: indexed(address)
    amount: uint256
    to_treasury: uint256
    refund: uint256
    tip: uint256
    pushed: bool
    root: bytes32


event CloseRequested:
    session: indexed(bytes32)
    payer: indexed(address)
    host: indexed(address)
    closing_at: uint256
    recorded: uint256


event VoucherRecorded:
    session: indexed(bytes32)
    payer: indexed(address)
    host: indexed(address)
    recorded: uint256


event ClaimSkipped:
    session: indexed(bytes32)


TERMS_TYPE: constant(bytes32) = keccak256(
    "SessionTerms(address payer,address host,address voucherKey,address receiptKey,bytes32 modelId,uint64 deposit,uint64 pricePerMTokIn,uint64 pricePerMTokOut,uint64 sessionFee,uint64 tip,uint64 expiry,bytes32 salt)"
)
VOUCHER_TYPE: constant(bytes32) = keccak256(
    "Voucher(bytes32 sessionId,uint64 seq,uint64 tokensIn,uint64 tokensOut,uint64 amount,bytes32 root)"
)
CLOSE_REQUEST_TYPE: constant(bytes32) = keccak256("CloseRequest(bytes32 sessionId,uint64 floor)")
HOST_CLOSE_TYPE: constant(bytes32) = keccak256("HostClose(bytes32 sessionId,uint64 amount)")

ABSENT: constant(uint256) = 0
OPEN: constant(uint256) = 1
CLOSED: constant(uint256) = 2

# Treasury's share of what tokens earn, in hundredths of a per cent.
TREASURY_BPS: constant(uint256) = 1000
BPS: constant(uint256) = 10_000
TOKENS_PER_PRICE: constant(uint256) = 1_000_000

# 0.25 USDC. The tip is at most the session fee.
SESSION_FEE_MAX: public(constant(uint256)) = 250_000

# Seconds a host (or its watchtower) has to answer a close request.
CHALLENGE: public(constant(uint256)) = 86_400

# A session and its challenge end before a bond can leave NodeRegistry (7 days).
DURATION_MAX: public(constant(uint256)) = 432_000

U64: constant(uint256) = 18446744073709551615

CLAIMS_MAX: constant(uint256) = 25

# status | closing_at << 8 | recorded << 72: one slot.
_slots: HashMap[bytes32, uint256]


@deploy
def __init__(usdc_: address, treasury_: address):
    """
    @notice Fix the token and the treasury, for ever.
    @param usdc_ A token with EIP-3009, as FiatTokenV2_2.
    @param treasury_ Gets a tenth of each settlement.
    """
    eip712.__init__("JobMarketplace", "1")
    earnings.__init__(usdc_, treasury_)


@internal
@view
def _session_id(terms: IJobMarketplace.SessionTerms) -> bytes32:
    """
    @notice The EIP-712 digest of the terms.
    @param terms As signed.
    @return 32 bytes.
    """
    return eip712._digest(keccak256(abi_encode(TERMS_TYPE, terms)))


@internal
@pure
def _unpack(slot: uint256) -> IJobMarketplace.SessionState:
    """
    @notice The fields of a session's slot.
    @param slot As stored.
    @return Its status, when its challenge ends (0: none) and the highest recorded amount.
    """
    return IJobMarketplace.SessionState(
        status=slot & 255,
        closing_at=(slot >> 8) & U64,
        recorded=(slot >> 72) & U64,
    )


@internal
@pure
def _pack(status: uint256, closing_at: uint256, recorded: uint256) -> uint256:
    """
    @notice A session's slot.
    @param status ABSENT, OPEN or CLOSED.
    @param closing_at Below 2^64.
    @param recorded Below 2^64.
    @return As stored.
    """
    return status | (closing_at << 8) | (recorded << 72)


@internal
@view
def _holds(session: bytes32, terms: IJobMarketplace.SessionTerms, voucher: Voucher) -> bool:
    """
    @notice May this voucher be paid?
    @dev Attack: a host claims tokens the user never consented to. Only the voucher key's signature counts.
         Attack: an inflated amount. It must be within price x tokens + fee, and within the deposit.
         Attack: a voucher of another session, chain or contract. All three are in the digest.
         No product overflows: counts and prices are 64 bits wide, the sum is taken in 256.
    @param session Its id.
    @param terms Its terms.
    @param voucher Cumulative counts and amount.
    @return Whether it holds; never reverts.
    """
    amount: uint256 = convert(voucher.amount, uint256)
    cost: uint256 = (
        convert(voucher.tokensIn, uint256) * convert(terms.pricePerMTokIn, uint256)
        + convert(voucher.tokensOut, uint256) * convert(terms.pricePerMTokOut, uint256)
    )
    ceiling: uint256 = (
        convert(terms.sessionFee, uint256) + (cost + TOKENS_PER_PRICE - 1) // TOKENS_PER_PRICE
    )
    if amount > ceiling or amount > convert(terms.deposit, uint256):
        return False
    digest: bytes32 = eip712._digest(
        keccak256(
            abi_encode(
                VOUCHER_TYPE,
                session,
                voucher.seq,
                voucher.tokensIn,
                voucher.tokensOut,
                voucher.amount,
                voucher.root,
            )
        )
    )
    # The voucher key is never zero (see open), so a failed recovery can't match.
    return signatures._recover(digest, voucher.signature) == terms.voucherKey


@internal
def _settle(
    session: bytes32, terms: IJobMarketplace.SessionTerms, claimed: uint256, recorded: uint256, tip: uint256, root: bytes32
) -> (uint256, uint256):
    """
    @notice Close a session and send its remainder home. The caller credits what is returned.
    @dev The session is closed before any call leaves the contract, and can never open again: its id stays.
         Never less than what is recorded, nor than the fee, is paid: a host can't be made to lose a
         voucher that is on the chain already.
         Attack: a host stalls until a refund pays it more than closing would. The tip is taken from what
         it gets, so that it and its friends together have at most what closing yields; and the payer's
         remainder is the same however a session ends. The fee is at least the tip, and the treasury has no
         part of the fee: the subtraction can't fail.
    @param session Its id; must be open.
    @param terms Its terms.
    @param claimed What a voucher says, at most the deposit.
    @param recorded What the chain knows already.
    @param tip What the caller gets of the host's part; at most the session fee.
    @param root Of the voucher's receipt chain, for the record.
    @return What the host gets and what the treasury gets.
    """
    deposit: uint256 = convert(terms.deposit, uint256)
    fee: uint256 = convert(terms.sessionFee, uint256)
    amount: uint256 = max(max(claimed, recorded), fee)
    self._slots[session] = self._pack(CLOSED, 0, amount)
    to_treasury: uint256 = (amount - fee) * TREASURY_BPS // BPS
    refunded: uint256 = deposit - amount
    pushed: bool = earnings._push(terms.payer, refunded)
    log SessionClosed(
        session=session,
        payer=terms.payer,
        host=terms.host,
        amount=amount,
        to_treasury=to_treasury,
        refund=refunded,
        tip=tip,
        pushed=pushed,
        root=root,
    )
    if tip > 0:
        earnings._push(msg.sender, tip)
    return amount - to_treasury - tip, to_treasury


@external
@view
def session_id(terms: IJobMarketplace.SessionTerms) -> bytes32:
    """
    @notice The id of a session with these terms, open or not.
    @param terms As signed.
    @return The EIP-712 digest.
    """
    return self._session_id(terms)


@external
@view
def session(id: bytes32) -> IJobMarketplace.SessionState:
    """
    @notice How a session stands.
    @param id Its id.
    @return status 0 none, 1 open, 2 closed; when its challenge ends (0: none); the highest amount recorded
            (once closed: what was paid).
    """
    return self._unpack(self._slots[id])


@external
def open(terms: IJobMarketplace.SessionTerms, valid_before: uint256, signature: Bytes[2048]) -> bytes32:
    """
    @notice Take a deposit on the payer's signed authorisation. Anyone may relay it.
    @dev The authorisation's nonce is the session id: one signature moves the funds and binds all terms.
         Attack: a relayer changes a price. The id changes, and the token refuses the signature.
         Attack: front-running. The token lets only this contract use the authorisation, and whoever
         relays it opens the same session; a second relay reverts.
         Attack: one balance authorised to many hosts. Only the first to land has a session.
    @param terms Binding for both sides.
    @param valid_before When the authorisation ends, as signed (`validAfter` is 0).
    @param signature Over ReceiveWithAuthorization: of a plain account, or of a deployed ERC-1271 wallet.
    @return The session's id.
    """
    # A session that names nobody, or this contract, could never be closed by its host or paid out.
    for party: address in [terms.payer, terms.host, terms.voucherKey, terms.receiptKey]:
        assert party != empty(address) and party != self, "JobMarketplace: zero or self address"
    # A host that holds the voucher key, or pays itself, would sign its own vouchers.
    assert terms.host != terms.payer and terms.host != terms.voucherKey, "JobMarketplace: host pays itself"
    assert convert(terms.sessionFee, uint256) <= SESSION_FEE_MAX, "JobMarketplace: session fee too high"
    assert terms.tip <= terms.sessionFee, "JobMarketplace: tip above session fee"
    deposit: uint256 = convert(terms.deposit, uint256)
    assert deposit > 0, "JobMarketplace: no deposit"
    assert convert(terms.sessionFee, uint256) <= deposit, "JobMarketplace: deposit below fee"
    expiry: uint256 = convert(terms.expiry, uint256)
    assert expiry > block.timestamp, "JobMarketplace: expired"
    assert expiry <= block.timestamp + DURATION_MAX, "JobMarketplace: expiry too far"
    session: bytes32 = self._session_id(terms)
    assert self._slots[session] == ABSENT, "JobMarketplace: exists"
    self._slots[session] = OPEN
    log SessionOpened(session=session, payer=terms.payer, host=terms.host, terms=terms)
    extcall AuthorisedToken(earnings.usdc).receiveWithAuthorization(
        terms.payer, self, deposit, 0, valid_before, session, signature
    )
    return session


@internal
def _close(claim: Claim):
    """
    @notice Settle one claim on its host's behalf, or revert.
    @param claim Terms and best voucher.
    """
    session: bytes32 = self._session_id(claim.terms)
    state: IJobMarketplace.SessionState = self._unpack(self._slots[session])
    assert state.status == OPEN, "JobMarketplace: not open"
    assert self._holds(session, claim.terms, claim.voucher), "JobMarketplace: bad voucher"
    to_host: uint256 = 0
    to_treasury: uint256 = 0
    to_host, to_treasury = self._settle(
        session,
        claim.terms,
        convert(claim.voucher.amount, uint256),
        state.recorded,
        0,
        claim.voucher.root,
    )
    earnings._credit(claim.terms.host, to_host)
    earnings._credit(earnings.treasury, to_treasury)


@external
def close(claim: Claim):
    """
    @notice The host settles with its best voucher: it is credited, the payer is refunded, at once. At any
            time before a refund.
    @dev Attack: a stranger (or the payer) closes with an old voucher. Only the host's word closes.
    @param claim Terms and voucher.
    """
    assert msg.sender == claim.terms.host, "JobMarketplace: not the host"
    self._close(claim)


@external
def close_by_signature(claim: Claim, signature: Bytes[2048]):
    """
    @notice As `close`, on the host's signature: a host's wallet needs no ether.
    @dev The host signs the very amount, so that a relayer can't settle with an older voucher.
    @param claim Terms and voucher.
    @param signature The host's, over `HostClose`; ERC-1271 wallets may sign.
    """
    session: bytes32 = self._session_id(claim.terms)
    digest: bytes32 = eip712._digest(
        keccak256(abi_encode(HOST_CLOSE_TYPE, session, claim.voucher.amount))
    )
    assert signatures._signed_by(claim.terms.host, digest, signature), "JobMarketplace: not the host"
    self._close(claim)


@external
def close_many(claims: DynArray[Claim, CLAIMS_MAX]) -> uint256:
    """
    @notice The host settles many sessions in one transaction.
    @dev Attack: a payer settles one of them first (or one voucher is bad) and reverts the whole batch.
         A claim that can't be paid is skipped and named in an event.
    @param claims At most 25, all of the caller's own sessions.
    @return How many were settled.
    """
    settled: uint256 = 0
    earned: uint256 = 0
    taxed: uint256 = 0
    for claim: Claim in claims:
        session: bytes32 = self._session_id(claim.terms)
        state: IJobMarketplace.SessionState = self._unpack(self._slots[session])
        if (
            msg.sender != claim.terms.host
            or state.status != OPEN
            or not self._holds(session, claim.terms, claim.voucher)
        ):
            log ClaimSkipped(session=session)
            continue
        to_host: uint256 = 0
        to_treasury: uint256 = 0
        to_host, to_treasury = self._settle(
            session,
            claim.terms,
            convert(claim.voucher.amount, uint256),
            state.recorded,
            0,
            claim.voucher.root,
        )
        settled += 1
        earned += to_host
        taxed += to_treasury
    earnings._credit(msg.sender, earned)
    earnings._credit(earnings.treasury, taxed)
    return settled


@external
def release(terms: IJobMarketplace.SessionTerms):
    """
    @notice The host lets a session go without a voucher: it keeps the session fee only, all else goes back.
    @dev Attack: what is on record is given away, the treasury's part of it included. A session with a
         recorded voucher is closed or refunded, which pays at least that.
    @param terms The session's.
    """
    assert msg.sender == terms.host, "JobMarketplace: not the host"
    session: bytes32 = self._session_id(terms)
    state: IJobMarketplace.SessionState = self._unpack(self._slots[session])
    assert state.status == OPEN, "JobMarketplace: not open"
    assert state.recorded <= convert(terms.sessionFee, uint256), "JobMarketplace: voucher on record"
    to_host: uint256 = 0
    to_treasury: uint256 = 0
    to_host, to_treasury = self._settle(session, terms, 0, 0, 0, empty(bytes32))
    earnings._credit(terms.host, to_host)


@external
def request_close(terms: IJobMarketplace.SessionTerms, voucher: Voucher, signature: Bytes[2048]):
    """
    @notice The payer (or its voucher key) asks to end the session. The host has 24 hours to answer.
    @dev Attack: a payer closes before the host's claim lands, and pays nothing. Nothing is paid out here;
         the host closes, or anyone submits its best voucher, within the challenge.
         Attack: a relayer drops the voucher. The floor is part of what was signed.
         Attack: asking again to push the end away. A session is asked to close once.
         Attack: asking with an old voucher to lower what is on record. The record never falls.
    @param terms The session's.
    @param voucher The requester's last voucher, a floor of what the host gets; an empty signature means none.
    @param signature Over `CloseRequest`, of the voucher key or the payer; ignored if one of them calls.
    """
    session: bytes32 = self._session_id(terms)
    state: IJobMarketplace.SessionState = self._unpack(self._slots[session])
    assert state.status == OPEN, "JobMarketplace: not open"
    assert state.closing_at == 0, "JobMarketplace: already closing"
    least: uint64 = terms.sessionFee
    if len(voucher.signature) > 0:
        assert self._holds(session, terms, voucher), "JobMarketplace: bad voucher"
        least = max(least, voucher.amount)
    if msg.sender != terms.payer and msg.sender != terms.voucherKey:
        digest: bytes32 = eip712._digest(keccak256(abi_encode(CLOSE_REQUEST_TYPE, session, least)))
        assert signatures._signed_by(terms.voucherKey, digest, signature) or signatures._signed_by(
            terms.payer, digest, signature
        ), "JobMarketplace: not the payer"
    closing_at: uint256 = block.timestamp + CHALLENGE
    recorded: uint256 = max(state.recorded, convert(least, uint256))
    self._slots[session] = self._pack(OPEN, closing_at, recorded)
    log CloseRequested(
        session=session, payer=terms.payer, host=terms.host, closing_at=closing_at, recorded=recorded
    )


@external
def submit_voucher(terms: IJobMarketplace.SessionTerms, voucher: Voucher):
    """
    @notice Anyone puts a better voucher on record, at any time before the session ends.
    @dev Attack: a payer closes with its oldest voucher while the host is away. Whoever holds a newer one
         (a watchtower) records it; a stale one changes nothing. It needs no key: it only says what the
         voucher key signed already.
         Attack: a payer never asks to close, and takes its refund when the host is away. No challenge has
         to run: a voucher counts until the refund.
    @param terms The session's.
    @param voucher Above what is recorded.
    """
    session: bytes32 = self._session_id(terms)
    state: IJobMarketplace.SessionState = self._unpack(self._slots[session])
    assert state.status == OPEN, "JobMarketplace: not open"
    recorded: uint256 = convert(voucher.amount, uint256)
    assert recorded > state.recorded, "JobMarketplace: stale voucher"
    assert self._holds(session, terms, voucher), "JobMarketplace: bad voucher"
    self._slots[session] = self._pack(OPEN, state.closing_at, recorded)
    log VoucherRecorded(session=session, payer=terms.payer, host=terms.host, recorded=recorded)


@external
def refund(terms: IJobMarketplace.SessionTerms):
    """
    @notice Anyone ends a session whose host did not: the host is credited what is recorded (the session fee
            at least) less the tip, which the caller gets; the payer gets the rest.
    @dev Attack: a host that vanishes keeps the escrow for ever. After the challenge, or a challenge's time
         after expiry, nobody's consent is needed; and the payer needn't come back, as someone is paid to.
         Attack: a host stalls and refunds by itself, or through a friend. The tip comes from what the
         host gets, and only for a caller that is neither payer nor host.
    @param terms The session's.
    """
    session: bytes32 = self._session_id(terms)
    state: IJobMarketplace.SessionState = self._unpack(self._slots[session])
    assert state.status == OPEN, "JobMarketplace: not open"
    asked: bool = state.closing_at > 0 and block.timestamp >= state.closing_at
    assert (
        asked or block.timestamp >= convert(terms.expiry, uint256) + CHALLENGE
    ), "JobMarketplace: too early"
    tip: uint256 = 0
    if msg.sender != terms.payer and msg.sender != terms.host:
        tip = convert(terms.tip, uint256)
    to_host: uint256 = 0
    to_treasury: uint256 = 0
    to_host, to_treasury = self._settle(session, terms, 0, state.recorded, tip, empty(bytes32))
    earnings._credit(terms.host, to_host)
    earnings._credit(earnings.treasury, to_treasury)
