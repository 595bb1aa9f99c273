import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from numarep.sweep.__main__ import main

ROOT = Path(__file__).parents[2]
DOUBLE = "tests.sweep.double"
Command = Callable[..., list[str]]

# What `python -m numarep.sweep` does, with the model of `double.py`.
_DRIVER = f"import sys; from numarep.sweep.__main__ import main; sys.exit(main(model={DOUBLE!r}))"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset with an index and no captures: the double needs none."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    index = {"format_version": 1, "name": "empty", "files": {}}
    (folder / "dataset.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let child processes and Ray's workers import the double from any folder."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return dict(os.environ)


@pytest.fixture
def command(dataset: Path, environment: dict[str, str]) -> Command:
    """Build the command line of a sweep over the double, in a process of its own."""

    def build(*overrides: str) -> list[str]:
        return [sys.executable, "-c", _DRIVER, f"kernel.dataset={dataset}", *overrides]

    return build


@pytest.fixture
def sweep(dataset: Path, environment: dict[str, str]) -> Callable[..., int]:
    """Run a serial sweep over the double in this process; returns the exit code."""

    def run(*overrides: str) -> int:
        try:
            arguments = ["executor=serial", f"kernel.dataset={dataset}", *overrides]
            return main(arguments, model=DOUBLE)
        except SystemExit as exit_:  # argparse's way out
            return int(exit_.code or 0)

    return run


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[str]:
    """Start a Ray head and a second raylet with token authentication; yields HOST:PORT."""
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text(os.urandom(32).hex())
    authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ.update(authentication)
    ray = Path(sys.executable).with_name("ray")
    common = ["--num-cpus=1", "--block", "--disable-usage-stats"]
    head = [ray, "start", "--head", "--port=0", "--include-dashboard=false", *common]
    processes = [_started(head)]
    try:
        address = _address(processes[0])
        processes.append(_started([ray, "start", f"--address={address}", *common]))
        _wait_for(processes[1], "Ray runtime started")
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(timeout=30)
        for name in authentication:
            del os.environ[name]


def _started(command: list[str | Path]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _wait_for(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return line
    raise AssertionError("".join(seen))


def _address(head: subprocess.Popen[str]) -> str:
    line = _wait_for(head, "--address=")
    return line.split("--address=")[1].strip().strip("'\"")
