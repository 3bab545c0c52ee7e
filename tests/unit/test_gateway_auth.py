"""Tokens: each way to be wrong is a 401 whose sentence says what to do; families of signatures are never mixed."""

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from contracts.errors import ErrorCode, ServiceError
from services.gateway.auth import Verifier

SECRET = "a secret that is long enough for HS256, surely"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def claims(**changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    base = {"sub": "alice", "iss": "issuer", "aud": "audience", "iat": now, "exp": now + timedelta(minutes=5)}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def token(key: Any = SECRET, algorithm: str = "HS256", key_id: str | None = None, **changes: Any) -> str:
    headers = {"kid": key_id} if key_id else None
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


def with_secret() -> Verifier:
    return Verifier(issuer="issuer", audience="audience", admin_role="admin", secret=SECRET)


async def refusal(verifier: Verifier, authorization: str | None) -> str:
    with pytest.raises(ServiceError) as caught:
        await verifier.identify(authorization)
    assert caught.value.code is ErrorCode.UNAUTHENTICATED
    return caught.value.body.message


async def test_good_token_is_its_user() -> None:
    identity = await with_secret().identify(f"Bearer {token()}")
    assert (identity.user, identity.admin) == ("alice", False)


@pytest.mark.parametrize("role", [{"role": "admin"}, {"role": ["user", "admin"]}, {"app_metadata": {"role": "admin"}}])
async def test_admin_role_makes_an_admin(role: dict[str, Any]) -> None:
    assert (await with_secret().identify(f"bearer {token(**role)}")).admin


@pytest.mark.parametrize(
    "role",
    [
        {"role": "user"},
        {"role": ["administrators"]},
        {"role": {"admin": 1}},
        {"app_metadata": "admin"},
        {"user_metadata": {"role": "admin"}},
    ],
)
async def test_other_roles_do_not(role: dict[str, Any]) -> None:
    assert not (await with_secret().identify(f"Bearer {token(**role)}")).admin


@pytest.mark.parametrize(
    ("authorization", "says"),
    [
        (None, "Authorization: Bearer"),
        ("", "Authorization: Bearer"),
        ("Basic YTpi", "Bearer <JWT>"),
        ("Bearer", "Bearer <JWT>"),
        ("Bearer not.a.jwt", "not a readable JWT"),
        ("Bearer " + "x" * 10_000, "Bearer <JWT>"),
    ],
)
async def test_header_without_token_says_how_to_send_one(authorization: str | None, says: str) -> None:
    assert says in await refusal(with_secret(), authorization)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"exp": datetime.now(UTC) - timedelta(seconds=2)}, "expired"),
        ({"nbf": datetime.now(UTC) + timedelta(days=1)}, "not valid yet"),
        ({"iss": "somebody else"}, "somebody else"),
        ({"aud": "another service"}, "somebody else"),
        ({"exp": None}, "lacks the claim exp"),
        ({"iss": None}, "lacks the claim iss"),
        ({"aud": None}, "lacks the claim aud"),
        ({"sub": None}, "lacks the claim sub"),
        ({"sub": "a b"}, "user id"),
        ({"sub": "a/b"}, "user id"),
        ({"sub": "x" * 201}, "user id"),
        ({"sub": ""}, "user id"),
    ],
)
async def test_wrong_claim_is_named(changes: dict[str, Any], says: str) -> None:
    bad = jwt.encode(claims(**changes), SECRET)
    assert says in await refusal(with_secret(), f"Bearer {bad}")


async def test_remembered_token_still_expires() -> None:
    verifier = with_secret()
    expires = int(time.time()) + 2
    short = f"Bearer {token(exp=expires)}"
    assert (await verifier.identify(short)).user == "alice"
    while time.time() < expires:  # noqa: ASYNC110 - nothing happens at that moment
        await asyncio.sleep(0.02)
    assert "expired" in await refusal(verifier, short)


