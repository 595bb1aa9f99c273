"""What a record of a reference stream is.

>>> [kind.name.lower() for kind in Kind if kind <= Kind.STORE]
['fetch', 'load', 'store']
"""

from enum import IntEnum


class Kind(IntEnum):
    """What a record is; the first three carry a line, the others only a translation."""

    FETCH = 0
    LOAD = 1
    STORE = 2
    CR3 = 3  # the translation holds the new root, nothing else
    INVLPG = 4
    FLUSH = 5  # of all TLB entries, global ones too
    IPI = 6  # to all other CPUs at once, and the wait for their answers
