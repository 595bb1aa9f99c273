"""From plain mappings to descriptions and back.

>>> from numarep.spec.machine import CacheSpec
>>> as_mapping(parse(CacheSpec, {"size_bytes": 32768, "ways": 8, "replacement": "lru"}, "l1i"))
{'size_bytes': 32768, 'ways': 8, 'replacement': 'lru'}
"""

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from numarep.spec.base import Spec, SpecError
from numarep.spec.run import BootSpec, ChaseSpec, WorkloadSpec

S = TypeVar("S")

_KINDS: dict[Any, type[Spec]] = {
    "captured": WorkloadSpec,
    "boot": BootSpec,
    "chase": ChaseSpec,
}


def nearest(name: str, valid: Iterable[str]) -> str:
    """Phrase the nearest valid name to a misspelt one, and all valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (valid: {', '.join(names)})"


def _field_names(spec_type: Any, path: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the dataclass that lies at `path` below `spec_type`."""
    for step in path:
        if get_origin(spec_type) in (Union, UnionType):
            spec_type = _KINDS.get(step)
            continue
        if not dataclasses.is_dataclass(spec_type):
            return []
        spec_type = get_type_hints(spec_type).get(str(step))
        if get_origin(spec_type) is tuple:
            spec_type = get_args(spec_type)[0]
    fields = dataclasses.fields(spec_type) if dataclasses.is_dataclass(spec_type) else ()
    return [field.name for field in fields]


def _join(path: Iterable[Any]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _explain(spec_type: Any, error: Any, prefix: tuple[str, ...]) -> str:
    """One line for one pydantic error: path, what was expected, what was given."""
    path = tuple(error["loc"])
    # pydantic puts the kind of a workload into the path of what is wrong with it.
    where = _join(prefix + tuple(step for step in path if step not in _KINDS))
    if error["type"] == "unexpected_keyword_argument":
        return f"{where}: no such key{nearest(str(path[-1]), _field_names(spec_type, path[:-1]))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{where}: missing (valid: {', '.join(_field_names(spec_type, path[:-1]))})"
    if error["type"].startswith("union_tag"):
        return f"{where}.kind: expected one of {', '.join(_KINDS)}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{where}.{message}" if where else message
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{where}: expected {expected}, got {error['input']!r}"


@functools.cache
def _adapter(spec_type: Any) -> TypeAdapter[Any]:
    """Build a type's parser once: building takes a hundred times as long as parsing."""
    return TypeAdapter(spec_type)


def parse(spec_type: type[S], mapping: Mapping[str, Any], *prefix: str) -> S:
    """Parse a plain mapping into `spec_type`, checking every key, type and value.

    Parameters
    ----------
    spec_type : type
        One of the dataclasses described here.
    mapping : mapping
        Nested dicts, lists and scalars.
    *prefix : str
        Names put in front of the path in messages.

    Raises
    ------
    SpecError
        Naming the first offending path, what was expected there and what was found.
    """
    try:
        # As JSON, because strict parsing of Python objects would take only dataclass instances.
        parsed: S = _adapter(cast(Any, spec_type)).validate_json(json.dumps(mapping, default=str))
    except ValidationError as error:
        # A misspelt key also leaves its field missing: name the misspelling.
        first = min(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")
        raise SpecError(_explain(spec_type, first, prefix)) from None
    return parsed


def as_mapping(spec: Any) -> dict[str, Any]:
    """Return the plain nested mapping of a spec: the inverse of `parse`."""
    mapping: dict[str, Any] = dataclasses.asdict(spec)
    return mapping
