-- migrate:up

-- Sums over the runs of a version that succeeded and whose tokens are known: what the estimator expects of the next run.
-- Completion tokens include those spent on reasoning, prompt tokens those read from a cache.
CREATE TABLE catalog.resource_token_stats (
    resource_id uuid NOT NULL,
    version integer NOT NULL,
    runs bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    CONSTRAINT resource_token_stats_pkey PRIMARY KEY (resource_id, version),
    CONSTRAINT resource_token_stats_resource_id_fkey
        FOREIGN KEY (resource_id) REFERENCES catalog.x402_resources (id),
    CONSTRAINT resource_token_stats_runs_check CHECK (runs > 0)
);

GRANT SELECT, INSERT, UPDATE ON catalog.resource_token_stats TO x402_catalog;

-- migrate:down

DROP TABLE catalog.resource_token_stats;
