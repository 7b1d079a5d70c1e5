# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title FAB: stake and votes
@license Apache-2.0
@notice ERC-20 with EIP-2612 and a burn. The supply is made once; nobody can make more, freeze or take any.
"""

from ethereum.ercs import IERC20
from ethereum.ercs import IERC20Detailed
import eip712
import signatures

implements: IERC20
implements: IERC20Detailed
initializes: eip712

name: public(constant(String[3])) = "FAB"
symbol: public(constant(String[3])) = "FAB"
decimals: public(constant(uint8)) = 18

SUPPLY: constant(uint256) = 1_000_000_000 * 10**18
PERMIT_TYPE: constant(bytes32) = keccak256(
    "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
totalSupply: public(uint256)

# The next nonce of each owner's permits.
nonces: public(HashMap[address, uint256])


@deploy
def __init__(holder: address):
    """
    @notice Make the whole supply.
    @param holder Who gets it.
    """
    assert holder != empty(address), "FAB: no holder"
    eip712.__init__("FAB", "1")
    self.totalSupply = SUPPLY
    self.balanceOf[holder] = SUPPLY
    log IERC20.Transfer(sender=empty(address), receiver=holder, value=SUPPLY)


@internal
def _move(sender: address, receiver: address, amount: uint256):
    """
    @notice Move tokens.
    @param sender Whose.
    @param receiver Never the zero address: burning is its own call.
    @param amount Units.
    """
    assert receiver != empty(address), "FAB: zero address"
    assert amount <= self.balanceOf[sender], "FAB: balance too low"
    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount
    log IERC20.Transfer(sender=sender, receiver=receiver, value=amount)


@internal
def _allow(owner: address, spender: address, amount: uint256):
    """
    @notice Set an allowance.
    @param owner Whose tokens.
    @param spender Who may move them.
    @param amount Units.
    """
    self.allowance[owner][spender] = amount
    log IERC20.Approval(owner=owner, spender=spender, value=amount)


@external
def transfer(receiver: address, amount: uint256) -> bool:
    """
    @notice Send your tokens.
    @param receiver To whom.
    @param amount Units.
    @return True.
    """
    self._move(msg.sender, receiver, amount)
    return True


@external
def transferFrom(sender: address, receiver: address, amount: uint256) -> bool:
    """
    @notice Send tokens you have an allowance for.
    @param sender Whose.
    @param receiver To whom.
    @param amount Units.
    @return True.
    """
    allowed: uint256 = self.allowance[sender][msg.sender]
    assert amount <= allowed, "FAB: allowance too low"
    self.allowance[sender][msg.sender] = allowed - amount
    self._move(sender, receiver, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Let someone move your tokens.
    @param spender Who.
    @param amount Units, replacing what was allowed before.
    @return True.
    """
    self._allow(msg.sender, spender, amount)
    return True


@external
def burn(amount: uint256):
    """
    @notice Destroy your own tokens.
    @param amount Units.
    """
    assert amount <= self.balanceOf[msg.sender], "FAB: balance too low"
    self.balanceOf[msg.sender] -= amount
    self.totalSupply -= amount
    log IERC20.Transfer(sender=msg.sender, receiver=empty(address), value=amount)


@external
def permit(
    owner: address, spender: address, amount: uint256, deadline: uint256, v: uint8, r: bytes32, s: bytes32
):
    """
    @notice Set an allowance on the owner's signature (EIP-2612).
    @param owner Who signed.
    @param spender Who may move its tokens.
    @param amount Units.
    @param deadline Last second at which this may be relayed.
    @param v 27 or 28.
    @param r Of the signature.
    @param s Of the signature, low.
    """
    assert block.timestamp <= deadline, "FAB: expired"
    nonce: uint256 = self.nonces[owner]
    self.nonces[owner] = nonce + 1
    digest: bytes32 = eip712._digest(
        keccak256(abi_encode(PERMIT_TYPE, owner, spender, amount, nonce, deadline))
    )
    signer: address = signatures._recover(digest, concat(r, s, convert(v, bytes1)))
    assert signer != empty(address) and signer == owner, "FAB: bad signature"
    self._allow(owner, spender, amount)


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    """
    @notice The EIP-712 domain separator.
    @return 32 bytes.
    """
    return eip712._separator()
