"""From a study and the command line's overrides to the points of a grid.

The only module that imports Hydra. Users type Hydra's override grammar and Hydra's parser reads
it; Hydra composes every option of a group once, and dotted keys are set in what it composed,
because composing every point of a large grid would take longer than running it.

Every key a study or user names may be an axis: `seed=1,2`, `seed=range(1,5)`, `workload=glob(m*)`.

>>> nested = {"core": {"ghz": 2.6, "base_ipc": 2.0}, "rows": [[1, 2]]}
>>> put(put(nested, ("core", "ghz"), 3.0), ("rows", "0", "1"), 5)
{'core': {'ghz': 3.0, 'base_ipc': 2.0}, 'rows': [[1, 5]]}
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from numarep.spec import RunSpec, SpecError, nearest, parse
from numarep.sweep.points import PointsFile, Row, read_points
from numarep.sweep.studies import Part, folder, groups, parts_of

DEFAULT_STUDY = "seed_table"
NO_AXES = "single"  # the study of a file of points, unless another is named
EXECUTOR = "executor"
# Axes below this are policies' own, so a study's baseline is run without them.
BASELINE_OF = "replication"
# Not configuration: where it comes from and where it goes.
STUDY, OUT, POINTS = "study", "out", "points"
_KEYS = (*(f.name for f in fields(RunSpec)), EXECUTOR, STUDY, OUT, POINTS)


@dataclass(frozen=True)
class Study:
    """A grid, expanded but not yet parsed into specs."""

    name: str
    out: Path
    executor: dict[str, Any]
    points: list[dict[str, Any]]
    arguments: list[str]  # as the user typed them
    axes: dict[str, str] = field(default_factory=dict)  # the study's, before overrides
    points_sha256: str | None = None  # of the file that names points, if any


def expand(arguments: Sequence[str]) -> Study:
    """Compose the configuration and expand the grid that a command line describes.

    Parameters
    ----------
    arguments : sequence of str
        Overrides in Hydra's grammar, `study=NAME` and `out=FOLDER` among them.

    Raises
    ------
    SpecError
        Naming the key, group option or study that is not known, and the nearest that is.
    """
    with initialize_config_dir(str(folder("conf").absolute()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        typed = {o.get_key_element(): o for o in (_parse(parser, a) for a in arguments)}
        file = read_points(_single(typed.pop(POINTS), "")) if POINTS in typed else None
        name = _single(typed.pop(STUDY, None), NO_AXES if file else DEFAULT_STUDY)
        out = Path(_single(typed.pop(OUT, None), f"results/{name}"))
        parts = parts_of(name)
        points: list[dict[str, Any]] = []
        for title, part in parts.items():
            try:
                found, executor = _expand(parser, part, typed, file)
            except SpecError as error:
                raise error if title == name else SpecError(f"{title}: {error}") from None
            points += found
    axes = parts[name].axes if name in parts else {t: _as_typed(p.axes) for t, p in parts.items()}
    return Study(name, out, executor, points, list(arguments), axes, file.sha256 if file else None)


def _expand(
    parser: OverridesParser, part: Part, typed: Mapping[str, Override], file: PointsFile | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the points of one grid, its baseline's first, and the executor's settings."""
    overrides = {key: _parse(parser, f"{key}={value}") for key, value in part.axes.items()}
    overrides |= typed
    rows = _rows(file, typed) if file else [Row("", {})]
    try:
        points, executor = _points(overrides, rows)
        if part.baseline:
            at = {key: o for key, o in overrides.items() if not _is_policys(key)}
            at[BASELINE_OF] = _parse(parser, f"{BASELINE_OF}={part.baseline}")
            plain = [
                Row(row.where, {k: v for k, v in row.settings.items() if not _is_policys(k)})
                for row in rows
            ]
            points = _points(at, plain)[0] + points
    except (HydraException, OmegaConfBaseException) as error:
        raise SpecError(_one_line(error)) from None
    return points, executor


def _is_policys(key: str) -> bool:
    return key.split(".")[0] == BASELINE_OF


def _rows(file: PointsFile, typed: Mapping[str, Override]) -> list[Row]:
    """Return the rows of a file, none of whose keys may be typed as well or apply to all runs."""
    for key in sorted(file.keys):
        if key.split(".")[0] in (EXECUTOR, STUDY, OUT, POINTS):
            raise SpecError(f"points: {file.name}: {key}: one for all runs, not a column")
        if key in typed:
            raise SpecError(f"points: {file.name}: {key}: typed as well, {key}=...")
    return file.rows


def put(value: Any, path: Sequence[str], new: Any, *above: str) -> Any:
    """Return a copy of nested mappings and lists with the item at `path` set.

    Raises
    ------
    SpecError
        If there is no such item yet, naming the nearest key.
    """
    if not path:
        both = isinstance(value, dict) and isinstance(new, dict)
        return {**value, **new} if both else new
    step, rest = path[0], path[1:]
    where = ".".join((*above, step))
    if isinstance(value, list):
        if not step.isdigit() or int(step) >= len(value):
            raise SpecError(f"{where}: no such item (valid: 0 to {len(value) - 1})")
        items = list(value)
        items[int(step)] = put(items[int(step)], rest, new, *above, step)
        return items
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: no such key; {'.'.join(above)} is {value!r}")
    if step not in value:
        valid = value if above else _KEYS
        raise SpecError(f"{where}: no such key{nearest(step, map(str, valid))}")
    return {**value, step: put(value[step], rest, new, *above, step)}


