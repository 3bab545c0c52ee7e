"""Says what a change of the contracts breaks, and which side to deploy first.

Old and new instances run side by side for a day, so every change is judged for both mixtures: an old writer with a new
reader, and a new writer with an old reader. Events and jobs may be older still, because streams keep them. A kind of
difference that this file does not know fails as well: teach it here, with a line in its test, and then it is judged.

`python -m contracts.compatibility [--base REV]` compares the contracts as they are with those of a git revision.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from contracts.document import ASYNCAPI_FILE, FOLDER, asyncapi
from contracts.subjects import PUBLISHER

Json = dict[str, Any]
Direction = Literal["request", "reply", "event"]
"""`request`: others write, the owner reads (jobs too). `reply`, `event`: the owner writes, others read."""
First = Literal["owner", "others", "either"]
Kind = Literal[
    "optional field added",
    "required field added",
    "optional field removed",
    "required field removed",
    "value added",
    "accepts more",
    "accepts less",
    "becomes something else",
    "default changed",
    "wording changed",
    "registry",
    "unknown",
]

# Who must be new before the other is; None breaks. Columns: request, reply, event.
_RULES: dict[Kind, tuple[First | None, First | None, First | None]] = {
    "optional field added": ("owner", "either", "either"),  # an old reader ignores it; a request wants it honoured
    "required field added": (None, "owner", None),  # old requests and stored events do not have it
    "optional field removed": ("others", "others", "others"),  # whoever relies on it lets go first
    "required field removed": ("owner", None, None),  # an old reader cannot do without
    "value added": ("owner", "others", "others"),  # the reader must know it before anybody says it
    "accepts more": ("owner", "others", "others"),
    "accepts less": (None, "owner", None),  # old writers and stored events still say what is refused now
    "becomes something else": (None, None, None),
    "default changed": ("either", "either", "either"),  # the reader fills it in, each its own for a day
    "wording changed": ("either", "either", "either"),
    "unknown": (None, None, None),
}
_ADVICE: dict[Kind, str] = {
    "required field added": "give it a default",
    "required field removed": "keep it",
    "accepts less": "keep accepting what was accepted",
    "becomes something else": "add a new field and keep this one",
    "unknown": "teach contracts/compatibility.py this kind of difference",
}
_COLUMNS: dict[Direction, int] = {"request": 0, "reply": 1, "event": 2}


@dataclass(frozen=True)
class Change:
    """One difference: where in the message, what, and who must be deployed first (None: it breaks)."""

    where: str
    kind: Kind
    what: str
    first: First | None

    @property
    def breaks(self) -> bool:
        return self.first is None


_WORDING = frozenset({"title", "description", "examples", "deprecated"})
_STRUCTURE = frozenset({"$id", "$schema", "$defs", "$ref", "components", "anyOf", "oneOf", "properties", "required"})
_UPPER = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_LOWER = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_FORM = frozenset({"pattern", "format"})
_VALUES = frozenset({"enum", "const"})
_NESTED = frozenset({"items", "additionalProperties"})
_ABSENT = object()


def compare(old: Json, new: Json, direction: Direction) -> list[Change]:
    """The differences between two JSON Schemas of one message that travels in this direction."""
    comparison = _Comparison(old, new, direction)
    comparison.walk(old, new, "")
    return comparison.changes


@dataclass
class _Comparison:
    old_root: Json
    new_root: Json
    direction: Direction
    changes: list[Change] = field(default_factory=list)
    open: set[tuple[str, str]] = field(default_factory=set)

    def say(self, where: str, kind: Kind, what: str) -> None:
        self.changes.append(Change(where or "message", kind, what, _RULES[kind][_COLUMNS[self.direction]]))

    def walk(self, old: Json, new: Json, where: str) -> None:
        pair = (old.get("$ref", ""), new.get("$ref", ""))
        if all(pair) and pair in self.open:
            return
        before, after = _branches(old, self.old_root), _branches(new, self.new_root)
        self.open.add(pair)
        if len(before) == len(after) == 1:
            (one,), (other,) = before.values(), after.values()
            self.node(one, other, where)
        else:
            self.union(before, after, where)
            self.keywords(old, new, where, _WORDING | {"default"})
        self.open.discard(pair)

    def union(self, before: dict[str, Json], after: dict[str, Json], where: str) -> None:
        for label in sorted(after.keys() - before.keys()):
            self.say(where, "value added", f"may now be {label}")
        for label in sorted(before.keys() - after.keys()):
            self.say(where, "accepts less", f"may no longer be {label}")
        for label in sorted(before.keys() & after.keys()):
            self.node(before[label], after[label], f"{where}<{label}>")

    def node(self, old: Json, new: Json, where: str) -> None:
        if _constraints(old) and not _constraints(new):
            self.say(where, "accepts more", "may now be anything")
        elif _constraints(new) and not _constraints(old):
            self.say(where, "accepts less", "may no longer be anything")
        else:
            self.types(old.get("type"), new.get("type"), where)
            self.values(_allowed(old), _allowed(new), where)
            self.fields(old, new, where)
            self.nested(old, new, where)
            self.keywords(old, new, where, (old.keys() | new.keys()) - _STRUCTURE - _NESTED - _VALUES - {"type"})

    def types(self, old: Any, new: Any, where: str) -> None:
        if (old, new) == ("integer", "number"):
            self.say(where, "accepts more", "integer becomes number")
        elif (old, new) == ("number", "integer"):
            self.say(where, "accepts less", "number becomes integer")
        elif old != new:
            self.say(where, "becomes something else", f"type {old} becomes {new}")

    def values(self, old: list[Any] | None, new: list[Any] | None, where: str) -> None:
        if old is None and new is not None:
            self.say(where, "accepts less", "becomes a closed set")
        elif old is not None and new is None:
            self.say(where, "accepts more", "is no longer a closed set")
        elif old is not None and new is not None:
            for value in new:
                if value not in old:
                    self.say(where, "value added", f"value {value!r} added")
            for value in old:
                if value not in new:
                    self.say(where, "accepts less", f"value {value!r} removed")

    def fields(self, old: Json, new: Json, where: str) -> None:
        before, after = old.get("properties", {}), new.get("properties", {})
        was, now = set(old.get("required", [])), set(new.get("required", []))
        for name in [*before, *(name for name in after if name not in before)]:
            path = f"{where}.{name}" if where else name
            if name not in before:
                self.say(path, "required field added" if name in now else "optional field added", "field added")
            elif name not in after:
                self.say(path, "required field removed" if name in was else "optional field removed", "field removed")
            else:
                if name in now - was:
                    self.say(path, "required field added", "becomes required")
                if name in was - now:
                    self.say(path, "accepts more", "becomes optional")
                self.walk(before[name], after[name], path)

    def nested(self, old: Json, new: Json, where: str) -> None:
        for keyword, suffix in (("items", "[]"), ("additionalProperties", ".*")):
            if keyword not in old and keyword not in new:
                continue
            before, after = old.get(keyword, True), new.get(keyword, True)
            if before is False or after is False:
                if before != after:
                    kind: Kind = "accepts more" if before is False else "accepts less"
                    self.say(where + suffix, kind, f"{keyword}: {before} becomes {after}")
            else:
                self.walk({} if before is True else before, {} if after is True else after, where + suffix)

    def keywords(self, old: Json, new: Json, where: str, names: set[str] | frozenset[str]) -> None:
        for name in sorted(names):
            before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
            if before == after and type(before) is type(after):
                continue
            what = f"{name} {_shown(before)} becomes {_shown(after)}"
            self.say(where, _kind_of(name, before, after), what if name not in _WORDING else f"{name} changed")


def _kind_of(name: str, before: Any, after: Any) -> Kind:
    if name in _WORDING:
        return "wording changed"
    if name == "default":
        return "default changed"
    if name in _UPPER | _LOWER | _FORM and _ABSENT in (before, after):
        return "accepts more" if after is _ABSENT else "accepts less"
    if name in _UPPER | _LOWER:
        return "accepts more" if (after > before) == (name in _UPPER) else "accepts less"
    return "becomes something else" if name in _FORM else "unknown"


def _shown(value: Any) -> str:
    return "(none)" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _constraints(schema: Json) -> set[str]:
    return schema.keys() - _WORDING - {"default", "$id", "$schema", "$defs", "components"}


def _allowed(schema: Json) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _resolve(schema: Json, root: Json) -> Json:
    """The schema with its reference replaced by what it refers to; what stands beside a reference is kept."""
    if "$ref" not in schema:
        return schema
    target: Any = root
    for step in schema["$ref"].removeprefix("#/").split("/"):
        target = target[step]
    beside = {name: value for name, value in schema.items() if name not in {"$ref", "components", "$defs"}}
    return {**_resolve(target, root), **beside}


def _branches(schema: Json, root: Json) -> dict[str, Json]:
    """What a value may be, each with a name that stays the same when its details change."""
    found: dict[str, Json] = {}
    for label, branch in _alternatives(schema, root):
        found[label if label not in found else f"{label} ({len(found)})"] = branch
    return found


def _alternatives(schema: Json, root: Json) -> Iterator[tuple[str, Json]]:
    name = schema.get("$ref", "").rpartition("/")[2]
    resolved = _resolve(schema, root)
    union = resolved.get("anyOf") or resolved.get("oneOf")
    if union:
        for branch in union:
            yield from _alternatives(branch, root)
        return
    tags = [f"{key}={inner['const']}" for key, inner in resolved.get("properties", {}).items() if "const" in inner]
    yield ", ".join(tags) or name or str(resolved.get("type", "anything")), resolved


# The registry ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One change of one subject, with who owns it and who else takes part."""

    subject: str
    part: str
    change: Change
    owner: str
    others: tuple[str, ...]

    @property
    def before(self) -> tuple[tuple[str, str], ...]:
        """Pairs of services: the first of each must be deployed before the second."""
        others = [name for name in self.others if name not in (PUBLISHER, self.owner)]
        if self.change.first == "owner":
            return tuple((self.owner, other) for other in others)
        return tuple((other, self.owner) for other in others) if self.change.first == "others" else ()

    def __str__(self) -> str:
        change = self.change
        match change.first:
            case None:
                verdict = f"BREAKS: {_ADVICE.get(change.kind, 'keep it')}, or say it under the next major version"
            case "either":
                verdict = "any order"
            case "owner":
                verdict = f"deploy {self.owner} first"
            case "others":
                verdict = f"deploy {', '.join(self.others) or 'listeners'} first"
        return f"{self.subject} {self.part} · {change.where}: {change.what} · {verdict}"


