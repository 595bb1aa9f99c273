"""The points of the sensitivity study: `python -m analysis.design` prints them as CSV.

A Morris design (SALib's): trajectories in which one assumed parameter changes at a time, each
scaled between half and one and a half of its value. One line is one point, its columns settings:

    python -m analysis.design | python -m numarep.sweep study=sensitivity points=-

>>> design([Parameter("a", 2.0), Parameter("b", 4.0)], trajectories=1).shape
(3, 2)
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.assumed import HIGH, LOW, Parameter, assumed, conf_folder

TRAJECTORIES = 8
LEVELS = 4
SEED = 1
POLICY = "series"


def problem(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Describe the parameters' factors as SALib wants it."""
    return {
        "num_vars": len(parameters),
        "names": [parameter.path for parameter in parameters],
        "bounds": [[LOW, HIGH]] * len(parameters),
    }


def design(
    parameters: Sequence[Parameter], trajectories: int = TRAJECTORIES
) -> NDArray[np.float64]:
    """Return the factors of every point, float64[point, parameter], always the same."""
    from SALib.sample import morris  # late: it loads pandas and more

    points: NDArray[np.float64] = morris.sample(
        problem(parameters), trajectories, num_levels=LEVELS, seed=SEED
    )
    return points


def varied() -> list[Parameter]:
    """List the assumed parameters of the default study that can be scaled."""
    return [p for p in assumed(conf_folder(), replication=POLICY) if p.numeric]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a header of settings, and a line of their values a point."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.design",
        description="Print the points of the sensitivity study as CSV, a line each; pipe them "
        "into: python -m numarep.sweep study=sensitivity points=-",
    )
    parser.parse_args(arguments)
    parameters = varied()
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(parameter.path for parameter in parameters)
    for point in design(parameters):
        values = zip(parameters, point, strict=True)
        lines.writerow(json.dumps(parameter.scaled(factor)) for parameter, factor in values)
    print(text.getvalue(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
