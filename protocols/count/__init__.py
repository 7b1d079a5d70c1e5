"""How many tokens a prompt takes; a client asks a host before it pays for a session."""
