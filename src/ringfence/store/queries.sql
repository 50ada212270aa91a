-- Named queries. Every one that reads or moves a tenant's row names the tenant in its WHERE.

-- name: key_by_digest
-- Who holds this key; validity is judged by the caller's clock.
SELECT id, tenant, name, created, expires, revoked FROM keys WHERE digest = :digest;

-- name: key_add
-- A new key; only its digest is kept.
INSERT INTO keys (id, digest, tenant, name, created, expires) VALUES (:id, :digest, :tenant, :name, :created, :expires);

-- name: key_list
-- Every key, or one tenant's.
SELECT id, tenant, name, created, expires, revoked FROM keys
WHERE :tenant IS NULL OR tenant = :tenant ORDER BY created, id;

-- name: key_revoke
-- Revoke once; a second revocation keeps the first moment.
UPDATE keys SET revoked = :now WHERE id = :id AND revoked IS NULL;

-- name: run_started
-- A run is accounted for from here on.
INSERT OR IGNORE INTO runs (id, tenant, created, state, record) VALUES (?, ?, ?, ?, ?);

-- name: run_ended
-- running -> finished | failed, once.
UPDATE runs SET state = ?, record = ? WHERE id = ? AND tenant = ? AND state = 'running';

-- name: run_by_id
-- One record.
SELECT record FROM runs WHERE id = :id AND tenant = :tenant;

-- name: run_list
-- Newest first, older than the cursor's row.
SELECT record FROM runs
WHERE tenant = :tenant AND (:state IS NULL OR state = :state)
  AND (:cursor IS NULL OR (created, id) < (SELECT created, id FROM runs WHERE id = :cursor AND tenant = :tenant))
ORDER BY created DESC, id DESC LIMIT :limit;

-- name: run_list_by_label
-- The same, only rows that carry the label and all the others.
SELECT runs.record FROM labels CROSS JOIN runs ON runs.id = labels.id
WHERE labels.tenant = :tenant AND labels.name = :name AND labels.value = :value
  AND runs.tenant = :tenant AND (:state IS NULL OR runs.state = :state)
  AND NOT EXISTS (SELECT 1 FROM json_each(:others) AS other WHERE NOT EXISTS (
      SELECT 1 FROM labels AS also WHERE also.tenant = :tenant AND also.id = runs.id
      AND also.name = json_extract(other.value, '$[0]') AND also.value = json_extract(other.value, '$[1]')))
  AND (:cursor IS NULL
       OR (runs.created, runs.id) < (SELECT created, id FROM runs WHERE id = :cursor AND tenant = :tenant))
ORDER BY runs.created DESC, runs.id DESC LIMIT :limit;

-- name: run_open
-- Every run that has not ended, whoever owns it: for the reconciler alone.
SELECT tenant, id FROM runs WHERE state = 'running';

-- name: sandbox_created
-- A sandbox is accounted for from here on.
INSERT OR IGNORE INTO sandboxes (id, tenant, created, state, record) VALUES (?, ?, ?, ?, ?);

-- name: sandbox_changed
-- A newer version of a row that is neither in a terminal state nor paused: from there only the two queries below lead.
UPDATE sandboxes SET state = ?, record = ? WHERE id = ? AND tenant = ? AND state NOT IN ('stopped', 'failed', 'paused');

-- name: sandbox_unpaused
-- paused -> running | stopped | failed, once.
UPDATE sandboxes SET state = ?, record = ? WHERE id = ? AND tenant = ? AND state = 'paused';

-- name: pause_add
-- What is kept of a sandbox that was paused just now.
INSERT INTO pauses (sandbox, tenant, size, digest, expires, begins) VALUES (?, ?, ?, ?, ?, ?);

-- name: pause_remove
-- Nothing is kept of it any more.
DELETE FROM pauses WHERE sandbox = ? AND tenant = ?;

-- name: pause_list
-- Everything that is kept, whoever owns it: for the one who keeps it.
SELECT sandbox, tenant, size, digest, expires, begins FROM pauses;

-- name: tenant_keyless
-- Since when a tenant has had no key: its last one's revocation or expiry. NULL while there is one, or none is known.
SELECT CASE WHEN count(*) = count(least) THEN max(least) END FROM (
    SELECT CASE WHEN revoked IS NULL THEN expires WHEN expires IS NULL THEN revoked ELSE min(revoked, expires) END AS least
    FROM keys WHERE tenant = :tenant);

-- name: sandbox_by_id
-- One row.
SELECT record FROM sandboxes WHERE id = :id AND tenant = :tenant;

-- name: sandbox_list
-- Newest first, older than the cursor's row.
SELECT record FROM sandboxes
WHERE tenant = :tenant AND (:state IS NULL OR state = :state)
  AND (:cursor IS NULL OR (created, id) < (SELECT created, id FROM sandboxes WHERE id = :cursor AND tenant = :tenant))
ORDER BY created DESC, id DESC LIMIT :limit;

