-- migrate:up

-- A job that could not begin for our reasons waits: until `not_before`, or, where that is null, until an operator requeues it
-- from the dead letters. To callers it is queued; whoever claims does not see it.
ALTER TABLE executor.executions ADD COLUMN tries integer NOT NULL DEFAULT 0, ADD COLUMN not_before timestamptz;
ALTER TABLE executor.executions DROP CONSTRAINT executions_status_check, DROP CONSTRAINT executions_end_is_dated;
ALTER TABLE executor.executions
    ADD CONSTRAINT executions_status_check CHECK (
        status IN ('queued', 'waiting', 'running', 'succeeded', 'failed', 'canceled', 'interrupted')
    ) NOT VALID,
    ADD CONSTRAINT executions_end_is_dated CHECK ((finished_at IS NULL) = (status IN ('queued', 'waiting', 'running'))) NOT VALID;
ALTER TABLE executor.executions VALIDATE CONSTRAINT executions_status_check;
ALTER TABLE executor.executions VALIDATE CONSTRAINT executions_end_is_dated;
CREATE INDEX executions_waiting ON executor.executions (not_before) WHERE status = 'waiting';

-- What could not be carried out for our reasons. A `job` is a row of executions under the same id, where its body is; a
-- `message` never became one, and its payload is here, locked with the letter's id as additional data.
CREATE TABLE executor.dead_letters (
    id uuid PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    kind text NOT NULL CHECK (kind IN ('job', 'message')),
    execution_id uuid,
    caller_kind text NOT NULL,
    caller_id text NOT NULL,
    owner text,
    resource_id uuid,
    code text NOT NULL,
    reason text NOT NULL,
    tries integer NOT NULL,
    accepted_at timestamptz NOT NULL,
    died_at timestamptz NOT NULL DEFAULT now(),
    requeued_at timestamptz,
    requeued_by text,
    ended_at timestamptz,
    payload bytea,
    payload_key_id text
);
CREATE INDEX dead_letters_open ON executor.dead_letters (died_at) WHERE requeued_at IS NULL AND ended_at IS NULL;

-- A comparison of receipts with upstream's accounts: which attempts it covers, and what it found. The nightly ones follow each
-- other without gaps; the key makes them one across replicas.
CREATE TABLE executor.reconciliations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    nightly boolean NOT NULL,
    from_at timestamptz NOT NULL,
    until_at timestamptz NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    checked integer NOT NULL DEFAULT 0,
    differing integer NOT NULL DEFAULT 0,
    found integer NOT NULL DEFAULT 0,
    untold integer NOT NULL DEFAULT 0,
    drift_usd numeric NOT NULL DEFAULT 0,
    widened text[] NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX reconciliations_nightly ON executor.reconciliations (until_at) WHERE nightly;

-- The attempts that a reconciliation has still to ask about, and those it has asked about until it is finished.
CREATE TABLE executor.cost_checks (
    execution_id uuid NOT NULL,
    number integer NOT NULL,
    reconciliation bigint NOT NULL REFERENCES executor.reconciliations (id),
    owner text NOT NULL,
    tries integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    done boolean NOT NULL DEFAULT false,
    PRIMARY KEY (execution_id, number)
);
CREATE INDEX cost_checks_due ON executor.cost_checks (due_at) WHERE NOT done;
-- Attempts are written in the order of time, so this costs next to nothing.
CREATE INDEX attempts_by_time ON executor.attempts USING brin (started_at);

-- Put the attempts of a reconciliation on its list: every cost that is unknown, and of each owner a sample of those that are
-- known; all of them for one owner, where one of the sample differed.
CREATE FUNCTION executor.list_cost_checks(p_reconciliation bigint, p_sample integer, p_owner text) RETURNS bigint
LANGUAGE sql AS $$
    WITH asked AS (
        SELECT a.execution_id, a.number, e.owner, a.cost_status,
               row_number() OVER (PARTITION BY e.owner, a.cost_status ORDER BY random()) AS place
        FROM executor.reconciliations r
        JOIN executor.attempts a ON a.started_at >= r.from_at AND a.started_at < r.until_at
        JOIN executor.executions e ON e.id = a.execution_id
        WHERE r.id = p_reconciliation AND a.generation_id IS NOT NULL AND a.cost_status IN ('final', 'unknown')
          AND (p_owner IS NULL OR e.owner = p_owner)
    ), listed AS (
        INSERT INTO executor.cost_checks (execution_id, number, reconciliation, owner)
        SELECT execution_id, number, p_reconciliation, owner FROM asked
        WHERE p_owner IS NOT NULL OR cost_status = 'unknown' OR place <= p_sample
        ON CONFLICT DO NOTHING
        RETURNING 1
    )
    SELECT count(*) FROM listed
$$;

GRANT SELECT, INSERT, UPDATE, DELETE ON executor.dead_letters, executor.cost_checks TO x402_executor;
GRANT SELECT, INSERT, UPDATE ON executor.reconciliations TO x402_executor;
-- For erasing what somebody asked to be erased.
GRANT DELETE ON executor.media_references TO x402_executor;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA executor TO x402_executor;

-- migrate:down
UPDATE executor.executions SET status = 'queued' WHERE status = 'waiting';
DROP FUNCTION executor.list_cost_checks(bigint, integer, text);
REVOKE DELETE ON executor.media_references FROM x402_executor;
DROP INDEX executor.attempts_by_time, executor.executions_waiting;
DROP TABLE executor.cost_checks, executor.reconciliations, executor.dead_letters;
ALTER TABLE executor.executions DROP CONSTRAINT executions_status_check, DROP CONSTRAINT executions_end_is_dated;
ALTER TABLE executor.executions
    DROP COLUMN tries, DROP COLUMN not_before,
    ADD CONSTRAINT executions_status_check CHECK (
        status IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'interrupted')
    ),
    ADD CONSTRAINT executions_end_is_dated CHECK ((finished_at IS NULL) = (status IN ('queued', 'running')));
