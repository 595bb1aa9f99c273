"""Plans: every point once, every state once, traces checked before anything runs."""

import shutil
from pathlib import Path

import pytest

from numarep.spec import RunSpec, SpecError, parse
from numarep.sweep import plan
from numarep.sweep.__main__ import main
from numarep.sweep.grid import expand
from numarep.sweep.plan import batches, build_plan, group_states
from numarep.sweep.task import State
from numarep.workload.dataset import BUNDLED
from tests.sweep.conftest import DOUBLE


def points(*overrides: str, dataset: Path) -> dict[str, RunSpec]:
    grid = expand(["study=single", f"kernel.dataset={dataset}", *overrides]).points
    return build_plan(grid, DOUBLE).points


def test_points_that_only_pricing_tells_apart_share_a_state(dataset: Path) -> None:
    found = points("seed=1,2", "machine.latency.llc_ns=20.0,21.0,22.0", dataset=dataset)
    states = group_states(found, {str(dataset): "checksum"}, DOUBLE)
    assert len(found) == 6
    assert [len(state.points) for state in states] == [3, 3]
    assert {identity for state in states for identity, _ in state.points} == set(found)


def test_equal_points_run_once(dataset: Path) -> None:
    assert len(points("seed=1,1", "machine.core.ghz=2,2.0", dataset=dataset)) == 1


@pytest.mark.parametrize(
    ("machine", "cpu_node", "homes"),
    [
        ("e5_2690_v3", 1, [0]),
        ("e5_2690_v3_cod", 0, [1, 3]),  # of the same socket, and of the other
        ("e5_2690_v3_cod", 2, [3, 0]),
        ("xeon_8s", 0, [1, 2]),  # one hop, and two
    ],
)
def test_a_chase_names_the_nearest_and_the_farthest_node(
    machine: str, cpu_node: int, homes: list[int], dataset: Path
) -> None:
    chase = ["workload=chase", f"machine={machine}", f"cpu_node={cpu_node}"]
    found = points(*chase, "workload.home_node=nearest,farthest", dataset=dataset)
    assert [getattr(spec.workload, "home_node", None) for spec in found.values()] == homes
    with pytest.raises(SpecError, match=r"home_node: expected one of 0, 1.*farthest on .*, got 9"):
        points(*chase, "workload.home_node=9", dataset=dataset)


def states_of(*overrides: str, dataset: Path) -> list[State]:
    return group_states(points(*overrides, dataset=dataset), {str(dataset): "checksum"}, DOUBLE)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("cpus", [1, 100])
def test_batches_hold_every_state_once_and_are_not_too_many(
    limit: int, cpus: int, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "TASKS", limit)
    states = states_of("seed=range(0,7)", "replication=none,series", dataset=dataset)
    cut = batches(states, "study", DOUBLE, cpus)
    found = [state.state_id for batch in cut for state in batch.states]
    assert sorted(found) == sorted(state.state_id for state in states)
    assert len(cut) <= limit
    assert [half.states for half in cut[0].split()] == [(state,) for state in cut[0].states]


def test_states_of_one_window_and_of_one_kernel_are_neighbours_while_all_cpus_are_busy(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "TASKS_PER_CPU", 2)
    axes = ("seed=1,2", "workload=kill,fork_1", "replication=none,series")
    states = states_of(*axes, dataset=dataset)  # of two windows, two kernels each, as the double is

    def kernels(cpus: int) -> list[list[tuple[str, str]]]:
        return [
            [
                (spec.workload.name, spec.replication.name)
                for state in batch.states
                for _, spec in state.points
            ]
            for batch in batches(states, "study", DOUBLE, cpus)
        ]

    each = [(w, r) for w in ("kill", "fork_1") for r in ("none", "series")]
    assert sorted(kernels(1)) == sorted([[a, a, b, b] for a, b in (each[:2], each[2:])])
    assert sorted(kernels(2)) == sorted([kernel, kernel] for kernel in each)
    assert sorted(kernels(4)) == sorted([kernel] for kernel in each * 2)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the bundled dataset, to be damaged."""
    folder = tmp_path / "copied"
    shutil.copytree(BUNDLED / "debian-6.1", folder)
    return folder


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_trace_is_refused_before_anything_runs(
    damage: str, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = copied / "pti-on_node1_seed2" / "kill.records.parquet"
    content = trace.read_bytes()
    if damage == "missing":
        trace.unlink()
    else:
        flipped = bytes([content[50] ^ 1])
        trace.write_bytes(
            content[:-9] if damage == "truncated" else content[:50] + flipped + content[51:]
        )
    out = tmp_path / "out"
    grid = ["study=single", "executor=serial", "workload=kill", "seed=1,2", f"out={out}"]
    assert main([*grid, f"kernel.dataset={copied}"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert "kill.records.parquet" in errors
    assert errors.count("\n") == 1
    assert not out.exists()


def test_another_trace_than_captured_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    grid = ["study=single", "executor=serial", "workload.trace=kil", f"out={out}"]
    assert main(grid) == 2
    assert "'kill'" in capsys.readouterr().err
    assert main([*grid, "workload.trace=kill", "seed=77"]) == 2
    assert "no capture" in capsys.readouterr().err
    assert not out.exists()


def test_every_study_and_group_names_captured_traces() -> None:
    model = plan.load_model("numarep.sweep.model")
    for overrides in (["study=seed_table"], ["study=single", "workload=glob(*)", "kernel=glob(*)"]):
        model.check(parse(RunSpec, point) for point in expand(overrides).points)
