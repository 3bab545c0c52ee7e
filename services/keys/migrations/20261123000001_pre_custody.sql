-- migrate:up

-- Custody of provider keys. Everything belongs to whoever migrates; the service's role owns nothing, cannot pass row
-- level security, and sees the rows of one owner at a time: those of `app.user_id`, set for one transaction.

CREATE SCHEMA IF NOT EXISTS keys;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'x402_keys') THEN
        CREATE ROLE x402_keys LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
    END IF;
    -- Runs the one function that looks across owners. It passes row level security, so it may read two columns only
    -- and nobody can sign in as it.
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'x402_keys_census') THEN
        CREATE ROLE x402_keys_census NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE BYPASSRLS;
    END IF;
END
$$;

-- What is left after a transaction that set `app.user_id` is the empty string, never NULL again: it is nobody.
CREATE FUNCTION keys.current_owner() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('app.user_id', true), '');

-- Outlives the key, so that no version is ever used for two keys of an owner and an executor can tell old from new.
CREATE TABLE keys.key_versions (
    owner text NOT NULL,
    version bigint NOT NULL,
    CONSTRAINT key_versions_pkey PRIMARY KEY (owner),
    CONSTRAINT key_versions_owner_check CHECK (owner <> '')
);

CREATE TABLE keys.user_openrouter_integrations (
    owner text NOT NULL,
    version bigint NOT NULL,
    mode text NOT NULL,
    hint text NOT NULL,
    master_key_id text NOT NULL,
    wrapped_data_key bytea NOT NULL,
    encrypted_key bytea NOT NULL,
    health text NOT NULL,
    rejections integer NOT NULL DEFAULT 0,
    limit_usd numeric,
    limit_remaining_usd numeric,
    limit_reset text,
    usage_usd numeric,
    is_free_tier boolean,
    expires_at timestamptz,
    connected_at timestamptz NOT NULL DEFAULT now(),
    verified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT user_openrouter_integrations_pkey PRIMARY KEY (owner),
    CONSTRAINT user_openrouter_integrations_owner_check CHECK (owner <> ''),
    CONSTRAINT user_openrouter_integrations_mode_check CHECK (mode IN ('live', 'test')),
    CONSTRAINT user_openrouter_integrations_health_check
        CHECK (health IN ('ok', 'suspect', 'rejected', 'exhausted'))
);

-- One row per answer to a lease. The numbers and hashes are the database's own: whoever inserts cannot choose them.
CREATE TABLE keys.lease_log (
    owner text NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    instance text NOT NULL,
    version bigint NOT NULL,
    result text NOT NULL,
    prev_hash bytea NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT lease_log_pkey PRIMARY KEY (owner, seq),
    CONSTRAINT lease_log_owner_check CHECK (owner <> ''),
    CONSTRAINT lease_log_result_check CHECK (result IN ('granted', 'rejected'))
);

-- sha256(prev_hash || ["owner", seq, "at, UTC, microseconds", "instance", version, "result"]), the list as jsonb writes it.
CREATE FUNCTION keys.lease_log_hash(entry keys.lease_log) RETURNS bytea
    LANGUAGE sql STABLE
    RETURN sha256(entry.prev_hash || convert_to(jsonb_build_array(
        entry.owner, entry.seq, to_char(entry.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        entry.instance, entry.version, entry.result)::text, 'UTF8'));

CREATE FUNCTION keys.chain_lease_log() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    -- One at a time per owner: two rows must not follow the same one.
    PERFORM pg_advisory_xact_lock(hashtextextended('keys.lease_log ' || NEW.owner, 0));
    NEW.at := clock_timestamp();
    SELECT last.seq + 1, last.hash INTO NEW.seq, NEW.prev_hash
        FROM keys.lease_log AS last WHERE last.owner = NEW.owner ORDER BY last.seq DESC LIMIT 1;
    IF NOT FOUND THEN
        NEW.seq := 1;
        NEW.prev_hash := ''::bytea;
    END IF;
    NEW.hash := keys.lease_log_hash(NEW);
    RETURN NEW;
END
$$;

CREATE TRIGGER lease_log_chain BEFORE INSERT ON keys.lease_log
    FOR EACH ROW EXECUTE FUNCTION keys.chain_lease_log();

-- The service's own key pairs, one per UTC day and active master key, shared by its replicas.
CREATE TABLE keys.recipients (
    key_id text NOT NULL,
    day date NOT NULL,
    master_key_id text NOT NULL,
    wrapped_private_key bytea NOT NULL,
    CONSTRAINT recipients_pkey PRIMARY KEY (key_id),
    CONSTRAINT recipients_day_key UNIQUE (day, master_key_id)
);

ALTER TABLE keys.key_versions ENABLE ROW LEVEL SECURITY;
ALTER TABLE keys.key_versions FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON keys.key_versions
    USING (owner = keys.current_owner()) WITH CHECK (owner = keys.current_owner());

ALTER TABLE keys.user_openrouter_integrations ENABLE ROW LEVEL SECURITY;
ALTER TABLE keys.user_openrouter_integrations FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON keys.user_openrouter_integrations
    USING (owner = keys.current_owner()) WITH CHECK (owner = keys.current_owner());

ALTER TABLE keys.lease_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE keys.lease_log FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON keys.lease_log
    USING (owner = keys.current_owner()) WITH CHECK (owner = keys.current_owner());

-- Work across owners gets ids from here and then goes owner by owner: those whose data key is wrapped under none of
-- the given master keys.
CREATE FUNCTION keys.owners_outside(master_key_ids text[], page_size integer) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT i.owner FROM keys.user_openrouter_integrations AS i
            WHERE i.master_key_id <> ALL (master_key_ids) ORDER BY i.owner LIMIT page_size;
    END;

GRANT USAGE ON SCHEMA keys TO x402_keys, x402_keys_census;
GRANT SELECT (owner, master_key_id) ON keys.user_openrouter_integrations TO x402_keys_census;
GRANT SELECT, INSERT, UPDATE ON keys.key_versions TO x402_keys;
GRANT SELECT, INSERT, UPDATE, DELETE ON keys.user_openrouter_integrations TO x402_keys;
GRANT SELECT, INSERT, DELETE ON keys.recipients TO x402_keys;
GRANT SELECT, INSERT ON keys.lease_log TO x402_keys;
REVOKE UPDATE, DELETE, TRUNCATE ON keys.lease_log FROM x402_keys, PUBLIC;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA keys FROM PUBLIC;
GRANT EXECUTE ON FUNCTION keys.current_owner(), keys.lease_log_hash(keys.lease_log),
    keys.owners_outside(text[], integer) TO x402_keys;
ALTER FUNCTION keys.owners_outside(text[], integer) OWNER TO x402_keys_census;

-- migrate:down

DROP FUNCTION keys.owners_outside(text[], integer);
DROP TABLE keys.recipients;
DROP TABLE keys.lease_log CASCADE;
DROP FUNCTION keys.chain_lease_log();
DROP TABLE keys.user_openrouter_integrations;
DROP TABLE keys.key_versions;
DROP FUNCTION keys.current_owner();
