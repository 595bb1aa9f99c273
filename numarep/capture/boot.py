"""Boot a stock Debian kernel in QEMU's software emulation, with the plugin attached.

Everything comes from Debian packages: the kernel from its .deb, the plugin's header from QEMU's
source package, QEMU and the compiler from the system. The guest has two NUMA nodes of 1 GiB, one
per memory backend, and one vCPU on either of them; node numbers here are by physical address, so
node 0 holds the kernel image whatever number Linux gives it. With a fixed -seed, -icount and the
clock bound to it, two boots of one configuration execute the same instructions.

Left out: more than one vCPU (secondary CPUs do not come up under -icount, and without it no two
boots are equal), and PCID, which the emulation lacks: every CR3 write flushes.

>>> [memory.start_pfn for memory in NODES]
[0, 262144]
"""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from numarep.workload.dataset import NodeRange

HERE = Path(__file__).parent
QEMU = "qemu-system-x86_64"
QEMU_VERSION = "7.2"
TIMEOUT_S = 300
NODE_MIB = 1024
_EXIT_GOOD = 0x10 << 1 | 1  # isa-debug-exit: see EXIT_GOOD in guest/init.c
_PAGES_PER_MIB = 256
_KERNEL_NAME = re.compile(r"linux-image-6\.1\.0-(\d+)-cloud-amd64")

NODES = tuple(
    NodeRange(
        node=node,
        start_pfn=node * NODE_MIB * _PAGES_PER_MIB,
        end_pfn=(node + 1) * NODE_MIB * _PAGES_PER_MIB,
    )
    for node in range(2)
)

# What is looked for, and the Debian package that has it.
_COMMANDS = {
    QEMU: "qemu-system-x86",
    "gcc": "gcc",
    "apt-get": "apt",
    "dpkg": "dpkg",
}
_BIOS = ("/usr/share/seabios/bios-256k.bin", "seabios")
_OPTION_ROM = ("/usr/share/qemu/linuxboot_dma.bin", "qemu-system-data")
_LIBC = "libc6-dev"
PACKAGES = sorted({*_COMMANDS.values(), _BIOS[1], _OPTION_ROM[1], _LIBC})


class MissingError(RuntimeError):
    """What a capture needs is not on this machine; the message names the Debian packages."""


class BootError(RuntimeError):
    """A guest did not run to its end; the message has its last console lines."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package."""

    release: str  # 6.1.0-56-cloud-amd64
    package: str  # name and version
    folder: Path

    @property
    def image(self) -> Path:
        """The bootable image."""
        return self.folder / "boot" / f"vmlinuz-{self.release}"

    def tick_hz(self) -> int:
        """Read the kernel's timer frequency from its build configuration."""
        config = (self.folder / "boot" / f"config-{self.release}").read_text()
        match = re.search(r"^CONFIG_HZ=(\d+)$", config, re.MULTILINE)
        if match is None:
            raise MissingError(f"{self.package}: its configuration has no CONFIG_HZ")
        return int(match[1])


@dataclass(frozen=True, slots=True)
class Tools:
    """What is built once and used by every boot."""

    kernel: Kernel
    plugin: Path
    initramfs: Path
    qemu: str  # its version, with Debian's
    guest_sha256: str  # of the initramfs: equal guests run the same code


@dataclass(frozen=True, slots=True)
class Setting:
    """One boot of the matrix."""

    pti: bool
    cpu_node: int
    seed: int
    workloads: tuple[str, ...] = ()  # none: all

    @property
    def command_line(self) -> str:
        """The kernel's command line; what the kernel does not know reaches init."""
        wanted = f" numarep_workloads={','.join(self.workloads)}" if self.workloads else ""
        return (
            f"console=ttyS0 panic=-1 nokaslr pti={'on' if self.pti else 'off'} "
            f"randomize_kstack_offset=off numarep_seed={self.seed}{wanted}"
        )


# -- Prerequisites -----------------------------------------------------------------------------


def missing_packages() -> list[str]:
    """List the Debian packages that a capture needs and this machine lacks."""
    missing = {package for name, package in _COMMANDS.items() if shutil.which(name) is None}
    for path, package in (_BIOS, _OPTION_ROM):
        if not Path(path).exists() and not Path(path.replace("/seabios/", "/qemu/")).exists():
            missing.add(package)
    if "gcc" not in missing and not _has_static_libc():
        missing.add(_LIBC)
    return sorted(missing)


def _has_static_libc() -> bool:
    # gcc prints the bare name back when it finds no such file.
    return _output(["gcc", "-print-file-name=libc.a"]) != "libc.a"


def qemu_version() -> str:
    """Return QEMU's version line.

    Raises
    ------
    MissingError
        If it is not the version whose internals the plugin knows.
    """
    line = _output([QEMU, "--version"]).splitlines()[0]
    match = re.search(r"version (\d+\.\d+)", line)
    if match is None or match[1] != QEMU_VERSION:
        raise MissingError(
            f"needs QEMU {QEMU_VERSION} (Debian 12's qemu-system-x86), found: {line}; the plugin "
            "uses functions that QEMU exports but promises to no one"
        )
    return line.removeprefix("QEMU emulator version ")


