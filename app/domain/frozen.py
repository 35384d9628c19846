"""The base of every configuration that a client or an operator writes."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Frozen(BaseModel):
    """A frozen configuration that refuses unknown keys, non-finite numbers and halves of characters. Null means absent."""

    # A text with a bound, here none at all, is read as UTF-8, so that half of a surrogate pair is refused with its field.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_min_length=0)

    NULL_IS_NONE: ClassVar[frozenset[str]] = frozenset()
    """Fields of which null says "none of it", so that it differs from leaving them out."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        # The openai client sends `null` for every optional argument that was given as None.
        if not isinstance(values, dict):
            return values
        return {
            key: value
            for key, value in values.items()
            if value is not None or key not in cls.model_fields or key in cls.NULL_IS_NONE
        }
