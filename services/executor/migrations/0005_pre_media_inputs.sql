-- migrate:up
-- What callers send is indexed with what models make. A file stays while it is kept or a run needs it; nothing is kept of
-- an owner where there is none, because a model made the file.
ALTER TABLE executor.x402_cached_images
    ADD COLUMN owner_kind text CHECK (owner_kind IN ('user', 'service')),
    ADD COLUMN owner_id text,
    ADD COLUMN pages integer,
    ADD COLUMN kept_until timestamptz NOT NULL DEFAULT now() + interval '1 hour',
    ADD CONSTRAINT cached_images_owner_is_whole CHECK ((owner_kind IS NULL) = (owner_id IS NULL));
CREATE INDEX cached_images_past ON executor.x402_cached_images (kept_until);
CREATE INDEX cached_images_by_owner ON executor.x402_cached_images (owner_kind, owner_id) WHERE owner_id IS NOT NULL;

GRANT DELETE ON executor.x402_cached_images, executor.media_references TO x402_executor;

-- migrate:down
REVOKE DELETE ON executor.x402_cached_images, executor.media_references FROM x402_executor;
DELETE FROM executor.media_references r USING executor.x402_cached_images m WHERE r.name = m.name AND m.owner_id IS NOT NULL;
DELETE FROM executor.x402_cached_images WHERE owner_id IS NOT NULL;
ALTER TABLE executor.x402_cached_images
    DROP CONSTRAINT cached_images_owner_is_whole,
    DROP COLUMN owner_kind, DROP COLUMN owner_id, DROP COLUMN pages, DROP COLUMN kept_until;
