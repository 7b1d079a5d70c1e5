# pragma version 0.4.3
"""
@title Many balances in one call, for tests that look after every step
@license Apache-2.0
"""
from ethereum.ercs import IERC20

interface Earnings:
    def balance_of(account: address) -> uint256: view

@external
@view
def look(
    usdc: address, market: address, accounts: DynArray[address, 16]
) -> (DynArray[uint256, 16], DynArray[uint256, 16]):
    in_hand: DynArray[uint256, 16] = []
    owed: DynArray[uint256, 16] = []
    for account: address in accounts:
        in_hand.append(staticcall IERC20(usdc).balanceOf(account))
        owed.append(staticcall Earnings(market).balance_of(account))
    return in_hand, owed
