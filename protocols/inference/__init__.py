"""One long-lived stream per session: prompts in, metered tokens out, signed checkpoints between."""
