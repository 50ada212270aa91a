-- Templates that tenants have built, and the builds of each. `record` is the face's own. Made where it is missing.
CREATE TABLE IF NOT EXISTS built (
    id      TEXT PRIMARY KEY,
    tenant  TEXT NOT NULL,
    record  BLOB NOT NULL
) STRICT, WITHOUT ROWID;
