"""Ends by an error that nobody catches."""

import atexit

atexit.register(print, "exit handlers ran")
print("working")
[1, 2, 3].index(4)
