"""One real boot against the bundled dataset; skipped, with the reason, where it can't be equal."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from numarep.capture.__main__ import TOOLS, main
from numarep.capture.boot import MissingError, Tools, build_tools, find_kernel, missing_packages
from numarep.capture.decode import WATCHED
from numarep.workload.dataset import BUNDLED, Dataset, capture_name, open_dataset

BUNDLE = "debian-6.1"
SETTING = {"pti": True, "cpu_node": 1, "seed": 1}

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not (BUNDLED / BUNDLE / TOOLS).is_file(), reason=f"no bundled {BUNDLE}"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloads stay if NUMAREP_CAPTURE_CACHE names a folder."""
    named = os.environ.get("NUMAREP_CAPTURE_CACHE")
    return Path(named) if named else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def wanted() -> dict[str, str]:
    content: dict[str, str] = json.loads((BUNDLED / BUNDLE / TOOLS).read_text())
    return content


def _same_tools(wanted: dict[str, str], cache: Path) -> Tools:
    """Build what the bundle was captured with, or skip: other code gives other traces."""
    missing = missing_packages()
    if missing:
        pytest.skip(f"missing Debian packages: {' '.join(missing)}")
    try:
        kernel = find_kernel("=".join(wanted["kernel_package"].split()), cache)
        tools = build_tools(kernel, cache)
    except MissingError as error:
        pytest.skip(str(error))
    if tools.qemu != wanted["qemu"]:
        pytest.skip(f"QEMU is {tools.qemu}; the bundle was captured with {wanted['qemu']}")
    if tools.guest_sha256 != wanted["guest_sha256"]:
        pytest.skip(f"the guest program built here differs from that of {wanted['gcc']}")
    return tools


@pytest.fixture(scope="module")
def fresh(wanted: dict[str, str], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    _same_tools(wanted, cache)
    out = tmp_path_factory.mktemp("fresh") / "again"
    arguments = ["--out", str(out), "--work", str(cache), "--timeout", "200"]
    arguments += ["--pti", "on", "--cpu-node", "1", "--seed", "1"]
    arguments += ["--kernel", "=".join(wanted["kernel_package"].split())]
    assert main(arguments) == 0
    return open_dataset(str(out))


def test_a_fresh_boot_repeats_the_bundled_traces(fresh: Dataset) -> None:
    bundled, name = open_dataset(BUNDLE), capture_name(**SETTING)
    meta = fresh.meta(name)
    assert meta.watched == WATCHED  # which the bundled ones did not record, and marked fewer
    assert dataclasses.replace(meta, watched=bundled.meta(name).watched) == bundled.meta(name)
    for workload in bundled.meta(name).workloads:
        ours, theirs = fresh.trace(name, workload), bundled.trace(name, workload)
        for table in ("records", "pages"):
            for column in type(getattr(ours, table)).__dataclass_fields__:
                new = getattr(getattr(ours, table), column)
                old = getattr(getattr(theirs, table), column)
                assert new.tobytes() == old.tobytes(), f"{workload}: {table}.{column}"
        assert ours.event_record.tobytes() == theirs.event_record.tobytes(), workload
        assert ours.event_name == theirs.event_name, workload


def test_a_fresh_boot_repeats_the_bundled_tables_and_symbols(fresh: Dataset) -> None:
    bundled, name = open_dataset(BUNDLE), capture_name(**SETTING)
    assert fresh.tables(name).equals(bundled.tables(name))
    assert fresh.symbols().equals(bundled.symbols())
