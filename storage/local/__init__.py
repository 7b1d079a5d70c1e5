"""The store on a disk: blobs as files, everything about them in one SQLite file beside."""