-- name: sandbox_list_by_label
-- The same, only rows that carry the label and all the others.
SELECT sandboxes.record FROM labels CROSS JOIN sandboxes ON sandboxes.id = labels.id
WHERE labels.tenant = :tenant AND labels.name = :name AND labels.value = :value
  AND sandboxes.tenant = :tenant AND (:state IS NULL OR sandboxes.state = :state)
  AND NOT EXISTS (SELECT 1 FROM json_each(:others) AS other WHERE NOT EXISTS (
      SELECT 1 FROM labels AS also WHERE also.tenant = :tenant AND also.id = sandboxes.id
      AND also.name = json_extract(other.value, '$[0]') AND also.value = json_extract(other.value, '$[1]')))
  AND (:cursor IS NULL
       OR (sandboxes.created, sandboxes.id)
          < (SELECT created, id FROM sandboxes WHERE id = :cursor AND tenant = :tenant))
ORDER BY sandboxes.created DESC, sandboxes.id DESC LIMIT :limit;

-- name: sandbox_live
-- Every sandbox that a node should have, whoever owns it: for the reconciler alone.
SELECT tenant, record FROM sandboxes WHERE state NOT IN ('stopped', 'failed', 'paused');

-- name: label_add
-- A label of a run or a sandbox.
INSERT OR IGNORE INTO labels (tenant, name, value, id) VALUES (?, ?, ?, ?);

-- name: event_add
-- The id is the cursor.
INSERT INTO events (tenant, type, time, sandbox, run, data) VALUES (?, ?, ?, ?, ?, ?);

-- name: event_list
-- Oldest first, after the cursor.
SELECT id, type, time, sandbox, run, data FROM events WHERE tenant = :tenant AND id > :after ORDER BY id LIMIT :limit;

-- name: event_about_sandbox
-- The newest of one sandbox.
SELECT id, type, time, sandbox, run, data FROM events
WHERE sandbox = :subject AND tenant = :tenant ORDER BY id DESC LIMIT :limit;

-- name: event_about_run
-- The newest of one run.
SELECT id, type, time, sandbox, run, data FROM events
WHERE run = :subject AND tenant = :tenant ORDER BY id DESC LIMIT :limit;

-- name: egress_sums
-- What a tenant's connections came to, by destination and span of time, of its newest that were told of.
WITH told AS (
    SELECT time, type, CAST(data AS TEXT) AS data FROM events
    WHERE tenant = :tenant AND type >= 'egress.' AND type < 'egress/' AND time >= :since ORDER BY id DESC LIMIT :most)
SELECT CAST(time / :step AS INTEGER) * :step AS begins,
    coalesce(nullif(json_extract(data, '$.name'), ''), json_extract(data, '$.address'), '') AS place,
    json_extract(data, '$.protocol') AS protocol, json_extract(data, '$.port') AS port,
    count(*), sum(type = 'egress.denied'),
    coalesce(sum(json_extract(data, '$.sent')), 0), coalesce(sum(json_extract(data, '$.received')), 0)
FROM told GROUP BY begins, place, protocol, port ORDER BY begins, place, protocol, port;

-- name: event_last
-- Where a tenant's stream stands.
SELECT coalesce(max(id), 0) FROM events WHERE tenant = :tenant;

-- name: port_saved
-- A published port, as it is now.
INSERT INTO ports (sandbox, port, tenant, record) VALUES (?, ?, ?, ?)
ON CONFLICT (sandbox, port) DO UPDATE SET record = excluded.record WHERE ports.tenant = excluded.tenant;

-- name: port_removed
-- Published no longer.
DELETE FROM ports WHERE sandbox = ? AND port = ?;

-- name: port_live
-- Every published port of a sandbox in no terminal state, whoever owns it: for the edge alone, when it starts.
SELECT ports.tenant, ports.sandbox, ports.port, ports.record FROM ports
JOIN sandboxes ON sandboxes.id = ports.sandbox AND sandboxes.tenant = ports.tenant
WHERE sandboxes.state NOT IN ('stopped', 'failed');

-- name: port_ended
-- The sandboxes that published every port (0) and ended, the newest last: for as long as there is a record of them.
SELECT id FROM (
    SELECT sandboxes.id, sandboxes.created FROM ports
    JOIN sandboxes ON sandboxes.id = ports.sandbox AND sandboxes.tenant = ports.tenant
    WHERE ports.port = 0 AND sandboxes.state IN ('stopped', 'failed') ORDER BY sandboxes.created DESC LIMIT ?
) ORDER BY created;

-- name: port_tidy
-- A port ends with its sandbox; that every port was published is remembered.
DELETE FROM ports WHERE sandbox NOT IN (SELECT id FROM sandboxes WHERE state NOT IN ('stopped', 'failed'))
AND (port <> 0 OR sandbox NOT IN (SELECT id FROM sandboxes));

