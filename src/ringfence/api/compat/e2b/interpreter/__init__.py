"""The code interpreter's own HTTP API (E2B's port 49999), answered by kernels inside the sandbox."""
