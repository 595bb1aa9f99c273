"""From a study and the command line's overrides to the points of a grid.

The only module that imports Hydra. Users type Hydra's override grammar and Hydra's parser reads
it; Hydra composes once per combination of configuration groups, and dotted keys are set in the
composed mapping, because composing every point of a large grid would take longer than running it.

Every key a study or user names may be an axis: `seed=1,2`, `seed=range(1,5)`, `workload=glob(m*)`.

>>> nested = {"core": {"ghz": 2.6, "base_ipc": 2.0}, "rows": [[1, 2]]}
>>> put(put(nested, ("core", "ghz"), 3.0), ("rows", "0", "1"), 5)
{'core': {'ghz': 3.0, 'base_ipc': 2.0}, 'rows': [[1, 5]]}
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from numarep.spec import RunSpec, SpecError, nearest

DEFAULT_STUDY = "seed_table"
EXECUTOR = "executor"
# Axes below this are policies' own, so a study's baseline is run without them.
BASELINE_OF = "replication"
# Not configuration: where it comes from and where it goes.
STUDY, OUT = "study", "out"
_KEYS = (*(f.name for f in fields(RunSpec)), EXECUTOR, STUDY, OUT)


@dataclass(frozen=True)
class Study:
    """A grid, expanded but not yet parsed into specs."""

    name: str
    out: Path
    executor: dict[str, Any]
    points: list[dict[str, Any]]
    arguments: list[str]  # as the user typed them
    axes: dict[str, str] = field(default_factory=dict)  # the study's, before overrides


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
        name = _single(typed.pop(STUDY, None), DEFAULT_STUDY)
        out = Path(_single(typed.pop(OUT, None), f"results/{name}"))
        axes, baseline = _read(name)
        overrides = {key: _parse(parser, f"{key}={value}") for key, value in axes.items()} | typed
        try:
            points, executor = _points(overrides)
            if baseline:
                at = {k: o for k, o in overrides.items() if k.split(".")[0] != BASELINE_OF}
                at[BASELINE_OF] = _parse(parser, f"{BASELINE_OF}={baseline}")
                points = _points(at)[0] + points
        except (HydraException, OmegaConfBaseException) as error:
            raise SpecError(_one_line(error)) from None
    return Study(name, out, executor, points, list(arguments), axes)


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


def _read(name: str) -> tuple[dict[str, str], str | None]:
    """Read a study: its axes as override values, and the policy it takes as baseline, if any."""
    if name not in studies():
        raise SpecError(f"study: no such study {name!r}{nearest(name, studies())}")
    path = folder("sweeps") / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not YAML ({_one_line(error)})") from None
    axes = content.get("axes") if isinstance(content, dict) else None
    if not isinstance(axes, dict) or not {"axes"} <= set(content) <= {"axes", "baseline"}:
        raise SpecError(f"{path}: expected a mapping, 'axes', and perhaps a policy, 'baseline'")
    baseline = content.get("baseline")
    return {str(k): _typed(v) for k, v in axes.items()}, None if baseline is None else str(baseline)


def _typed(value: Any) -> str:
    """Return a YAML value as one would type it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_typed, value)) if isinstance(value, list) else str(value)


def _values(override: Override) -> list[Any]:
    """List the values an override stands for, one unless it is an axis."""
    if not override.is_sweep_override():
        return [override.value()]
    if isinstance(override.value(), Glob):
        return list(override.sweep_iterator())
    # The iterator leaves quoted strings and nested elements as the parser's objects.
    return [Override._convert_value(value) for value in override.sweep_iterator()]


def _points(overrides: Mapping[str, Override]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Compose every combination of groups, then set the dotted keys in each."""
    known = groups()
    # A reference may be to any key, so all keys must be set before Hydra resolves it.
    refers = any("${" in str(override.input_line) for override in overrides.values())
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
    points, executor = [], {}
    for singles in _product(composed):
        base = _compose(list(singles.values()))
        for values in _product(dotted):
            point = base
            for key, value in values.items():
                point = put(point, key.split("."), value)
            executor = point[EXECUTOR]
            points.append({key: value for key, value in point.items() if key != EXECUTOR})
    return points, executor


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


def _compose(overrides: list[str]) -> dict[str, Any]:
    composed = OmegaConf.to_container(compose("config", overrides), resolve=True)
    return {str(key): value for key, value in dict(composed).items()}  # type: ignore[arg-type]


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Hydra ends its messages with a link to its manual.
    return " ".join(line for line in lines if not line.startswith("See https://"))
