"""How many tokens a prompt takes: asked of a host before a session with it is paid for."""
