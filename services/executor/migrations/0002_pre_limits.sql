-- migrate:up

-- What a run holds of its creator's daily limits, and the UTC day that it is still to be counted into: null once it has
-- been counted, or where its creator has no limits.
ALTER TABLE executor.executions ADD COLUMN hold_usd numeric, ADD COLUMN unsettled_day date;
CREATE INDEX executions_to_settle ON executor.executions (owner)
    WHERE unsettled_day IS NOT NULL AND finished_at IS NOT NULL AND cost_status <> 'pending';
-- The queue is a line per caller of each key.
CREATE INDEX executions_lines ON executor.executions (owner, caller_kind, caller_id, created_at) WHERE status = 'queued';
-- For what a creator spent today before the first limit was met; costs next to nothing per run.
CREATE INDEX executions_by_time ON executor.executions USING brin (created_at);

-- What upstream asked to be left alone: all of a key, its free models (`free`), or one model of it (`model:<id>`).
CREATE TABLE executor.cooldowns (
    owner text NOT NULL,
    about text NOT NULL,
    reason text NOT NULL CHECK (reason IN ('platform', 'free_tier', 'provider')),
    until timestamptz NOT NULL,
    key_version integer NOT NULL,
    PRIMARY KEY (owner, about)
);

-- Requests per minute, by the generic cell rate algorithm: `due` is when the next one would be due if they came evenly; how
-- far it may lie ahead is how many may come at once. The caller is empty for all callers of a key. Lost in a crash, on purpose.
CREATE UNLOGGED TABLE executor.request_rates (
    owner text NOT NULL,
    caller text NOT NULL,
    due timestamptz NOT NULL,
    PRIMARY KEY (owner, caller)
) WITH (fillfactor = 50);

-- A creator's day, for creators with daily limits alone. `held_usd` is the sum of `hold_usd` over runs that are not counted yet.
CREATE TABLE executor.budget_days (
    owner text NOT NULL,
    mode text NOT NULL CHECK (mode IN ('live', 'test')),
    day date NOT NULL,
    scope text NOT NULL CHECK (scope IN ('key', 'resource', 'caller')),
    subject text NOT NULL,
    held_usd numeric NOT NULL DEFAULT 0,
    spent_usd numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (owner, mode, day, scope, subject)
) WITH (fillfactor = 50);

