"""What a sandbox may reach beyond itself: the wires, the rules on them, and the one gate they lead to."""
