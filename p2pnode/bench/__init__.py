"""``p2pnode bench``: the figures this node promises, each taken together with its baseline.

``figure.py`` lists what is promised, ``runner.py`` measures it suite by suite. Everything runs on
loopback, in processes of its own that end with the bench however it ends.
"""
