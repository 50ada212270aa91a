-- Who may ask. `version` is checked at opening.
PRAGMA user_version = 1;

CREATE TABLE keys (
    id      TEXT PRIMARY KEY,
    digest  BLOB NOT NULL UNIQUE,
    tenant  TEXT NOT NULL,
    name    TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL,
    revoked REAL
) STRICT;
