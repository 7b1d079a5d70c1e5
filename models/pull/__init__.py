"""Downloads of weights: where they come from, and how they are checked before they are used."""
