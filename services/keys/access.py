"""The hash chain of an access log, computed anew: what the database's trigger wrote must follow from what it says.

Pure. An entry's hash covers the entry and the hash before it, so that none can be changed, added or taken out in the middle
unseen; that none was cut off at the end shows against a head that is kept apart.
"""

from __future__ import annotations

import hashlib
import json

from services.keys.store import AccessEntry, Head

BEGINNING = Head(seq=0, hash=b"")


def hash_of(owner: str, entry: AccessEntry) -> bytes:
    """SHA-256 over the hash before and the list of fields, written as Postgres writes jsonb."""
    at = entry.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    said = [owner, entry.seq, at, entry.action, entry.result, entry.instance, entry.version]
    return hashlib.sha256(entry.prev_hash + json.dumps(said, ensure_ascii=False).encode()).digest()


def break_at(owner: str, before: Head, entry: AccessEntry) -> str | None:
    """What is wrong with an entry that should follow this one; None when it does."""
    if entry.seq != before.seq + 1:
        return f"entry {before.seq + 1} is missing: entry {entry.seq} follows {before.seq}"
    if entry.prev_hash != before.hash:
        return f"entry {entry.seq} does not follow the entry {before.seq} that is there"
    if entry.hash != hash_of(owner, entry):
        return f"entry {entry.seq} was changed"
    return None


def break_at_end(last: Head, head: Head) -> str | None:
    """What is wrong with a chain that ends here while its head says otherwise; None when they agree."""
    if last.seq < head.seq:
        return f"entries {last.seq + 1} to {head.seq} were cut off"
    if last.seq > head.seq:
        return f"entry {head.seq + 1} came past the head"
    return None if last.hash == head.hash else f"entry {last.seq} is another than the head says"