async def test_foreign_signature_is_refused() -> None:
    foreign = token("another secret that is long enough as well")
    assert "signature" in await refusal(with_secret(), f"Bearer {foreign}")


async def test_unsigned_token_is_refused() -> None:
    unsigned = jwt.encode(claims(), None, algorithm="none")  # type: ignore[arg-type]
    assert "signed in a way" in await refusal(with_secret(), f"Bearer {unsigned}")


async def test_other_family_is_refused_with_a_secret() -> None:
    assert "signed in a way" in await refusal(with_secret(), f"Bearer {token(RSA_KEY, 'RS256')}")


def test_both_families_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="never both"):
        Verifier(issuer="i", audience="a", admin_role="admin", secret=SECRET, jwks_url="http://127.0.0.1/")


class _Issuer:
    """Serves a JWKS document and counts how often it was asked."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.asked = 0
        self.status = 200
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                body = json.dumps({"keys": issuer.keys}).encode()
                self.send_response(issuer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"

    def publish(self, algorithm: Any, key: Any, key_id: str) -> None:
        self.keys.append({**json.loads(algorithm.to_jwk(key.public_key())), "kid": key_id, "use": "sig"})


@pytest.fixture
def issuer() -> Iterator[_Issuer]:
    made = _Issuer()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def with_keys(issuer: _Issuer) -> Verifier:
    return Verifier(issuer="issuer", audience="audience", admin_role="admin", jwks_url=issuer.url)


async def test_published_keys_verify_and_are_kept(issuer: _Issuer) -> None:
    issuer.publish(RSAAlgorithm, RSA_KEY, "r1")
    issuer.publish(ECAlgorithm, EC_KEY, "e1")
    verifier = with_keys(issuer)
    for _ in range(3):
        assert (await verifier.identify(f"Bearer {token(RSA_KEY, 'RS256', 'r1')}")).user == "alice"
        assert (await verifier.identify(f"Bearer {token(EC_KEY, 'ES256', 'e1')}")).user == "alice"
    assert issuer.asked == 1


async def test_unknown_key_is_asked_for_once_and_refused(issuer: _Issuer) -> None:
    issuer.publish(RSAAlgorithm, RSA_KEY, "r1")
    verifier = with_keys(issuer)
    for _ in range(3):
        assert "signature" in await refusal(verifier, f"Bearer {token(RSA_KEY, 'RS256', 'other')}")
    assert issuer.asked == 1


async def test_public_key_is_no_shared_secret(issuer: _Issuer) -> None:
    issuer.publish(RSAAlgorithm, RSA_KEY, "r1")
    issuer.keys.append(
        {"kty": "oct", "k": "YSBzZWNyZXQgdGhhdCBldmVyeWJvZHkga25vd3MgYWxyZWFkeQ", "kid": "o1", "alg": "HS256"}
    )
    verifier = with_keys(issuer)
    shared = token("a secret that everybody knows already", key_id="o1")
    assert "signed in a way" in await refusal(verifier, f"Bearer {shared}")


async def test_issuer_that_fails_is_not_asked_by_every_request(issuer: _Issuer) -> None:
    issuer.status = 500
    verifier = with_keys(issuer)
    for _ in range(3):
        with pytest.raises(ServiceError) as caught:
            await verifier.identify(f"Bearer {token(RSA_KEY, 'RS256', 'r1')}")
        assert caught.value.code is ErrorCode.UNAVAILABLE
    assert issuer.asked == 1


async def test_issuer_that_does_not_answer_is_unavailable(issuer: _Issuer) -> None:
    verifier = Verifier(issuer="issuer", audience="audience", admin_role="admin", jwks_url="http://127.0.0.1:9/jwks")
    with pytest.raises(ServiceError) as caught:
        await verifier.identify(f"Bearer {token(RSA_KEY, 'RS256', 'r1')}")
    assert caught.value.code is ErrorCode.UNAVAILABLE
