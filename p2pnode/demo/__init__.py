"""``p2pnode demo``: see it work on this machine, money included."""
