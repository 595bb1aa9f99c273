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
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def _source_hash() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    package = Path(__file__).parent
    for source in sorted([*package.glob("*.py"), *package.glob("memory/*.py")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "numarep" / f"numba-{_source_hash()}"


if "NUMBA_CACHE_DIR" not in os.environ:
    setattr(numba.config, "CACHE_DIR", str(_cache_folder()))  # noqa: B010 - untyped in numba


def jit(function: F) -> F:
    """Compile `function` in nopython mode, cached on disk, without the GIL."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
