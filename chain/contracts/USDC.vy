# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title USDC: a double of Circle's FiatTokenV2_2 for development chains
@license Apache-2.0
@notice ERC-20, EIP-2612, EIP-3009 (both signature forms, ERC-1271), blacklist and pause, with the names, the
        version and the revert strings of the real one. Never for a real chain: its deployer mints at will.
@dev Written from the EIPs and the observable behaviour. As in the real one, an account's blacklist bit
     and balance share a slot, so that gas is measured fairly. The (v, r, s) forms are in `__default__`.
"""

from ethereum.ercs import IERC20
from ethereum.ercs import IERC20Detailed
import eip712
import signatures

implements: IERC20
implements: IERC20Detailed
initializes: eip712


event AuthorizationUsed:
    authorizer: indexed(address)
    nonce: indexed(bytes32)


event AuthorizationCanceled:
    authorizer: indexed(address)
    nonce: indexed(bytes32)


event Mint:
    minter: indexed(address)
    to: indexed(address)
    amount: uint256


event Blacklisted:
    _account: indexed(address)


event UnBlacklisted:
    _account: indexed(address)


event Pause:
    pass


event Unpause:
    pass


PERMIT_TYPEHASH: public(constant(bytes32)) = keccak256(
    "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)
TRANSFER_WITH_AUTHORIZATION_TYPEHASH: public(constant(bytes32)) = keccak256(
    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
RECEIVE_WITH_AUTHORIZATION_TYPEHASH: public(constant(bytes32)) = keccak256(
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
CANCEL_AUTHORIZATION_TYPEHASH: public(constant(bytes32)) = keccak256(
    "CancelAuthorization(address authorizer,bytes32 nonce)"
)

PERMIT_SPLIT: constant(bytes4) = method_id(
    "permit(address,address,uint256,uint256,uint8,bytes32,bytes32)", output_type=bytes4
)
TRANSFER_SPLIT: constant(bytes4) = method_id(
    "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)",
    output_type=bytes4,
)
RECEIVE_SPLIT: constant(bytes4) = method_id(
    "receiveWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)",
    output_type=bytes4,
)
CANCEL_SPLIT: constant(bytes4) = method_id(
    "cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)", output_type=bytes4
)

BLACKLISTED: constant(uint256) = 1 << 255
BALANCE: constant(uint256) = BLACKLISTED - 1

symbol: public(constant(String[4])) = "USDC"
currency: public(constant(String[3])) = "USD"
version: public(constant(String[1])) = "2"
decimals: public(constant(uint8)) = 6
name: public(immutable(String[32]))

# Who mints, blacklists and pauses: the deployer.
owner: public(immutable(address))

# Blacklist bit and balance.
_accounts: HashMap[address, uint256]
allowance: public(HashMap[address, HashMap[address, uint256]])
totalSupply: public(uint256)
nonces: public(HashMap[address, uint256])
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])
paused: public(bool)


@deploy
def __init__(name_: String[32]):
    """
    @notice Make an empty token.
    @param name_ Its EIP-712 name: "USD Coin" as on Base, "USDC" as on Base Sepolia.
    """
    eip712.__init__(name_, "2")
    name = name_
    owner = msg.sender


@external
@view
def balanceOf(account: address) -> uint256:
    """
    @notice An account's balance.
    @param account Whose.
    @return Units of 10^-6.
    """
    return self._accounts[account] & BALANCE


@external
@view
def isBlacklisted(account: address) -> bool:
    """
    @notice Is an account frozen?
    @param account Whose.
    @return Whether it can neither send nor receive.
    """
    return self._accounts[account] >= BLACKLISTED


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    """
    @notice The EIP-712 domain separator.
    @return 32 bytes.
    """
    return eip712._separator()


@internal
@view
def _check_account(account: address):
    """
    @notice Revert for a frozen account.
    @param account Whose.
    """
    assert self._accounts[account] < BLACKLISTED, "Blacklistable: account is blacklisted"


@internal
def _move(sender: address, receiver: address, amount: uint256):
    """
    @notice Move tokens between two accounts that are not frozen, unless paused.
    @param sender Whose.
    @param receiver To whom.
    @param amount Units.
    """
    assert not self.paused, "Pausable: paused"
    self._check_account(sender)
    self._check_account(receiver)
    assert sender != empty(address), "ERC20: transfer from the zero address"
    assert receiver != empty(address), "ERC20: transfer to the zero address"
    held: uint256 = self._accounts[sender]
    assert amount <= held, "ERC20: transfer amount exceeds balance"
    self._accounts[sender] = held - amount
    self._accounts[receiver] += amount
    log IERC20.Transfer(sender=sender, receiver=receiver, value=amount)


@internal
def _allow(owner_: address, spender: address, amount: uint256):
    """
    @notice Set an allowance.
    @param owner_ Whose tokens.
    @param spender Who may move them.
    @param amount Units.
    """
    assert owner_ != empty(address), "ERC20: approve from the zero address"
    assert spender != empty(address), "ERC20: approve to the zero address"
    self.allowance[owner_][spender] = amount
    log IERC20.Approval(owner=owner_, spender=spender, value=amount)


@internal
@view
def _is_valid(signer: address, struct_hash: bytes32, signature: Bytes[2048]) -> bool:
    """
    @notice The real one's SignatureChecker: code decides between ERC-1271 and ECRecover, which reverts.
    @param signer Who should have signed.
    @param struct_hash What.
    @param signature Its bytes.
    @return Whether it holds.
    """
    digest: bytes32 = eip712._digest(struct_hash)
    if not signer.is_contract:
        assert len(signature) == 65, "ECRecover: invalid signature length"
        s: uint256 = extract32(signature, 32, output_type=uint256)
        v: uint256 = convert(slice(signature, 64, 1), uint256)
        assert s <= signatures.HALF_ORDER, "ECRecover: invalid signature 's' value"
        assert v == 27 or v == 28, "ECRecover: invalid signature 'v' value"
        found: address = signatures._recover(digest, slice(signature, 0, 65))
        assert found != empty(address), "ECRecover: invalid signature"
        return found == signer
    ok: bool = False
    response: Bytes[32] = b""
    ok, response = raw_call(
        signer,
        abi_encode(digest, signature, method_id=method_id("isValidSignature(bytes32,bytes)")),
        max_outsize=32,
        is_static_call=True,
        revert_on_failure=False,
    )
    return ok and len(response) == 32 and convert(response, bytes32) == signatures.ERC1271_MAGIC


@internal
def _authorised_move(
    typehash: bytes32,
    sender: address,
    to: address,
    amount: uint256,
    valid_after: uint256,
    valid_before: uint256,
    nonce: bytes32,
    signature: Bytes[2048],
):
    """
    @notice Move tokens on a signed authorisation (EIP-3009).
    @param typehash Which of the two kinds was signed.
    @param sender Who signed.
    @param to Who receives.
    @param amount Units.
    @param valid_after It begins after this second.
    @param valid_before It ends at this second.
    @param nonce Unique for the signer.
    @param signature Over the typed data.
    """
    assert not self.paused, "Pausable: paused"
    self._check_account(sender)
    self._check_account(to)
    assert block.timestamp > valid_after, "FiatTokenV2: authorization is not yet valid"
    assert block.timestamp < valid_before, "FiatTokenV2: authorization is expired"
    assert not self.authorizationState[sender][nonce], "FiatTokenV2: authorization is used or canceled"
    struct_hash: bytes32 = keccak256(
        abi_encode(typehash, sender, to, amount, valid_after, valid_before, nonce)
    )
    assert self._is_valid(sender, struct_hash, signature), "FiatTokenV2: invalid signature"
    self.authorizationState[sender][nonce] = True
    log AuthorizationUsed(authorizer=sender, nonce=nonce)
    self._move(sender, to, amount)


@internal
def _cancel(authorizer: address, nonce: bytes32, signature: Bytes[2048]):
    """
    @notice Void an authorisation that was not used.
    @param authorizer Who signed it.
    @param nonce Its nonce.
    @param signature Over CancelAuthorization.
    """
    assert not self.paused, "Pausable: paused"
    assert not self.authorizationState[authorizer][nonce], "FiatTokenV2: authorization is used or canceled"
    struct_hash: bytes32 = keccak256(abi_encode(CANCEL_AUTHORIZATION_TYPEHASH, authorizer, nonce))
    assert self._is_valid(authorizer, struct_hash, signature), "FiatTokenV2: invalid signature"
    self.authorizationState[authorizer][nonce] = True
    log AuthorizationCanceled(authorizer=authorizer, nonce=nonce)


@internal
def _permit(
    owner_: address, spender: address, amount: uint256, deadline: uint256, signature: Bytes[2048]
):
    """
    @notice Set an allowance on a signature (EIP-2612).
    @param owner_ Who signed.
    @param spender Who may move its tokens.
    @param amount Units.
    @param deadline Last second.
    @param signature Over Permit.
    """
    assert not self.paused, "Pausable: paused"
    assert deadline >= block.timestamp, "FiatTokenV2: permit is expired"
    nonce: uint256 = self.nonces[owner_]
    self.nonces[owner_] = nonce + 1
    struct_hash: bytes32 = keccak256(
        abi_encode(PERMIT_TYPEHASH, owner_, spender, amount, nonce, deadline)
    )
    assert self._is_valid(owner_, struct_hash, signature), "EIP2612: invalid signature"
    self._allow(owner_, spender, amount)


@external
def transfer(to: address, amount: uint256) -> bool:
    """
    @notice Send your tokens.
    @param to To whom.
    @param amount Units.
    @return True.
    """
    self._move(msg.sender, to, amount)
    return True


@external
def transferFrom(sender: address, to: address, amount: uint256) -> bool:
    """
    @notice Send tokens you have an allowance for.
    @param sender Whose.
    @param to To whom.
    @param amount Units.
    @return True.
    """
    self._check_account(msg.sender)
    allowed: uint256 = self.allowance[sender][msg.sender]
    assert amount <= allowed, "ERC20: transfer amount exceeds allowance"
    self._move(sender, to, amount)
    self.allowance[sender][msg.sender] = allowed - amount
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Let someone move your tokens.
    @param spender Who.
    @param amount Units, replacing what was allowed before.
    @return True.
    """
    assert not self.paused, "Pausable: paused"
    self._allow(msg.sender, spender, amount)
    return True


