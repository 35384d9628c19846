"""A browser's session: an API key in a cookie that no script can read.

Nothing is kept on the server, so that any replica answers, and a revoked key ends its sessions. A cookie is sent whoever
made the browser ask, so a request that changes something must also show a token that only our own page can know.
"""

import base64
import binascii
import hashlib
import hmac

from fastapi import Request
from fastapi.responses import Response

from app.errors import PermissionDenied

COOKIE = "tether_session"
TOKEN_HEADER = "x-csrf-token"  # noqa: S105  (The name of a header.)
LASTS_S = 12 * 3600
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def read_authorization(request: Request) -> str | None:
    """Return the Authorization header of a request, or what its session's cookie stands for; None without both.

    A header of another scheme is a proxy's, and leaves the session as it is. Raises PermissionDenied where the request may
    come from another page.
    """
    header = request.headers.get("authorization")
    key = read_session(request)
    if key is None or (header is not None and header.lower().startswith("bearer")):
        return header
    # Some that only read note that they did, or queue what they lack.
    check_origin(request)
    if request.method not in SAFE_METHODS:
        shown = request.headers.get(TOKEN_HEADER, "")
        if not hmac.compare_digest(shown.encode(), token_of(key).encode()):
            raise PermissionDenied(
                f"a request of a signed-in browser that changes something needs the header {TOKEN_HEADER} with the token of"
                " its session; load the page again, or send the key in the Authorization header",
                code="csrf_token",
            )
    return f"Bearer {key}"


def check_origin(request: Request) -> None:
    """Raise PermissionDenied where the browser says that another site's page has made it ask."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise PermissionDenied(
            "this request comes from another site's page; open the dashboard at its own address",
            code="cross_site",
        )


def token_of(key: str) -> str:
    """Return the token that a session shows when it changes something. It tells nothing about the key."""
    return hmac.digest(key.encode(), b"tether dashboard csrf", hashlib.sha256).hex()


def open_session(request: Request, reply: Response, key: str) -> None:
    """Put a key into the browser's cookie."""
    reply.set_cookie(
        COOKIE,
        # An operator may have chosen a key with characters that no cookie can carry.
        base64.urlsafe_b64encode(key.encode()).decode(),
        max_age=LASTS_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
    )


def close_session(reply: Response) -> None:
    """Make the browser forget its key."""
    reply.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")


def read_session(request: Request) -> str | None:
    """Return the key in a browser's cookie; None where there is none, or something else."""
    try:
        return base64.urlsafe_b64decode(request.cookies[COOKIE].encode()).decode()
    except (KeyError, UnicodeError, binascii.Error):
        return None