def check_prerequisites() -> None:
    """Refuse to start without all that a capture needs.

    Raises
    ------
    MissingError
        Naming every missing Debian package at once, or the QEMU version that does not fit.
    """
    missing = missing_packages()
    if missing:
        raise MissingError(
            f"missing Debian packages: {' '.join(missing)} "
            f"(apt-get install --no-install-recommends {' '.join(missing)})"
        )
    qemu_version()


def _output(command: list[str], folder: Path | None = None) -> str:
    """Run a command and return what it prints, or say which command failed and why."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},  # apt's words are read
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or error.stdout.strip() or "no message").splitlines()[-1]
        raise MissingError(f"{command[0]} {command[-1]} failed: {reason}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{command[0]} {command[-1]} failed: {error}") from None
    return done.stdout.strip()


# -- The kernel --------------------------------------------------------------------------------


def find_kernel(wanted: str | None, cache: Path) -> Kernel:
    """Return a kernel: a .deb, an unpacked one's folder, PACKAGE[=VERSION], or apt's newest.

    Raises
    ------
    MissingError
        If there is no such package, or it holds no kernel.
    """
    if wanted and Path(wanted).is_dir():
        return _unpacked(Path(wanted).resolve(), None)
    if wanted and wanted.endswith(".deb"):
        deb = Path(wanted).resolve()
    else:
        deb = _download(wanted or _newest_package(), cache)
    package = _output(["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(deb)])
    folder = cache / "kernels" / package.replace(" ", "_").replace("/", "_")
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _output(["dpkg-deb", "--extract", str(deb), str(partial)])
        partial.rename(folder)
    return _unpacked(folder, package)


def _unpacked(folder: Path, package: str | None) -> Kernel:
    images = sorted((folder / "boot").glob("vmlinuz-*"))
    if not images:
        raise MissingError(f"{package or folder}: no boot/vmlinuz-* in it")
    release = images[-1].name.removeprefix("vmlinuz-")
    return Kernel(release, package or f"linux-image-{release} unpacked", folder)


def _newest_package() -> str:
    names = _output(["apt-cache", "pkgnames", "linux-image-6.1.0-"]).split()
    numbers = {int(match[1]): match[0] for name in names if (match := _KERNEL_NAME.fullmatch(name))}
    # pkgnames also lists what only a dependency mentions.
    for _, name in sorted(numbers.items(), reverse=True):
        if "Candidate: (none)" not in _output(["apt-cache", "policy", name]):
            return name
    raise MissingError("apt knows no linux-image-6.1.0-*-cloud-amd64; run apt-get update")


def _download(package: str, cache: Path) -> Path:
    folder = cache / "debs" / package.replace("=", "_")
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*.deb")):
        _output(["apt-get", "download", package], folder)
    return next(folder.glob("*.deb"))


# -- What is built -----------------------------------------------------------------------------


def build_tools(kernel: Kernel, cache: Path) -> Tools:
    """Build the plugin and the initramfs.

    Raises
    ------
    MissingError
        If the compiler or a download fails, or the kernel lacks a module.
    """
    folder = cache / "build" / kernel.release
    folder.mkdir(parents=True, exist_ok=True)
    plugin = folder / "trace.so"
    header = _plugin_header(cache)
    _compile(HERE / "plugin" / "trace.c", plugin, "-shared", "-fPIC", f"-I{header.parent}")
    init = folder / "init"
    _compile(HERE / "guest" / "init.c", init, "-static", "-no-pie", "-s")
    initramfs = folder / "initramfs.cpio"
    partial = initramfs.with_suffix(f".{os.getpid()}")
    partial.write_bytes(pack_initramfs(init.read_bytes(), _modules(kernel, "overlay")))
    partial.replace(initramfs)
    digest = hashlib.sha256(initramfs.read_bytes()).hexdigest()
    return Tools(kernel, plugin, initramfs, qemu_version(), digest)


def _compile(source: Path, target: Path, *flags: str) -> None:
    """Compile one C file; the target is replaced whole, for a guest may be running it."""
    partial = target.with_suffix(f".{os.getpid()}")
    _output(["gcc", "-O2", "-Wall", "-Wextra", *flags, "-o", str(partial), str(source)])
    partial.replace(target)


def _plugin_header(cache: Path) -> Path:
    """Get qemu-plugin.h: it is in no binary package, only in QEMU's source package."""
    header = cache / "include" / "qemu-plugin.h"
    if header.is_file():
        return header
    folder = cache / "source"
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(_source_entries())
    private = [
        f"Dir::Etc::sourcelist={folder / 'sources.list'}",
        "Dir::Etc::sourceparts=-",
        f"Dir::State::lists={folder / 'lists'}",
        f"Dir::Cache={folder / 'cache'}",
    ]
    options = [word for setting in private for word in ("-o", setting)]
    _output(["apt-get", *options, "update"])
    _output(["apt-get", *options, "source", "--download-only", "qemu"], folder)
    archives = sorted(folder.glob("qemu_*.orig.tar.*"))
    if not archives:
        raise MissingError("apt-get source qemu brought no qemu_*.orig.tar.*")
    header.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archives[-1]) as archive:
        for member in archive:
            if member.name.endswith("include/qemu/qemu-plugin.h"):
                content = archive.extractfile(member)
                if content is not None:
                    header.write_bytes(content.read())
                    return header
    raise MissingError(f"{archives[-1].name} has no include/qemu/qemu-plugin.h")


