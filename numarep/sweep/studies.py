"""Configuration groups and named studies: which there are, and what a study's file says.

A study is a grid, `axes` and perhaps a `baseline`, or names other `studies`, each with axes that
replace or join its own.

>>> list(parts_of("report"))[0], parts_of("seed_table")["seed_table"].axes["cpu_node"]
('seed_table', '0,1')
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from numarep.spec import SpecError, nearest


@dataclass(frozen=True)
class Part:
    """One grid of a study: axes, as one would type them, and the policy taken as baseline."""

    axes: dict[str, str]
    baseline: str | None = None


def folder(name: str) -> Path:
    """Find `conf` or `sweeps`: inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def groups() -> dict[str, list[str]]:
    """List the configuration groups and their options."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder("conf").glob("*/*.yaml")):
        found.setdefault(path.parent.name, []).append(path.stem)
    return found


def studies() -> list[str]:
    """List the named studies."""
    return sorted(path.stem for path in folder("sweeps").glob("*.yaml"))


def parts_of(name: str) -> dict[str, Part]:
    """Read a study: itself, or where it is a list of studies, those, each with axes of its own.

    Raises
    ------
    SpecError
        If there is no such study, or its file has another shape.
    """
    content = _read(name)
    if "studies" not in content:
        return {name: _part(content, {})}
    parts = {}
    for member, own in content["studies"].items():
        below = _read(str(member))
        if "studies" in below:
            raise SpecError(f"{_file(name)}: {member} is a list of studies itself")
        parts[str(member)] = _part(below, own or {})
    return parts


def _part(content: Mapping[str, Any], own: Mapping[str, Any]) -> Part:
    axes = {str(key): _typed(value) for key, value in {**content["axes"], **own}.items()}
    baseline = content.get("baseline")
    return Part(axes, None if baseline is None else str(baseline))


def _file(name: str) -> Path:
    return folder("sweeps") / f"{name}.yaml"


def _read(name: str) -> dict[str, Any]:
    """Read a study's file: `axes` and perhaps a `baseline`, or `studies`."""
    if name not in studies():
        raise SpecError(f"study: no such study {name!r}{nearest(name, studies())}")
    try:
        content = yaml.safe_load(_file(name).read_text())
    except yaml.YAMLError as error:
        raise SpecError(f"{_file(name)}: not YAML ({' '.join(str(error).split())})") from None
    keys = set(content) if isinstance(content, dict) else set()
    shapes = ({"axes"}, {"axes", "baseline"}, {"studies"})
    if keys not in shapes or not isinstance(content.get("axes", content.get("studies")), dict):
        raise SpecError(
            f"{_file(name)}: expected a mapping, 'axes', and perhaps a policy, 'baseline'; or a "
            "mapping, 'studies', from studies to axes of their own"
        )
    return dict(content)


def _typed(value: Any) -> str:
    """Return a YAML value as one would type it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_typed, value)) if isinstance(value, list) else str(value)
