"""A part of the configuration tree: frozen, knows its keys, and names the dotted key and the value in its errors."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.errors import UserError


class Section(BaseModel):
    """A frozen part of the tree that knows its keys and refuses all others, naming the dotted key and the value."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
    prefix: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _errors_name_the_dotted_key(cls, values: Any, handler: Callable[[Any], Any]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            told = [
                f"{cls.prefix}{'.'.join(map(str, one['loc']))} {one['input']!r}: {one['msg']}" for one in error.errors()
            ]
            raise UserError("; ".join(told) + " (--help explains each field)") from error
