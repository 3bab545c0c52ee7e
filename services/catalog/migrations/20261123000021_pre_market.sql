-- migrate:up

ALTER TABLE catalog.x402_resources
    ADD COLUMN example_output text NOT NULL DEFAULT '',
    ADD COLUMN margin_rule text NOT NULL DEFAULT 'warn',
    ADD CONSTRAINT x402_resources_margin_rule_check CHECK (margin_rule IN ('warn', 'pause'));

-- What was last seen of every model that a resource names: {model_id: {status, retires_on, price_id, pricing}}. A resource
-- whose models look otherwise today has something to be told about; the comparison and the telling are one transaction.
CREATE TABLE catalog.resource_reviews (
    resource_id uuid NOT NULL,
    models jsonb NOT NULL,
    CONSTRAINT resource_reviews_pkey PRIMARY KEY (resource_id),
    CONSTRAINT resource_reviews_resource_id_fkey FOREIGN KEY (resource_id) REFERENCES catalog.x402_resources (id)
);

-- What creators are told. `cause` names what it is about, so that nothing is said, or acted upon, twice; it is null where
-- the comparison in resource_reviews sees to that. `announced_at` is null until the stream has acknowledged it.
CREATE TABLE catalog.notices (
    id bigint GENERATED ALWAYS AS IDENTITY,
    owner text NOT NULL,
    resource_id uuid,
    kind text NOT NULL,
    cause text,
    body jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    announced_at timestamptz,
    CONSTRAINT notices_pkey PRIMARY KEY (id),
    CONSTRAINT notices_cause_key UNIQUE (owner, cause),
    CONSTRAINT notices_resource_id_fkey FOREIGN KEY (resource_id) REFERENCES catalog.x402_resources (id)
);

CREATE INDEX notices_unannounced ON catalog.notices (id) WHERE announced_at IS NULL;
CREATE INDEX notices_by_resource ON catalog.notices (resource_id, id DESC) WHERE resource_id IS NOT NULL;

-- One row per execution that ended: its receipt of the highest revision, as far as figures need it. `resource_id` is null
-- for a preview; it references nothing, because a receipt is a fact whatever became of the resource.
CREATE TABLE catalog.runs (
    execution_id uuid NOT NULL,
    revision integer NOT NULL,
    owner text NOT NULL,
    resource_id uuid,
    version integer NOT NULL,
    caller_kind text NOT NULL,
    caller_id text NOT NULL,
    mode text NOT NULL,
    status text NOT NULL,
    code text,
    finished_at timestamptz NOT NULL,
    day date NOT NULL,
    total_ms bigint NOT NULL,
    model_usd numeric,
    price_usd numeric,
    markup_usd numeric,
    prompt_tokens bigint,
    completion_tokens bigint,
    reasoning_tokens bigint,
    cached_tokens bigint,
    CONSTRAINT runs_pkey PRIMARY KEY (execution_id)
);

CREATE INDEX runs_by_resource ON catalog.runs (resource_id, finished_at DESC) WHERE resource_id IS NOT NULL;

-- What a creator's runs of a day cost: with the key, by resource, by caller. Kept in step with catalog.runs.
CREATE TABLE catalog.spending (
    owner text NOT NULL,
    day date NOT NULL,
    scope text NOT NULL,
    subject text NOT NULL,
    model_usd numeric NOT NULL,
    cost_unknown_runs bigint NOT NULL,
    CONSTRAINT spending_pkey PRIMARY KEY (owner, day, scope, subject),
    CONSTRAINT spending_scope_check CHECK (scope IN ('key', 'resource', 'caller'))
);

CREATE TABLE catalog.budgets (
    owner text NOT NULL,
    limits jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT budgets_pkey PRIMARY KEY (owner)
);

GRANT SELECT, INSERT, UPDATE ON catalog.resource_reviews, catalog.runs, catalog.spending, catalog.budgets TO x402_catalog;
GRANT SELECT, INSERT ON catalog.notices TO x402_catalog;
GRANT UPDATE (announced_at) ON catalog.notices TO x402_catalog;

-- migrate:down

DROP TABLE catalog.budgets;
DROP TABLE catalog.spending;
DROP TABLE catalog.runs;
DROP TABLE catalog.notices;
DROP TABLE catalog.resource_reviews;
ALTER TABLE catalog.x402_resources
    DROP CONSTRAINT x402_resources_margin_rule_check,
    DROP COLUMN margin_rule,
    DROP COLUMN example_output;
