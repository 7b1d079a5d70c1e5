"""Who provides a key: a table of peers, records and lookups that are shared out by origin."""
