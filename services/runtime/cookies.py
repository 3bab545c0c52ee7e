"""Cookies, for clients that call on behalf of many: none.

What upstream sets in the answer to one person's key must never go out with another's, and an HTTP client that is shared
keeps one jar for all.
"""

from __future__ import annotations

from http.cookiejar import CookieJar, DefaultCookiePolicy


def no_cookies() -> CookieJar:
    """A jar that stays empty."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))
