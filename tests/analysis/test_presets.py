"""Machines of conf/ as question 5 draws them are those that sweeps simulate."""

from pathlib import Path

import pytest

from analysis.assumed import conf_folder
from analysis.presets import composed, presets
from numarep.spec import MachineSpec, parse

FILES = sorted((conf_folder() / "machine").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_preset_is_a_whole_machine_and_its_cpu_is_in_another_socket(file: Path) -> None:
    machine = parse(MachineSpec, composed(file))
    rows = presets().filter(machine=machine.name)
    socket = machine.socket_of_node
    if len(set(socket)) == 1:
        assert rows.is_empty()
        return
    row = rows.row(0, named=True)
    assert socket[row["cpu_node"]] != socket[0]
    dram = machine.latency.dram_ns[row["cpu_node"]]
    assert row["rho"] == pytest.approx(dram[0] / dram[row["cpu_node"]])
    assert row["llc_mib"] * 2**20 == machine.llc.size_bytes
    assert row["own_mib"] * 2**20 * machine.llc.clusters == machine.llc.size_bytes
