"""`ringfence demo`: a data job and a tour of attacks, on a real server."""