-- name: compat_saved
-- What a face keeps of a sandbox, as it is now.
INSERT INTO compat (sandbox, tenant, record) VALUES (?, ?, ?)
ON CONFLICT (sandbox) DO UPDATE SET record = excluded.record WHERE compat.tenant = excluded.tenant;

-- name: compat_live
-- What the faces keep of sandboxes in no terminal state, whoever owns them: for the faces alone, when they start.
SELECT compat.tenant, compat.sandbox, compat.record FROM compat
JOIN sandboxes ON sandboxes.id = compat.sandbox AND sandboxes.tenant = compat.tenant
WHERE sandboxes.state NOT IN ('stopped', 'failed');

-- name: compat_tidy
-- It ends with its sandbox.
DELETE FROM compat WHERE sandbox NOT IN (SELECT id FROM sandboxes WHERE state NOT IN ('stopped', 'failed'));

-- name: built_saved
-- A template that a tenant has built, as it is now.
INSERT INTO built (id, tenant, record) VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET record = excluded.record WHERE built.tenant = excluded.tenant;

-- name: built_removed
-- Its tenant has it no more.
DELETE FROM built WHERE id = ? AND tenant = ?;

-- name: built_all
-- Whoever owns them: for the face alone, when it starts.
SELECT tenant, id, record FROM built;

-- name: answer_find
-- What an idempotency key was answered before.
SELECT request, status, body FROM answers WHERE digest = :digest AND tenant = :tenant AND expires > :now;

-- name: answer_keep
-- The first answer stays; an expired one gives way.
INSERT INTO answers (digest, tenant, request, status, body, expires) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (digest) DO UPDATE SET
    request = excluded.request, status = excluded.status, body = excluded.body, expires = excluded.expires
WHERE answers.expires <= excluded.expires - 86400;

-- name: tidy_answers
-- Kept for a day.
DELETE FROM answers WHERE expires <= :now;

-- name: tidy_surplus_answers
-- A tenant keeps its newest answers, within a number and a size.
DELETE FROM answers WHERE tenant = :tenant AND digest IN (
    SELECT digest FROM (
        SELECT digest, row_number() OVER newest AS n, sum(length(body)) OVER newest AS total
        FROM answers WHERE tenant = :tenant
        WINDOW newest AS (ORDER BY expires DESC, digest ROWS UNBOUNDED PRECEDING))
    WHERE n > :most OR total > :bytes);

-- name: tidy_tenants
-- Who has anything to tidy.
SELECT tenant FROM runs UNION SELECT tenant FROM sandboxes UNION SELECT tenant FROM events;

-- name: tidy_events
-- Keep a tenant's newest: one tenant's noise never drops another's events.
DELETE FROM events WHERE tenant = :tenant
  AND id <= (SELECT id FROM events WHERE tenant = :tenant ORDER BY id DESC LIMIT 1 OFFSET :keep);

-- name: tidy_floor
-- Older than this, a tenant's ended runs go: the age, or the moment past which there are too many.
SELECT max(:before, coalesce(
    (SELECT created FROM runs WHERE tenant = :tenant ORDER BY created DESC, id DESC LIMIT 1 OFFSET :keep), 0));

-- name: tidy_run_labels
-- Labels go with their rows.
DELETE FROM labels WHERE tenant = :tenant
  AND id IN (SELECT id FROM runs WHERE tenant = :tenant AND created <= :floor AND state <> 'running');

-- name: tidy_runs
-- Ended and old.
DELETE FROM runs WHERE tenant = :tenant AND created <= :floor AND state <> 'running';

-- name: tidy_sandbox_labels
-- Labels go with their rows.
DELETE FROM labels WHERE tenant = :tenant AND id IN (
    SELECT id FROM sandboxes WHERE tenant = :tenant AND created <= :before AND state IN ('stopped', 'failed'));

-- name: tidy_sandboxes
-- Ended and old.
DELETE FROM sandboxes WHERE tenant = :tenant AND created <= :before AND state IN ('stopped', 'failed');

-- name: secret_saved
-- A secret, new or changed, value and all in one.
INSERT INTO secrets (tenant, name, record, sealed) VALUES (:tenant, :name, :record, :sealed)
ON CONFLICT (tenant, name) DO UPDATE SET record = excluded.record, sealed = excluded.sealed;

-- name: secret_removed
-- The end of a secret.
DELETE FROM secrets WHERE tenant = :tenant AND name = :name;

-- name: secret_list
-- A tenant's, by name; or the one that is named.
SELECT tenant, name, record, sealed FROM secrets
WHERE tenant = :tenant AND (:name IS NULL OR name = :name) ORDER BY name;

-- name: authority_made
-- The first one stays.
INSERT OR IGNORE INTO authorities (tenant, certificate, sealed) VALUES (:tenant, :certificate, :sealed);

-- name: authority_of
-- A tenant's own.
SELECT tenant, certificate, sealed FROM authorities WHERE tenant = :tenant;