-- The run that the same request made before (existing), or that stands in its way (conflict); no row when there is none.
CREATE FUNCTION executor.same_request(
    p_id uuid, p_caller_kind text, p_caller_id text, p_idempotency_key text, p_request_hash bytea
) RETURNS TABLE (outcome text, execution_id uuid, admitted_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    known record;
BEGIN
    SELECT e.id, e.request_hash, e.caller_kind, e.caller_id, e.created_at INTO known
    FROM executor.executions e WHERE e.id = p_id;
    IF known.id IS NULL AND p_idempotency_key IS NOT NULL THEN
        SELECT e.id, e.request_hash, e.caller_kind, e.caller_id, e.created_at INTO known
        FROM executor.executions e
        WHERE e.caller_kind = p_caller_kind AND e.caller_id = p_caller_id AND e.idempotency_key = p_idempotency_key;
        IF known.created_at < now() - interval '24 hours' THEN
            UPDATE executor.executions SET idempotency_key = NULL WHERE id = known.id;
            RETURN;
        END IF;
    END IF;
    IF known.id IS NULL THEN
        RETURN;
    ELSIF known.request_hash = p_request_hash AND known.caller_kind = p_caller_kind AND known.caller_id = p_caller_id THEN
        RETURN QUERY SELECT 'existing', known.id, known.created_at;
    ELSE
        RETURN QUERY SELECT 'conflict', p_id, known.created_at;
    END IF;
END
$$;

-- Count ended runs of an owner into their days: what they held is free again, what they cost is spent. A cost that is being
-- looked up goes on being held; one that nobody can find out has cost all that was held for it. Under the owner's lock.
CREATE FUNCTION executor.settle_budgets(p_owner text) RETURNS void
LANGUAGE sql AS $$
    WITH ended AS (
        SELECT e.id, e.mode, e.unsettled_day, e.resource_id, e.caller_kind || ':' || e.caller_id AS caller,
               coalesce(e.hold_usd, 0) AS held,
               CASE e.cost_status WHEN 'final' THEN e.cost_usd ELSE coalesce(e.hold_usd, 0) END AS cost
        FROM executor.executions e
        WHERE e.owner = p_owner AND e.unsettled_day IS NOT NULL AND e.finished_at IS NOT NULL AND e.cost_status <> 'pending'
        LIMIT 1000
        FOR UPDATE SKIP LOCKED
    ), counted AS (
        UPDATE executor.executions e SET unsettled_day = NULL FROM ended WHERE e.id = ended.id
    )
    INSERT INTO executor.budget_days AS b (owner, mode, day, scope, subject, held_usd, spent_usd)
    SELECT p_owner, ended.mode, ended.unsettled_day, s.scope, s.subject, -sum(ended.held), sum(ended.cost)
    FROM ended
    CROSS JOIN LATERAL (
        VALUES ('key', ''), ('resource', ended.resource_id::text), ('caller', ended.caller)
    ) AS s (scope, subject)
    WHERE s.subject IS NOT NULL
    GROUP BY 2, 3, 4, 5
    ON CONFLICT (owner, mode, day, scope, subject) DO UPDATE
    SET held_usd = b.held_usd + EXCLUDED.held_usd, spent_usd = b.spent_usd + EXCLUDED.spent_usd
$$;

-- Begin to count an owner's day: with what today's runs have cost so far. Those under way are counted when they end. The
-- order matters: a run that ends between the two statements is seen by the second one. Under the owner's lock.
CREATE FUNCTION executor.open_budget_day(p_owner text, p_mode text, p_day date) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    midnight timestamptz := p_day::timestamp AT TIME ZONE 'UTC';
BEGIN
    UPDATE executor.executions SET unsettled_day = p_day
    WHERE owner = p_owner AND mode = p_mode AND created_at >= midnight AND unsettled_day IS NULL
      AND (finished_at IS NULL OR cost_status = 'pending');
    INSERT INTO executor.budget_days (owner, mode, day, scope, subject, spent_usd)
    SELECT p_owner, p_mode, p_day, s.scope, s.subject, sum(coalesce(e.cost_usd, 0))
    FROM executor.executions e
    CROSS JOIN LATERAL (
        VALUES ('key', ''), ('resource', e.resource_id::text), ('caller', e.caller_kind || ':' || e.caller_id)
    ) AS s (scope, subject)
    WHERE e.owner = p_owner AND e.mode = p_mode AND e.created_at >= midnight AND e.unsettled_day IS NULL
      AND e.finished_at IS NOT NULL AND s.subject IS NOT NULL
    GROUP BY s.scope, s.subject
    ON CONFLICT DO NOTHING;
    INSERT INTO executor.budget_days (owner, mode, day, scope, subject) VALUES (p_owner, p_mode, p_day, 'key', '')
    ON CONFLICT DO NOTHING;
END
$$;

-- The daily limit that has no room for a run which may cost as much as `p_hold`; no row when all have. The one that only
-- tomorrow helps with comes first. Under the owner's lock.
CREATE FUNCTION executor.budget_refusal(
    p_owner text, p_mode text, p_resource_id uuid, p_caller text, p_hold numeric, p_key_usd numeric,
    p_resource_usd numeric, p_caller_usd numeric
) RETURNS TABLE (scope text, limit_usd numeric, spent_usd numeric, held_usd numeric)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    IF NOT EXISTS (
        SELECT FROM executor.budget_days b
        WHERE b.owner = p_owner AND b.mode = p_mode AND b.day = today AND b.scope = 'key' AND b.subject = ''
    ) THEN
        PERFORM executor.open_budget_day(p_owner, p_mode, today);
    END IF;
    PERFORM executor.settle_budgets(p_owner);
    RETURN QUERY
    SELECT l.scope, l.usd, coalesce(b.spent_usd, 0), coalesce(b.held_usd, 0)
    FROM (
        VALUES ('key', '', p_key_usd), ('resource', p_resource_id::text, p_resource_usd), ('caller', p_caller, p_caller_usd)
    ) AS l (scope, subject, usd)
    LEFT JOIN executor.budget_days b
        ON b.owner = p_owner AND b.mode = p_mode AND b.day = today AND b.scope = l.scope AND b.subject = l.subject
    WHERE coalesce(b.spent_usd, 0) + coalesce(b.held_usd, 0) + p_hold > l.usd
    ORDER BY coalesce(b.spent_usd, 0) + p_hold > l.usd DESC, l.usd - coalesce(b.spent_usd, 0)
    LIMIT 1;
END
$$;

-- The day that a run of this owner has to be counted into; null where nobody limits anything.
CREATE FUNCTION executor.open_day(p_owner text, p_mode text) RETURNS date
LANGUAGE sql STABLE AS $$
    SELECT b.day FROM executor.budget_days b
    WHERE b.owner = p_owner AND b.mode = p_mode AND b.day = (now() AT TIME ZONE 'UTC')::date AND b.scope = 'key' AND b.subject = ''
$$;

-- Hold what an admitted run may cost. Under the owner's lock, after `budget_refusal` found room.
CREATE FUNCTION executor.hold_budget(p_owner text, p_mode text, p_resource_id uuid, p_caller text, p_hold numeric)
RETURNS void
LANGUAGE sql AS $$
    INSERT INTO executor.budget_days AS b (owner, mode, day, scope, subject, held_usd)
    SELECT p_owner, p_mode, (now() AT TIME ZONE 'UTC')::date, s.scope, s.subject, p_hold
    FROM (VALUES ('key', ''), ('resource', p_resource_id::text), ('caller', p_caller)) AS s (scope, subject)
    WHERE s.subject IS NOT NULL
    ON CONFLICT (owner, mode, day, scope, subject) DO UPDATE SET held_usd = b.held_usd + EXCLUDED.held_usd
$$;

-- Seconds until one more request fits into so many a minute; null when it does now. A limit of 0 is none.
CREATE FUNCTION executor.rate_wait(p_due timestamptz, p_per_minute integer) RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_per_minute > 0 AND p_due - now() > interval '60 seconds' - interval '60 seconds' / nullif(p_per_minute, 0)
        THEN extract(epoch FROM p_due - now() - interval '60 seconds' + interval '60 seconds' / nullif(p_per_minute, 0))::double precision
    END
$$;

-- Count one request against both limits.
CREATE FUNCTION executor.count_request(
    p_owner text, p_caller text, p_per_key integer, p_per_caller integer, p_key_due timestamptz, p_caller_due timestamptz
) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO executor.request_rates (owner, caller, due)
    SELECT p_owner, r.caller, greatest(r.due, now()) + interval '60 seconds' / r.per_minute
    FROM (VALUES ('', p_per_key, p_key_due), (p_caller, p_per_caller, p_caller_due)) AS r (caller, per_minute, due)
    WHERE r.per_minute > 0
    ON CONFLICT (owner, caller) DO UPDATE SET due = EXCLUDED.due
$$;

-- Admission in one round trip. Outcomes: admitted (the row is running, its first attempt exists), existing (the same request
-- again: nothing was written), conflict (the id or the key stands for another request), cooling (upstream asked for a pause),
-- rate (too many requests in a minute), full (no free slot), budget (no room within a daily limit). Refusals write no run.
--
-- One slot of a key with several is the queue's while something has waited in it for a second: plain calls cannot starve it.
CREATE FUNCTION executor.admit(
    p_id uuid, p_owner text, p_caller_kind text, p_caller_id text, p_viewer text, p_resource_id uuid,
    p_resource_version integer, p_model_id text, p_mode text, p_pricing jsonb, p_idempotency_key text,
    p_request_hash bytea, p_running_per_key integer, p_executor text, p_lease_token uuid, p_lease interval,
    p_cooling text[], p_per_key integer, p_per_caller integer, p_hold numeric, p_key_usd numeric, p_resource_usd numeric,
    p_caller_usd numeric
) RETURNS TABLE (
    outcome text, execution_id uuid, admitted_at timestamptz, reason text, wait_s double precision, limit_usd numeric,
    spent_usd numeric, held_usd numeric
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    who text := p_caller_kind || ':' || p_caller_id;
    same record;
    running bigint;
    jobs bigint;
    cooling record;
    due record;
    wait double precision;
    refusal record;
BEGIN
    -- The first look needs no lock; the second one decides, under the lock of this key's owner.
    FOR turn IN 1..2 LOOP
        SELECT * INTO same FROM executor.same_request(p_id, p_caller_kind, p_caller_id, p_idempotency_key, p_request_hash);
        IF FOUND THEN
            RETURN QUERY SELECT same.outcome, same.execution_id, same.admitted_at, NULL, NULL::float8, NULL::numeric, NULL::numeric, NULL::numeric;
            RETURN;
        END IF;
        EXIT WHEN turn = 2;
        PERFORM pg_advisory_xact_lock(hashtextextended('x402jobs.executor.admit:' || p_owner, 0));
    END LOOP;

    SELECT c.reason, extract(epoch FROM c.until - now())::float8 AS wait_s INTO cooling
    FROM executor.cooldowns c
    WHERE c.owner = p_owner AND c.about = ANY (p_cooling) AND c.until > now()
    ORDER BY c.until DESC LIMIT 1;
    IF FOUND THEN
        RETURN QUERY SELECT 'cooling', p_id, now(), cooling.reason, cooling.wait_s, NULL::numeric, NULL::numeric, NULL::numeric;
        RETURN;
    END IF;

    IF p_per_key > 0 OR p_per_caller > 0 THEN
        SELECT (SELECT r.due FROM executor.request_rates r WHERE r.owner = p_owner AND r.caller = '') AS of_key,
               (SELECT r.due FROM executor.request_rates r WHERE r.owner = p_owner AND r.caller = who) AS of_caller
        INTO due;
        wait := executor.rate_wait(due.of_caller, p_per_caller);
        IF wait IS NULL THEN
            wait := executor.rate_wait(due.of_key, p_per_key);
            IF wait IS NOT NULL THEN
                RETURN QUERY SELECT 'rate', p_id, now(), 'key', wait, NULL::numeric, NULL::numeric, NULL::numeric;
                RETURN;
            END IF;
        ELSE
            RETURN QUERY SELECT 'rate', p_id, now(), 'caller', wait, NULL::numeric, NULL::numeric, NULL::numeric;
            RETURN;
        END IF;
    END IF;

    SELECT count(*), count(*) FILTER (WHERE e.job IS NOT NULL) INTO running, jobs
    FROM executor.executions e
    WHERE e.owner = p_owner AND e.status = 'running' AND e.lease_until > now();
    IF running >= p_running_per_key OR (
        running = p_running_per_key - 1 AND jobs = 0 AND p_running_per_key > 1 AND EXISTS (
            SELECT FROM executor.executions q
            WHERE q.owner = p_owner AND q.status = 'queued' AND q.created_at < now() - interval '1 second'
        )
    ) THEN
        RETURN QUERY SELECT 'full', p_id, now(), NULL, NULL::float8, NULL::numeric, NULL::numeric, NULL::numeric;
        RETURN;
    END IF;

    IF p_hold IS NOT NULL THEN
        SELECT * INTO refusal FROM executor.budget_refusal(
            p_owner, p_mode, p_resource_id, who, p_hold, p_key_usd, p_resource_usd, p_caller_usd
        );
        IF FOUND THEN
            RETURN QUERY SELECT 'budget', p_id, now(), refusal.scope, NULL::float8, refusal.limit_usd, refusal.spent_usd, refusal.held_usd;
            RETURN;
        END IF;
    END IF;

    INSERT INTO executor.executions (
        id, owner, caller_kind, caller_id, viewer, resource_id, resource_version, model_id, mode, pricing, status,
        idempotency_key, request_hash, executor, lease_token, lease_until, started_at, hold_usd, unsettled_day
    ) VALUES (
        p_id, p_owner, p_caller_kind, p_caller_id, p_viewer, p_resource_id, p_resource_version, p_model_id, p_mode,
        p_pricing, 'running', p_idempotency_key, p_request_hash, p_executor, p_lease_token, now() + p_lease, now(),
        p_hold, executor.open_day(p_owner, p_mode)
    )
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        -- The same id or key was admitted for another owner's resource, or queued, in this very moment.
        RETURN QUERY
        SELECT s.outcome, s.execution_id, s.admitted_at, NULL, NULL::float8, NULL::numeric, NULL::numeric, NULL::numeric
        FROM executor.same_request(p_id, p_caller_kind, p_caller_id, p_idempotency_key, p_request_hash) s;
        RETURN;
    END IF;
    INSERT INTO executor.attempts (execution_id, number) VALUES (p_id, 1);
    IF p_hold IS NOT NULL THEN
        PERFORM executor.hold_budget(p_owner, p_mode, p_resource_id, who, p_hold);
    END IF;
    IF p_per_key > 0 OR p_per_caller > 0 THEN
        PERFORM executor.count_request(p_owner, who, p_per_key, p_per_caller, due.of_key, due.of_caller);
    END IF;
    RETURN QUERY SELECT 'admitted', p_id, now(), NULL, NULL::float8, NULL::numeric, NULL::numeric, NULL::numeric;
END
$$;

-- Accept a run to be done later, in one round trip. Outcomes as of `admit`; only a daily limit refuses one, because nothing
-- else is for ever: a queued run waits for slots, cooldowns and the minute.
CREATE FUNCTION executor.enqueue(
    p_id uuid, p_owner text, p_caller_kind text, p_caller_id text, p_viewer text, p_resource_id uuid,
    p_resource_version integer, p_model_id text, p_mode text, p_pricing jsonb, p_idempotency_key text,
    p_request_hash bytea, p_job bytea, p_job_key_id text, p_media text[], p_hold numeric, p_key_usd numeric, p_resource_usd numeric,
    p_caller_usd numeric
) RETURNS TABLE (
    outcome text, execution_id uuid, admitted_at timestamptz, reason text, wait_s double precision, limit_usd numeric,
    spent_usd numeric, held_usd numeric
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    who text := p_caller_kind || ':' || p_caller_id;
    refusal record;
BEGIN
    -- The lock also keeps a day from being opened between our look at it and our row.
    PERFORM pg_advisory_xact_lock(hashtextextended('x402jobs.executor.admit:' || p_owner, 0));
    RETURN QUERY
    SELECT s.outcome, s.execution_id, s.admitted_at, NULL, NULL::float8, NULL::numeric, NULL::numeric, NULL::numeric
    FROM executor.same_request(p_id, p_caller_kind, p_caller_id, p_idempotency_key, p_request_hash) s;
    IF FOUND THEN
        RETURN;
    END IF;
    IF p_hold IS NOT NULL THEN
        SELECT * INTO refusal FROM executor.budget_refusal(
            p_owner, p_mode, p_resource_id, who, p_hold, p_key_usd, p_resource_usd, p_caller_usd
        );
        IF FOUND THEN
            RETURN QUERY SELECT 'budget', p_id, now(), refusal.scope, NULL::float8, refusal.limit_usd, refusal.spent_usd, refusal.held_usd;
            RETURN;
        END IF;
    END IF;
    INSERT INTO executor.executions (
        id, owner, caller_kind, caller_id, viewer, resource_id, resource_version, model_id, mode, pricing, status,
        idempotency_key, request_hash, job, job_key_id, hold_usd, unsettled_day
    ) VALUES (
        p_id, p_owner, p_caller_kind, p_caller_id, p_viewer, p_resource_id, p_resource_version, p_model_id, p_mode,
        p_pricing, 'queued', p_idempotency_key, p_request_hash, p_job, p_job_key_id, p_hold,
        executor.open_day(p_owner, p_mode)
    )
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN QUERY
        SELECT s.outcome, s.execution_id, s.admitted_at, NULL, NULL::float8, NULL::numeric, NULL::numeric, NULL::numeric
        FROM executor.same_request(p_id, p_caller_kind, p_caller_id, p_idempotency_key, p_request_hash) s;
        RETURN;
    END IF;
    INSERT INTO executor.media_references (name, execution_id) SELECT unnest(p_media), p_id;
    IF p_hold IS NOT NULL THEN
        PERFORM executor.hold_budget(p_owner, p_mode, p_resource_id, who, p_hold);
    END IF;
    RETURN QUERY SELECT 'admitted', p_id, now(), NULL, NULL::float8, NULL::numeric, NULL::numeric, NULL::numeric;
END
$$;

-- Take one queued run whose key has a free slot: of that key, the caller with the fewest running, then the oldest. What it
-- costs depends on how many keys have something queued and how many callers that key has, not on how much is queued: both
-- are found by leaps over the index. A key with several slots keeps one for plain calls.
CREATE FUNCTION executor.claim(
    p_running_per_key integer, p_executor text, p_lease_token uuid, p_lease interval, p_per_key integer, p_per_caller integer
) RETURNS SETOF executor.executions
LANGUAGE plpgsql AS $$
DECLARE
    candidate record;
    chosen record;
    cooled text[];
    key_due timestamptz;
    running bigint;
    jobs bigint;
BEGIN
    FOR candidate IN
        WITH RECURSIVE keys AS (
            (SELECT q.owner FROM executor.executions q WHERE q.status = 'queued' ORDER BY q.owner LIMIT 1)
            UNION ALL
            SELECT n.owner FROM keys k CROSS JOIN LATERAL (
                SELECT q.owner FROM executor.executions q
                WHERE q.status = 'queued' AND q.owner > k.owner ORDER BY q.owner LIMIT 1
            ) AS n
        )
        SELECT k.owner FROM keys k
        WHERE (SELECT count(*) FROM executor.executions r
               WHERE r.owner = k.owner AND r.status = 'running' AND r.lease_until > now()) < p_running_per_key
        ORDER BY random()
        LIMIT 50
    LOOP
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(hashtextextended('x402jobs.executor.admit:' || candidate.owner, 0));
        SELECT count(*), count(*) FILTER (WHERE r.job IS NOT NULL) INTO running, jobs
        FROM executor.executions r
        WHERE r.owner = candidate.owner AND r.status = 'running' AND r.lease_until > now();
        CONTINUE WHEN running >= p_running_per_key OR jobs >= greatest(p_running_per_key - 1, 1);
        SELECT array_agg(c.about) INTO cooled FROM executor.cooldowns c WHERE c.owner = candidate.owner AND c.until > now();
        CONTINUE WHEN 'key' = ANY (cooled);
        SELECT r.due INTO key_due FROM executor.request_rates r WHERE r.owner = candidate.owner AND r.caller = '';
        CONTINUE WHEN executor.rate_wait(key_due, p_per_key) IS NOT NULL;
        WITH RECURSIVE lines AS (
            (SELECT q.caller_kind, q.caller_id FROM executor.executions q
             WHERE q.status = 'queued' AND q.owner = candidate.owner
             ORDER BY q.caller_kind, q.caller_id LIMIT 1)
            UNION ALL
            SELECT n.caller_kind, n.caller_id FROM lines l CROSS JOIN LATERAL (
                SELECT q.caller_kind, q.caller_id FROM executor.executions q
                WHERE q.status = 'queued' AND q.owner = candidate.owner
                  AND (q.caller_kind, q.caller_id) > (l.caller_kind, l.caller_id)
                ORDER BY q.caller_kind, q.caller_id LIMIT 1
            ) AS n
        )
        SELECT head.id, l.caller_kind || ':' || l.caller_id AS caller, rate.due INTO chosen
        FROM lines l
        LEFT JOIN executor.request_rates rate
            ON rate.owner = candidate.owner AND rate.caller = l.caller_kind || ':' || l.caller_id
        CROSS JOIN LATERAL (
            SELECT count(*) AS running FROM executor.executions r
            WHERE r.owner = candidate.owner AND r.status = 'running'
              AND r.caller_kind = l.caller_kind AND r.caller_id = l.caller_id
        ) AS busy
        CROSS JOIN LATERAL (
            SELECT q.id, q.created_at FROM executor.executions q
            WHERE q.status = 'queued' AND q.owner = candidate.owner
              AND q.caller_kind = l.caller_kind AND q.caller_id = l.caller_id
              AND (cooled IS NULL OR NOT ('model:' || q.model_id = ANY (cooled)
                   OR ('free' = ANY (cooled) AND (q.model_id LIKE '%:free' OR q.model_id = 'openrouter/free'))))
            ORDER BY q.created_at LIMIT 1
        ) AS head
        WHERE executor.rate_wait(rate.due, p_per_caller) IS NULL
        ORDER BY busy.running, head.created_at
        LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        -- Somebody may be canceling it.
        PERFORM FROM executor.executions e WHERE e.id = chosen.id AND e.status = 'queued' FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        RETURN QUERY
        UPDATE executor.executions e
        SET status = 'running', executor = p_executor, lease_token = p_lease_token, lease_until = now() + p_lease, started_at = now()
        WHERE e.id = chosen.id
        RETURNING e.*;
        -- There is one already where the run was claimed before and put back.
        INSERT INTO executor.attempts (execution_id, number) VALUES (chosen.id, 1)
        ON CONFLICT (execution_id, number) DO UPDATE SET started_at = now();
        PERFORM executor.count_request(candidate.owner, chosen.caller, p_per_key, p_per_caller, key_due, chosen.due);
        RETURN;
    END LOOP;
END
$$;

GRANT SELECT, INSERT, UPDATE, DELETE ON executor.cooldowns, executor.request_rates, executor.budget_days TO x402_executor;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA executor TO x402_executor;

-- migrate:down
DROP FUNCTION executor.claim(integer, text, uuid, interval, integer, integer);
DROP FUNCTION executor.enqueue(uuid, text, text, text, text, uuid, integer, text, text, jsonb, text, bytea, bytea, text, text[], numeric, numeric, numeric, numeric);
DROP FUNCTION executor.admit(uuid, text, text, text, text, uuid, integer, text, text, jsonb, text, bytea, integer, text, uuid, interval, text[], integer, integer, numeric, numeric, numeric, numeric);
DROP FUNCTION executor.count_request(text, text, integer, integer, timestamptz, timestamptz);
DROP FUNCTION executor.rate_wait(timestamptz, integer);
DROP FUNCTION executor.hold_budget(text, text, uuid, text, numeric);
DROP FUNCTION executor.open_day(text, text);
DROP FUNCTION executor.budget_refusal(text, text, uuid, text, numeric, numeric, numeric, numeric);
DROP FUNCTION executor.open_budget_day(text, text, date);
DROP FUNCTION executor.settle_budgets(text);
DROP FUNCTION executor.same_request(uuid, text, text, text, bytea);
DROP TABLE executor.budget_days, executor.request_rates, executor.cooldowns;
DROP INDEX executor.executions_by_time, executor.executions_lines, executor.executions_to_settle;
ALTER TABLE executor.executions DROP COLUMN hold_usd, DROP COLUMN unsettled_day;
