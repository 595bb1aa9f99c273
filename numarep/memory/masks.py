"""Thirty-two elements at a time: masks that say where something is so in a column of a stream.

A mask is an int, the bit of the first element lowest. With one comparison for 32 records and a
branch for each bit set, what is rare among the records costs what is rare.

Compiled callers emit vector instructions; called from Python, the plain functions say the same.

>>> column = np.array([0, 0, 2, 2, *[1] * 28])
>>> changes(column, 0, before=0), above(column, 0, limit=1), ones(above(column, 0, limit=0))
(20, 12, 30)
"""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numpy.typing import NDArray

from numarep.memory.vector import instruction

MANY = 32
ALL_OF_THEM = (1 << MANY) - 1
_MASK = ir.IntType(MANY)
_INDEX = ir.VectorType(ir.IntType(32), MANY)


def _load(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    element = data.type.pointee
    address = builder.bitcast(builder.gep(data, [at]), ir.VectorType(element, MANY).as_pointer())
    column = builder.load(address)
    column.align = element.width // 8
    return column


def _splat(builder: Any, word: Any, vector: Any) -> Any:
    element = builder.trunc(word, vector.element)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), element, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(_INDEX, [0] * MANY))


def _mask(builder: Any, lanes: Any) -> Any:
    return builder.zext(builder.bitcast(lanes, _MASK), ir.IntType(64))


def _packed(lanes: NDArray[np.bool_]) -> int:
    return int(np.packbits(lanes, bitorder="little").view("<u4")[0])


def above(column: NDArray[Any], at: int, limit: int) -> int:
    """Return a mask of the elements from `at` on that are greater than `limit`."""
    return _packed(column[at : at + MANY] > limit)


@instruction(above, types.int64)
def _above(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    column = _load(context, builder, signature.args[0], args[0], args[1])
    limit = _splat(builder, args[2], column.type)
    return _mask(builder, builder.icmp_signed(">", column, limit))


def changes(column: NDArray[Any], at: int, before: int) -> int:
    """Return a mask of the elements from `at` on that differ from the one before them.

    Before the first of them is `before`.
    """
    some = column[at : at + MANY]
    return _packed(np.append(some[0] != before, some[1:] != some[:-1]))


@instruction(changes, types.int64)
def _changes(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    column = _load(context, builder, signature.args[0], args[0], args[1])
    # Lane 0 is `before`, lane i is lane i - 1 of the column.
    order = ir.Constant(_INDEX, [MANY, *range(MANY - 1)])
    last = builder.shuffle_vector(column, _splat(builder, args[2], column.type), order)
    return _mask(builder, builder.icmp_signed("!=", column, last))


def ones(mask: int) -> int:
    """Return how many bits are set."""
    return int(mask).bit_count()


@instruction(ones, types.int64)
def _ones(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.ctpop(args[0])
