"""Kernels: programs of ours that run a tenant's code cell by cell inside its sandbox, and tell what came of it.

They are sent there as text when a first cell is to be run (boot.py), and are trusted with nothing.
"""