_PARTIES = ("x-callers", "x-listeners", "x-publishers")
_DIRECTIONS: dict[str, Direction] = {"rpc": "request", "job": "request", "event": "event"}


def compare_documents(old: Json, new: Json) -> list[Finding]:
    """The differences between two AsyncAPI documents that `document.py` wrote."""
    findings: list[Finding] = []
    before, after = _subjects(old), _subjects(new)
    for name in [*before, *(name for name in after if name not in before)]:
        channel = after.get(name) or before[name]
        owner, others = channel["x-owner"], _parties(channel)
        for part, change in _compare_subject(name, old, new):
            findings.append(Finding(name, part, _for_outsiders(change, others), owner, others))
    findings += [Finding(name, "stream", change, owner, ()) for name, owner, change in _compare_streams(old, new)]
    return findings


def _subjects(api: Json) -> dict[str, Json]:
    return {name: channel for name, channel in api["channels"].items() if channel["x-kind"] != "reply"}


def _parties(channel: Json) -> tuple[str, ...]:
    return tuple(name for key in _PARTIES for name in channel.get(key, ()))


def _for_outsiders(change: Change, others: tuple[str, ...]) -> Change:
    """Nobody can deploy outside services first; that a closed set may grow is the one thing they were told to expect."""
    if change.first == "others" and PUBLISHER in others and change.kind not in ("value added", "registry"):
        return replace(change, first=None, what=f"{change.what} (outside services cannot be deployed first)")
    return change


