"""Datasets: folders of traces captured from one kernel, with their metadata and checksums.

A dataset folder holds `dataset.json` (name, format version, and the SHA-256 of every other file),
`symbols.parquet` (the kernel's symbols) and one folder a capture, that is a boot of the guest:

- `capture.json`: kernel, command line, QEMU, seed, CPU's node, memory map (`CaptureMeta`)
- `tables.parquet`: page-table entries, whole at the first window's begin, then changes only
- `WORKLOAD.records.parquet`, `.pages.parquet`, `.events.parquet`: one trace (see `trace`)

Every file is checked against its checksum before it is parsed.

>>> capture_name(pti=True, cpu_node=1, seed=2)
'pti-on_node1_seed2'
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from numarep.spec import Spec, SpecError, nearest, parse
from numarep.workload.trace import (
    EVENTS,
    FORMAT_VERSION,
    PAGES,
    Trace,
    TraceError,
    check,
    pages_from,
    pages_table,
    read_records,
    read_table,
    records_table,
    write_table,
)

BUNDLED = Path(__file__).parents[1] / "datasets"
INDEX = "dataset.json"
META = "capture.json"
SYMBOLS = pa.schema([("address", pa.int64()), ("type", pa.string()), ("name", pa.string())])
TABLES = pa.schema(
    [
        ("workload", pa.string()),
        ("moment", pa.string()),  # begin | end of the workload's window
        ("level", pa.uint8()),
        ("table", pa.int64()),  # pfn of the page-table page
        ("index", pa.int32()),
        ("value", pa.int64()),  # the entry; 0: no longer present
    ]
)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class NodeRange(Spec):
    """Physical frames [start_pfn, end_pfn) of one memory node."""

    node: int
    start_pfn: int
    end_pfn: int


@dataclass(frozen=True, kw_only=True)
class ModuleRange(Spec):
    """Virtual addresses [base, base + size) of one loaded module; `base` in hexadecimal."""

    name: str
    base: str
    size: int


@dataclass(frozen=True, kw_only=True)
class WindowMeta(Spec):
    """One measured window, as captured."""

    window: str  # what is measured, from where to where
    iterations: int
    records: int
    instructions: int
    loads: int
    stores: int


@dataclass(frozen=True, kw_only=True)
class CaptureMeta(Spec):
    """One boot of the guest: everything that identifies what ran."""

    kernel_release: str
    kernel_package: str
    command_line: str
    qemu: str
    seed: int
    seed_effect: str  # what the seed changes in the guest
    cpu_node: int
    pti: bool
    levels: int
    tick_hz: int
    memory: tuple[NodeRange, ...]
    bases: dict[str, str]  # start of direct_map, vmalloc, vmemmap, cpu_entry_area; hexadecimal
    modules: tuple[ModuleRange, ...]
    workloads: dict[str, WindowMeta]
    watched: tuple[str, ...] | None = None  # functions whose entries are marked; None: unrecorded


@dataclass(frozen=True, kw_only=True)
class _Index(Spec):
    format_version: int
    name: str
    files: dict[str, str]


def capture_name(*, pti: bool, cpu_node: int, seed: int) -> str:
    """Name the folder of one capture."""
    return f"pti-{'on' if pti else 'off'}_node{cpu_node}_seed{seed}"


@dataclass(frozen=True)
class Dataset:
    """An opened dataset: its folder and its index; nothing else is read yet."""

    path: Path
    name: str
    files: dict[str, str]

    @property
    def checksum(self) -> str:
        """SHA-256 over the names and checksums of all files."""
        canonical = json.dumps(self.files, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def captures(self) -> list[str]:
        """List the names of all captures."""
        return sorted(Path(name).parent.name for name in self.files if Path(name).name == META)

    def meta(self, capture: str) -> CaptureMeta:
        """Read one capture's metadata.

        Raises
        ------
        TraceError
            If there is no such capture, or its metadata is damaged.
        """
        if capture not in self.captures():
            raise TraceError(
                f"{self.path}: no capture {capture!r}{nearest(capture, self.captures())}"
            )
        return _parse_json(CaptureMeta, self._checked(f"{capture}/{META}"))

    def trace(self, capture: str, workload: str) -> Trace:
        """Read one trace, verified against its checksums and checked for use.

        Raises
        ------
        TraceError
            If there is no such trace, or it is damaged.
        """
        known = self.meta(capture).workloads
        if workload not in known:
            raise TraceError(
                f"{self.path / capture}: no trace {workload!r}{nearest(workload, known)}"
            )
        records, pages, events = (
            self._checked(f"{capture}/{workload}.{name}.parquet")
            for name in ("records", "pages", "events")
        )
        marks = read_table(events, EVENTS, "events")
        trace = Trace(
            read_records(records),
            pages_from(read_table(pages, PAGES, "pages")),
            marks.column("record").to_numpy(),
            tuple(marks.column("name").to_pylist()),
        )
        check(trace, str(self.path / capture / workload))
        return trace

    def tables(self, capture: str) -> pa.Table:
        """Read one capture's page-table entries, schema `TABLES`."""
        return read_table(self._checked(f"{capture}/tables.parquet"), TABLES, "tables")

    def symbols(self) -> pa.Table:
        """Read the kernel's symbols, schema `SYMBOLS`."""
        return read_table(self._checked("symbols.parquet"), SYMBOLS, "symbols")

    def _checked(self, name: str) -> Path:
        path = self.path / name
        if name not in self.files:
            raise TraceError(f"{path}: not listed in {INDEX}")
        if not path.is_file():
            raise TraceError(f"{path}: missing, but listed in {INDEX}")
        if _sha256(path) != self.files[name]:
            raise TraceError(f"{path}: wrong checksum; the file is truncated or was changed")
        return path


