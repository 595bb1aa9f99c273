"""The keys of a run that most tests leave at nothing."""

from typing import Any

ALONE: dict[str, Any] = {
    "by_function": False,
    "load": {"cpus_per_node": 0},
    "others": {"nodes": [], "quantum": 1000},
}
