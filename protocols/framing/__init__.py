"""Length-prefixed frames, and what a payload may look like before it is decoded."""
