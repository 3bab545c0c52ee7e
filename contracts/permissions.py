"""Who may say and hear what on NATS, derived from the registry: one user per service, one per outside publisher.

`make nats-permissions` writes `deploy/nats.conf` from here; the local stack and the tests write theirs with the same
function. A publisher's name is its user name and stands in its subjects, so that a caller cannot be forged; publishers
get no JetStream API at all, because whoever may create a consumer chooses where its messages are delivered.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from contracts.subjects import (
    EVENTS,
    FRAMES,
    INPUTS_BUCKET,
    JOBS,
    MEDIA_BUCKET,
    PUBLISHER,
    RPCS,
    SERVICES,
    STREAMS,
    Service,
    as_publisher,
    frames_subject,
)

OBSERVER = "observer"
_OUTPUTS, _INPUTS = f"OBJ_{MEDIA_BUCKET}", f"OBJ_{INPUTS_BUCKET}"


def inbox_prefix(user: str) -> str:
    """Where replies to this user go; nobody else may listen there."""
    return f"_INBOX.{user}"


def _reading(stream: str) -> list[str]:
    return [
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.STREAM.MSG.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}.>",
        f"$JS.API.CONSUMER.CREATE.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}.>",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.>",
        f"$JS.API.CONSUMER.INFO.{stream}.>",
        f"$JS.API.CONSUMER.DELETE.{stream}.>",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.>",
        f"$JS.ACK.{stream}.>",
        f"$JS.FC.{stream}.>",
    ]


def _owning(stream: str) -> list[str]:
    return [
        f"$JS.API.STREAM.CREATE.{stream}",
        f"$JS.API.STREAM.UPDATE.{stream}",
        f"$JS.API.STREAM.PURGE.{stream}",
        *_reading(stream),
    ]


def publish_list(service: Service) -> list[str]:
    """Every subject that the service may publish to."""
    allowed = [rpc.subject for rpc in RPCS if service in rpc.callers]
    allowed += [event.subject for event in EVENTS if event.owner == service]
    allowed += [job.subject for job in JOBS if service in job.publishers]
    for stream in STREAMS:
        if stream.owner == service:
            allowed += _owning(stream.name)
        elif service in stream.readers:
            allowed += _reading(stream.name)
    if service == "executor":
        # It marks an input as deleted, and writes none.
        allowed += [f"$O.{MEDIA_BUCKET}.>", f"$O.{INPUTS_BUCKET}.M.>", *_owning(_OUTPUTS), *_owning(_INPUTS)]
    if service == "gateway":
        allowed += [f"$O.{INPUTS_BUCKET}.>", *_reading(_OUTPUTS), *_reading(_INPUTS)]
    return sorted(allowed)


def subscribe_list(service: Service) -> list[str]:
    """Every subject that the service may subscribe to; requests only within the queue group of their owner."""
    allowed = [f"{rpc.subject} {service}" for rpc in RPCS if rpc.owner == service]
    allowed += [event.subject for event in EVENTS if service in event.listeners and event is not FRAMES]
    if service in FRAMES.listeners:
        allowed.append(frames_subject(service, "*"))
    return sorted([*allowed, f"{inbox_prefix(service)}.>"])


def publisher_lists(name: str) -> tuple[list[str], list[str]]:
    """What one outside publisher may publish and subscribe to: its own subjects, frames and replies, nothing else.

    Raises ValueError for a name that could not be the viewer of a run.
    """
    if not re.fullmatch(r"[a-z0-9_-]{1,40}", name) or name in SERVICES or name == OBSERVER:
        raise ValueError(f"{name!r} cannot be a publisher: up to 40 of a-z, 0-9, - and _, and no service's name")
    publish = [as_publisher(rpc.subject, name) for rpc in RPCS if PUBLISHER in rpc.callers]
    publish += [as_publisher(job.subject, name) for job in JOBS if PUBLISHER in job.publishers]
    subscribe = [
        as_publisher(event.subject, name) for event in EVENTS if PUBLISHER in event.listeners and event is not FRAMES
    ]
    return sorted(publish), sorted([*subscribe, frames_subject(name, "*"), f"{inbox_prefix(name)}.>"])


def _user(name: str, password: str, publish: Sequence[str], subscribe: Sequence[str], *, replies: bool) -> str:
    secret = password if password.startswith("$") else json.dumps(password)
    # An empty list allows everything.
    may_publish = f"allow: {json.dumps(list(publish))}" if publish else 'deny: ">"'
    # A run may take ten minutes before it is answered; the server forgets the permission to reply after this long.
    may_reply = '\n        allow_responses: { max: 1, expires: "15m" }' if replies else ""
    return f"""    {{
      user: {name}
      password: {secret}
      permissions: {{
        publish: {{ {may_publish} }}
        subscribe: {{ allow: {json.dumps(list(subscribe))} }}{may_reply}
      }}
    }}"""


def nats_config(passwords: Mapping[str, str], publishers: Sequence[str], *, observer: bool = False) -> str:
    """The `authorization` section of a NATS configuration.

    `passwords` maps every service, every publisher and (when asked for) the observer to a password; one that begins
    with `$` is written as a reference to an environment variable. The observer hears everything and says nothing: it
    exists for tests that look for secrets.
    """
    users = [_user(s, passwords[s], publish_list(s), subscribe_list(s), replies=True) for s in SERVICES]
    users += [_user(name, passwords[name], *publisher_lists(name), replies=False) for name in publishers]
    if observer:
        users.append(_user(OBSERVER, passwords[OBSERVER], [], [">"], replies=False))
    return "authorization {\n  users: [\n" + "\n".join(users) + "\n  ]\n}\n"


def deployed_config(publishers: Sequence[str]) -> str:
    """`deploy/nats.conf`: everything a production server needs; passwords and the encryption key come from its environment."""
    passwords = {user: f"$NATS_PASSWORD_{user.upper().replace('-', '_')}" for user in [*SERVICES, *publishers]}
    return f"""# Written by `make nats-permissions` from contracts/subjects.py; edit that, not this.
port: 4222
max_payload: 8MB
jetstream {{
  store_dir: "/data/jetstream"
  cipher: aes
  key: $NATS_JETSTREAM_KEY
  sync_interval: always
}}
{nats_config(passwords, publishers)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the NATS configuration that the registry asks for.")
    parser.add_argument("--publisher", action="append", default=[], help="an outside service with a user of its own")
    parser.add_argument("--out", type=Path, default=Path("deploy/nats.conf"))
    args = parser.parse_args()
    args.out.write_text(deployed_config(args.publisher or ["demo"]), encoding="utf-8")


if __name__ == "__main__":
    main()
