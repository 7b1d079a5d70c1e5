"""The client role: finds hosts, ranks them by what was measured, streams answers, retries by itself."""
