"""Both places where bytes can be kept."""

from pathlib import Path

import pytest

from app.storage import Place


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place, once a folder and once a bucket."""
    if request.param == "folder":
        return tmp_path / "storage"
    url: str = request.getfixturevalue("bucket")
    return url
