-- migrate:up

-- What runs with a test key took says little of what live ones will: kept apart, and used only where there are no live ones.
ALTER TABLE catalog.resource_token_stats
    ADD COLUMN mode text NOT NULL DEFAULT 'live',
    ADD CONSTRAINT resource_token_stats_mode_check CHECK (mode IN ('live', 'test')),
    DROP CONSTRAINT resource_token_stats_pkey,
    ADD CONSTRAINT resource_token_stats_pkey PRIMARY KEY (resource_id, version, mode);

-- The sums so far are of both together; the runs that they are sums of tell them apart.
TRUNCATE catalog.resource_token_stats;
INSERT INTO catalog.resource_token_stats
    (resource_id, version, mode, runs, prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens)
SELECT r.resource_id, r.version, r.mode, count(*), sum(r.prompt_tokens), sum(r.completion_tokens),
    coalesce(sum(r.reasoning_tokens), 0), coalesce(sum(r.cached_tokens), 0)
FROM catalog.runs AS r JOIN catalog.x402_resources AS x ON x.id = r.resource_id
WHERE r.status = 'succeeded' AND r.prompt_tokens IS NOT NULL AND r.completion_tokens IS NOT NULL
GROUP BY r.resource_id, r.version, r.mode;

-- migrate:down

ALTER TABLE catalog.resource_token_stats
    DROP CONSTRAINT resource_token_stats_pkey,
    DROP CONSTRAINT resource_token_stats_mode_check;

WITH taken AS (DELETE FROM catalog.resource_token_stats RETURNING *)
INSERT INTO catalog.resource_token_stats
    (resource_id, version, mode, runs, prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens)
SELECT resource_id, version, 'live', sum(runs), sum(prompt_tokens), sum(completion_tokens), sum(reasoning_tokens),
    sum(cached_tokens)
FROM taken GROUP BY resource_id, version;

ALTER TABLE catalog.resource_token_stats
    DROP COLUMN mode,
    ADD CONSTRAINT resource_token_stats_pkey PRIMARY KEY (resource_id, version);
