"""The asynchronous face of the SDK; written by hand."""
