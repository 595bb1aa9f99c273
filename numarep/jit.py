"""The one compile decorator of the latency core.

Numba's on-disk cache only notices a change of the file that holds the compiled function, not of
the functions it calls, so it goes stale. Here the cache folder is named after a hash of all of
the core's sources: any change to any of them starts a fresh one. `NUMBA_DISABLE_JIT=1` turns the
decorator into a no-op, and everything runs as plain Python.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

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
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "numarep" / f"numba-{_source_hash()}"


if "NUMBA_CACHE_DIR" not in os.environ:
    setattr(numba.config, "CACHE_DIR", str(_cache_folder()))  # noqa: B010 - untyped in numba


# Compiled code here never allocates, so it can do without Numba's runtime (_nrt, a private option:
# numba is pinned in constraints.txt). Only so does LLVM inline whole call chains instead of copying
# the state and counting references at each call: 10 to 20 times as fast, measured.
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "_nrt": False,
    "forceinline": True,
}


def jit_apart(function: F) -> F:
    """Compile as `jit` does, but keep the function apart: rarely called, so not worth inlining."""
    compiled: F = numba.njit(**{**_OPTIONS, "forceinline": False})(function)
    return compiled


def jit_within(function: F) -> F:
    """Compile as `jit` does, but as part of the one or two callers: spares LLVM a whole pass."""
    compiled: F = numba.njit(**{**_OPTIONS, "inline": "always"})(function)
    return compiled


def jit(function: F) -> F:
    """Compile `function` in nopython mode, cached on disk, without the GIL."""
    compiled: F = numba.njit(**_OPTIONS)(function)
    return compiled
