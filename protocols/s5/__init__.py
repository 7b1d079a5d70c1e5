"""S5's formats: content ids, signed registry entries, and the messages of its peer-to-peer wire."""
