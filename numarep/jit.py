"""The compile decorators of the latency core.

Numba's on-disk cache only notices a change of the file that holds the compiled function, not of
the functions it calls, so it goes stale. Here the cache folder is named after a hash of all of
the core's sources: any change to any of them starts a fresh one.

Only entries are compiled when Python calls them, with all that they call. Everything else stays the
plain Python function it is; with `NUMBA_DISABLE_JIT=1` entries do, too.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import register_jitable

F = TypeVar("F", bound=Callable[..., object])


def _source_hash() -> str:
    # Numba's index knows nothing of bounds checks, so they get a folder of their own.
    bounds = os.environ.get("NUMBA_BOUNDSCHECK", "")
    digest = hashlib.sha256(f"{numba.__version__} {bounds}".encode())
    package = Path(__file__).parent
    for source in sorted([*package.glob("*.py"), *package.glob("memory/*.py")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = os.environ.get("NUMBA_CACHE_DIR") or Path(home) / "numarep"
    return Path(base) / f"numba-{_source_hash()}"


setattr(numba.config, "CACHE_DIR", str(_cache_folder()))  # noqa: B010 - untyped in numba


# Compiled code here never allocates, so it can do without Numba's runtime (_nrt, a private option:
# numba is pinned in constraints.txt). Only so does LLVM inline whole call chains instead of copying
# the state and counting references at each call: 10 to 20 times as fast, measured.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}


class _Part(JITCodeLibrary):
    """A helper's code, only ever linked into its callers': entries are optimised as a whole.

    Left to itself numba optimises and assembles every helper alone: half of the compile time.
    """

    attribute: str | None = "alwaysinline"  # for LLVM

    def add_ir_module(self, ir_module: Any) -> None:
        # Not numba's option `forceinline`: callers hand it down, so that what is called by both
        # kinds would be compiled twice.
        if self.attribute is not None:
            for function in ir_module.functions:
                if not function.is_declaration:
                    function.attributes.add(self.attribute)
        super().add_ir_module(ir_module)

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    # What numba asks of a program: where its wrapper for Python is, and to set its globals.
    def get_pointer_to_function(self, _name: str) -> int:
        return 0

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, _name: str, _env: object) -> None:
        pass


class _PartCompiler(Compiler):
    attribute: str | None = "alwaysinline"

    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        part = _Part(target.codegen(), "part")
        part.attribute = self.attribute
        super().__init__(typing, target, library or part, *rest)


class _ApartCompiler(_PartCompiler):
    attribute = None


class _RareCompiler(_PartCompiler):
    attribute = "cold"


class _Cache(FunctionCache):
    """Numba's cache of one function, which loads code without loading what compiles it.

    Numba's own loads both: a third of a second and 50 MB of every process that only runs it. To
    compile numba loads what it needs anyway.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


_HELPER: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def jit(function: F) -> F:
    """Let compiled functions call this one, as part of their code; Python calls it as it is."""
    helper: F = register_jitable(**_HELPER, pipeline_class=_PartCompiler)(function)
    return helper


def jit_apart(function: F) -> F:
    """Let compiled functions call this one; it isn't part of their code, as it is big or rare."""
    helper: F = register_jitable(**_HELPER, pipeline_class=_ApartCompiler)(function)
    return helper


def jit_rare(function: F) -> F:
    """Do so of what most runs never call: what it costs, they pay nothing of."""
    helper: F = register_jitable(**_HELPER, pipeline_class=_RareCompiler)(function)
    return helper


def jit_entry(function: F) -> F:
    """Compile what Python calls, cached on disk with all it calls."""
    compiled: Any = numba.njit(**_OPTIONS)(function)
    if hasattr(compiled, "_cache"):  # not with NUMBA_DISABLE_JIT
        compiled._cache = _Cache(function)  # what numba's `cache=True` does
    entry: F = compiled
    return entry


def compiled_for(entry: F, *arguments: object) -> F:
    """Return an entry as compiled for arguments of these types, and called with no others.

    Numba finds out the types at every call: 4 of the 5 us that a call with some hundred numbers
    takes, which is as long as a short turn. Without compiling, the entry itself.
    """
    if not hasattr(entry, "compile"):
        return entry
    compiled: F = entry.compile(tuple(map(numba.typeof, arguments)))
    return compiled
