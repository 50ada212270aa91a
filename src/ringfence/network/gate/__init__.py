"""The gate: one unprivileged process that hears sandboxes and speaks to the world on their policies' terms."""
