r"""What conf/ marks as assumed: every value whose comment says so, and how to vary it.

A comment covers the values on its own line, or, standing alone, the key below it; on the line of a
mapping it covers all of the mapping. A cache of entries and ways is one parameter.

>>> text = "a: 1  # assumed\nb:  # assumed: unknown\n  x: {entries: 8, ways: 2}\nc: 3\n"
>>> [(p.path, p.nominal) for p in parameters_in(text, "machine")]
[('machine.a', 1), ('machine.b.x', {'entries': 8, 'ways': 2})]
>>> parameters_in(text, "machine")[1].scaled(1.5)
{'entries': 12, 'ways': 2}
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import numarep

# Marked as assumed, and not a parameter of the gain.
EXEMPT = {
    "cpu_node": "question 1 shows the CPU on every node",
    "executor": "how runs are spread over cores changes no result",
    "others": "the default study runs no CPUs of other nodes at the same time",
}
_MARK = "assumed"
# Factors between which an assumed value is varied; one assumed to be 0, from there to ZERO_SPAN.
LOW, HIGH = 0.5, 1.5
ZERO_SPAN = 100


@dataclass(frozen=True)
class Parameter:
    """One assumed value, as an override names it."""

    path: str
    nominal: Any

    @property
    def numeric(self) -> bool:
        """Whether it can be scaled."""
        return not isinstance(self.nominal, str | bool | None)

    def scaled(self, factor: float) -> Any:
        """Return the nominal value times a factor, as near as the value's kind allows."""
        return _scaled(self.nominal, factor)


def conf_folder() -> Path:
    """Find conf/: inside an installed wheel, beside the package in a checkout."""
    package = Path(numarep.__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def options(group: str) -> list[str]:
    """List the options of a group of conf/."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def assumed(conf: Path, **choices: str) -> list[Parameter]:
    """List the assumed parameters of the default configuration, by path.

    Parameters
    ----------
    conf : Path
        The folder of configuration groups.
    **choices : str
        Options that replace the defaults', such as `replication="series"`.
    """
    text = (conf / "config.yaml").read_text()
    defaults: dict[str, str] = {}
    for entry in yaml.safe_load(text)["defaults"]:
        defaults |= entry if isinstance(entry, dict) else {}
    found = parameters_in(text, "")
    for group, option in (defaults | choices).items():
        found += parameters_in((conf / group / f"{option}.yaml").read_text(), group)
    kept = [p for p in found if p.path.split(".")[0] not in EXEMPT]
    return sorted(kept, key=lambda parameter: parameter.path)


def parameters_in(text: str, prefix: str) -> list[Parameter]:
    """List the assumed parameters of one YAML file."""
    marked = _marked_lines(text)
    paths = dict.fromkeys(_assumed_paths(yaml.compose(text), (prefix,) if prefix else (), marked))
    content = yaml.safe_load(text)
    skip = len((prefix,) if prefix else ())
    return [Parameter(".".join(path), _at(content, path[skip:])) for path in paths]


def _marked_lines(text: str) -> set[int]:
    """Return the numbers of the lines whose values a comment says are assumed."""
    marked, pending = set(), False
    for number, line in enumerate(text.splitlines()):
        before, _, comment = line.partition("#")
        if not before.strip():
            # A block of comments counts whole, up to the key below it.
            pending = bool(line.strip()) and (pending or comment.strip().startswith(_MARK))
            continue
        if pending or _MARK in comment:
            marked.add(number)
        pending = False
    return marked


def _assumed_paths(
    node: Any, path: tuple[str, ...], marked: set[int], *, above: bool = False
) -> Iterator[tuple[str, ...]]:
    if not isinstance(node, yaml.MappingNode):
        if above:
            yield path
        return
    keys = {key.value for key, _ in node.value}
    for key, value in node.value:
        assumed_here = above or key.start_mark.line in marked
        if keys == {"entries", "ways"}:
            yield from _assumed_paths(None, path, marked, above=assumed_here)
        else:
            yield from _assumed_paths(value, (*path, key.value), marked, above=assumed_here)


def _at(content: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        content = content[step]
    return content


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, Mapping):
        return _scaled_cache(value["entries"], value["ways"], factor)
    if isinstance(value, list):  # a matrix by node: what lies on the diagonal is no assumption
        return [
            [item if i == j else _scaled(item, factor) for j, item in enumerate(row)]
            for i, row in enumerate(value)
        ]
    if value == 0:
        return round((factor - LOW) / (HIGH - LOW) * ZERO_SPAN)
    if isinstance(value, int):
        return max(1, round(value * factor))
    return float(f"{value * factor:.6g}")


def _scaled_cache(entries: int, ways: int, factor: float) -> dict[str, int]:
    """Scale a fully associative cache by its ways, any other by its sets."""
    if entries == ways:
        scaled = max(1, round(entries * factor))
        return {"entries": scaled, "ways": scaled}
    return {"entries": max(1, round(entries // ways * factor)) * ways, "ways": ways}
