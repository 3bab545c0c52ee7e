-- migrate:up

-- What guards the way to a key (nonces of lease requests, attempts of an owner, OAuth connections under way), and what is
-- remembered of upstream's answers so that a single wrong one kills no key.

-- Nonces of lease requests: shared by all replicas, so that what one of them has answered none of them answers again.
CREATE TABLE keys.lease_nonces (
    nonce text NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT lease_nonces_pkey PRIMARY KEY (nonce)
);
CREATE INDEX lease_nonces_seen_at ON keys.lease_nonces (seen_at);

-- What an owner asked for lately; counted here because any replica may be asked.
CREATE TABLE keys.attempts (
    attempt_id bigint GENERATED ALWAYS AS IDENTITY,
    owner text NOT NULL,
    kind text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT attempts_pkey PRIMARY KEY (attempt_id),
    CONSTRAINT attempts_owner_check CHECK (owner <> ''),
    CONSTRAINT attempts_kind_check CHECK (kind IN ('connect', 'guess', 'verify', 'oauth'))
);
CREATE INDEX attempts_owner_kind ON keys.attempts (owner, kind, at);

-- The other half of an authorization that somebody gives at OpenRouter. The state is kept as its hash alone: whoever reads
-- this table can complete nothing.
CREATE TABLE keys.oauth_attempts (
    state_hash bytea NOT NULL,
    owner text NOT NULL,
    master_key_id text NOT NULL,
    locked_verifier bytea NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT oauth_attempts_pkey PRIMARY KEY (state_hash),
    CONSTRAINT oauth_attempts_owner_check CHECK (owner <> '')
);

ALTER TABLE keys.user_openrouter_integrations
    ADD COLUMN credits_remaining_usd numeric,
    ADD COLUMN first_refused_at timestamptz,
    ADD COLUMN refused_at timestamptz,
    ADD COLUMN asked_at timestamptz NOT NULL DEFAULT now(),
    -- Keys that are there already are asked about over the coming hours, not all at once.
    ADD COLUMN next_check_at timestamptz NOT NULL DEFAULT (now() + random() * interval '6 hours');
CREATE INDEX user_openrouter_integrations_next_check_at ON keys.user_openrouter_integrations (next_check_at);

ALTER TABLE keys.attempts ENABLE ROW LEVEL SECURITY;
ALTER TABLE keys.attempts FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON keys.attempts
    USING (owner = keys.current_owner()) WITH CHECK (owner = keys.current_owner());

ALTER TABLE keys.oauth_attempts ENABLE ROW LEVEL SECURITY;
ALTER TABLE keys.oauth_attempts FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON keys.oauth_attempts
    USING (owner = keys.current_owner()) WITH CHECK (owner = keys.current_owner());

-- The owner whose key is to be asked about next; for five minutes nobody else gets the same one.
CREATE FUNCTION keys.claim_check() RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        UPDATE keys.user_openrouter_integrations AS i SET next_check_at = now() + interval '5 minutes'
            WHERE i.owner = (
                SELECT due.owner FROM keys.user_openrouter_integrations AS due WHERE due.next_check_at <= now()
                    ORDER BY due.next_check_at LIMIT 1 FOR UPDATE SKIP LOCKED)
            RETURNING i.owner;
    END;

-- Owners of other keys of this mode that worked within the last day: what upstream answers about them tells a dead key
-- from a fault of upstream.
CREATE FUNCTION keys.witnesses(key_mode text, besides text, page_size integer) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT i.owner FROM keys.user_openrouter_integrations AS i
            WHERE i.mode = key_mode AND i.owner <> besides AND i.health <> 'rejected'
                AND i.verified_at > now() - interval '1 day'
            ORDER BY i.verified_at DESC LIMIT page_size;
    END;

-- Erases, of all owners, what is over.
CREATE FUNCTION keys.sweep() RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        DELETE FROM keys.oauth_attempts WHERE expires_at < now();
        DELETE FROM keys.attempts WHERE at < now() - interval '1 hour';
        DELETE FROM keys.lease_nonces WHERE seen_at < now() - interval '5 minutes';
    END;

GRANT SELECT (owner, mode, health, verified_at, next_check_at), UPDATE (next_check_at)
    ON keys.user_openrouter_integrations TO x402_keys_census;
GRANT SELECT (expires_at), DELETE ON keys.oauth_attempts TO x402_keys_census;
GRANT SELECT (at), DELETE ON keys.attempts TO x402_keys_census;
GRANT SELECT (seen_at), DELETE ON keys.lease_nonces TO x402_keys_census;

GRANT SELECT, INSERT ON keys.lease_nonces TO x402_keys;
GRANT SELECT, INSERT, DELETE ON keys.attempts TO x402_keys;
GRANT SELECT, INSERT, DELETE ON keys.oauth_attempts TO x402_keys;

REVOKE EXECUTE ON FUNCTION keys.claim_check(), keys.witnesses(text, text, integer), keys.sweep() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION keys.claim_check(), keys.witnesses(text, text, integer), keys.sweep() TO x402_keys;
ALTER FUNCTION keys.claim_check() OWNER TO x402_keys_census;
ALTER FUNCTION keys.witnesses(text, text, integer) OWNER TO x402_keys_census;
ALTER FUNCTION keys.sweep() OWNER TO x402_keys_census;

-- migrate:down

DROP FUNCTION keys.sweep();
DROP FUNCTION keys.witnesses(text, text, integer);
DROP FUNCTION keys.claim_check();
ALTER TABLE keys.user_openrouter_integrations
    DROP COLUMN credits_remaining_usd, DROP COLUMN first_refused_at, DROP COLUMN refused_at, DROP COLUMN asked_at,
    DROP COLUMN next_check_at;
DROP TABLE keys.oauth_attempts;
DROP TABLE keys.attempts;
DROP TABLE keys.lease_nonces;
