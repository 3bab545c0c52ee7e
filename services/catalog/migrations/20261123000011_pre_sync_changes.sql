-- migrate:up

-- What each sync changed, model by model; `fields` is a list of {field, before, after}.
CREATE TABLE catalog.sync_changes (
    sync_id bigint NOT NULL,
    model_id text NOT NULL,
    change text NOT NULL,
    name text NOT NULL,
    fields jsonb NOT NULL,
    CONSTRAINT sync_changes_pkey PRIMARY KEY (sync_id, model_id, change),
    CONSTRAINT sync_changes_sync_id_fkey FOREIGN KEY (sync_id) REFERENCES catalog.syncs (id),
    CONSTRAINT sync_changes_model_id_fkey FOREIGN KEY (model_id) REFERENCES catalog.ai_models (id),
    CONSTRAINT sync_changes_change_check CHECK (change IN
        ('added', 'retired', 'returned', 'repriced', 'renamed', 'alias_moved', 'expiry_changed', 'updated'))
);

-- `due` is the daily reading that a sync stands for: the index is what keeps two replicas from making it twice, whatever
-- their clocks say. `announced_at` is null until everybody has been told what an applied sync changed; who dies in between
-- is made up for at the next start.
ALTER TABLE catalog.syncs
    ADD COLUMN due timestamptz,
    ADD COLUMN forced boolean NOT NULL DEFAULT false,
    ADD COLUMN curated_missing jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN announced_at timestamptz,
    DROP CONSTRAINT syncs_reason_check,
    ADD CONSTRAINT syncs_reason_check CHECK (forced OR (reason IS NOT NULL) = (outcome IN ('refused', 'failed')));

UPDATE catalog.syncs SET announced_at = finished_at;

CREATE UNIQUE INDEX syncs_due_key ON catalog.syncs (source, due) WHERE due IS NOT NULL AND outcome <> 'failed';
CREATE INDEX syncs_unannounced ON catalog.syncs (id) WHERE outcome = 'applied' AND announced_at IS NULL;

-- What has begun, written before upstream is read: where `ended_at` is null and nobody holds the lock, somebody died.
CREATE TABLE catalog.sync_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY,
    requested_by text NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    CONSTRAINT sync_attempts_pkey PRIMARY KEY (id)
);
CREATE INDEX sync_attempts_unended ON catalog.sync_attempts (id) WHERE ended_at IS NULL;

GRANT SELECT, INSERT ON catalog.sync_changes, catalog.sync_attempts TO x402_catalog;
GRANT UPDATE (ended_at) ON catalog.sync_attempts TO x402_catalog;
GRANT UPDATE (announced_at) ON catalog.syncs TO x402_catalog;

-- migrate:down

REVOKE UPDATE (announced_at) ON catalog.syncs FROM x402_catalog;
DROP INDEX catalog.syncs_unannounced;
DROP INDEX catalog.syncs_due_key;
ALTER TABLE catalog.syncs
    DROP CONSTRAINT syncs_reason_check,
    ADD CONSTRAINT syncs_reason_check CHECK ((reason IS NOT NULL) = (outcome IN ('refused', 'failed'))) NOT VALID,
    DROP COLUMN announced_at,
    DROP COLUMN curated_missing,
    DROP COLUMN forced,
    DROP COLUMN due;
DROP TABLE catalog.sync_attempts;
DROP TABLE catalog.sync_changes;
