"""E2B's own client beside ours, against the same server."""