@external
def increaseAllowance(spender: address, increment: uint256) -> bool:
    """
    @notice Let someone move more of your tokens.
    @param spender Who.
    @param increment Units.
    @return True.
    """
    assert not self.paused, "Pausable: paused"
    self._allow(msg.sender, spender, self.allowance[msg.sender][spender] + increment)
    return True


@external
def decreaseAllowance(spender: address, decrement: uint256) -> bool:
    """
    @notice Let someone move less of your tokens.
    @param spender Who.
    @param decrement Units.
    @return True.
    """
    assert not self.paused, "Pausable: paused"
    allowed: uint256 = self.allowance[msg.sender][spender]
    assert decrement <= allowed, "ERC20: decreased allowance below zero"
    self._allow(msg.sender, spender, allowed - decrement)
    return True


@external
def permit(
    owner_: address, spender: address, amount: uint256, deadline: uint256, signature: Bytes[2048]
):
    """
    @notice Set an allowance on a signature (EIP-2612).
    @param owner_ Who signed.
    @param spender Who may move its tokens.
    @param amount Units.
    @param deadline Last second.
    @param signature Over Permit.
    """
    self._permit(owner_, spender, amount, deadline, signature)


@external
def transferWithAuthorization(
    sender: address,
    to: address,
    amount: uint256,
    valid_after: uint256,
    valid_before: uint256,
    nonce: bytes32,
    signature: Bytes[2048],
):
    """
    @notice Move tokens on a signed authorisation; anyone may relay it.
    @param sender Who signed.
    @param to Who receives.
    @param amount Units.
    @param valid_after It begins after this second.
    @param valid_before It ends at this second.
    @param nonce Unique for the signer.
    @param signature Over TransferWithAuthorization.
    """
    self._authorised_move(
        TRANSFER_WITH_AUTHORIZATION_TYPEHASH, sender, to, amount, valid_after, valid_before, nonce, signature
    )


