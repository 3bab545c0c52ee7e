"""The chain of an access log: every change to an entry, and every entry that is missing, shows."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from contracts.keys import AccessAction, AccessResult
from services.keys.access import BEGINNING, break_at, break_at_end, hash_of
from services.keys.store import AccessEntry, Head

ENTRIES = st.builds(
    AccessEntry,
    seq=st.just(0),
    at=st.timedeltas(timedelta(0), timedelta(days=1000)).map(lambda later: datetime(2026, 1, 1, tzinfo=UTC) + later),
    action=st.sampled_from(get_args(AccessAction)),
    result=st.sampled_from(get_args(AccessResult)),
    instance=st.text(min_size=1, max_size=20),
    version=st.none() | st.integers(1, 2**40),
    prev_hash=st.just(b""),
    hash=st.just(b""),
)
CHAINS = st.lists(ENTRIES, min_size=2, max_size=6)


def chained(owner: str, entries: list[AccessEntry]) -> list[AccessEntry]:
    chain: list[AccessEntry] = []
    last = BEGINNING
    for entry in entries:
        linked = replace(entry, seq=last.seq + 1, prev_hash=last.hash)
        chain.append(replace(linked, hash=hash_of(owner, linked)))
        last = head_of(chain)
    return chain


def head_of(chain: list[AccessEntry]) -> Head:
    return Head(chain[-1].seq, chain[-1].hash)


def first_break(owner: str, chain: list[AccessEntry], head: Head) -> str | None:
    last = BEGINNING
    for entry in chain:
        problem = break_at(owner, last, entry)
        if problem is not None:
            return problem
        last = Head(entry.seq, entry.hash)
    return break_at_end(last, head)


@given(CHAINS)
def test_a_chain_as_it_was_written_is_whole(entries: list[AccessEntry]) -> None:
    chain = chained("alice", entries)
    assert first_break("alice", chain, head_of(chain)) is None


@given(st.data(), CHAINS)
def test_a_changed_entry_is_named(data: st.DataObject, entries: list[AccessEntry]) -> None:
    chain = chained("alice", entries)
    head = head_of(chain)
    index = data.draw(st.integers(0, len(chain) - 1))
    entry = chain[index]
    chain[index] = data.draw(
        st.sampled_from(
            [
                replace(entry, at=entry.at + timedelta(microseconds=1)),
                replace(entry, instance=f"{entry.instance}x"),
                replace(entry, version=1 if entry.version is None else None),
                replace(entry, action="lease" if entry.action != "lease" else "verify"),
                replace(entry, result="granted" if entry.result != "granted" else "ok"),
            ]
        )
    )
    assert first_break("alice", chain, head) == f"entry {entry.seq} was changed"


@given(st.data(), CHAINS)
def test_an_entry_whose_hash_was_made_anew_breaks_at_the_next_one_or_at_the_head(
    data: st.DataObject, entries: list[AccessEntry]
) -> None:
    chain = chained("alice", entries)
    head = head_of(chain)
    index = data.draw(st.integers(0, len(chain) - 1))
    forged = replace(chain[index], instance="nobody at all, 21 chars")
    chain[index] = replace(forged, hash=hash_of("alice", forged))
    assert first_break("alice", chain, head) is not None


@given(st.data(), CHAINS)
def test_missing_entries_are_named(data: st.DataObject, entries: list[AccessEntry]) -> None:
    chain = chained("alice", entries)
    head = head_of(chain)
    taken = data.draw(st.integers(0, len(chain) - 2))
    assert first_break("alice", chain[:taken] + chain[taken + 1 :], head) == (
        f"entry {taken + 1} is missing: entry {taken + 2} follows {taken}"
    )
    kept = data.draw(st.integers(0, len(chain) - 1))
    assert first_break("alice", chain[:kept], head) == f"entries {kept + 1} to {head.seq} were cut off"


@given(CHAINS)
def test_entries_of_another_owner_are_no_entries_of_this_one(entries: list[AccessEntry]) -> None:
    chain = chained("alice", entries)
    assert first_break("bob", chain, head_of(chain)) == "entry 1 was changed"


@given(CHAINS)
def test_an_entry_past_the_head_is_named(entries: list[AccessEntry]) -> None:
    chain = chained("alice", entries)
    assert first_break("alice", chain, head_of(chain[:-1])) == f"entry {len(chain)} came past the head"


@given(CHAINS, CHAINS)
def test_a_chain_written_anew_is_not_the_one_of_the_head(entries: list[AccessEntry], others: list[AccessEntry]) -> None:
    head = head_of(chained("alice", entries))
    anew = chained("alice", [*others, *entries])[: len(entries)]
    if Head(anew[-1].seq, anew[-1].hash) != head:
        assert first_break("alice", anew, head) == f"entry {head.seq} is another than the head says"
