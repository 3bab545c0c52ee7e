-- migrate:up

-- The log of leases becomes the log of everything that is done with a key, and its heads lie apart from it; rotation of
-- master keys gets what it needs to go on while the service runs.

DO $$
BEGIN
    -- Runs the trigger that chains the log. It alone writes heads, sees the rows of one owner like everybody else, and
    -- nobody can sign in as it.
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'x402_keys_chain') THEN
        CREATE ROLE x402_keys_chain NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
    END IF;
END
$$;

-- The access log -------------------------------------------------------------------------------------------------------

-- Whoever migrates may own the table without being superuser, and must see every row to chain it anew.
ALTER TABLE keys.lease_log NO FORCE ROW LEVEL SECURITY;
DROP TRIGGER lease_log_chain ON keys.lease_log;
DROP FUNCTION keys.chain_lease_log();

ALTER TABLE keys.lease_log RENAME TO access_log;
ALTER TABLE keys.access_log RENAME CONSTRAINT lease_log_pkey TO access_log_pkey;
ALTER TABLE keys.access_log RENAME CONSTRAINT lease_log_owner_check TO access_log_owner_check;
ALTER TABLE keys.access_log
    DROP CONSTRAINT lease_log_result_check,
    ALTER COLUMN version DROP NOT NULL,
    ADD COLUMN action text NOT NULL DEFAULT 'lease';
ALTER TABLE keys.access_log
    ALTER COLUMN action DROP DEFAULT,
    ADD CONSTRAINT access_log_action_check CHECK (action IN ('connect', 'replace', 'verify', 'disconnect', 'lease')),
    ADD CONSTRAINT access_log_result_check
        CHECK (result IN ('done', 'granted', 'refused', 'ok', 'suspect', 'rejected', 'exhausted'));