def open_dataset(name_or_path: str) -> Dataset:
    """Open a bundled dataset by name, or any dataset by its folder.

    Raises
    ------
    TraceError
        If there is none, or its index is damaged or of another format version.
    """
    bundled = sorted(p.parent.name for p in BUNDLED.glob(f"*/{INDEX}"))
    path = BUNDLED / name_or_path if name_or_path in bundled else Path(name_or_path)
    if not (path / INDEX).is_file():
        raise TraceError(
            f"kernel.dataset: {name_or_path!r} is neither a bundled dataset "
            f"({', '.join(bundled) or 'none'}) nor a folder with a {INDEX}"
        )
    version = _load_json(path / INDEX).get("format_version")
    if version != FORMAT_VERSION:
        raise TraceError(f"{path / INDEX}: format version {version}, expected {FORMAT_VERSION}")
    index = _parse_json(_Index, path / INDEX)
    return Dataset(path, index.name, index.files)


def write_trace(folder: Path, workload: str, trace: Trace) -> None:
    """Write one trace's three files into a capture's folder; refuse one that `check` refuses."""
    check(trace, str(folder / workload))
    events = pa.table([trace.event_record, list(trace.event_name)], schema=EVENTS)
    for name, table in (
        ("records", records_table(trace.records)),
        ("pages", pages_table(trace.pages)),
        ("events", events),
    ):
        write_table(folder / f"{workload}.{name}.parquet", table, name)


def write_index(folder: Path, name: str) -> None:
    """Write a dataset's index, the last step: checksums of all files below `folder`."""
    files = {
        str(path.relative_to(folder)): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != INDEX
    }
    index = {"format_version": FORMAT_VERSION, "name": name, "files": files}
    temporary = folder / f"{INDEX}.tmp"
    temporary.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    temporary.replace(folder / INDEX)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise TraceError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise TraceError(f"{path}: expected a JSON object")
    return content


def _parse_json(spec_type: type[T], path: Path) -> T:
    try:
        return parse(spec_type, _load_json(path))
    except SpecError as error:
        raise TraceError(f"{path}: {error}") from None
