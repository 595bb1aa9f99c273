"""What every description builds on: the error that names a path, and the checks."""

from pydantic import ConfigDict


class SpecError(ValueError):
    """A description that can't be run; the message names the offending path."""


class Spec:
    """Base of every described thing: no unknown keys, no silent conversions, no NaN."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def require(condition: bool, message: str) -> None:
    """Refuse a description unless a condition holds."""
    if not condition:
        raise SpecError(message)


def require_positive(spec: object, *names: str) -> None:
    """Refuse a description whose fields of these names aren't all above zero."""
    for name in names:
        value = getattr(spec, name)
        require(value > 0, f"{name}: expected a positive number, got {value}")
