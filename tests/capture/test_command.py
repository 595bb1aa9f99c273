import struct
from pathlib import Path

import pytest

from numarep.capture import __main__ as command
from numarep.capture import boot
from numarep.capture.boot import BootError, Kernel, MissingError, Setting, Tools
from numarep.capture.dataset import LOOP, WINDOWS

MARKS = (boot.HERE / "guest" / "marks.h").read_text()
GUEST = (boot.HERE / "guest" / "init.c").read_text()
TOOLS = Tools(Kernel("6.1.0", "none", Path("k")), Path("p.so"), Path("i.cpio"), "7.2", "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--workload", "forks"], "'forks' is none of fork_1, fork_1024"),
        (["--pti", "maybe"], "'maybe' is none of on, off"),
        (["--cpu-node", "2"], "2 is none of 0, 1"),
        (["--seed", "1,x"], "'1,x' is no list of numbers"),
        (["--seed", "-1"], "-1 is not between"),
        (["--seed", "1,1"], "names a value twice"),
        (["--jobs", "0"], "must be positive"),
    ],
)
def test_bad_usage_exits_with_2_and_says_what_was_expected(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new"
    with pytest.raises(SystemExit) as exit_info:
        command.main(["--out", str(out), *arguments])
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not out.exists()


def test_an_existing_folder_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path)])
    assert "exists already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_all_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(boot.shutil, "which", lambda name: None)
    out = tmp_path / "new"
    assert command.main(["--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "gcc" in error
    assert "qemu-system-x86" in error
    assert not out.exists()


def test_another_qemu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "_output", lambda command: "QEMU emulator version 10.0.2 (Debian)")
    with pytest.raises(MissingError, match=r"needs QEMU 7\.2 .* found: .*10\.0\.2"):
        boot.qemu_version()


def _fake_qemu(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    fake = folder / "qemu"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(boot, "QEMU", str(fake))


def test_a_failed_boot_shows_the_consoles_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "raw"
    _fake_qemu(tmp_path, monkeypatch, f"seq 1 50 > {out}/console; echo oops >&2; exit 35")
    setting = Setting(pti=True, cpu_node=0, seed=1)
    with pytest.raises(BootError, match="status 35") as error:
        boot.boot(TOOLS, setting, out)
    lines = str(error.value).splitlines()
    assert "    50" in lines
    assert "    35" not in lines
    assert lines[-1] == "    oops"


def test_a_guest_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_qemu(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(BootError, match=r"no end after 0\.2 s"):
        boot.boot(TOOLS, Setting(pti=True, cpu_node=0, seed=1), tmp_path / "raw", timeout_s=0.2)


@pytest.mark.parametrize("cpu_node", [0, 1])
def test_the_cpu_sits_with_its_nodes_memory(cpu_node: int) -> None:
    line = boot.qemu_command(TOOLS, Setting(pti=True, cpu_node=cpu_node, seed=3), Path("out"))
    assert f"node,nodeid={cpu_node},memdev=m{cpu_node},cpus=0" in line
    assert f"node,nodeid={1 - cpu_node},memdev=m{1 - cpu_node}" in line
    assert line[line.index("-seed") + 1] == "3"


def test_the_guest_runs_the_described_workloads_in_order() -> None:
    listed = GUEST[GUEST.index("workloads[] = {") :]
    names = [part.split('"')[1] for part in listed.split("{")[2 : 2 + len(WINDOWS)]]
    assert names == [window.name for window in WINDOWS]
    assert f"#define ITERATIONS\t{LOOP}\n" in GUEST


def test_initramfs_holds_its_files_aligned(tmp_path: Path) -> None:
    module = tmp_path / "some-module.ko"
    module.write_bytes(b"elf")
    archive = boot.pack_initramfs(b"program", [module])
    names, at = [], 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        start = at + 110
        names.append(archive[start : start + fields[11] - 1].decode())
        at = start + fields[11] + -(start + fields[11]) % 4 + fields[6]
        at += -at % 4
    assert names == ["dev", "init", "modules", "modules.list", "modules/some-module.ko", names[-1]]
    assert names[-1] == "TRAILER!!!"
    assert b"some_module /modules/some-module.ko\n" in archive


def test_no_mark_can_be_padding() -> None:
    magic = next(line for line in MARKS.splitlines() if "MARK_MAGIC\t" in line).split()[2]
    assert struct.pack("<I", int(magic, 16))[2:] != b"\0\0"