@external
def receiveWithAuthorization(
    sender: address,
    to: address,
    amount: uint256,
    valid_after: uint256,
    valid_before: uint256,
    nonce: bytes32,
    signature: Bytes[2048],
):
    """
    @notice As transferWithAuthorization, but only the receiver may call.
    @param sender Who signed.
    @param to The caller.
    @param amount Units.
    @param valid_after It begins after this second.
    @param valid_before It ends at this second.
    @param nonce Unique for the signer.
    @param signature Over ReceiveWithAuthorization.
    """
    assert to == msg.sender, "FiatTokenV2: caller must be the payee"
    self._authorised_move(
        RECEIVE_WITH_AUTHORIZATION_TYPEHASH, sender, to, amount, valid_after, valid_before, nonce, signature
    )


@external
def cancelAuthorization(authorizer: address, nonce: bytes32, signature: Bytes[2048]):
    """
    @notice Void an authorisation that was not used; anyone may relay it.
    @param authorizer Who signed it.
    @param nonce Its nonce.
    @param signature Over CancelAuthorization.
    """
    self._cancel(authorizer, nonce, signature)


@external
def __default__():
    """
    @notice The (v, r, s) forms of the four signed calls; anything else reverts.
    """
    selector: bytes4 = convert(slice(msg.data, 0, 4), bytes4)
    if selector == CANCEL_SPLIT:
        authorizer: address = empty(address)
        nonce: bytes32 = empty(bytes32)
        v: uint8 = 0
        r: bytes32 = empty(bytes32)
        s: bytes32 = empty(bytes32)
        authorizer, nonce, v, r, s = abi_decode(
            slice(msg.data, 4, 160), (address, bytes32, uint8, bytes32, bytes32)
        )
        self._cancel(authorizer, nonce, concat(r, s, convert(v, bytes1)))
    elif selector == PERMIT_SPLIT:
        owner_: address = empty(address)
        spender: address = empty(address)
        amount: uint256 = 0
        deadline: uint256 = 0
        v: uint8 = 0
        r: bytes32 = empty(bytes32)
        s: bytes32 = empty(bytes32)
        owner_, spender, amount, deadline, v, r, s = abi_decode(
            slice(msg.data, 4, 224), (address, address, uint256, uint256, uint8, bytes32, bytes32)
        )
        self._permit(owner_, spender, amount, deadline, concat(r, s, convert(v, bytes1)))
    else:
        assert selector == TRANSFER_SPLIT or selector == RECEIVE_SPLIT
        sender: address = empty(address)
        to: address = empty(address)
        amount: uint256 = 0
        valid_after: uint256 = 0
        valid_before: uint256 = 0
        nonce: bytes32 = empty(bytes32)
        v: uint8 = 0
        r: bytes32 = empty(bytes32)
        s: bytes32 = empty(bytes32)
        sender, to, amount, valid_after, valid_before, nonce, v, r, s = abi_decode(
            slice(msg.data, 4, 288),
            (address, address, uint256, uint256, uint256, bytes32, uint8, bytes32, bytes32),
        )
        typehash: bytes32 = TRANSFER_WITH_AUTHORIZATION_TYPEHASH
        if selector == RECEIVE_SPLIT:
            assert to == msg.sender, "FiatTokenV2: caller must be the payee"
            typehash = RECEIVE_WITH_AUTHORIZATION_TYPEHASH
        self._authorised_move(
            typehash,
            sender,
            to,
            amount,
            valid_after,
            valid_before,
            nonce,
            concat(r, s, convert(v, bytes1)),
        )


