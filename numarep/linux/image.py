"""The kernel image: its sections and symbols, from the symbol table of the captured kernel.

Leaves out per-cpu symbols and init sections: nothing here needs them but the lengths of the tables
of what a boot patches.

>>> Section(0x1000, 0x3000).round_up(0x4000)
Section(start=4096, end=20480)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from numarep.units import PAGE_BYTES, PAGE_SHIFT, PMD_BYTES
from numarep.workload.trace import TraceError


class Section(NamedTuple):
    """Virtual addresses [start, end); kernel addresses are negative (sign-extended)."""

    start: int
    end: int

    def round_up(self, unit: int) -> "Section":
        """Grow to whole units of `unit` bytes counted from the section's start."""
        return Section(self.start, self.start + -(-(self.end - self.start) // unit) * unit)

    @property
    def bytes(self) -> int:
        """Length in bytes."""
        return self.end - self.start

    @property
    def pages(self) -> int:
        """Length in whole 4 KiB pages."""
        return -(-self.bytes // PAGE_BYTES)

    def holds(self, vpn: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which 4 KiB pages overlap the section, bool like `vpn`."""
        first, last = self.start >> PAGE_SHIFT, (self.end - 1) >> PAGE_SHIFT
        inside: NDArray[np.bool_] = (vpn >= first) & (vpn <= last)
        return inside


# Tables of text to be patched, as alternative_instructions goes through them, and bytes an entry:
# struct paravirt_patch_site, s32 twice, struct alt_instr. Not among them: locks, which are patched
# where there is one CPU only; ftrace's calls and jump labels, whose tables have no symbols here.
# Source: arch/x86/kernel/{alternative.c,vmlinux.lds.S} of Linux 6.1.
_PATCHED = (
    ("__parainstructions", 16),
    ("__retpoline_sites", 4),
    ("__return_sites", 4),
    ("__alt_instructions", 12),
)


@dataclass(frozen=True)
class Image:
    """Sections of the kernel image, as the linker's symbols bound them."""

    whole: Section
    text: Section
    rodata: Section
    patched: tuple[int, ...] = ()  # sites that a boot patches, of each of `_PATCHED` there is

    @property
    def replicated(self) -> tuple[Section, Section]:
        """Text and rodata in the whole 2 MiB units that replication copies (R6).

        Source: x86's linker script aligns both sections' starts to 2 MiB.
        """
        return self.text.round_up(PMD_BYTES), self.rodata.round_up(PMD_BYTES)


def addresses_of(names: Iterable[str], symbols: pa.Table) -> list[tuple[str, int]]:
    """List the symbols of some names, with their addresses, in the table's order.

    Names are told apart as Arrow's: as Python's strings a kernel's take 10 MB.
    """
    found = symbols.filter(pc.is_in(symbols["name"], pa.array(names, pa.string())))
    return list(zip(found["name"].to_pylist(), found["address"].to_pylist(), strict=True))


def image_from_symbols(symbols: pa.Table) -> Image:
    """Find the image's sections in a symbol table (schema `dataset.SYMBOLS`).

    Raises
    ------
    TraceError
        If a bounding symbol is missing, or a section does not start on 2 MiB.
    """
    bounds = ("_text", "_end", "_stext", "_etext", "__start_rodata", "__end_rodata")
    tables = (f"{name}{end}" for name, _ in _PATCHED for end in ("", "_end"))
    at = dict(addresses_of((*bounds, *tables), symbols))
    missing = [name for name in bounds if name not in at]
    if missing:
        raise TraceError(
            f"symbols: {', '.join(missing)} missing; expected the kernel's section bounds"
        )
    image = Image(
        Section(at["_text"], at["_end"]),
        Section(at["_stext"], at["_etext"]),
        Section(at["__start_rodata"], at["__end_rodata"]),
        tuple(
            (at[f"{name}_end"] - at[name]) // entry_bytes
            for name, entry_bytes in _PATCHED
            if name in at and f"{name}_end" in at
        ),
    )
    for name, section in (("_stext", image.text), ("__start_rodata", image.rodata)):
        if section.start % PMD_BYTES or section.end <= section.start:
            raise TraceError(f"symbols: {name}: expected a section that starts on 2 MiB")
    return image
