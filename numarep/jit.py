"""The compile decorators of the latency core.

Numba's on-disk cache only notices a change of the file that holds the compiled function, not of
the functions it calls, so it goes stale. Here the cache folder is named after a hash of all of
the core's sources: any change to any of them starts a fresh one. `NUMBA_DISABLE_JIT=1` turns the
decorators into no-ops, and everything runs as plain Python.
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


# Helpers need no wrapper by which Python calls them, nor a cached file of their own: their callers'
# hold them. A third of the compile time, measured.
_HELPER: dict[str, Any] = {
    **_OPTIONS,
    "cache": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
_IS_PLAIN = bool(vars(numba.config)["DISABLE_JIT"])


def _helper(function: F, **options: object) -> F:
    """Compile a function for compiled callers; Python calls a second version, made if it does."""
    if _IS_PLAIN:
        return function
    compiled: Any = numba.njit(**{**_HELPER, **options})(function)
    callable_from_python = numba.njit(**{**_OPTIONS, **options})(function)
    # What numba's dispatcher asks on a call from Python, and where it would keep the wrapper.
    compiled._compile_for_args = lambda *_, **__: callable_from_python
    compiled._insert = lambda *_, **__: None
    helper: F = compiled
    return helper


def jit(function: F) -> F:
    """Compile `function` in nopython mode without the GIL, as part of its compiled callers."""
    return _helper(function)


def jit_apart(function: F) -> F:
    """Compile as `jit` does, but keep the function apart: rarely called, so not worth inlining."""
    return _helper(function, forceinline=False)


def jit_within(function: F) -> F:
    """Compile as `jit` does, but as part of the one or two callers: spares LLVM a whole pass."""
    return _helper(function, inline="always")


def jit_entry(function: F) -> F:
    """Compile what Python calls, cached on disk with all it calls."""
    compiled: F = numba.njit(**_OPTIONS)(function)
    return compiled