@external
def mint(to: address, amount: uint256) -> bool:
    """
    @notice Make tokens: the deployer's faucet.
    @param to Who gets them.
    @param amount Units.
    @return True.
    """
    assert not self.paused, "Pausable: paused"
    assert msg.sender == owner, "FiatToken: caller is not a minter"
    self._check_account(to)
    assert to != empty(address), "FiatToken: mint to the zero address"
    assert amount > 0, "FiatToken: mint amount not greater than 0"
    self.totalSupply += amount
    held: uint256 = self._accounts[to] + amount
    assert held < BLACKLISTED, "FiatTokenV2_2: Balance exceeds (2^255 - 1)"
    self._accounts[to] = held
    log Mint(minter=msg.sender, to=to, amount=amount)
    log IERC20.Transfer(sender=empty(address), receiver=to, value=amount)
    return True


@external
def blacklist(account: address):
    """
    @notice Freeze an account.
    @param account Which.
    """
    assert msg.sender == owner, "Blacklistable: caller is not the blacklister"
    self._accounts[account] = self._accounts[account] | BLACKLISTED
    log Blacklisted(_account=account)


@external
def unBlacklist(account: address):
    """
    @notice Thaw an account.
    @param account Which.
    """
    assert msg.sender == owner, "Blacklistable: caller is not the blacklister"
    self._accounts[account] = self._accounts[account] & BALANCE
    log UnBlacklisted(_account=account)


@external
def pause():
    """
    @notice Stop every movement.
    """
    assert msg.sender == owner, "Pausable: caller is not the pauser"
    self.paused = True
    log Pause()


@external
def unpause():
    """
    @notice Let tokens move again.
    """
    assert msg.sender == owner, "Pausable: caller is not the pauser"
    self.paused = False
    log Unpause()
