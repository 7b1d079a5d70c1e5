"""A search for hosts of a model: hints from many sources, each verified by the host's own advert."""
