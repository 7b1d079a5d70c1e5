"""The default engine: llama.cpp in a child process."""
