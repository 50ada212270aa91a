-- What another protocol's face keeps of a living sandbox. `record` is that face's own. Made where it is missing.
CREATE TABLE IF NOT EXISTS compat (
    sandbox TEXT PRIMARY KEY,
    tenant  TEXT NOT NULL,
    record  BLOB NOT NULL
) STRICT, WITHOUT ROWID;
