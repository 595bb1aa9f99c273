"""Command line of sweeps: `python -m numarep.sweep [KEY=VALUE ...]`."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import yaml
from rich.console import Console

from numarep.results import ResultsError, open_results
from numarep.spec import SpecError
from numarep.sweep import task
from numarep.sweep.executor import ExecutorError, parse_executor
from numarep.sweep.grid import DEFAULT_STUDY, Study, expand
from numarep.sweep.plan import Plan, build_plan
from numarep.sweep.run import sweep
from numarep.sweep.studies import groups, studies
from numarep.workload.trace import TraceError

DONE, RUNS_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

PIPED_COLUMNS = 100

DESCRIPTION = f"""\
Run a study: every point of a grid of machine x kernel x workload x replication x ...

Without arguments it runs the study {DEFAULT_STUDY} and prints its table. Runs that are in the
results folder already are found by their ids and not done again; a sweep that was interrupted, by
whatever, goes on where it stopped when the same command is given again.
"""

EXAMPLES = """\
overrides, in Hydra's grammar; each replaces a default or an axis of the study:
  study=NAME              which file of sweeps/ names the axes (default: seed_table)
  out=FOLDER              where results go (default: results/STUDY)
  workload=kill           one option of a group
  workload=kill,fork_1    an axis; also range(1,9), choice(a,b) and, for groups, glob(mmap*)
  machine.core.ghz=2.6,3  any key below a group, also as an axis
  points=FILE             one point a row of a .csv, .jsonl or .parquet file (- is CSV on standard
                          input), its columns any of these keys; the study is single by default
  executor=serial         everything in this process, no Ray
  executor.address=H:P    join the Ray cluster that listens at host H, port P

examples:
  python -m numarep.sweep
  python -m numarep.sweep workload=kill 'seed=range(1,3)' out=/tmp/kill
  python -m numarep.sweep study=single workload=fork_1 cache_state=hot,cold executor=serial
  python -m numarep.sweep --cfg study=single machine.latency.llc_ns=25.0

exit codes: 0 done; 1 a run failed (the others are kept) or the disk is full; 2 bad input, nothing
was run; 130 interrupted, what was finished is kept
"""


class Parser(argparse.ArgumentParser):
    """Refuses bad input in one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        # One line, as for every other bad input; argparse would print its usage too.
        self.exit(BAD_INPUT, f"error: {message}; --help explains\n")


def main(arguments: Sequence[str] | None = None, model: str = task.MODEL) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        `sys.argv` by default.
    model : str
        Dotted path of the module that evaluates points (see `task`).
    """
    options = _parser().parse_intermixed_args(arguments)
    console = Console(stderr=True)
    try:
        study = expand(options.overrides)
        if options.cfg:
            return _show(study)
        return _run(study, model, console)
    except (SpecError, TraceError, ResultsError, ExecutorError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept", file=sys.stderr)
        return INTERRUPTED


def _run(study: Study, model: str, console: Console) -> int:
    executor = parse_executor(study.executor)
    plan = build_plan(study.points, model)
    results = open_results(study.out)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        tally = sweep(study, plan, executor, results, model, console)
    except OSError as error:
        kept = "finished runs are kept, the same command goes on from them"
        print(f"error: {results.path}: {error}; {kept}", file=sys.stderr)
        return RUNS_FAILED
    _print_table(results.path, plan)
    return RUNS_FAILED if tally.failed else DONE


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    # A batch system's time limit ends a sweep as Ctrl-C does.
    raise KeyboardInterrupt


def _print_table(path: Path, plan: Plan) -> None:
    from analysis import load, seed_table  # late: a bad override is refused without Polars

    console = Console()
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    seed_table.show(load(path, plan.points), console)
    console.print(f"results: {_shown(path)}", soft_wrap=True, highlight=False)


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _show(study: Study) -> int:
    """Print the first point's configuration, and how many there are."""
    shown = {"study": study.name, "out": str(study.out), "executor": study.executor}
    print(yaml.safe_dump(shown | study.points[0], sort_keys=False), end="")
    print(f"# the first of {len(study.points)} points; axes of the study:")
    for key, values in study.axes.items():
        print(f"#   {key}: {values}")
    return DONE


def _parser() -> Parser:
    lines = [f"  {group}: {', '.join(options)}" for group, options in groups().items()]
    listed = "\n".join(["groups and their options:", *lines, f"studies: {', '.join(studies())}"])
    parser = Parser(
        prog="python -m numarep.sweep",
        description=DESCRIPTION,
        epilog=f"{EXAMPLES}\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="see below")
    parser.add_argument(
        "--cfg", action="store_true", help="show the composed configuration and run nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
