-- name: 2
-- Sandboxes can be paused: a state more, and what is kept of them.
PRAGMA user_version = 2;
CREATE TABLE sandboxes_with_paused (
    id       TEXT PRIMARY KEY,
    tenant   TEXT NOT NULL,
    created  REAL NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('starting', 'running', 'paused', 'stopping', 'stopped', 'failed')),
    record   BLOB NOT NULL
) STRICT;
INSERT INTO sandboxes_with_paused SELECT id, tenant, created, state, record FROM sandboxes;
DROP TABLE sandboxes;
ALTER TABLE sandboxes_with_paused RENAME TO sandboxes;
CREATE INDEX sandboxes_by_tenant ON sandboxes (tenant, created, id);
CREATE INDEX sandboxes_live ON sandboxes (state) WHERE state NOT IN ('stopped', 'failed');
CREATE TABLE pauses (
    sandbox TEXT PRIMARY KEY,
    tenant  TEXT NOT NULL,
    size    INTEGER NOT NULL,
    digest  BLOB NOT NULL,
    expires REAL NOT NULL,
    begins  BLOB NOT NULL
) STRICT;
