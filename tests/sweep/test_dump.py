"""The command that dumps tables and statistics of a run's kernel (R37)."""

from pathlib import Path

import polars as pl
import pytest

from numarep.sweep.dump import main
from numarep.units import PMD_BYTES

TEXT = 0xFFFFFFFF81000000


def table(text: str) -> list[dict[str, str]]:
    head, *lines = text.splitlines()
    return [dict(zip(head.split(), line.split(), strict=False)) for line in lines]


def test_r37_the_command_shows_each_nodes_own_text(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = f"{TEXT:x}-{TEXT + 2 * PMD_BYTES:x}"
    assert main(["--range", wanted]) == 0
    rows = table(capsys.readouterr().out)
    assert [(row["from"], row["node"]) for row in rows] == [(f"{TEXT:x}", "0"), (f"{TEXT:x}", "1")]
    assert rows[0]["frame"] != rows[1]["frame"]
    assert main(["--range", wanted, "replication=none"]) == 0
    alone = table(capsys.readouterr().out)
    assert alone[0]["frame"] == alone[1]["frame"] == rows[0]["frame"]


def test_r37_nodes_bear_the_machines_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    frames = {}
    for master in (0, 1):
        own = [f"replication.master_node={master}", f"cpu_node={1 - master}"]
        assert main([*own, "--node", str(master)]) == 0
        frames[master] = {(row["node"], row["frame"]) for row in table(capsys.readouterr().out)}
    assert {frame for _, frame in frames[0]} == {frame for _, frame in frames[1]}  # the original
    assert [{node for node, _ in each} for each in frames.values()] == [{"0"}, {"1"}]


def test_r37_statistics_go_to_a_file_and_name_modules_and_processes(tmp_path: Path) -> None:
    read = {".csv": pl.read_csv, ".parquet": pl.read_parquet}
    for ending, reader in read.items():
        out = tmp_path / f"stats{ending}"
        options = ["workload=overlayfs", "kernel.max_numnodes=64", "--stats", "--out", str(out)]
        assert main(options) == 0
        found = dict(reader(out).rows())
        assert found["process 0.pointers.node1_bytes"] == 64 * 8
        own = [n for name, n in found.items() if name.startswith("module overlay.modules")]
        assert sum(own) == found["modules_bytes"] > 0
        assert found["static_bytes"] == found["kernel.static.node1_bytes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--range", "ffff888000000000-ffff888000001000"], "in the window, ffffffff80000000-"),
        (["--range", f"{TEXT:x}-{TEXT:x}"], "FROM below TO"),
        (["--range", "text"], "two addresses in hex"),
        (["--region", "texts"], "expected one of text, rodata"),
        (["--node", "7"], "--node 7: does not exist (nodes with memory: 0, 1)"),
        (["--out", "tables.txt"], "ends in .csv or .parquet"),
        (["--out", "/proc/none/tables.csv"], "/proc/none"),
        (["seed=1,2"], "expected one kernel: the overrides describe 2 runs"),
        (["sed=1"], "'seed'"),
        (["workload=chase"], "a pointer chase runs on no kernel"),
    ],
)
def test_r37_what_cannot_be_dumped_is_refused_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
