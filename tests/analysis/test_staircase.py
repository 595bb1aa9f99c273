"""The staircase as its study runs it: chases simulated, stored, read back and asked."""

from pathlib import Path

import numba
import pytest

import analysis
from analysis.staircase import plateaus, staircase
from numarep.sweep.__main__ import main

KIB, MIB = 1 << 10, 1 << 20
FOOTPRINTS = (16 * KIB, 128 * KIB, MIB, 64 * MIB)

pytestmark = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="millions of loads; the twin's cases run as plain Python"
)


def test_every_plateau_is_what_is_published_and_what_translation_takes(tmp_path: Path) -> None:
    footprints = ",".join(map(str, FOOTPRINTS))
    study = [f"out={tmp_path}", "executor=serial", f"workload.footprint_bytes={footprints}"]
    machines = "machine=e5_2690_v3,genoa_9224_nps2,skylake_sp"
    assert main(["study=latency_staircase", machines, *study]) == 0
    cases, counts = analysis.cases(analysis.load(tmp_path)), analysis.load_counts(tmp_path)
    steps = plateaus(staircase(cases), counts, cases)
    assert steps["difference"].abs().max() <= 2  # type: ignore[operator]
    of_size = {page: rows for (page,), rows in steps.group_by("page")}
    # The same plateaus for both page sizes; translation takes time where the first TLB is small.
    small, large = of_size["4K"].sort("machine", "server"), of_size["2M"].sort("machine", "server")
    assert small["server"].to_list() == large["server"].to_list()
    assert {"L1", "L2", "own LLC", "own DRAM", "remote DRAM"} == set(small["server"])
    is_far = ~small["server"].is_in(["L1", "L2"])
    assert (small["load_ns"] > large["load_ns"] + 0.2).filter(is_far).all()
    assert (small["stlb_ns"] > 0).filter(is_far).all()
    assert (small["walk_ns"] > 0).filter(small["server"].str.ends_with("DRAM")).all()
