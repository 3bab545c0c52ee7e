-- migrate:up

-- Models and the resources that people publish on them. Everything belongs to whoever migrates; the service's role owns
-- nothing and deletes nothing: models retire, resources are marked deleted, prices, versions and syncs are history.

CREATE SCHEMA IF NOT EXISTS catalog;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'x402_catalog') THEN
        CREATE ROLE x402_catalog LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
    END IF;
END
$$;

-- One row per reading of the upstream list, whatever came of it. `etag` belongs to `source`, the address that was read.
CREATE TABLE catalog.syncs (
    id bigint GENERATED ALWAYS AS IDENTITY,
    outcome text NOT NULL,
    requested_by text NOT NULL,
    source text NOT NULL,
    etag text,
    models integer NOT NULL,
    skipped integer NOT NULL,
    added text[] NOT NULL,
    retired text[] NOT NULL,
    returned text[] NOT NULL,
    repriced text[] NOT NULL,
    reason text,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT syncs_pkey PRIMARY KEY (id),
    CONSTRAINT syncs_outcome_check CHECK (outcome IN ('applied', 'unchanged', 'refused', 'failed')),
    CONSTRAINT syncs_reason_check CHECK ((reason IS NOT NULL) = (outcome IN ('refused', 'failed')))
);

-- `pricing` holds upstream's strings to the letter, and the kind that we read from them.
CREATE TABLE catalog.ai_models (
    id text NOT NULL,
    canonical_slug text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    created_at timestamptz NOT NULL,
    context_length bigint,
    max_completion_tokens bigint,
    input_modalities text[] NOT NULL,
    output_modalities text[] NOT NULL,
    pricing jsonb NOT NULL,
    supported_parameters text[] NOT NULL,
    alias_target text,
    retires_on date,
    status text NOT NULL,
    popularity_rank integer,
    CONSTRAINT ai_models_pkey PRIMARY KEY (id),
    CONSTRAINT ai_models_status_check CHECK (status IN ('available', 'retiring', 'retired'))
);

CREATE TABLE catalog.ai_model_prices (
    model_id text NOT NULL,
    sync_id bigint NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    pricing jsonb NOT NULL,
    CONSTRAINT ai_model_prices_pkey PRIMARY KEY (model_id, sync_id),
    CONSTRAINT ai_model_prices_model_id_fkey FOREIGN KEY (model_id) REFERENCES catalog.ai_models (id),
    CONSTRAINT ai_model_prices_sync_id_fkey FOREIGN KEY (sync_id) REFERENCES catalog.syncs (id)
);

-- A published resource whose model is retired keeps the status 'published' and shows as unavailable: when the model
-- comes back, so does the resource.
CREATE TABLE catalog.x402_resources (
    id uuid NOT NULL,
    owner text NOT NULL,
    slug text NOT NULL,
    resource_type text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    model_id text NOT NULL,
    openrouter_config jsonb NOT NULL,
    inputs jsonb NOT NULL,
    pricing jsonb NOT NULL,
    timeouts jsonb NOT NULL,
    version integer NOT NULL DEFAULT 1,
    status text NOT NULL DEFAULT 'draft',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at timestamptz,
    CONSTRAINT x402_resources_pkey PRIMARY KEY (id),
    CONSTRAINT x402_resources_owner_check CHECK (owner <> ''),
    CONSTRAINT x402_resources_type_check CHECK (resource_type = 'openrouter_instant'),
    CONSTRAINT x402_resources_status_check CHECK (status IN ('draft', 'published', 'paused')),
    CONSTRAINT x402_resources_model_id_check CHECK (model_id = openrouter_config ->> 'model_id'),
    CONSTRAINT x402_resources_model_id_fkey FOREIGN KEY (model_id) REFERENCES catalog.ai_models (id)
);

CREATE UNIQUE INDEX x402_resources_owner_slug_key ON catalog.x402_resources (owner, slug) WHERE deleted_at IS NULL;
CREATE INDEX x402_resources_by_owner ON catalog.x402_resources (owner, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX x402_resources_published ON catalog.x402_resources (created_at DESC, id DESC)
    WHERE deleted_at IS NULL AND status = 'published';
CREATE INDEX x402_resources_by_model ON catalog.x402_resources (model_id) WHERE deleted_at IS NULL;

CREATE TABLE catalog.x402_resource_versions (
    resource_id uuid NOT NULL,
    version integer NOT NULL,
    draft jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT x402_resource_versions_pkey PRIMARY KEY (resource_id, version),
    CONSTRAINT x402_resource_versions_resource_id_fkey
        FOREIGN KEY (resource_id) REFERENCES catalog.x402_resources (id)
);

GRANT USAGE ON SCHEMA catalog TO x402_catalog;
GRANT SELECT, INSERT ON catalog.syncs, catalog.ai_model_prices, catalog.x402_resource_versions TO x402_catalog;
GRANT SELECT, INSERT, UPDATE ON catalog.ai_models, catalog.x402_resources TO x402_catalog;

-- migrate:down

DROP TABLE catalog.x402_resource_versions;
DROP TABLE catalog.x402_resources;
DROP TABLE catalog.ai_model_prices;
DROP TABLE catalog.ai_models;
DROP TABLE catalog.syncs;
