"""The store on a disk: blobs are files, everything about them is in one SQLite file."""
