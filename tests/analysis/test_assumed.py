"""Everything that conf/ marks as assumed is varied by the sensitivity study, and parses."""

import subprocess
import sys
from pathlib import Path

import yaml

from analysis.assumed import EXEMPT, HIGH, LOW, ZERO_SPAN, Parameter, assumed, conf_folder
from analysis.design import LEVELS, TRAJECTORIES, design, varied
from numarep.spec import MachineSpec, ReplicationSpec, parse

ROOT = Path(__file__).parents[2]


def test_known_assumptions_are_found() -> None:
    paths = {parameter.path for parameter in varied()}
    assert {
        "machine.core.base_ipc",
        "machine.latency.invlpg_cycles",
        "machine.latency.remote_llc_ns",
        "machine.psc.pgd",
    } <= paths
    assert "machine.llc" not in paths


def test_every_mark_of_the_default_study_is_varied_or_exempt() -> None:
    """Count the marks in the files as text, which is not how they are parsed."""
    found = assumed(conf_folder(), replication="series")
    assert [p.path for p in found if not p.numeric] == []
    text = (conf_folder() / "machine" / "e5_2690_v3.yaml").read_text()
    marks = [line for line in text.splitlines() if "# assumed" in line]
    # One mark, of the paging-structure caches, covers three.
    machine = [p for p in found if p.path.startswith("machine.")]
    assert len(machine) == len(marks) + 2
    assert {path.split(".")[0] for path in EXEMPT} == {"cpu_node", "executor", "others"}


def test_every_point_of_the_design_is_a_machine_and_a_policy() -> None:
    described = {
        group: yaml.safe_load((conf_folder() / group / f"{option}.yaml").read_text())
        for group, option in (("machine", "e5_2690_v3"), ("replication", "series"))
    }
    described |= yaml.safe_load((conf_folder() / "config.yaml").read_text())
    parameters = varied()
    points = design(parameters)
    assert len(points) == TRAJECTORIES * (len(parameters) + 1)
    for point in points.tolist():
        for parameter, factor in zip(parameters, point, strict=True):
            group, *path, last = parameter.path.split(".")
            place = described[group]
            for step in path:
                place = place[step]
            place[last] = parameter.scaled(factor)
        parse(MachineSpec, described["machine"])
        parse(ReplicationSpec, described["replication"])


def test_the_design_is_always_the_same() -> None:
    command = [sys.executable, "-m", "analysis.design"]
    runs = [
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(runs[0].splitlines()) == 1 + TRAJECTORIES * (len(varied()) + 1)


def test_one_parameter_changes_at_a_time() -> None:
    parameters = [Parameter("x", 1.0), Parameter("y", 1.0), Parameter("z", 1.0)]
    points = design(parameters, trajectories=5).reshape(5, 4, 3)
    assert (abs(points[:, 1:] - points[:, :-1]) > 1e-9).sum(axis=2).tolist() == [[1, 1, 1]] * 5
    assert set(points.ravel().round(6)) <= {
        round(LOW + level * (HIGH - LOW) / (LEVELS - 1), 6) for level in range(LEVELS)
    }


def test_scaling_of_each_kind_of_value() -> None:
    assert Parameter("x", 2.0).scaled(1.5) == 3.0
    assert Parameter("x", 5).scaled(0.5) == 2
    assert Parameter("x", 1).scaled(0.5) == 1
    assert Parameter("x", 0).scaled(HIGH) == ZERO_SPAN
    assert Parameter("x", 0).scaled(LOW) == 0
    assert Parameter("x", [[1.0, 4.0], [6.0, 1.0]]).scaled(0.5) == [[1.0, 2.0], [3.0, 1.0]]
    full = Parameter("machine.psc.pgd", {"entries": 4, "ways": 4})
    assert full.scaled(1.5) == {"entries": 6, "ways": 6}
    assert Parameter("x", {"entries": 32, "ways": 4}).scaled(0.5) == {"entries": 16, "ways": 4}
