"""Content-addressed storage: stores of blobs and entries, and a user's conversations in them, replicated."""
