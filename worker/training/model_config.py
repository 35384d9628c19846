"""The configuration that a model is loaded with: of what its folder says, only what describes a network.

`config.json` is more than numbers: some of its keys make the loader fetch or run code, and new ones of that kind have
come with new versions of the library (CVE-2026-4372, CVE-2026-5241). So the model is never loaded with the file as it
is, but with one that has the keys of a known architecture.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from app.domain.model_config import why_refused
from app.errors import InvalidBaseModel

LEGACY_KEYS = frozenset({"model_type", "torch_dtype", "rope_scaling", "tokenizer_class"})
"""Written by older versions of the library beside the fields that it has now."""


def rewrite_config(folder: Path) -> None:
    """Replace the config.json of a private folder. Raises InvalidBaseModel where it is of no known architecture."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidBaseModel(f"config.json is not JSON: {error}") from None
    path.write_text(json.dumps(keep_known(config)), encoding="utf-8")


def keep_known(config: Any) -> dict[str, Any]:
    """Return what of a configuration a known architecture has. Raises InvalidBaseModel where there is none such."""
    if not isinstance(config, dict):
        raise InvalidBaseModel("config.json is not a JSON object")
    why = why_refused(config)
    if why is not None:
        raise InvalidBaseModel(f"config.json, {why}")
    name = config.get("model_type")
    if not isinstance(name, str) or name not in CONFIG_MAPPING:
        raise InvalidBaseModel(
            f"it could not be loaded: its model_type {str(name)[:80]!r} is none that the installed transformers has"
        )
    return _keep(config, CONFIG_MAPPING[name])


def _keep(config: Mapping[str, Any], known: type[PreTrainedConfig]) -> dict[str, Any]:
    names = {field.name for field in fields(known)} | set(known.attribute_map) | LEGACY_KEYS
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key in known.sub_configs and isinstance(value, dict):
            inner = value.get("model_type")
            is_known = isinstance(inner, str) and inner in CONFIG_MAPPING
            kept[key] = _keep(value, CONFIG_MAPPING[str(inner)] if is_known else known.sub_configs[key])
        elif key in names or (_is_number(value) and not key.startswith("_")):
            # A number names no code, and older files have some that the library still understands.
            kept[key] = value
    return kept


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)
