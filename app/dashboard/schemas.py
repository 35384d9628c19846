"""What the page's own paths take."""

from typing import Annotated

from pydantic import Field

from app.domain.frozen import Frozen


class SignIn(Frozen):
    """The body of `POST /dashboard/session`."""

    key: Annotated[str, Field(min_length=1, max_length=200)]
    """An API key."""