-- sha256(prev_hash || ["owner", seq, "at, UTC, microseconds", "action", "result", "instance", version]), the list as jsonb
-- writes it.
CREATE FUNCTION keys.access_log_hash(entry keys.access_log) RETURNS bytea
    LANGUAGE sql STABLE
    RETURN sha256(entry.prev_hash || convert_to(jsonb_build_array(
        entry.owner, entry.seq, to_char(entry.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        entry.action, entry.result, entry.instance, entry.version)::text, 'UTF8'));

-- What was logged before is chained anew, because its hashes do not say what kind of access it was.
DO $$
DECLARE
    entry keys.access_log;
    former_owner text := '';
    former_hash bytea;
    new_hash bytea;
BEGIN
    FOR entry IN SELECT * FROM keys.access_log ORDER BY owner, seq LOOP
        IF entry.owner <> former_owner THEN
            former_owner := entry.owner;
            former_hash := ''::bytea;
            new_hash := ''::bytea;
        END IF;
        IF entry.prev_hash <> former_hash OR entry.hash <> keys.lease_log_hash(entry) THEN
            RAISE EXCEPTION 'the lease log of % is broken at entry %: find out why before it is chained anew',
                entry.owner, entry.seq;
        END IF;
        former_hash := entry.hash;
        entry.prev_hash := new_hash;
        new_hash := keys.access_log_hash(entry);
        UPDATE keys.access_log SET prev_hash = entry.prev_hash, hash = new_hash
            WHERE owner = entry.owner AND seq = entry.seq;
    END LOOP;
END
$$;

DROP FUNCTION keys.lease_log_hash(keys.access_log);

-- Where each owner's chain ends: entries cut off at the end would leave no gap in the log itself.
CREATE TABLE keys.access_heads (
    owner text NOT NULL,
    seq bigint NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT access_heads_pkey PRIMARY KEY (owner),
    CONSTRAINT access_heads_owner_check CHECK (owner <> '')
);

INSERT INTO keys.access_heads (owner, seq, hash)
    SELECT DISTINCT ON (owner) owner, seq, hash FROM keys.access_log ORDER BY owner, seq DESC;

ALTER TABLE keys.access_log FORCE ROW LEVEL SECURITY;
ALTER TABLE keys.access_heads ENABLE ROW LEVEL SECURITY;
ALTER TABLE keys.access_heads FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON keys.access_heads
    USING (owner = keys.current_owner()) WITH CHECK (owner = keys.current_owner());

CREATE FUNCTION keys.chain_access_log() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
    AS $$
BEGIN
    -- The row of the head is also the lock: two entries must not follow the same one.
    INSERT INTO keys.access_heads (owner, seq, hash) VALUES (NEW.owner, 0, ''::bytea) ON CONFLICT (owner) DO NOTHING;
    SELECT head.seq + 1, head.hash INTO STRICT NEW.seq, NEW.prev_hash
        FROM keys.access_heads AS head WHERE head.owner = NEW.owner FOR UPDATE;
    NEW.at := clock_timestamp();
    NEW.hash := keys.access_log_hash(NEW);
    UPDATE keys.access_heads SET seq = NEW.seq, hash = NEW.hash WHERE owner = NEW.owner;
    RETURN NEW;
END
$$;

CREATE TRIGGER access_log_chain BEFORE INSERT ON keys.access_log
    FOR EACH ROW EXECUTE FUNCTION keys.chain_access_log();

-- A page of owners who have entries or a head, so that neither can be removed unseen. Goes from owner to owner in the
-- primary key instead of reading every entry.
CREATE FUNCTION keys.logged_owners(after text, page_size integer) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        WITH RECURSIVE logged(owner) AS (
            (SELECT log.owner FROM keys.access_log AS log WHERE log.owner > after ORDER BY log.owner LIMIT 1)
            UNION ALL
            SELECT (SELECT log.owner FROM keys.access_log AS log WHERE log.owner > logged.owner ORDER BY log.owner LIMIT 1)
                FROM logged WHERE logged.owner IS NOT NULL
        ), headed AS (
            SELECT head.owner FROM keys.access_heads AS head WHERE head.owner > after ORDER BY head.owner LIMIT page_size
        )
        SELECT owner FROM (SELECT owner FROM logged LIMIT page_size) AS first WHERE owner IS NOT NULL
            UNION SELECT owner FROM headed ORDER BY owner LIMIT page_size;
    END;

-- Rotation -------------------------------------------------------------------------------------------------------------

DROP FUNCTION keys.owners_outside(text[], integer);

-- A page of owners whose data key is wrapped under none of the given master keys, in order; the next one begins `after`
-- the last of this one.
CREATE FUNCTION keys.owners_outside(master_key_ids text[], after text, page_size integer) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT i.owner FROM keys.user_openrouter_integrations AS i
            WHERE i.master_key_id <> ALL (master_key_ids) AND i.owner > after ORDER BY i.owner LIMIT page_size;
    END;

CREATE FUNCTION keys.data_keys_per_master_key() RETURNS TABLE (master_key_id text, uses bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT i.master_key_id, count(*) FROM keys.user_openrouter_integrations AS i GROUP BY i.master_key_id;
    END;

-- A pair stays the pair of those who made it when it is wrapped under another master key.
ALTER TABLE keys.recipients ADD COLUMN made_under text;
UPDATE keys.recipients SET made_under = master_key_id;
ALTER TABLE keys.recipients
    ALTER COLUMN made_under SET NOT NULL,
    DROP CONSTRAINT recipients_day_key,
    ADD CONSTRAINT recipients_day_key UNIQUE (day, made_under);

-- Which master keys each running instance holds, the active one first: nothing may be wrapped under one that some lacks.
CREATE TABLE keys.instances (
    instance text NOT NULL,
    master_key_ids text[] NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT instances_pkey PRIMARY KEY (instance)
);

-- An erased row leaves the table's pages at the next round of autovacuum, not once a fifth of the table is dead.
ALTER TABLE keys.user_openrouter_integrations
    SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0);

GRANT USAGE ON SCHEMA keys TO x402_keys_chain;
GRANT SELECT, INSERT, UPDATE ON keys.access_heads TO x402_keys_chain;
GRANT SELECT ON keys.access_heads TO x402_keys;
GRANT SELECT (owner) ON keys.access_log, keys.access_heads TO x402_keys_census;
GRANT UPDATE (master_key_id, wrapped_private_key) ON keys.recipients TO x402_keys;
GRANT SELECT, INSERT, UPDATE, DELETE ON keys.instances TO x402_keys;

REVOKE EXECUTE ON FUNCTION keys.access_log_hash(keys.access_log), keys.chain_access_log(),
    keys.logged_owners(text, integer), keys.owners_outside(text[], text, integer), keys.data_keys_per_master_key()
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION keys.current_owner(), keys.access_log_hash(keys.access_log) TO x402_keys_chain;
GRANT EXECUTE ON FUNCTION keys.logged_owners(text, integer), keys.owners_outside(text[], text, integer),
    keys.data_keys_per_master_key() TO x402_keys;
ALTER FUNCTION keys.chain_access_log() OWNER TO x402_keys_chain;
ALTER FUNCTION keys.logged_owners(text, integer) OWNER TO x402_keys_census;
ALTER FUNCTION keys.owners_outside(text[], text, integer) OWNER TO x402_keys_census;
ALTER FUNCTION keys.data_keys_per_master_key() OWNER TO x402_keys_census;

-- migrate:down

-- An append-only log is not cut back to what the former version could hold: restore the database instead.
DO $$ BEGIN RAISE EXCEPTION 'the access log cannot be turned back into a lease log'; END $$;
