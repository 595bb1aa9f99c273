"""Command line of diagnostics: `python -m numarep.sweep.dump [KEY=VALUE ...]` (R37).

What a kernel with the series shows in debugfs and sysfs, of the kernel that a run would have.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from numarep.linux.frames import FrameError
from numarep.linux.layout import MODULES_END_VPN, MODULES_VPN, WINDOW_VPN
from numarep.replication.dump import as_frame, as_text, dump, statistics_frame
from numarep.replication.kernel import Kernel, ReplicationError
from numarep.simulate.start import Started, start
from numarep.spec import RunSpec, SpecError, parse
from numarep.sweep.__main__ import BAD_INPUT, DONE, Parser
from numarep.sweep.grid import expand
from numarep.units import PAGE_BYTES, PAGE_SHIFT
from numarep.workload.trace import TraceError

DESCRIPTION = """\
Boot the kernel of one run, replicas and all, and show what each node's page tables map where the
window begins, a line a stretch that is mapped alike; or, with --stats, what replication holds: in
all, for the kernel, for every module and for every process.
"""
EXAMPLES = """\
examples:
  python -m numarep.sweep.dump
  python -m numarep.sweep.dump replication=lazy workload=overlayfs --region modules --node 1
  python -m numarep.sweep.dump machine=xeon_8s --range ffffffff81000000-ffffffff81400000
  python -m numarep.sweep.dump kernel.max_numnodes=64 --stats --out stats.csv

exit codes: 0 done; 2 bad input
"""
_WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    ".csv": pl.DataFrame.write_csv,
    ".parquet": pl.DataFrame.write_parquet,
}
_ADDRESSES = 1 << 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        _show(options)
    except (SpecError, TraceError, ReplicationError, FrameError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return DONE


def _show(options: argparse.Namespace) -> None:
    """Print what is asked for, or write it to the file that is named."""
    out = options.out
    if out is not None and out.suffix not in _WRITERS:
        raise SpecError(f"--out {out}: expected a name that ends in {' or '.join(_WRITERS)}")
    # Nothing to show without replicas, so the series unless another policy is typed.
    points = expand(["study=single", "replication=series", *options.overrides]).points
    if len(points) != 1:
        raise SpecError(f"expected one kernel: the overrides describe {len(points)} runs")
    spec = parse(RunSpec, points[0])
    started = start(spec)
    if options.stats:
        kernel, labels, modules = started
        frame = statistics_frame(kernel, spec.kernel.max_numnodes, modules, labels)
        text = "\n".join(f"{name:48} {value}" for name, value in frame.iter_rows())
    else:
        vpns = _range(started.kernel, options.range, options.region)
        found = dump(started.kernel, vpns.start, vpns.stop, _nodes(started, options.node))
        lines = [line._replace(node=started.labels[line.node]) for line in found]
        frame, text = as_frame(lines), as_text(lines)
    if out is None:
        print(text)
    else:
        _WRITERS[out.suffix](frame, out)


def _range(kernel: Kernel, typed: str | None, region: str | None) -> range:
    """Return the pages that are asked for, text by default."""
    known = _regions(kernel)
    if typed is None:
        if region not in (None, *known):
            raise SpecError(f"--region {region}: expected one of {', '.join(known)}")
        return known[region or "text"]
    try:
        first, end = (int(part, 16) for part in typed.split("-"))
    except ValueError:
        raise SpecError(f"--range {typed}: expected FROM-TO, two addresses in hex") from None
    window = known["window"]
    vpns = range((first - _ADDRESSES) >> PAGE_SHIFT, -((_ADDRESSES - end) // PAGE_BYTES))
    if not window.start <= vpns.start < vpns.stop <= window.stop:
        raise SpecError(
            f"--range {typed}: expected FROM below TO in the window, "
            f"{_ADDRESSES + (window.start << PAGE_SHIFT):x}-{_ADDRESSES:x}: elsewhere all nodes "
            "share their tables below the PGD"
        )
    return vpns


def _regions(kernel: Kernel) -> Mapping[str, range]:
    text, rodata = (
        range(section.start >> PAGE_SHIFT, section.end >> PAGE_SHIFT)
        for section in kernel.image.replicated
    )
    whole = kernel.image.whole
    return {
        "text": text,
        "rodata": rodata,
        "image": range(whole.start >> PAGE_SHIFT, -(-whole.end >> PAGE_SHIFT)),
        "modules": range(MODULES_VPN, MODULES_END_VPN),
        "window": range(WINDOW_VPN, 0),
    }


def _nodes(started: Started, node: int | None) -> list[int]:
    """Return the node that is asked for, as the kernel numbers it, or every one with memory."""
    kernel, labels = started.kernel, started.labels
    if node is None:
        return list(kernel.replica_nodes)
    if node not in labels or labels.index(node) not in kernel.replica_nodes:
        known = ", ".join(str(each) for each in sorted(labels[n] for n in kernel.replica_nodes))
        reason = "has no memory, so no tables" if node in labels else "does not exist"
        raise SpecError(f"--node {node}: {reason} (nodes with memory: {known})")
    return [labels.index(node)]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m numarep.sweep.dump",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as python -m numarep.sweep has them"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--range", metavar="FROM-TO", help="addresses in hex, TO not included")
    what.add_argument("--region", help="text (the default), rodata, image, modules or window")
    what.add_argument("--stats", action="store_true", help="statistics instead of tables")
    parser.add_argument("--node", type=int, metavar="N", help="of this node only")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .csv or .parquet to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
