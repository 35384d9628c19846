"""Pictures drawn from the Vega-Lite specifications beside this file, which the dashboard draws in the browser, too."""

import json
import threading
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from app.errors import ChartsUnavailable

_BUILDING = threading.Lock()


def render_curve(
    curve: dict[str, Any],
    marks: Sequence[dict[str, Any]],
    *,
    title: str,
    subtitle: str,
    image: Literal["png", "svg"],
) -> bytes:
    """Return the picture of a curve as `build_curve` makes it, with what happened on its way.

    Raises ChartsUnavailable without the extra.
    """
    vl_convert = _load()
    chart = json.loads(Path(__file__).with_name("risk.json").read_text(encoding="utf-8"))
    chart["title"] = {"text": title, "subtitle": subtitle}
    rows = [dict(zip(curve["columns"], row, strict=True)) for row in curve["rows"]]
    # A mark outside of what is shown would stretch the axis.
    shown = [mark for mark in marks if rows and rows[0]["step"] <= mark["step"] <= rows[-1]["step"]]
    chart["datasets"] = {"curve": rows, "marks": shown}
    if not shown:
        chart["vconcat"] = [panel for panel in chart["vconcat"] if panel["name"] != "marks"]
    if image == "svg":
        svg: str = vl_convert.vegalite_to_svg(chart)
        return svg.encode("utf-8")
    png: bytes = vl_convert.vegalite_to_png(chart, scale=2)
    return png


def is_available() -> bool:
    """Say whether the extra is installed."""
    return find_spec("vl_convert") is not None


def build_bundle() -> bytes:
    """Return Vega, Vega-Lite and vega-embed as one script for a browser; it sets `vegaEmbed`. Takes seconds, once a process.

    Raises ChartsUnavailable without the extra.
    """
    # Nobody needs a key to ask for it; those who ask meanwhile wait for the one that is being built.
    with _BUILDING:
        return _build_bundle()


@cache
def _build_bundle() -> bytes:
    bundle: str = _load().javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.encode("utf-8")


def _load() -> Any:
    try:
        import vl_convert
    except ImportError:
        raise ChartsUnavailable(
            "pictures need the extra `charts`: pip install 'tether[charts]'; format=json and format=csv need nothing"
        ) from None
    return vl_convert