def _compare_subject(name: str, old: Json, new: Json) -> Iterator[tuple[str, Change]]:
    before, after = _subjects(old).get(name), _subjects(new).get(name)
    if after is None:
        yield "subject", Change(name, "registry", "it is gone", None)
    elif before is None:
        first: First = "either" if after["x-kind"] == "event" else "owner"
        yield "subject", Change(name, "registry", "it is new; load the new deploy/nats.conf before anything", first)
    else:
        for change in (*_compare_facts(name, before, after), *_compare_parties(name, before, after)):
            yield "subject", change
        direction = _DIRECTIONS[after["x-kind"]]
        yield from _compare_messages((old, before), (new, after), direction, direction)
        yield from _compare_frames((old, before), (new, after))
        if after["x-kind"] == before["x-kind"] == "rpc":
            was, now = old["channels"][f"{name}.reply"], new["channels"][f"{name}.reply"]
            for role in ("reply", "error"):
                yield from _compare_messages((old, was), (new, now), "reply", role)


def _compare_messages(
    old: tuple[Json, Json], new: tuple[Json, Json], direction: Direction, role: str
) -> Iterator[tuple[str, Change]]:
    """What travels on one channel of two documents; on a channel of replies, in one role."""
    wanted = role if direction == "reply" else ""
    for part, name in (("payload", role), ("headers", f"{role} headers")):
        for change in compare(_schema(*old, part, wanted), _schema(*new, part, wanted), direction):
            yield name, change


def _compare_frames(old: tuple[Json, Json], new: tuple[Json, Json]) -> Iterator[tuple[str, Change]]:
    """What frames carry, by type; that a type joins or goes is a value of `Frame.type`."""
    before, after = old[1].get("x-data", {}), new[1].get("x-data", {})
    for kind in [kind for kind in before if kind in after]:
        for change in compare(_union(old[0], before[kind]), _union(new[0], after[kind]), "event"):
            yield f"{kind} data", change


