-- Tenants' secrets. `record` is what may be shown, `sealed` the value under the vault's key. Made where it is missing.
CREATE TABLE IF NOT EXISTS secrets (
    tenant TEXT NOT NULL,
    name   TEXT NOT NULL,
    record BLOB NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;
-- Each tenant's own certificate authority: the certificate is for anybody, its key is sealed.
CREATE TABLE IF NOT EXISTS authorities (
    tenant      TEXT PRIMARY KEY,
    certificate TEXT NOT NULL,
    sealed      BLOB NOT NULL
) STRICT, WITHOUT ROWID;
