"""Ray: a private one and a cluster give the bytes of the serial executor; workers may die."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from numarep.results import scan_runs
from tests.sweep.test_cli import assert_same_bytes

pytestmark = pytest.mark.ray
GRID = ("workload=kill,fork_1", "seed=1", "machine.latency.llc_ns=21.2,25.0")


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_a_private_ray_gives_the_serial_bytes_and_stops(
    command: Callable[..., list[str]], sweep: Callable[..., int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(command("executor=ray", "executor.num_cpus=2", *GRID, f"out={out}"))
    assert done.returncode == 0, done.stderr
    assert "32 of 32 runs to do, 16 states to simulate" in done.stderr
    assert sweep(*GRID, f"out={tmp_path / 'serial'}") == 0
    assert_same_bytes(out, tmp_path / "serial")


def test_warnings_of_workers_are_said_once_and_kept(
    command: Callable[..., list[str]], tmp_path: Path, dataset: Path
) -> None:
    (dataset / "double").write_text("warn=kill")
    out = f"out={tmp_path / 'out'}"
    done = run(command("executor=ray", "executor.num_cpus=2", *GRID, out))
    assert done.stderr.count("warning: kill is a guess") == 1
    (dataset / "double").unlink()
    assert run(command("executor=serial", "workload=mount_proc", "seed=1", out)).returncode == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["warnings"] == ["kill is a guess"]


def test_a_cluster_of_two_survives_dying_workers_and_refuses_other_tokens(
    cluster: str,
    command: Callable[..., list[str]],
    sweep: Callable[..., int],
    tmp_path: Path,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    joined = ("executor=ray", f"executor.address={cluster}", "executor.max_retries=0")
    (dataset / "double").write_text("die=kill")
    done = run(command(*joined, *GRID, f"out={out}"))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    runs = scan_runs(out).collect()
    assert set(runs.filter(status="failed")["workload"]) == {"kill"}
    assert runs.height == 32

    (dataset / "double").unlink()
    done = run(command(*joined, *GRID, f"out={out}"))
    assert done.returncode == 0, done.stderr
    assert sweep(*GRID, f"out={tmp_path / 'serial'}") == 0
    assert_same_bytes(out, tmp_path / "serial")

    other = tmp_path / "token"
    other.write_text("00" * 32)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    refused = tmp_path / "refused"
    done = run(command(*joined, *GRID, f"out={refused}"))
    assert done.returncode == 2, done.stderr
    assert "error: executor: no Ray on" in done.stderr
    assert not refused.exists()
