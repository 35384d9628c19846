"""/ and /dashboard: a page that speaks only the public API, and the session in which a browser does so."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from app.auth import Caller, admit, read_digest
from app.charts.render import build_bundle, is_available
from app.conditional import answer, etag_of
from app.dashboard.schemas import SignIn
from app.database import Database, read_only
from app.errors import NotAuthenticated
from app.keys.repository import get_key
from app.projects.repository import get_project
from app.sessions import check_origin, close_session, open_session, read_session, token_of

STATIC = Path(__file__).with_name("static")
HEADERS = {
    # Nothing from elsewhere, nothing inline, and nobody may frame it. Pictures of charts are drawn into blobs.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
    " blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # A new version shows at once; asking costs a millisecond.
    "cache-control": "no-cache",
}

SUFFIXES = frozenset({".css", ".html", ".js", ".json", ".svg"})

router = APIRouter(include_in_schema=False)


class Pages(StaticFiles):
    """The files of the page, with its headers; what else lies beside them is not there."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Return where a file of the page is, and nothing for any other."""
        return super().lookup_path(path) if Path(path).suffix in SUFFIXES else ("", None)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file, or 304 where the browser has it already."""
        reply = super().file_response(*args, **kwargs)
        reply.headers.update(HEADERS)
        return reply


def add_dashboard(app: FastAPI) -> None:
    """Serve the page at /, and its files below /dashboard/static."""
    app.include_router(router)
    app.mount("/dashboard/static/charts", Pages(directory=STATIC.parents[1] / "charts"), name="charts")
    app.mount("/dashboard/static", Pages(directory=STATIC), name="dashboard")


@router.get("/")
def show_page() -> FileResponse:
    """Return the page. What it shows comes from the API, after signing in."""
    return FileResponse(STATIC / "index.html", headers=HEADERS)


@router.get("/dashboard/vega.js")
def show_vega(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """Return what draws charts in the browser. 501 without the extra `charts`."""
    etag = etag_of("vega", version("vl-convert-python") if is_available() else None)
    return answer(
        etag, if_none_match, "text/javascript", build_bundle, **{"x-content-type-options": "nosniff"}
    )


@router.post("/dashboard/session")
async def sign_in(request: Request, reply: Response, body: SignIn) -> dict[str, Any]:
    """Put a key into a cookie of the browser, where it opens something."""
    check_origin(request)
    known = admit(await request.app.state.callers.get(read_digest(f"Bearer {body.key}")))
    open_session(request, reply, body.key)
    return await run_in_threadpool(_describe, request.app.state.database, known.caller, body.key)


@router.get("/dashboard/session")
async def show_session(request: Request, reply: Response) -> dict[str, Any]:
    """Return who is signed in, and the token that changes need; that nobody is is an answer, too."""
    key = read_session(request)
    if key is None:
        return {"signed_in": False, "why": None}
    try:
        known = admit(await request.app.state.callers.get(read_digest(f"Bearer {key}")))
    except NotAuthenticated as error:
        close_session(reply)
        return {"signed_in": False, "why": error.message}
    return await run_in_threadpool(_describe, request.app.state.database, known.caller, key)


@router.delete("/dashboard/session")
def sign_out(request: Request) -> JSONResponse:
    """Make the browser forget its key; the key itself stays as it is."""
    check_origin(request)
    reply = JSONResponse({"signed_in": False})
    close_session(reply)
    return reply


def _describe(database: Database, caller: Caller, key: str) -> dict[str, Any]:
    with read_only(database) as session:
        row, project = get_key(session, None, caller.key_id), get_project(session, caller.project_id)
        return {
            "signed_in": True,
            "key": {"id": caller.key_id, "name": row and row.name, "role": caller.role},
            "scopes": sorted(caller.scopes),
            "expires_at": caller.expires_at and int(caller.expires_at.timestamp()),
            "project": {"id": caller.project_id, "name": project and project.name},
            "csrf_token": token_of(key),
            "charts": is_available(),
        }
