"""What is compiled: anew for any changed source, once for all machines of a kind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import numarep
from numarep.memory.counts import new_counts
from numarep.memory.system import _view, new_system
from tests.benchmarks.core import CONF, machine_preset, with_policy


def cache_folder(root):
    code = "import numba, numarep.jit; print(numba.config.CACHE_DIR)"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.check_output([sys.executable, "-c", code], cwd=root, env=environment)


@pytest.mark.parametrize("source", ["memory/recency.py", "jit.py", "units.py"])
def test_a_change_of_any_source_starts_a_fresh_cache(tmp_path, source):
    shutil.copytree(Path(numarep.__file__).parent, tmp_path / "numarep")
    before = cache_folder(tmp_path)
    assert cache_folder(tmp_path) == before
    with (tmp_path / "numarep" / source).open("a") as file:
        file.write("# changed\n")
    assert cache_folder(tmp_path) != before


def view_type(machine):
    ends = np.arange(1, machine.nodes + 1) << 22
    system = new_system(machine, (0,), ends)
    return numba.typeof(_view(system, 0, new_counts(machine.nodes, 1)))


def test_all_presets_share_two_versions_of_compiled_code():
    machines = [machine_preset(path.stem) for path in (CONF / "machine").glob("*.yaml")]
    by_policy = {}
    for machine in machines:
        by_policy.setdefault(machine.llc.policy, set()).add(view_type(machine))
    assert sorted(map(len, by_policy.values())) == [1, 1]


def test_policies_are_numbers_to_one_version_of_compiled_code():
    machine = machine_preset("e5_2690_v3")
    types = {view_type(with_policy(machine, policy)) for policy in ("tree_plru", "srrip")}
    assert len(types) == 1
    assert view_type(with_policy(machine, "lru")) not in types


def test_what_compiles_is_not_loaded_to_run_what_is_compiled():
    code = (
        "import sys, numpy as np; from numarep.streams import count_stream, toy_machine;"
        "count_stream(toy_machine(), np.ones(1, np.uint8), np.zeros(1, np.int64));"
        "print('numba.np.arrayobj' in sys.modules)"
    )
    loaded = [subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)]
    assert loaded[1].strip() == b"False"  # the first may have compiled
