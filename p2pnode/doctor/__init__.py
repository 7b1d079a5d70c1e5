"""``p2pnode doctor``: one check after another, each with a reason code and a remedy.

A check never changes anything. It may be run beside a running node, and on a machine that never had one.
"""
