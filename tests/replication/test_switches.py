"""Every switch of replication alone, from either end: it runs, or is refused and says why."""

import itertools
import re
from typing import Any

import pytest

from numarep.replication.invariants import violations
from numarep.replication.modules import ModuleSize, load, load_bpf, unload
from numarep.replication.process import fork, leave
from numarep.spec import ReplicationSpec, SpecError, as_mapping, parse
from numarep.sweep.grid import expand
from tests.kernels import SmallKernel, policy

_BOOLEANS = (
    *("built_in", "aligned", "tables", "text", "rodata", "modules", "bpf"),
    *("clone_ptes", "user_tables"),
)
SWITCHES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_BOOLEANS, (True, False)),
    "pgds": ("eager", "lazy", "lazy_shrink", "single_node", "retarget"),
    "area_ptes": ("shared", "loader", "target"),
    "costs": ("charged", "waived"),
    "master_node": (0, 1),
    "boot_node": (None, 0, 1),
}
# Refusals name the switch to change, what is expected there, and why.
REASON = re.compile(r"^(\w+): (expected .*(because|pgds)|retarget switches PMD entries only)")
ALONE = [(b, k, v) for b in ("none", "series") for k, values in SWITCHES.items() for v in values]


def parsed(mapping: dict[str, Any]) -> ReplicationSpec | str:
    """Return the policy, or why it is refused."""
    try:
        return parse(ReplicationSpec, mapping)
    except SpecError as error:
        return str(error)


def test_every_key_of_a_policy_is_a_switch_here() -> None:
    assert {*SWITCHES, "name", "instructions"} == {*vars(policy("series"))}


@pytest.mark.parametrize(("base", "key", "value"), ALONE)
def test_each_switch_alone_runs_or_is_refused_with_a_reason(
    base: str, key: str, value: object
) -> None:
    typed = "null" if value is None else str(value).lower()
    (point,) = expand(["study=single", f"replication={base}", f"replication.{key}={typed}"]).points
    spec = parsed(point["replication"])
    if isinstance(spec, str):
        assert REASON.match(spec)
        return
    assert getattr(spec, key) == value
    kernel = SmallKernel(nodes=2, processes=(0,)).booted(**vars(spec))
    cpu = kernel.cpus[1]
    before = kernel.frames.taken - kernel.held["shared"] - kernel.held["area_ptes"]
    mm, _ = fork(kernel, cpu)
    module, _ = load(kernel, cpu, ModuleSize(2, 1, 1, 1))
    image, _ = load_bpf(kernel, cpu, 1)
    assert violations(kernel) == []
    assert module.replicated is spec.modules
    assert bool(image.replicas) is spec.bpf
    leave(kernel, mm)
    unload(kernel, module)
    assert violations(kernel) == []
    bpf = len(image.frames) * (1 + spec.bpf)
    after = kernel.frames.taken - kernel.held["shared"] - kernel.held["area_ptes"]
    assert after == before + bpf


def test_all_switches_together_parse_or_are_refused_with_a_reason() -> None:
    """Every combination of what replicates what, 7680 of them."""
    axes = {k: v for k, v in SWITCHES.items() if k not in ("costs", "master_node", "boot_node")}
    reasons, series = set(), as_mapping(policy("series"))
    for values in itertools.product(*axes.values()):
        spec = parsed(series | dict(zip(axes, values, strict=True)))
        if isinstance(spec, str):
            match = REASON.match(spec)
            assert match is not None, spec
            reasons.add(match[1])
        else:
            assert spec.tables or not (spec.text or spec.rodata or spec.modules or spec.bpf)
    assert reasons == {"tables", "built_in", "aligned", "user_tables", "pgds"}
