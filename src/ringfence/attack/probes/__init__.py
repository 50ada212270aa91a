"""Programs that attack from inside. They are read as text and sent into a sandbox, never imported on the host."""
