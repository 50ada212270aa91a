"""Other protocols' faces: what their own clients speak, carried out by the same engine."""
