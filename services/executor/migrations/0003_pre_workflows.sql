-- migrate:up

-- One row per workflow. Names and references of resources stand in the open, what people wrote is locked.
CREATE TABLE executor.workflows (
    id uuid PRIMARY KEY,
    caller_kind text NOT NULL CHECK (caller_kind IN ('user', 'service')),
    caller_id text NOT NULL,
    idempotency_key text,
    request_hash bytea NOT NULL,
    status text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'succeeded', 'failed', 'canceled')),
    cancel_requested boolean NOT NULL DEFAULT false,
    max_price_usd numeric,
    -- The request, locked under the executor's keyring; erased when there is nothing left to resume.
    definition bytea,
    definition_key_id text,
    last_seq integer NOT NULL DEFAULT 0,
    begun_seq integer NOT NULL DEFAULT 0,
    -- Where a step could not be handed over for the moment: not before then.
    look_again_at timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CONSTRAINT workflows_end_is_dated CHECK ((finished_at IS NULL) = (status = 'running'))
);
CREATE UNIQUE INDEX workflows_idempotency ON executor.workflows (caller_kind, caller_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX workflows_running ON executor.workflows (look_again_at) WHERE status = 'running';
CREATE INDEX workflows_by_caller ON executor.workflows (caller_kind, caller_id, id DESC);
CREATE INDEX workflows_resumable ON executor.workflows (finished_at) WHERE definition IS NOT NULL;

CREATE TABLE executor.workflow_steps (
    workflow_id uuid NOT NULL REFERENCES executor.workflows (id),
    name text NOT NULL,
    position integer NOT NULL,
    resource text NOT NULL,
    depends_on text[] NOT NULL,
    -- The most that one run could cost its caller when the workflow was accepted.
    highest_usd numeric NOT NULL,
    status text NOT NULL DEFAULT 'waiting'
        CHECK (status IN ('waiting', 'running', 'succeeded', 'failed', 'skipped', 'canceled')),
    -- How often it began since the workflow was started or resumed, and how often in all.
    starts integer NOT NULL DEFAULT 0,
    attempt integer NOT NULL DEFAULT 0,
    PRIMARY KEY (workflow_id, name)
);

-- One row per run of a step, committed before the run is handed over: whoever comes later hands over the same one.
CREATE TABLE executor.workflow_attempts (
    workflow_id uuid NOT NULL,
    step text NOT NULL,
    number integer NOT NULL,
    execution_id uuid NOT NULL UNIQUE,
    -- Why it was refused before it became a run.
    error jsonb,
    PRIMARY KEY (workflow_id, step, number),
    FOREIGN KEY (workflow_id, step) REFERENCES executor.workflow_steps (workflow_id, name)
);

GRANT SELECT, INSERT, UPDATE ON executor.workflows, executor.workflow_steps, executor.workflow_attempts TO x402_executor;

-- migrate:down
DROP TABLE executor.workflow_attempts, executor.workflow_steps, executor.workflows;
