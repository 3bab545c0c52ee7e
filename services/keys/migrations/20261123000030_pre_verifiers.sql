-- migrate:up

-- Verifiers of authorizations under way lie under a master key as well: a rotation takes them along.

CREATE FUNCTION keys.verifiers_per_master_key() RETURNS TABLE (master_key_id text, uses bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT a.master_key_id, count(*) FROM keys.oauth_attempts AS a WHERE a.expires_at > now() GROUP BY a.master_key_id;
    END;

-- Owners of authorizations under way whose verifier lies under another master key.
CREATE FUNCTION keys.authorizing_outside(active text) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT DISTINCT a.owner FROM keys.oauth_attempts AS a WHERE a.expires_at > now() AND a.master_key_id <> active;
    END;

GRANT SELECT (owner, master_key_id) ON keys.oauth_attempts TO x402_keys_census;
GRANT UPDATE (master_key_id, locked_verifier) ON keys.oauth_attempts TO x402_keys;

REVOKE EXECUTE ON FUNCTION keys.verifiers_per_master_key(), keys.authorizing_outside(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION keys.verifiers_per_master_key(), keys.authorizing_outside(text) TO x402_keys;
ALTER FUNCTION keys.verifiers_per_master_key() OWNER TO x402_keys_census;
ALTER FUNCTION keys.authorizing_outside(text) OWNER TO x402_keys_census;

-- migrate:down

DROP FUNCTION keys.authorizing_outside(text);
DROP FUNCTION keys.verifiers_per_master_key();
REVOKE UPDATE (master_key_id, locked_verifier) ON keys.oauth_attempts FROM x402_keys;
REVOKE SELECT (owner, master_key_id) ON keys.oauth_attempts FROM x402_keys_census;
