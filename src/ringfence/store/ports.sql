-- Published ports, of living sandboxes. `record` is the edge's own. Made where it is missing, in any store of version 1.
CREATE TABLE IF NOT EXISTS ports (
    sandbox TEXT NOT NULL,
    port    INTEGER NOT NULL,
    tenant  TEXT NOT NULL,
    record  BLOB NOT NULL,
    PRIMARY KEY (sandbox, port)
) STRICT, WITHOUT ROWID;
