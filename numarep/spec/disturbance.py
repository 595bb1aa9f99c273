"""An operation done at a rate inside a captured window, and what can be asked of each.

>>> DisturbanceSpec(operation="slots", per_iteration=4, nodes=2)
Traceback (most recent call last):
    ...
numarep.spec.base.SpecError: nodes: expected null, because slots has at_once only
"""

import dataclasses
from typing import Literal

from numarep.spec.base import Spec, require, require_positive
from numarep.units import PAGE_BYTES, TABLE_ENTRIES

Operation = Literal["patch", "module", "bpf", "slots", "visitor", "threads", "fork_tree"]
# What each may be asked, beside how often; what the parameters mean stands in `DisturbanceSpec`.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "patch": ("site", "site_bytes", "at_once"),
    "module": ("text_pages", "rodata_pages", "ro_after_init_pages", "data_pages"),
    "bpf": ("text_pages",),
    "slots": ("at_once",),
    "visitor": ("nodes",),
    "threads": ("nodes",),
    "fork_tree": ("at_once",),
}
_MAY_BE_NONE = ("rodata_pages", "ro_after_init_pages", "data_pages")
_LONGEST_BYTES = 5  # Source: POKE_MAX_OPCODE_SIZE, arch/x86/include/asm/text-patching.h
_MOST_PAGES = (64 << 20) // PAGE_BYTES  # assumed: larger modules there are none


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisturbanceSpec(Spec):
    """An operation done so many times in every captured iteration; see replication.scenarios.

    What it may be asked beside that, null where it is as the scenario has it:

    - patch: `site`, what is patched, which says how (`scenarios.SITES`); `site_bytes` of each, a
      kprobe's always one; `at_once`, sites of a batch
    - module: pages of its parts; bpf: `text_pages` of its program
    - slots: `at_once`, slots filled before they are cleared
    - visitor, threads: `nodes` visited, or with a thread on: the CPU's, then others by number
    - fork_tree: `at_once`, descendants that live before they exit, youngest first
    """

    operation: Operation
    per_iteration: int
    site: Literal["static_key", "ftrace", "kprobe"] | None = None
    site_bytes: int | None = None
    at_once: int | None = None
    text_pages: int | None = None
    rodata_pages: int | None = None
    ro_after_init_pages: int | None = None
    data_pages: int | None = None
    nodes: int | None = None

    def __post_init__(self) -> None:
        """Refuse a disturbance that is none, and parameters that it doesn't have."""
        require_positive(self, "per_iteration")
        own = _PARAMETERS[self.operation]
        for name in self.asked:
            only = " and ".join((", ".join(own[:-1]), own[-1]) if own[1:] else own)
            reason = f"{self.operation} has {only} only"
            require(name in own, f"{name}: expected null, because {reason}")
            if name != "site" and name not in _MAY_BE_NONE:
                require_positive(self, name)
            if name.endswith("_pages"):
                most, value = _MOST_PAGES, getattr(self, name)
                require(0 <= value <= most, f"{name}: expected 0 to {most}, got {value}")
        longest = 1 if self.site == "kprobe" else _LONGEST_BYTES
        require(
            (self.site_bytes or 1) <= longest,
            f"site_bytes: expected at most {longest} of a {self.site or 'site'}, got "
            f"{self.site_bytes}",
        )
        most = TABLE_ENTRIES // 2  # the user half of a PGD
        require(
            self.operation != "slots" or (self.at_once or 1) <= most,
            f"at_once: expected at most the {most} slots of a process, got {self.at_once}",
        )

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the parameters that are set."""
        names = (field.name for field in dataclasses.fields(self))
        common = ("operation", "per_iteration")
        return tuple(n for n in names if n not in common and getattr(self, n) is not None)
