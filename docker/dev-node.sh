#!/bin/sh
# A node on a development chain: makes a wallet at its first start, has the chain give it USDC and ether for
# gas, and runs the command that it is given (`join`, `ask`). On a real chain nobody gives these away: use
# `p2pnode` itself there.
#
#   P2PNODE_DATA       the data dir                                   (/data)
#   P2PNODE_CHAIN      the chain's profile                            (/chain/chain.toml)
#   P2PNODE_FIRST      the ready file of a host that is a first peer  (none)
set -eu
data=${P2PNODE_DATA:-/data} chain=${P2PNODE_CHAIN:-/chain/chain.toml} first=${P2PNODE_FIRST:-}
command=$1
shift
field() { python -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

[ -e "$data/wallet.json" ] || p2pnode wallet new --random --show-phrase-to "$data/words" --data-dir "$data"
address=$(p2pnode wallet show --json --data-dir "$data" | field address)
p2pnode chain faucet "$address" 1 --ether 1 --chain "$chain" --data-dir "$data"
if [ -n "$first" ]; then
    peer=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["multiaddrs"][0])' "$first")
    set -- --bootstrap "$peer" "$@"
fi
exec p2pnode "$command" --data-dir "$data" --chain "$chain" "$@"
