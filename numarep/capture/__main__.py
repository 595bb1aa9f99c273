"""Command line of captures: `python -m numarep.capture --out DIR`.

>>> [setting.seed for setting in matrix(parse_arguments(["--out", "x", "--pti", "on"]))]
[1, 2, 1, 2]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import pyarrow as pa

from numarep.capture.boot import (
    NODES,
    PACKAGES,
    QEMU_VERSION,
    TIMEOUT_S,
    BootError,
    MissingError,
    Setting,
    Tools,
    boot,
    build_tools,
    check_prerequisites,
    find_kernel,
)
from numarep.capture.dataset import WINDOWS, write_capture, write_json
from numarep.capture.decode import DecodeError
from numarep.workload.dataset import capture_name, write_index
from numarep.workload.trace import write_table

TOOLS = "tools.json"
_NAMES = tuple(window.name for window in WINDOWS)


class _Parser(argparse.ArgumentParser):
    """One line for bad usage, as everywhere in numarep; --help has the rest."""

    def error(self, message: str) -> NoReturn:
        """Print the message alone and exit with 2."""
        self.exit(2, f"numarep.capture: {message}\n")


def _list_of(
    kind: Callable[[str], int | str], valid: Sequence[int | str] | None
) -> Callable[[str], list[int | str]]:
    """Return an argparse type: comma-separated, each of `valid`, none twice."""

    def parse(text: str) -> list[int | str]:
        try:
            values = [kind(item) for item in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from None
        for value in values:
            if valid is not None and value not in valid:
                expected = ", ".join(map(str, valid))
                raise argparse.ArgumentTypeError(f"{value!r} is none of {expected}")
            if isinstance(value, int) and not 0 <= value < 1 << 31:
                raise argparse.ArgumentTypeError(f"{value} is not between 0 and 2^31 - 1")
        if len(set(values)) != len(values):
            raise argparse.ArgumentTypeError(f"{text!r} names a value twice")
        return values

    return parse


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; bad usage ends the program with 2 and one line."""
    parser = _Parser(
        prog="python -m numarep.capture",
        description="Boot a Debian 6.1 kernel under QEMU on two emulated NUMA nodes, once for "
        "every combination of --pti, --cpu-node and --seed, and write what it executed as a "
        "dataset for python -m numarep.sweep kernel.dataset=DIR. Debian packages it needs: "
        f"{' '.join(PACKAGES)} (QEMU {QEMU_VERSION}).",
        epilog="exit codes: 0 done; 1 a guest failed; 2 bad usage, or something is missing",
    )
    add = parser.add_argument
    add("--out", required=True, type=Path, help="folder to make; its name names the dataset")
    add(
        "--kernel",
        metavar="WHICH",
        help=".deb, unpacked folder or PACKAGE[=VERSION] (default: apt's newest "
        "linux-image-6.1.0-*-cloud-amd64)",
    )
    nodes = [node.node for node in NODES]
    lists: dict[str, tuple[Any, list[Any], str]] = {
        "pti": (_list_of(str, ("on", "off")), ["on", "off"], "page-table isolation"),
        "cpu-node": (_list_of(int, nodes), nodes, "node of the CPU; the kernel lies on node 0"),
        "seed": (_list_of(int, None), [1, 2], "disturbs the allocators: other frames"),
    }
    for name, (kind, default, said) in lists.items():
        shown = ",".join(map(str, default))
        add(f"--{name}", type=kind, default=default, metavar="LIST", help=f"{said} ({shown})")
    windows = f"of {', '.join(_NAMES)} (all)"
    add("--workload", type=_list_of(str, _NAMES), default=[], metavar="LIST", help=windows)
    add("--work", type=Path, default=_default_cache(), help="folder for downloads and builds")
    add("--jobs", type=int, default=1, help="guests at a time (1)")
    seconds = f"seconds a guest may take ({TIMEOUT_S:g})"
    add("--timeout", type=float, default=TIMEOUT_S, help=seconds)
    parsed = parser.parse_args(arguments)
    if parsed.jobs < 1 or not parsed.timeout > 0:
        parser.error("--jobs and --timeout must be positive")
    if parsed.out.exists():
        parser.error(f"--out {parsed.out}: exists already")
    return parsed


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "numarep" / "capture"


def matrix(parsed: argparse.Namespace) -> list[Setting]:
    """List the boots asked for."""
    # The guest runs workloads in its own order, whatever the order asked for.
    workloads = tuple(name for name in _NAMES if name in parsed.workload)
    return [
        Setting(pti=pti == "on", cpu_node=node, seed=seed, workloads=workloads)
        for pti, node, seed in product(parsed.pti, parsed.cpu_node, parsed.seed)
    ]


def _capture(
    setting: Setting, tools: Tools, folder: Path, scratch: Path, timeout_s: float
) -> pa.Table:
    """Boot one setting and write its capture; its raw logs are large and do not stay."""
    name = capture_name(pti=setting.pti, cpu_node=setting.cpu_node, seed=setting.seed)
    raw = scratch / name
    try:
        boot(tools, setting, raw, timeout_s)
        symbols = write_capture(raw, folder / name, setting, tools)
    except (BootError, DecodeError) as error:
        raise BootError(f"{name}: {error}") from None
    finally:
        shutil.rmtree(raw, ignore_errors=True)
    print(f"captured {name}", flush=True)
    return symbols


def capture_all(
    settings: Sequence[Setting], tools: Tools, out: Path, *, jobs: int = 1, timeout_s: float
) -> None:
    """Capture all settings into a new dataset folder, which appears only when it is complete.

    Raises
    ------
    BootError
        If a guest fails, or two guests' kernels have different symbols.
    """
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with TemporaryDirectory(prefix="numarep-") as scratch, ThreadPoolExecutor(jobs) as pool:

            def run(setting: Setting) -> pa.Table:
                return _capture(setting, tools, partial, Path(scratch), timeout_s)

            tables = list(pool.map(run, settings))
        if not all(table.equals(tables[0]) for table in tables):
            raise BootError("the guests' symbols differ: a module moved; capture them apart")
        write_table(partial / "symbols.parquet", tables[0], "symbols")
        write_json(partial / TOOLS, _describe_tools(tools))
        write_index(partial, out.name)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _describe_tools(tools: Tools) -> dict[str, object]:
    """Record what a byte-for-byte repetition needs beside the kernel."""
    gcc = subprocess.run(["gcc", "--version"], check=True, capture_output=True, text=True).stdout
    return {
        "guest_sha256": tools.guest_sha256,
        "gcc": gcc.splitlines()[0],
        "kernel_package": tools.kernel.package,
        "qemu": tools.qemu,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 if a guest failed, 2 if it could not start."""
    parsed = parse_arguments(arguments)
    settings = matrix(parsed)
    try:
        check_prerequisites()
        cache = parsed.work.resolve()
        cache.mkdir(parents=True, exist_ok=True)
        tools = build_tools(find_kernel(parsed.kernel, cache), cache)
        print(f"{tools.kernel.package} on QEMU {tools.qemu}: {len(settings)} boots", flush=True)
        parsed.out.resolve().parent.mkdir(parents=True, exist_ok=True)
        out = parsed.out.resolve()
        capture_all(settings, tools, out, jobs=parsed.jobs, timeout_s=parsed.timeout)
    except (MissingError, OSError) as error:
        print(f"numarep.capture: {error}", file=sys.stderr)
        return 2
    except BootError as error:
        print(f"numarep.capture: {error}", file=sys.stderr)
        return 1
    checksums = len(json.loads((out / "dataset.json").read_text())["files"])
    print(f"wrote {out} ({checksums} files)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
