-- migrate:up
CREATE SCHEMA IF NOT EXISTS executor;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'x402_executor') THEN
        CREATE ROLE x402_executor LOGIN;
    END IF;
END
$$;

-- One row per run. Statuses: queued -> running -> succeeded | failed | canceled | interrupted.
CREATE TABLE executor.executions (
    id uuid PRIMARY KEY,
    owner text NOT NULL,
    caller_kind text NOT NULL CHECK (caller_kind IN ('user', 'service')),
    caller_id text NOT NULL,
    viewer text NOT NULL,
    payment text,
    resource_id uuid,
    resource_version integer NOT NULL,
    model_id text NOT NULL,
    mode text NOT NULL CHECK (mode IN ('live', 'test')),
    pricing jsonb NOT NULL,
    status text NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'interrupted')),
    idempotency_key text,
    request_hash bytea NOT NULL,
    -- What a queued run needs, locked under the executor's keyring; erased when it ends.
    job bytea,
    job_key_id text,
    executor text,
    lease_token uuid,
    lease_until timestamptz,
    cancel_requested boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    last_seq integer,
    truncated boolean NOT NULL DEFAULT false,
    error jsonb,
    price_usd numeric,
    cost_usd numeric,
    cost_status text CHECK (cost_status IN ('final', 'pending', 'unknown')),
    -- The result, locked under the executor's keyring with the id as additional data.
    result bytea,
    result_key_id text,
    result_expires_at timestamptz,
    CONSTRAINT executions_lease_while_running CHECK (status <> 'running' OR (lease_token IS NOT NULL AND lease_until IS NOT NULL)),
    CONSTRAINT executions_end_is_dated CHECK ((finished_at IS NULL) = (status IN ('queued', 'running')))
);
CREATE UNIQUE INDEX executions_idempotency ON executor.executions (caller_kind, caller_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX executions_running ON executor.executions (owner, lease_until) WHERE status = 'running';
CREATE INDEX executions_queued ON executor.executions (created_at) WHERE status = 'queued';
CREATE INDEX executions_by_caller ON executor.executions (caller_kind, caller_id, id DESC);
CREATE INDEX executions_by_owner ON executor.executions (owner, id DESC);
CREATE INDEX executions_expiring ON executor.executions (result_expires_at) WHERE result IS NOT NULL;

-- One row per call to the upstream, committed before the call it is for.
CREATE TABLE executor.attempts (
    execution_id uuid NOT NULL REFERENCES executor.executions (id),
    number integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    generation_id text,
    status text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'succeeded', 'failed', 'canceled', 'interrupted')),
    code text,
    http_status integer,
    cost_usd numeric,
    cost_status text CHECK (cost_status IN ('final', 'pending', 'unknown')),
    lookups integer NOT NULL DEFAULT 0,
    next_lookup_at timestamptz,
    PRIMARY KEY (execution_id, number)
);
CREATE INDEX attempts_pending ON executor.attempts (next_lookup_at) WHERE cost_status = 'pending';

-- Append-only: a cost that becomes known later is a further revision.
CREATE TABLE executor.receipts (
    execution_id uuid NOT NULL REFERENCES executor.executions (id),
    revision integer NOT NULL,
    owner text NOT NULL,
    body jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (execution_id, revision)
);

-- Messages that must go out because of what was committed with them.
CREATE TABLE executor.outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subject text NOT NULL,
    message_id text NOT NULL,
    payload bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Every stored file, and which runs refer to it: without a reference, a janitor may take it after a grace.
