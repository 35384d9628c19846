"""For which keys of its configuration a model is refused: those that make a loader fetch or run code."""

from typing import Any

CODE_KEYS = frozenset(
    {
        "auto_map",
        "trust_remote_code",
        "custom_pipelines",
        "custom_generate",
        "quantization_config",
        "attn_implementation",
        "experts_implementation",
        "use_kernels",
        "kernel_config",
        "auto_mapping",
        "parent_library",
    }
)
CODE_PREFIXES = ("_attn_implementation", "_experts_implementation")


def why_refused(config: Any) -> str | None:
    """Return the JSON path of the first key for which a model is refused, and the reason; None where there is none."""
    path = find_code_key(config)
    if path is None:
        return None
    if path.endswith(".quantization_config"):
        return f"{path}: quantised weights are not supported; give the model that they were made from"
    return f"{path}: this key makes the loader run code; a base model must do without"


def find_code_key(value: Any, path: str = "$") -> str | None:
    """Return the JSON path of the first key, at any depth, that makes a loader run code; None where there is none."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}"
            found = here if is_code_key(key) else find_code_key(inner, here)
            if found is not None:
                return found
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found = find_code_key(inner, f"{path}[{index}]")
            if found is not None:
                return found
    return None


def is_code_key(key: str) -> bool:
    """Tell whether a key makes a loader run code, or load it from elsewhere."""
    return key in CODE_KEYS or key.startswith(CODE_PREFIXES)
