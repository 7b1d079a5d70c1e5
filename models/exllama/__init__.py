"""The GPU engine: ExLlamaV2, or ExLlamaV3, in a child process."""
