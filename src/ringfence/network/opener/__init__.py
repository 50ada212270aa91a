"""The opener: ends TLS in the place of a secret's host, puts values where placeholders stand, and speaks TLS onward."""
