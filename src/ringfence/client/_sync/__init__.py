# Generated from client/_async/__init__.py by tools/unasync.py: edit that file, not this one.

"""The synchronous face of the SDK; written by hand."""
