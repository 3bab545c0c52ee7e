-- migrate:up

-- What each sync overwrote: the model as it was, null for one that was new. Laid over the models of today, latest sync
-- first, it gives the list that a search was begun on, on whichever replica its next page is asked for. A sync is
-- `restorable` as long as this is known of it; the next sync takes away what nobody pages through any more.
CREATE TABLE catalog.former_models (
    sync_id bigint NOT NULL,
    model_id text NOT NULL,
    model jsonb,
    CONSTRAINT former_models_pkey PRIMARY KEY (sync_id, model_id),
    CONSTRAINT former_models_sync_id_fkey FOREIGN KEY (sync_id) REFERENCES catalog.syncs (id)
);

ALTER TABLE catalog.syncs ADD COLUMN restorable boolean NOT NULL DEFAULT false;

GRANT SELECT, INSERT, DELETE ON catalog.former_models TO x402_catalog;
GRANT UPDATE (restorable) ON catalog.syncs TO x402_catalog;

-- migrate:down

REVOKE UPDATE (restorable) ON catalog.syncs FROM x402_catalog;
ALTER TABLE catalog.syncs DROP COLUMN restorable;
DROP TABLE catalog.former_models;
