"""GossipSub 1.1 and 1.2: signed messages by topic, over a mesh of neighbours, as a pure machine."""
