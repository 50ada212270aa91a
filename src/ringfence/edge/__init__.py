"""The edge: ports inside sandboxes, reached from outside by a name of their own."""
