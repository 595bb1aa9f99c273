"""A wheel carries conf/, sweeps/ and the datasets, and works from any folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from numarep.sweep.studies import groups, studies
from tests.sweep.conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of a wheel of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(folder)]
    built = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(folder / built.stdout.split()[-1]) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, cwd: Path, *arguments: str) -> str:
    # Isolated: neither the checkout nor PYTHONPATH may help.
    script = (
        f"import sys, runpy; sys.path.insert(0, {str(installed)!r}); "
        "runpy.run_module('numarep.sweep', run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", script, *arguments]
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_what_the_checkout_has(installed: Path, tmp_path: Path) -> None:
    text = run(installed, tmp_path, "--help")
    assert f"workload: {', '.join(groups()['workload'])}" in text
    assert f"studies: {', '.join(studies())}" in text


def test_a_run_needs_no_checkout(installed: Path, tmp_path: Path) -> None:
    text = run(installed, tmp_path, "study=single", "executor=serial", "workload=kill")
    assert "results: results/single" in text
    assert (tmp_path / "results" / "single" / "runs.parquet").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_nothing_but_the_package_is_installed(installed: Path) -> None:
    tops = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"numarep", "analysis"}
