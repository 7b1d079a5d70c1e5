# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title HostEarnings: who is owed what
@license Apache-2.0
@notice A pull ledger. Hosts, the treasury, and payers whose refund could not be pushed take their money out
        when and where they like.
@dev A module: it lives inside JobMarketplace and shares its custody, which saves a transfer per settlement.
     It never moves more than the ledger says, and nobody but an account itself can spend its line.
"""

import eip712
import signatures

uses: eip712


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable


event Withdrawn:
    account: indexed(address)
    to: indexed(address)
    amount: uint256
    fee: uint256


event Credited:
    account: indexed(address)
    amount: uint256


WITHDRAW_TYPE: constant(bytes32) = keccak256(
    "Withdraw(address account,address to,uint256 amount,uint256 fee,uint256 nonce,uint256 deadline)"
)

usdc: public(immutable(address))
treasury: public(immutable(address))

# What each account may withdraw, in token units.
balance_of: public(HashMap[address, uint256])

# The next nonce of each account's signed withdrawals.
nonces: public(HashMap[address, uint256])


@deploy
def __init__(usdc_: address, treasury_: address):
    """
    @notice Fix the token and the treasury, for ever.
    @param usdc_ The token everything is paid in.
    @param treasury_ Gets a tenth of each settlement; should be a multisig contract.
    """
    assert usdc_.is_contract, "HostEarnings: usdc has no code"
    assert treasury_ not in [empty(address), self, usdc_], "HostEarnings: bad treasury"
    usdc = usdc_
    treasury = treasury_


@internal
def _credit(account: address, amount: uint256):
    """
    @notice Add to an account's line. The caller must hold the money already.
    @param account Who is owed.
    @param amount Token units.
    """
    if amount > 0:
        self.balance_of[account] += amount


@internal
def _push(to: address, amount: uint256) -> bool:
    """
    @notice Pay now if the token lets us, else put it on the ledger.
    @dev Attack: a blacklisted payer (or a paused token) makes the refund revert, and with it the host's pay.
         So a failed push is a credit, never a revert.
         Attack: starve this call of gas to force a credit. What is left after a starved call (1/64) is too
         little for the credit's storage write, so the whole transaction reverts instead.
    @param to Who is paid.
    @param amount Token units.
    @return Whether it was paid now.
    """
    if amount == 0:
        return True
    ok: bool = False
    response: Bytes[32] = b""
    ok, response = raw_call(
        usdc,
        abi_encode(to, amount, method_id=method_id("transfer(address,uint256)")),
        max_outsize=32,
        revert_on_failure=False,
    )
    if ok and len(response) == 32 and convert(response, uint256) == 1:
        return True
    self.balance_of[to] += amount
    log Credited(account=to, amount=amount)
    return False


@internal
def _spend(account: address, to: address, amount: uint256, fee: uint256):
    """
    @notice Take from a line and pay it out.
    @dev Attack: withdraw to the contract itself (or to the token), which strands the money for ever.
    @param account Whose line.
    @param to Who gets `amount - fee`.
    @param amount Token units, no more than the line holds.
    @param fee Of it, what the caller gets.
    """
    assert to not in [empty(address), self, usdc], "HostEarnings: bad recipient"
    assert amount > 0 and fee <= amount, "HostEarnings: bad amount"
    assert amount <= self.balance_of[account], "HostEarnings: balance too low"
    self.balance_of[account] -= amount
    log Withdrawn(account=account, to=to, amount=amount, fee=fee)
    assert extcall Token(usdc).transfer(to, amount - fee), "HostEarnings: transfer failed"
    if fee > 0:
        assert extcall Token(usdc).transfer(msg.sender, fee), "HostEarnings: transfer failed"


@external
def withdraw(to: address, amount: uint256):
    """
    @notice Take your own money out.
    @param to Any address but the zero address, this contract and the token: an account that the token has
              blacklisted can still be paid elsewhere.
    @param amount Token units.
    """
    self._spend(msg.sender, to, amount, 0)


@external
def withdraw_by_signature(
    account: address, to: address, amount: uint256, fee: uint256, deadline: uint256, signature: Bytes[2048]
):
    """
    @notice Take an account's money out on its signature: it needs no ether, the caller gets `fee`.
    @dev Attack: replay. The nonce is spent, and the digest holds the chain and this contract.
         Attack: a rival relays it first. It earns the fee and nothing else changes.
    @param account Who signed: a plain account, or a contract wallet by ERC-1271.
    @param to Who gets `amount - fee`.
    @param amount Token units.
    @param fee What the relayer gets, at most `amount`.
    @param deadline Last second at which this may be relayed.
    @param signature Over `Withdraw`.
    """
    assert block.timestamp <= deadline, "HostEarnings: expired"
    nonce: uint256 = self.nonces[account]
    self.nonces[account] = nonce + 1
    digest: bytes32 = eip712._digest(
        keccak256(abi_encode(WITHDRAW_TYPE, account, to, amount, fee, nonce, deadline))
    )
    assert signatures._signed_by(account, digest, signature), "HostEarnings: bad signature"
    self._spend(account, to, amount, fee)
