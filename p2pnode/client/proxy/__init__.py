"""A client whose work the gateway of its data dir does, over the gateway's owner socket."""
