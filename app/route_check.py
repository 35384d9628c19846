"""Nothing is open by accident: every route declares its scope, or stands in the one list of those that need no key."""

from collections.abc import Iterator
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.dependencies import Needs
from app.domain.scopes import Scope
from app.errors import ConfigurationError

PUBLIC = frozenset(
    {
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/",
        "/dashboard/static",
        "/dashboard/static/charts",
        "/dashboard/vega.js",
        "/dashboard/session",
    }
)
"""Paths that need no key. The dashboard's session looks at the key itself."""
UNNOTED = "tether.unnoted"
"""In the scope of a request that nobody sent: it is neither counted nor logged."""


def list_routes(app: FastAPI) -> list[tuple[str, str, frozenset[Scope]]]:
    """Return method, path and the declared scopes of everything that the application serves."""
    return sorted(
        (
            (method, path_of(route), scopes_of(route))
            for route in _walk(app.routes)
            for method in methods_of(route)
        ),
        key=lambda found: found[:2],
    )


def check_routes(app: FastAPI) -> None:
    """Raise ConfigurationError where a route neither declares a scope nor is public."""
    open_ones = [
        f"{method} {path}" for method, path, scopes in list_routes(app) if not scopes and path not in PUBLIC
    ]
    if open_ones:
        raise ConfigurationError(
            f"these routes declare no scope: {', '.join(open_ones)}; add `dependencies=[needs(Scope.…)]`, or list the path"
            " in PUBLIC in app/route_check.py"
        )


async def prove_closed(app: FastAPI) -> None:
    """Ask every route that is not public without a key, and raise ConfigurationError unless each refuses."""

    async def unnoted(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, UNNOTED: True}, receive, send)

    transport = httpx.ASGITransport(unnoted, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as nobody:
        for method, path, _ in list_routes(app):
            if path in PUBLIC:
                continue
            reply = await nobody.request(method, path)
            if reply.status_code != 401:
                raise ConfigurationError(
                    f"{method} {path} answered {reply.status_code} to a request without a key, and 401 was expected; this"
                    " version is not safe to run"
                )


def scopes_of(route: BaseRoute) -> frozenset[Scope]:
    """Return the scopes that a route declares."""
    return frozenset(_scopes_in(route.dependant)) if isinstance(route, APIRoute) else frozenset()


def path_of(route: BaseRoute) -> str:
    """Return the path of a route as it was declared."""
    return str(getattr(route, "path", route))


def methods_of(route: BaseRoute) -> list[str]:
    """Return the methods of a route; a mounted application or a websocket counts as one that answers GET."""
    methods = getattr(route, "methods", None) or {"GET"}
    return sorted(methods - {"HEAD"})


def _scopes_in(dependant: Dependant) -> Iterator[Scope]:
    if isinstance(dependant.call, Needs):
        yield from dependant.call.scopes
    for each in dependant.dependencies:
        yield from _scopes_in(each)


def _walk(routes: list[BaseRoute]) -> Iterator[BaseRoute]:
    for route in routes:
        # An included router, as some versions of FastAPI keep it.
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from _walk(included.routes)
