"""What a node knows, as JSON: for ``--json`` of the commands, and for the dashboard."""
