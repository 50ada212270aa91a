-- The whole state of one machine's api. `version` is checked at opening.
PRAGMA user_version = 2;

CREATE TABLE runs (
    id       TEXT PRIMARY KEY,
    tenant   TEXT NOT NULL,
    created  REAL NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('running', 'finished', 'failed')),
    record   BLOB NOT NULL
) STRICT;
CREATE INDEX runs_by_tenant ON runs (tenant, created, id);
CREATE INDEX runs_open ON runs (state) WHERE state = 'running';

CREATE TABLE sandboxes (
    id       TEXT PRIMARY KEY,
    tenant   TEXT NOT NULL,
    created  REAL NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('starting', 'running', 'paused', 'stopping', 'stopped', 'failed')),
    record   BLOB NOT NULL
) STRICT;
CREATE INDEX sandboxes_by_tenant ON sandboxes (tenant, created, id);
CREATE INDEX sandboxes_live ON sandboxes (state) WHERE state NOT IN ('stopped', 'failed');

-- Paused sandboxes: how large the file with their files is, and its SHA-256.
CREATE TABLE pauses (
    sandbox TEXT PRIMARY KEY,
    tenant  TEXT NOT NULL,
    size    INTEGER NOT NULL,
    digest  BLOB NOT NULL,
    expires REAL NOT NULL,
    begins  BLOB NOT NULL
) STRICT;

-- One row per label of a run or a sandbox, so that a list by label never scans a tenant's history.
CREATE TABLE labels (
    tenant TEXT NOT NULL,
    name   TEXT NOT NULL,
    value  TEXT NOT NULL,
    id     TEXT NOT NULL,
    PRIMARY KEY (tenant, name, value, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_by_id ON labels (id);

CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant  TEXT NOT NULL,
    type    TEXT NOT NULL,
    time    REAL NOT NULL,
    sandbox TEXT,
    run     TEXT,
    data    BLOB NOT NULL
) STRICT;
CREATE INDEX events_by_tenant ON events (tenant, id);
CREATE INDEX events_by_sandbox ON events (sandbox, id) WHERE sandbox IS NOT NULL;
CREATE INDEX events_by_run ON events (run, id) WHERE run IS NOT NULL;

-- What was answered to a request with an idempotency key. `request` is the digest of its body.
CREATE TABLE answers (
    digest  BLOB PRIMARY KEY,
    tenant  TEXT NOT NULL,
    request BLOB NOT NULL,
    status  INTEGER NOT NULL,
    body    BLOB NOT NULL,
    expires REAL NOT NULL
) STRICT;
CREATE INDEX answers_by_tenant ON answers (tenant, expires);
CREATE INDEX answers_by_age ON answers (expires);