def _schema(api: Json, channel: Json, part: str, role: str = "") -> Json:
    """What the messages of a channel carry, as one schema; of those in this role alone where one is given."""
    names = [name for name in channel["messages"] if name.endswith(f".{role}") or not role]
    return _union(api, [api["components"]["messages"][name][part] for name in names])


def _union(api: Json, schemas: list[Json]) -> Json:
    distinct = [schema for index, schema in enumerate(schemas) if schema not in schemas[:index]]
    whole = distinct[0] if len(distinct) == 1 else {"oneOf": distinct}
    return {**whole, "components": api["components"]}


def _compare_facts(name: str, before: Json, after: Json) -> Iterator[Change]:
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        if was == now or key in (*_PARTIES, "messages", "x-data"):
            continue
        what = f"{key} {was} becomes {now}"
        if key in ("address", "x-kind", "x-owner", "x-stream"):
            yield Change(name, "registry", what, None)
        elif key in ("description", "parameters"):
            yield Change(name, "wording changed", f"{key} changed", "either")
        elif key == "x-idempotent":
            yield Change(name, "registry", what, "owner" if now else None)
        elif key == "x-timeout-s":
            yield Change(name, "registry", what, "either")
        else:
            yield Change(name, "unknown", what, None)


def _compare_parties(name: str, before: Json, after: Json) -> Iterator[Change]:
    was, now = set(_parties(before)), set(_parties(after))
    for party in sorted(now - was):
        yield Change(name, "registry", f"{party} joins; load the new deploy/nats.conf before anything", "owner")
    for party in sorted(was - now):
        yield Change(name, "registry", f"{party} is no longer allowed", None if party == PUBLISHER else "others")


_STREAM_FIXED = ("storage", "retention", "owner")
_STREAM_FREE = ("subjects", "readers", "max_age_s", "max_bytes", "description")


def _compare_streams(old: Json, new: Json) -> Iterator[tuple[str, str, Change]]:
    before = {stream["name"]: stream for stream in old["x-streams"]}
    after = {stream["name"]: stream for stream in new["x-streams"]}
    for name in [*before, *(name for name in after if name not in before)]:
        one, other = before.get(name), after.get(name)
        owner = (other or before[name])["owner"]
        if one is None or other is None:
            gone = Change(name, "registry", "it is gone, with what waits in it", None)
            yield name, owner, gone if one else Change(name, "registry", "it is new", "owner")
            continue
        for key in [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]:
            kind: Kind = "registry" if key in (*_STREAM_FIXED, *_STREAM_FREE) else "unknown"
            what = f"{key} {one.get(key)} becomes {other.get(key)}"
            yield name, owner, Change(name, kind, what, "either" if key in _STREAM_FREE else None)


def contradictions(findings: list[Finding]) -> list[tuple[str, str]]:
    """Pairs of services of which each would have to be deployed before the other."""
    pairs = {pair for finding in findings for pair in finding.before}
    return sorted((one, other) for one, other in pairs if one < other and (other, one) in pairs)


# The command ----------------------------------------------------------------------------------------------------------


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, check=False)  # noqa: S603, S607
    return done.stdout.decode() if done.returncode == 0 else None


def document_at(revision: str) -> Json | None:
    """The AsyncAPI document as committed in a revision; None where there is none."""
    text = _git("show", f"{revision}:./{ASYNCAPI_FILE.name}")
    return None if text is None else json.loads(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Say what a change of the contracts breaks, and what to deploy first.")
    parser.add_argument("--base", help="git revision to compare with; origin/main where it exists, otherwise HEAD")
    base = parser.parse_args().base
    if base is None:
        base = "origin/main" if _git("rev-parse", "--verify", "--quiet", "origin/main") else "HEAD"
    if _git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}") is None:
        print(f"{base} is not a revision of this repository.")
        return 1
    old = document_at(base)
    if old is None:
        print(f"{base} has no contracts/{ASYNCAPI_FILE.name}: nothing to compare with.")
        return 0
    findings = compare_documents(old, asyncapi())
    for finding in sorted(findings, key=lambda found: not found.change.breaks):
        print(finding)
    for one, other in contradictions(findings):
        print(f"{one} and {other} would each have to be deployed before the other: make two releases of it.")
    broken = [finding for finding in findings if finding.change.breaks]
    print(f"Compared with {base}: {len(findings)} differences, {len(broken)} of them breaking.")
    return 1 if broken or contradictions(findings) else 0


if __name__ == "__main__":
    sys.exit(main())
