"""The engine ``upstream``: an OpenAI-compatible server that somebody runs on this machine already."""
