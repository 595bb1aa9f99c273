"""Bad input: one line, exit code 2, nothing created. Good input: rows, table, exit code."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from numarep.results import MANIFEST, SCHEMA_VERSION, TABLES, file_of, scan_runs
from numarep.sweep.studies import groups, studies

# 24 runs; the double can hold `kill`, which comes in the middle.
GRID = ("workload=fork_1,kill,mount_proc", "seed=1")

BAD = {
    "unknown machine": ("machine=e5_2690", "'e5_2690_v3'"),
    "unknown workload": ("workload=forkk_1", "'fork_1'"),
    "unknown study": ("study=seedtable", "'seed_table'"),
    "unknown key": ("sed=2", "'seed'"),
    "unknown nested key": ("machine.core.gzh=2.0", "'ghz'"),
    "unknown added key": ("+machine.numa=2", "machine.numa: no such key"),
    "unknown executor": ("executor=rey", "'ray'"),
    "unknown executor key": ("executor.cpus=2", "executor.cpus: no such key"),
    "empty glob": ("workload=glob(z*)", "matches nothing"),
    "deleted group": ("~replication", "replication: missing"),
    "not an override": ("seed", "KEY=VALUE"),
    "endless sweep": ("seed=interval(1,2)", "values that can be listed"),
    "Hydra's own": ("hydra.run.dir=x", "no effect"),
    "swept executor": ("executor=serial,ray", "share the executor"),
    "negative geometry": ("machine.l1i.ways=-8", "machine.l1i.ways: expected a positive number"),
    "non-integer geometry": ("machine.l1i.ways=7.5", "machine.l1i.ways: expected integer"),
    "wrong type": ("seed=two", "seed: expected integer, got 'two'"),
    "wrong literal": (
        "cache_state=hot,warm",
        "cache_state: expected 'hot', 'cold', 'cold_each' or 'cold_text'",
    ),
    "node out of range": ("cpu_node=2", "cpu_node: expected 0 to 1"),
    "item out of range": ("machine.latency.dram_ns.0.2=9.0", "valid: 0 to 1"),
    "bad reference": ("seed=${sed}", "sed"),
    "bad address": ("executor={kind:ray}", "executor"),
    "unknown dataset": ("kernel.dataset=nowhere", "'nowhere'"),
    "unknown option": ("--multirun", "--multirun"),
    "file for a folder": ("out={file}/results", "is not a folder"),
    "folder of others": ("out={others}", "other files"),
}


def assert_refused(code: int, captured: tuple[str, str], words: str) -> None:
    output, errors = captured
    assert code == 2, captured
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1, errors
    assert words in errors
    assert output == ""


@pytest.mark.parametrize(("override", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_in_one_line(
    override: str,
    words: str,
    sweep: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, others = tmp_path / "file", tmp_path / "others"
    file.touch()
    others.mkdir()
    (others / "thesis.tex").touch()
    out = tmp_path / "out"
    override = override.replace("{file}", str(file)).replace("{others}", str(others))
    assert_refused(sweep(f"out={out}", override), capsys.readouterr(), words)
    assert not out.exists()
    assert [path.name for path in others.iterdir()] == ["thesis.tex"]


def test_an_unwritable_folder_is_refused(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # /proc refuses new folders even to root, who may write to any other.
    code = sweep("study=single", "out=/proc/numarep")
    captured = capsys.readouterr()
    assert code == 2
    assert "error: out: /proc/numarep: " in captured.err


def test_results_of_another_schema_version_are_refused_and_kept(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep("study=single", f"out={out}") == 0
    manifest = out / "manifest.json"
    content = json.loads(manifest.read_text()) | {"schema_version": SCHEMA_VERSION + 1}
    manifest.write_text(json.dumps(content))
    before = {path: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert_refused(sweep(f"out={out}"), capsys.readouterr(), f"version {SCHEMA_VERSION + 1}")
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_dataset_of_another_version_is_refused(
    sweep: Callable[..., int],
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (dataset / "dataset.json").write_text('{"format_version": 99, "name": "x", "files": {}}')
    assert_refused(sweep(f"out={tmp_path / 'out'}"), capsys.readouterr(), "version 99")
    assert not (tmp_path / "out").exists()


def test_another_sweep_in_the_same_folder_is_refused(
    command: Callable[..., list[str]],
    sweep: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dataset: Path,
) -> None:
    out = tmp_path / "out"
    with blocked_sweep(command, tmp_path, dataset, f"out={out}"):
        (dataset / "double").unlink()
        assert sweep("study=single", "seed=9", f"out={out}") == 2
        assert "another sweep" in capsys.readouterr().err


def test_help_lists_every_group_and_study(
    sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--help") == 0
    text = capsys.readouterr().out
    for group, options in groups().items():
        assert f"{group}: {', '.join(options)}" in text
    assert f"studies: {', '.join(studies())}" in text


def test_cfg_shows_the_configuration_and_runs_nothing(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep("--cfg", "machine.core.ghz=3.0", f"out={out}") == 0
    text = capsys.readouterr().out
    assert "ghz: 3.0" in text
    assert "112 points" in text
    assert not out.exists()


def test_a_failing_run_becomes_a_row_and_is_tried_again(
    sweep: Callable[..., int],
    tmp_path: Path,
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (dataset / "double").write_text("fail=fork_1")
    assert sweep(*GRID, f"out={tmp_path / 'out'}") == 1
    captured = capsys.readouterr()
    assert "ArithmeticError: fork_1 can't run" in captured.err
    assert "24 runs, 8 failed" in captured.out
    runs = scan_runs(tmp_path / "out").collect()
    failures = runs.filter(status="failed")
    assert failures["workload"].to_list() == ["fork_1"] * 8
    assert set(failures["error"]) == {"ArithmeticError: fork_1 can't run"}
    assert runs.filter(status="ok").height == 16

    (dataset / "double").unlink()
    assert sweep(*GRID, f"out={tmp_path / 'out'}") == 0
    assert sweep(*GRID, f"out={tmp_path / 'clean'}") == 0
    assert_same_bytes(tmp_path / "out", tmp_path / "clean")


def test_a_full_disk_is_one_clear_line_and_loses_nothing(
    command: Callable[..., list[str]], sweep: Callable[..., int], tmp_path: Path
) -> None:
    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    out = tmp_path / "out"
    assert sweep(*GRID, "cpu_node=0", f"out={out}") == 0
    before = (out / "runs.parquet").read_bytes()
    done = subprocess.run(
        command("executor=serial", *GRID, f"out={out}"),
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=no_large_files,
    )
    assert done.returncode == 1, done.stderr
    assert "error: " in done.stderr
    assert "File too large; finished runs are kept" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert (out / "runs.parquet").read_bytes() == before
    assert sweep(*GRID, f"out={out}") == 0
    assert sweep(*GRID, f"out={tmp_path / 'clean'}") == 0
    assert_same_bytes(out, tmp_path / "clean")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)]
)
def test_a_stopped_sweep_goes_on_to_the_same_bytes(
    number: signal.Signals,
    code: int,
    command: Callable[..., list[str]],
    sweep: Callable[..., int],
    tmp_path: Path,
    dataset: Path,
) -> None:
    out = tmp_path / "out"
    with blocked_sweep(command, tmp_path, dataset, f"out={out}") as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    (dataset / "double").unlink()
    assert 0 < scan_runs(out).collect().height < 24
    assert sweep(*GRID, f"out={out}") == 0
    assert sweep(*GRID, f"out={tmp_path / 'clean'}") == 0
    assert_same_bytes(out, tmp_path / "clean")


class blocked_sweep:  # noqa: N801 - a context manager
    """A serial sweep, held in the middle: it waits until a pipe is gone."""

    def __init__(
        self,
        command: Callable[..., list[str]],
        folder: Path,
        dataset: Path,
        *overrides: str,
    ) -> None:
        self._pipe = folder / "pipe"
        os.mkfifo(self._pipe)
        (dataset / "double").write_text(f"hold={self._pipe}")
        self._command = command("executor=serial", *GRID, *overrides)

    def __enter__(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._pipe.read_text()  # returns when the sweep has written to it
        return self._process

    def __exit__(self, *_: object) -> None:
        self._pipe.unlink()
        self._process.communicate(timeout=60)


def assert_same_bytes(one: Path, other: Path) -> None:
    tables = [file_of(name) for name in TABLES]
    for name in tables:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert sorted(path.name for path in one.iterdir()) == sorted([*tables, MANIFEST])