def _source_entries() -> str:
    """Return the machine's own apt sources as deb-src lines: it may have only binary ones."""
    fields = "$(REPO_URI) $(CODENAME) $(COMPONENT)"
    chosen = ["Created-By: Packages", "Origin: Debian"]
    described = _output(["apt-get", "indextargets", "--format", fields, *chosen])
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.exists() else ""
    lines = sorted({line for line in described.splitlines() if len(line.split()) == 3})
    if not lines:
        raise MissingError("apt has no Debian sources to take QEMU's source package from")
    return "".join(f"deb-src {signed}{line}\n" for line in lines)


def _modules(kernel: Kernel, name: str) -> list[Path]:
    """List a module's file after those it depends on."""
    found = sorted((kernel.folder / "lib" / "modules").rglob(f"{name.replace('_', '[_-]')}.ko"))
    if not found:
        raise MissingError(f"{kernel.package}: no module {name}.ko")
    fields = found[0].read_bytes().split(b"\0")
    depends = next((f for f in fields if f.startswith(b"depends=")), b"depends=").decode()
    names = [other for other in depends.removeprefix("depends=").split(",") if other]
    ordered = [path for other in names for path in _modules(kernel, other)]
    return list(dict.fromkeys([*ordered, found[0]]))


def pack_initramfs(init: bytes, modules: list[Path]) -> bytes:
    """Pack /init, the modules and /modules.list as a newc archive; no file dates in it."""
    listing = "".join(f"{path.stem.replace('-', '_')} /modules/{path.name}\n" for path in modules)
    files: list[tuple[str, int, bytes]] = [
        ("dev", 0o040755, b""),
        ("init", 0o100755, init),
        ("modules", 0o040755, b""),
        ("modules.list", 0o100644, listing.encode()),
    ]
    files += [(f"modules/{path.name}", 0o100644, path.read_bytes()) for path in modules]
    files.append(("TRAILER!!!", 0, b""))
    return b"".join(_newc_entry(number, *file) for number, file in enumerate(files, 1))


def _newc_entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


# -- One boot ----------------------------------------------------------------------------------


def qemu_command(tools: Tools, setting: Setting, out: Path) -> list[str]:
    """Return the command that boots one setting and logs into `out`."""
    backends = []
    for memory in NODES:
        cpus = ",cpus=0" if memory.node == setting.cpu_node else ""
        backends += ["-object", f"memory-backend-ram,id=m{memory.node},size={NODE_MIB}M"]
        backends += ["-numa", f"node,nodeid={memory.node},memdev=m{memory.node}{cpus}"]
    pti = "on" if setting.pti else "off"
    mib = NODE_MIB * len(NODES)
    return [
        *(QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "pc", "-cpu", "max,la57=off,vendor=GenuineIntel"),
        *("-smp", "1,sockets=1", "-m", f"{mib}M", *backends, "-numa", "dist,src=0,dst=1,val=21"),
        *("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"),
        *("-seed", str(setting.seed), "-rtc", "base=2024-01-01T00:00:00,clock=vm"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        *("-serial", f"file:{out / 'console'}"),
        *("-kernel", str(tools.kernel.image), "-initrd", str(tools.initramfs)),
        *("-append", setting.command_line),
        *("-plugin", f"{tools.plugin},out={out},pti={pti},mib={mib}"),
    ]


def boot(tools: Tools, setting: Setting, out: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Boot one setting; the plugin's logs and the guest's files are in `out` afterwards.

    Raises
    ------
    BootError
        If the guest fails or takes longer than `timeout_s`, with its last console lines.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = qemu_command(tools, setting, out)
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise BootError(_last_lines(f"no end after {timeout_s:g} s", "", out)) from None
    if done.returncode != _EXIT_GOOD:
        reason = f"QEMU ended with status {done.returncode}"
        raise BootError(_last_lines(reason, done.stderr, out))


def _last_lines(reason: str, errors: str, out: Path, count: int = 15) -> str:
    console = out / "console"
    text = console.read_text(errors="replace") if console.is_file() else ""
    lines = [*text.splitlines()[-count:], *errors.splitlines()[-5:]]
    return "\n".join([f"the guest failed: {reason}; its last lines:", *_indented(lines)])


def _indented(lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield f"    {line}"
