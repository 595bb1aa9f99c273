"""The kernel of a run as its window begins, to look at: booted with its replicas, nothing run."""

from typing import NamedTuple

from numarep.linux.frames import Frames
from numarep.replication.kernel import Area, Kernel
from numarep.simulate.numbering import as_captured, labels_of
from numarep.simulate.replicas import at_start, placed, used_frames
from numarep.simulate.setting import setting_of
from numarep.simulate.window import load_window
from numarep.spec import ChaseSpec, RunSpec, SpecError


class Started(NamedTuple):
    """A kernel in the captures' node numbers, the machine's, and each module's areas by name."""

    kernel: Kernel
    labels: list[int]
    modules: dict[str, list[Area]]


def start(spec: RunSpec) -> Started:
    """Boot the kernel that the measured CPU of a run has when its window begins.

    Raises
    ------
    TraceError
        If the dataset is damaged or lacks a capture or window of the run.
    SpecError
        If the workload has no kernel, or the machine can't hold the captured one.
    """
    if isinstance(spec.workload, ChaseSpec):
        raise SpecError("workload: a pointer chase runs on no kernel: expected a captured workload")
    labels = labels_of(spec)
    setting = setting_of(as_captured(spec, labels), spec.workload)
    node = setting.cpu_nodes[0]
    window = load_window(setting, setting.home[node])
    frames = Frames(window.ranges, used_frames(setting, window), setting.colours)
    replay, modules = at_start(setting, node, placed(setting, window, frames, {}), frames)
    return Started(replay.kernel, labels, modules)
