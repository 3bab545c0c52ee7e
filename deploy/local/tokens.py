"""Signs the tokens that the local gateway accepts. Elsewhere an identity provider does this, and the gateway only checks."""

from datetime import UTC, datetime, timedelta

import jwt

ISSUER = "x402jobs-local"
AUDIENCE = "x402jobs"
ADMIN_ROLE = "admin"
LIFETIME = timedelta(days=30)


def sign_token(secret: str, user: str, *, admin: bool = False) -> str:
    """An HS256 token that makes its bearer this user for 30 days, with `admin` an administrator."""
    now = datetime.now(UTC)
    claims = {
        "sub": user,
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + LIFETIME,
        "role": ADMIN_ROLE if admin else "user",
    }
    return jwt.encode(claims, secret, algorithm="HS256")
