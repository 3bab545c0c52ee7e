-- migrate:up

-- Runs with a test key spend nothing real: they are held against the limits by themselves.
ALTER TABLE catalog.spending
    ADD COLUMN mode text NOT NULL DEFAULT 'live',
    ADD CONSTRAINT spending_mode_check CHECK (mode IN ('live', 'test')),
    DROP CONSTRAINT spending_pkey,
    ADD CONSTRAINT spending_pkey PRIMARY KEY (owner, day, mode, scope, subject);

-- The sums so far are of both together; the runs that they are sums of tell them apart.
TRUNCATE catalog.spending;
INSERT INTO catalog.spending (owner, day, mode, scope, subject, model_usd, cost_unknown_runs)
SELECT r.owner, r.day, r.mode, share.scope, share.subject, coalesce(sum(r.model_usd), 0),
    count(*) FILTER (WHERE r.model_usd IS NULL)
FROM catalog.runs AS r CROSS JOIN LATERAL (
    VALUES ('key', ''), ('caller', r.caller_kind || ':' || r.caller_id), ('resource', r.resource_id::text)
) AS share (scope, subject)
WHERE share.subject IS NOT NULL
GROUP BY r.owner, r.day, r.mode, share.scope, share.subject;

-- migrate:down

ALTER TABLE catalog.spending
    DROP CONSTRAINT spending_pkey,
    DROP CONSTRAINT spending_mode_check;

WITH taken AS (DELETE FROM catalog.spending RETURNING *)
INSERT INTO catalog.spending (owner, day, mode, scope, subject, model_usd, cost_unknown_runs)
SELECT owner, day, 'live', scope, subject, sum(model_usd), sum(cost_unknown_runs)
FROM taken GROUP BY owner, day, scope, subject;

ALTER TABLE catalog.spending
    DROP COLUMN mode,
    ADD CONSTRAINT spending_pkey PRIMARY KEY (owner, day, scope, subject);
