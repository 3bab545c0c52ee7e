"""`python -m services.keys.audit` walks the access log of every owner and names the first broken link of each.

The database keeps the end of each chain apart from the chain, out of reach of the service's role. Whoever rules the
database itself could still rewrite both: against that, `--heads FILE` keeps the ends of this walk in a file outside, and
the next walk with it must find every one of them again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from contracts.errors import ServiceError
from services.keys.access import BEGINNING, break_at, break_at_end
from services.keys.ring import DatabaseSettings
from services.keys.store import Head, Store
from services.keys.terminal import say
from services.runtime.postgres import create_pool

_OWNERS_PER_PAGE = 500
_ENTRIES_PER_PAGE = 1000


@dataclass
class Audit:
    """What a walk found: chains, entries, and per owner the first broken link."""

    chains: int = 0
    entries: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)


async def walk(store: Store, known: dict[str, Head]) -> Audit:
    """Verify the chain of every owner, also against ends that were known before."""
    audit = Audit()
    after = ""
    while owners := await store.logged_owners(after, _OWNERS_PER_PAGE):
        for owner in owners:
            await _walk_one(store, owner, known.get(owner), audit)
        after = owners[-1]
    for owner in known.keys() - audit.heads.keys() - audit.broken.keys():
        audit.broken[owner] = f"all {known[owner].seq} entries of the former walk are gone"
    return audit


async def _walk_one(store: Store, owner: str, known: Head | None, audit: Audit) -> None:
    audit.chains += 1
    last, problem = BEGINNING, None
    async with store.rows_of(owner) as rows:
        while problem is None:
            # Before the entries: what is appended meanwhile then lies beyond this head, never short of it.
            head = await rows.head() or BEGINNING
            entries = await rows.accesses_after(last.seq, _ENTRIES_PER_PAGE)
            if not entries:
                problem = break_at_end(last, head)
                if problem is None and known is not None and last.seq < known.seq:
                    problem = f"entries {last.seq + 1} to {known.seq} of the former walk were cut off"
                break
            for entry in entries:
                problem = break_at(owner, last, entry)
                if problem is None and known is not None and entry.seq == known.seq and entry.hash != known.hash:
                    problem = f"entry {entry.seq} is another than in the former walk"
                if problem is not None:
                    break
                last = Head(entry.seq, entry.hash)
                audit.entries += 1
    if problem is None:
        audit.heads[owner] = last
    else:
        audit.broken[owner] = problem


def read_heads(path: Path) -> dict[str, Head]:
    """The ends that a former walk wrote; none when there was no former walk."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {owner: Head(seq, bytes.fromhex(digest)) for owner, (seq, digest) in kept.items()}


def write_heads(path: Path, heads: dict[str, Head]) -> None:
    """Replace the file in one step: a walk that is killed while it writes must not forget the former ends."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(json.dumps({owner: [head.seq, head.hash.hex()] for owner, head in sorted(heads.items())}) + "\n")
    draft.replace(path)


async def _audit(file: Path | None) -> int:
    known = read_heads(file) if file is not None else {}
    url = DatabaseSettings().postgres_url.get_secret_value()
    async with create_pool(url, service="keys-audit", max_size=1) as pool:
        audit = await walk(Store(pool), known)
    for owner, problem in sorted(audit.broken.items()):
        say(f"BROKEN  {owner}: {problem}")
    say(f"{audit.chains} chains with {audit.entries} entries verified, {len(audit.broken)} broken")
    if audit.broken:
        return 1
    if file is not None:
        write_heads(file, audit.heads)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.keys.audit", description=__doc__)
    parser.add_argument("--heads", type=Path, help="file outside of the database with the ends of the former walk")
    try:
        return asyncio.run(_audit(parser.parse_args().heads))
    except ServiceError as down:
        say(str(down))
        return 1


if __name__ == "__main__":
    sys.exit(main())