CREATE TABLE executor.x402_cached_images (
    name text PRIMARY KEY,
    mime_type text NOT NULL,
    bytes bigint NOT NULL,
    width integer,
    height integer,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE executor.media_references (
    name text NOT NULL REFERENCES executor.x402_cached_images (name),
    execution_id uuid NOT NULL REFERENCES executor.executions (id),
    PRIMARY KEY (name, execution_id)
);

-- Admission in one round trip. Outcomes: admitted (the row is running, its first attempt exists), existing (the same
-- request again: nothing was written), conflict (the id or the key stands for another request), full (no free slot).
CREATE FUNCTION executor.admit(
    p_id uuid, p_owner text, p_caller_kind text, p_caller_id text, p_viewer text, p_resource_id uuid,
    p_resource_version integer, p_model_id text, p_mode text, p_pricing jsonb, p_idempotency_key text,
    p_request_hash bytea, p_running_per_key integer, p_executor text, p_lease_token uuid, p_lease interval
) RETURNS TABLE (outcome text, execution_id uuid, admitted_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    known record;
BEGIN
    FOR turn IN 1..2 LOOP
        SELECT e.id, e.request_hash, e.caller_kind, e.caller_id, e.created_at INTO known
        FROM executor.executions e
        WHERE e.id = p_id
           OR (p_idempotency_key IS NOT NULL AND e.caller_kind = p_caller_kind AND e.caller_id = p_caller_id
               AND e.idempotency_key = p_idempotency_key)
        ORDER BY (e.id = p_id) DESC
        LIMIT 1;
        IF FOUND AND known.id <> p_id AND known.created_at < now() - interval '24 hours' THEN
            UPDATE executor.executions SET idempotency_key = NULL WHERE id = known.id;
        ELSIF FOUND THEN
            IF known.request_hash = p_request_hash AND known.caller_kind = p_caller_kind AND known.caller_id = p_caller_id THEN
                RETURN QUERY SELECT 'existing', known.id, known.created_at;
            ELSE
                RETURN QUERY SELECT 'conflict', p_id, known.created_at;
            END IF;
            RETURN;
        END IF;
        -- The first look needs no lock; the second one decides, under the lock of this key's owner.
        EXIT WHEN turn = 2;
        PERFORM pg_advisory_xact_lock(hashtextextended('x402jobs.executor.admit:' || p_owner, 0));
    END LOOP;
    IF (SELECT count(*) FROM executor.executions e
        WHERE e.owner = p_owner AND e.status = 'running' AND e.lease_until > now()) >= p_running_per_key THEN
        RETURN QUERY SELECT 'full', p_id, now();
        RETURN;
    END IF;
    BEGIN
        INSERT INTO executor.executions (
            id, owner, caller_kind, caller_id, viewer, resource_id, resource_version, model_id, mode, pricing, status,
            idempotency_key, request_hash, executor, lease_token, lease_until, started_at
        ) VALUES (
            p_id, p_owner, p_caller_kind, p_caller_id, p_viewer, p_resource_id, p_resource_version, p_model_id, p_mode,
            p_pricing, 'running', p_idempotency_key, p_request_hash, p_executor, p_lease_token, now() + p_lease, now()
        );
    EXCEPTION WHEN unique_violation THEN
        -- The same id or key was admitted for another owner's resource in this very moment.
        RETURN QUERY SELECT 'conflict', p_id, now();
        RETURN;
    END;
    INSERT INTO executor.attempts (execution_id, number) VALUES (p_id, 1);
    RETURN QUERY SELECT 'admitted', p_id, now();
END
$$;

-- Take one queued run whose key has a free slot: the caller with the fewest running on that key first, then the oldest.
CREATE FUNCTION executor.claim(p_running_per_key integer, p_executor text, p_lease_token uuid, p_lease interval)
RETURNS SETOF executor.executions
LANGUAGE plpgsql AS $$
DECLARE
    candidate record;
BEGIN
    SELECT q.id, q.owner INTO candidate
    FROM executor.executions q
    WHERE q.status = 'queued'
      AND (SELECT count(*) FROM executor.executions r
           WHERE r.owner = q.owner AND r.status = 'running' AND r.lease_until > now()) < p_running_per_key
    ORDER BY (SELECT count(*) FROM executor.executions r
              WHERE r.owner = q.owner AND r.status = 'running' AND r.caller_kind = q.caller_kind AND r.caller_id = q.caller_id),
             q.created_at
    LIMIT 1
    FOR UPDATE OF q SKIP LOCKED;
    IF NOT FOUND OR NOT pg_try_advisory_xact_lock(hashtextextended('x402jobs.executor.admit:' || candidate.owner, 0)) THEN
        RETURN;
    END IF;
    IF (SELECT count(*) FROM executor.executions r
        WHERE r.owner = candidate.owner AND r.status = 'running' AND r.lease_until > now()) >= p_running_per_key THEN
        RETURN;
    END IF;
    -- There is one already where the run was claimed before and put back.
    INSERT INTO executor.attempts (execution_id, number) VALUES (candidate.id, 1)
    ON CONFLICT (execution_id, number) DO UPDATE SET started_at = now();
    RETURN QUERY
    UPDATE executor.executions e
    SET status = 'running', executor = p_executor, lease_token = p_lease_token, lease_until = now() + p_lease, started_at = now()
    WHERE e.id = candidate.id
    RETURNING e.*;
END
$$;

-- End a run, once: whichever conditional update comes first wins. Receipt, result, attempts, media references and outgoing
-- messages are the same transaction. Returns false when somebody else ended it before, or the lease was lost.
CREATE FUNCTION executor.finish(
    p_id uuid, p_lease_token uuid, p_status text, p_mode text, p_error jsonb, p_truncated boolean, p_last_seq integer,
    p_price numeric, p_cost numeric, p_cost_status text, p_result bytea, p_result_key_id text, p_keep interval,
    p_receipt jsonb, p_attempts jsonb, p_media text[], p_subjects text[], p_message_ids text[], p_payloads bytea[]
) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE executor.executions
    SET status = p_status, mode = p_mode, error = p_error, truncated = p_truncated, last_seq = p_last_seq,
        price_usd = p_price, cost_usd = p_cost, cost_status = p_cost_status, result = p_result,
        result_key_id = p_result_key_id, result_expires_at = CASE WHEN p_result IS NULL THEN NULL ELSE now() + p_keep END,
        finished_at = now(), job = NULL, job_key_id = NULL
    WHERE id = p_id AND status = 'running' AND lease_token = p_lease_token;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE executor.attempts a
    SET generation_id = coalesce(t.generation_id, a.generation_id), status = t.status, code = t.code,
        http_status = t.http_status, cost_usd = t.cost_usd, cost_status = t.cost_status,
        next_lookup_at = CASE WHEN t.cost_status = 'pending' THEN now() + interval '500 milliseconds' END
    FROM jsonb_to_recordset(p_attempts) AS t (
        number integer, generation_id text, status text, code text, http_status integer, cost_usd numeric, cost_status text
    )
    WHERE a.execution_id = p_id AND a.number = t.number;
    -- An attempt that was prepared with the claim and never made.
    UPDATE executor.attempts SET status = p_status, cost_usd = 0, cost_status = 'final'
    WHERE execution_id = p_id AND status = 'running';
    INSERT INTO executor.receipts (execution_id, revision, owner, body)
    SELECT p_id, 1, e.owner, p_receipt FROM executor.executions e WHERE e.id = p_id;
    IF p_media IS NOT NULL THEN
        INSERT INTO executor.media_references (name, execution_id) SELECT DISTINCT unnest(p_media), p_id ON CONFLICT DO NOTHING;
    END IF;
    INSERT INTO executor.outbox (subject, message_id, payload) SELECT * FROM unnest(p_subjects, p_message_ids, p_payloads);
    RETURN true;
END
$$;

GRANT USAGE ON SCHEMA executor TO x402_executor;
GRANT SELECT, INSERT, UPDATE ON executor.executions, executor.attempts, executor.x402_cached_images TO x402_executor;
GRANT SELECT, INSERT ON executor.receipts, executor.media_references TO x402_executor;
GRANT SELECT, INSERT, DELETE ON executor.outbox TO x402_executor;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA executor TO x402_executor;

-- migrate:down
DROP SCHEMA executor CASCADE;