def _parse(parser: OverridesParser, argument: str) -> Override:
    try:
        (override,) = parser.parse_overrides([argument])  # the plural one sets the loader
    except HydraException as error:
        raise SpecError(f"{argument!r}: expected KEY=VALUE ({_one_line(error)})") from None
    if override.is_hydra_override():
        raise SpecError(f"{argument!r}: Hydra's own settings have no effect here")
    if override.is_sweep_override() and not override.is_discrete_sweep():
        raise SpecError(f"{argument!r}: expected values that can be listed")
    return override


def _single(override: Override | None, default: str) -> str:
    if override is None:
        return default
    value = override.value()
    if override.is_sweep_override() or not isinstance(value, str | int | float) or value == "":
        raise SpecError(f"{override.input_line!r}: expected one name")
    # As typed: 1e3 or 007 are fine names of folders.
    return str(override.get_value_string()).strip("'\"")


def _as_typed(axes: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in axes.items())


def _values(override: Override) -> list[Any]:
    """List the values an override stands for, one unless it is an axis."""
    if not override.is_sweep_override():
        return [override.value()]
    if isinstance(override.value(), Glob):
        return list(override.sweep_iterator())
    # The iterator leaves quoted strings and nested elements as the parser's objects.
    return [Override._convert_value(value) for value in override.sweep_iterator()]


def _points(
    overrides: Mapping[str, Override], rows: Sequence[Row]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Compose every combination of groups, then set the dotted keys in each; so for every row."""
    known = groups()
    # A reference may be to any key, so all keys must be set before Hydra resolves it.
    refers = any("${" in str(override.input_line) for override in overrides.values())
    if refers and any(row.settings for row in rows):
        raise SpecError("points: references, ${...}, are resolved before a file's rows are set")
    composed, dotted = {}, {}
    for key, override in overrides.items():
        if key in known:
            composed[key] = [f"{key}={o}" for o in _options(key, override, known[key])]
        elif refers or override.is_add() or override.is_force_add() or override.is_delete():
            composed[key] = _typed_singly(override)
        else:
            dotted[key] = _values(override)
    for key, values in (composed | dotted).items():
        if key.split(".")[0] == EXECUTOR and len(values) != 1:
            raise SpecError(f"{key}: expected one value, because all runs share the executor")
    points: list[dict[str, Any]] = []
    executor: dict[str, Any] = {}
    for row in rows:
        picked = {k: [f"{k}={_option(k, v, row)}"] for k, v in row.settings.items() if k in known}
        own = {key: [value] for key, value in row.settings.items() if key not in known}
        first = len(points)
        for singles in _product(composed | picked):
            base = _base(singles, known)
            for values in _product(dotted | own):
                point = base
                for key, value in values.items():
                    point = _put(point, key, value, row)
                executor = point[EXECUTOR]
                points.append({key: value for key, value in point.items() if key != EXECUTOR})
        if row.settings:
            _check_row(row, points[first])
    return points, executor


def _base(singles: Mapping[str, str], known: Mapping[str, list[str]]) -> dict[str, Any]:
    """Compose one override a key; groups alone, which know nothing of each other, one by one."""
    if not set(singles) <= set(known):
        return _compose(tuple(singles.values()))
    own = {group: _compose((override,))[group] for group, override in singles.items()}
    return _compose(()) | own


def _option(group: str, value: Any, row: Row) -> str:
    """Return the option of a group that a row picks."""
    valid = groups()[group]
    if value not in valid:
        why = f"no such option {value!r}{nearest(str(value), valid)}"
        raise SpecError(f"points: {row.where}: {group}: {why}")
    return str(value)


def _put(point: dict[str, Any], key: str, value: Any, row: Row) -> dict[str, Any]:
    try:
        changed: dict[str, Any] = put(point, key.split("."), value)
    except SpecError as error:
        raise SpecError(f"points: {row.where}: {error}") if key in row.settings else error from None
    return changed


def _check_row(row: Row, point: dict[str, Any]) -> None:
    """Refuse a row whose values no run can have, by its line; the plan names paths only."""
    try:
        parse(RunSpec, point)
    except SpecError as error:
        raise SpecError(f"points: {row.where}: {error}") from None


def _typed_singly(override: Override) -> list[str]:
    """Return one override a value, as one would type it."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _options(group: str, override: Override, valid: Iterable[str]) -> list[str]:
    """List the options an override picks from a group."""
    options = [str(value) for value in _values(override)]
    for option in options:
        if option not in valid:
            raise SpecError(f"{group}: no such option {option!r}{nearest(option, valid)}")
    if not options:
        raise SpecError(f"{override.input_line!r}: matches nothing{nearest('', valid)}")
    return options


def _product(axes: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


@functools.cache  # Hydra takes a tenth of a second
def _compose(overrides: tuple[str, ...]) -> dict[str, Any]:
    composed = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    return {str(key): value for key, value in dict(composed).items()}  # type: ignore[arg-type]


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Hydra ends its messages with a link to its manual.
    return " ".join(line for line in lines if not line.startswith("See https://"))
