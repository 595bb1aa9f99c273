"""Executors: where tasks run. Both yield finished batches in any order; results don't depend on it.

Ray is imported only when it is used. Batches are submitted while few are in flight, so a grid of
any size needs little memory; a batch that a dying worker took down is tried again one state at a
time, so that only the state that kills workers fails.
"""

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from numarep.spec import Spec, SpecError, nearest, parse
from numarep.sweep.task import Batch, Done, failed, run_batch


@dataclass(frozen=True)
class Executor:
    """A started executor."""

    run: Callable[[list[Batch]], Iterator[Done]]
    cpus: int  # at its start; a cluster may grow and shrink


# One thread a worker: Ray already runs one worker a core.
WORKER_ENV = {"NUMBA_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
RAY_ENV = {
    # Or workers run in a copy of the tree, and relative paths land there.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Tried: a host that is cut off is noticed after 24 s instead of 300 s.
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_grpc_keepalive_time_ms": "10000",
    "RAY_grpc_keepalive_timeout_ms": "10000",
    "RAY_USAGE_STATS_ENABLED": "0",
}
OBJECT_STORE_BYTES = 256 << 20  # results of a few batches; Ray's default is 30 % of all memory
CONNECT_SECONDS = 5.0


class ExecutorError(RuntimeError):
    """An executor that can't be started."""


@dataclass(frozen=True, kw_only=True)
class SerialSpec(Spec):
    """Run in this process."""

    kind: Literal["serial"]


@dataclass(frozen=True, kw_only=True)
class RaySpec(Spec):
    """Run on a private Ray on this machine, or on a running cluster at `address`."""

    kind: Literal["ray"]
    address: str | None
    num_cpus: int | None
    in_flight_per_cpu: int
    max_retries: int

    def __post_init__(self) -> None:
        """Refuse an address without a port, and counts that make no sense."""
        if self.address is not None:
            host, _, port = self.address.rpartition(":")
            if not host or not port.isdigit():
                raise SpecError(f"address: expected HOST:PORT, got {self.address!r}")
        if self.num_cpus is not None and self.num_cpus < 1:
            raise SpecError(f"num_cpus: expected one or more, got {self.num_cpus}")
        if self.in_flight_per_cpu < 1 or self.max_retries < 0:
            raise SpecError("in_flight_per_cpu, max_retries: expected at least 1 and 0")


ExecutorSpec = SerialSpec | RaySpec
_KINDS: dict[str, type[SerialSpec] | type[RaySpec]] = {"serial": SerialSpec, "ray": RaySpec}


def parse_executor(mapping: dict[str, Any]) -> ExecutorSpec:
    """Parse the executor's settings.

    Raises
    ------
    SpecError
        Naming the offending path.
    """
    kind = str(mapping.get("kind"))
    if kind not in _KINDS:
        raise SpecError(f"executor.kind: no such kind {kind!r}{nearest(kind, _KINDS)}")
    return parse(_KINDS[kind], mapping, "executor")


def start(spec: ExecutorSpec) -> AbstractContextManager[Executor]:
    """Start an executor.

    Raises
    ------
    ExecutorError
        If the cluster does not answer or refuses us.
    """
    return _serial() if isinstance(spec, SerialSpec) else _ray(spec)


@contextmanager
def _serial() -> Iterator[Executor]:
    yield Executor(lambda batches: map(run_batch, batches), cpus=1)


@contextmanager
def _ray(spec: RaySpec) -> Iterator[Executor]:
    os.environ.update({key: os.environ.get(key, value) for key, value in RAY_ENV.items()})
    if spec.address is not None:
        _require_answer(spec.address)
    import ray

    settings: dict[str, Any] = {"address": spec.address}
    if spec.address is None:
        settings = {
            "address": "local",
            "num_cpus": spec.num_cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": WORKER_ENV},
            **settings,
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        raise ExecutorError(
            f"executor: no Ray on {spec.address or 'this host'}: {reason}"
        ) from None
    # Ray puts its own handler in, which dumps a stack.
    signal.signal(signal.SIGTERM, on_term)
    try:
        yield Executor(lambda batches: _on_ray(batches, spec), _cpus())
    finally:
        ray.shutdown()


def _cpus() -> int:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))


def _on_ray(batches: list[Batch], spec: RaySpec) -> Iterator[Done]:
    import ray

    remote = ray.remote(max_retries=spec.max_retries)(run_batch)
    waiting = list(reversed(batches))
    in_flight: dict[Any, Batch] = {}
    while waiting or in_flight:
        # Asked again and again, because hosts come and go.
        limit = _cpus() * spec.in_flight_per_cpu
        while waiting and len(in_flight) < limit:
            batch = waiting.pop()
            in_flight[remote.remote(batch)] = batch
        ready, _ = ray.wait(list(in_flight), num_returns=1)
        for reference in ready:
            batch = in_flight.pop(reference)
            try:
                yield ray.get(reference)
            except ray.exceptions.RayError as error:
                if len(batch.states) > 1:
                    waiting += batch.split()
                else:
                    yield failed(batch, error)


def _require_answer(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ExecutorError(f"executor.address: {address}: {error.strerror or error}") from None
