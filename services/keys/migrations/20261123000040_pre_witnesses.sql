-- migrate:up

-- A key that upstream has never accepted has no moment at which it did.
ALTER TABLE keys.user_openrouter_integrations ALTER COLUMN verified_at DROP NOT NULL;

-- Owners of other keys of this mode that are not believed dead, those that worked last first: what upstream answers about
-- them tells a dead key from a fault of upstream. However long ago they worked: a fault may last for days.
CREATE OR REPLACE FUNCTION keys.witnesses(key_mode text, besides text, page_size integer) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT i.owner FROM keys.user_openrouter_integrations AS i
            WHERE i.mode = key_mode AND i.owner <> besides AND i.health <> 'rejected'
            ORDER BY i.verified_at DESC NULLS LAST LIMIT page_size;
    END;

-- migrate:down

CREATE OR REPLACE FUNCTION keys.witnesses(key_mode text, besides text, page_size integer) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT i.owner FROM keys.user_openrouter_integrations AS i
            WHERE i.mode = key_mode AND i.owner <> besides AND i.health <> 'rejected'
                AND i.verified_at > now() - interval '1 day'
            ORDER BY i.verified_at DESC LIMIT page_size;
    END;
UPDATE keys.user_openrouter_integrations SET verified_at = connected_at WHERE verified_at IS NULL;
ALTER TABLE keys.user_openrouter_integrations ALTER COLUMN verified_at SET NOT NULL;
