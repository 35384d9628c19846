"""Pictures of a risk curve, drawn from the one Vega-Lite specification beside this file."""

import json
from pathlib import Path
from typing import Any, Literal

from app.errors import ChartsUnavailable


def render_curve(curve: dict[str, Any], *, title: str, subtitle: str, image: Literal["png", "svg"]) -> bytes:
    """Return the picture of a curve as `build_curve` makes it. Raises ChartsUnavailable without the extra."""
    try:
        import vl_convert
    except ImportError:
        raise ChartsUnavailable(
            "pictures need the extra `charts`: pip install 'tether[charts]'; format=json and format=csv need nothing"
        ) from None
    chart = json.loads(Path(__file__).with_name("risk_chart.json").read_text(encoding="utf-8"))
    chart["title"] = {"text": title, "subtitle": subtitle}
    chart["data"]["values"] = [dict(zip(curve["columns"], row, strict=True)) for row in curve["rows"]]
    if image == "svg":
        svg: str = vl_convert.vegalite_to_svg(chart)
        return svg.encode("utf-8")
    png: bytes = vl_convert.vegalite_to_png(chart, scale=2)
    return png
