"""Eight words at a time: the few vector instructions that rows of LRU order are made of.

Searching a row and moving an entry to its front are loops over ways whose exits a branch predictor
can't foresee. As vector operations they have no exits: compare eight words with one value, count
trailing zeros of the outcome, rotate the lanes up to the hit, store; closing a gap is the reverse.
LLVM maps them to whatever the host has (AVX-512, AVX2, SSE2, NEON). They read and write eight words
whatever a row's length: what lies beyond a row's end is written back unchanged, or is EMPTY.

Compiled callers emit them; called from Python, the plain functions say the same.

>>> words = np.arange(10, 20)
>>> match(words, 1, 13, -1), lowest(0b100)  # the third word from 1 on is 13
(4, 2)
>>> rotate(words, 1, 2, 99)
>>> words.tolist()
[10, 99, 11, 12, 14, 15, 16, 17, 18, 19]
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.core.typing.templates import signature
from numba.extending import lower_builtin, type_callable
from numpy.typing import NDArray

LANES = 8
Emitter = Callable[..., Any]
_WORD = ir.IntType(64)
_ROW = ir.VectorType(_WORD, LANES)
_INDEX = ir.VectorType(ir.IntType(32), LANES)


def _address(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _ROW.as_pointer())


def _load(builder: Any, address: Any) -> Any:
    row = builder.load(address)
    row.align = 8
    return row


def _splat(builder: Any, word: Any) -> Any:
    one = builder.insert_element(ir.Constant(_ROW, ir.Undefined), word, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(_INDEX, [0] * LANES))


def _lanes_to(builder: Any, last: Any) -> Any:
    """Return a mask of the lanes up to `last`, any number: ones where i - 1 - last is below 0.

    That sign is shifted over the lane, since LLVM makes masked stores of what it recognises as a
    selection, and hosts make a load that follows a masked store wait until that is in the cache.
    """
    before = ir.Constant(_ROW, list(range(-1, LANES - 1)))
    return builder.ashr(builder.sub(before, _splat(builder, last)), ir.Constant(_ROW, [63] * LANES))


def new_words(size: int) -> NDArray[np.int64]:
    """Return words of -1 that begin with a line of the host, as then all rows of eight do."""
    words = np.full(size + LANES, -1, np.int64)
    skipped = -words.ctypes.data // words.itemsize % LANES
    return words[skipped : skipped + size]


def instruction(plain: Callable[..., Any], returned: Any) -> Callable[[Emitter], Emitter]:
    """Have compiled callers of a plain function emit what the decorated one does instead."""

    @type_callable(plain)
    def typed(_context: Any) -> Callable[..., Any]:
        def of(*args: Any) -> Any:
            # Arguments that aren't arrays are words, whatever they were.
            words = (each if isinstance(each, types.Array) else types.int64 for each in args)
            return signature(returned, *words)

        vars(of)["pysig"] = inspect.signature(plain)
        return of

    emitted_by: Callable[[Emitter], Emitter] = lower_builtin(plain, types.VarArg(types.Any))
    return emitted_by


def match(words: NDArray[np.int64], at: int, value: int, mask: int) -> int:
    """Return a bit for each of the eight words from `at` on: whether `word & mask == value`."""
    equal = (words[at : at + LANES] & mask) == value
    return int(np.packbits(equal, bitorder="little")[0])


@instruction(match, types.int64)
def _match(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    row = _load(builder, _address(context, builder, signature.args[0], args[0], args[1]))
    kept = builder.and_(row, _splat(builder, args[3]))
    equal = builder.icmp_signed("==", kept, _splat(builder, args[2]))
    return builder.zext(builder.bitcast(equal, ir.IntType(LANES)), _WORD)


def rotate(words: NDArray[np.int64], at: int, last: int, entry: int) -> None:
    """Move words 0 to last - 1 from `at` on up by one, over word `last`; `entry` becomes word 0.

    Nothing happens if `last` is below 0; if it is above 7 that word isn't seen. In place.
    """
    last = min(last, LANES - 1)
    if last >= 0:
        words[at + 1 : at + last + 1] = words[at : at + last].copy()
        words[at] = entry


@instruction(rotate, types.void)
def _rotate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    address = _address(context, builder, signature.args[0], args[0], args[1])
    row = _load(builder, address)
    # Lane 0 of the result is `entry`, lane i is lane i - 1 of the row.
    order = ir.Constant(_INDEX, [LANES, *range(LANES - 1)])
    moved = builder.shuffle_vector(row, _splat(builder, args[3]), order)
    mask = _lanes_to(builder, args[2])
    kept = builder.and_(row, builder.not_(mask))
    builder.store(builder.or_(kept, builder.and_(moved, mask)), address).align = 8
    return context.get_dummy_value()


def close(words: NDArray[np.int64], at: int, gap: int, entry: int) -> None:
    """Move the words of the eight from `at` on that follow word `gap` down by one, over it.

    `entry` becomes the last of them. Nothing happens if `gap` is above 7; if it is below 0 all of
    them move. In place.
    """
    if gap < LANES:
        gap = max(gap, 0)
        words[at + gap : at + LANES - 1] = words[at + gap + 1 : at + LANES].copy()
        words[at + LANES - 1] = entry


@instruction(close, types.void)
def _close(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    address = _address(context, builder, signature.args[0], args[0], args[1])
    row = _load(builder, address)
    # Lane i of the result is lane i + 1 of the row, the last is `entry`.
    order = ir.Constant(_INDEX, list(range(1, LANES + 1)))
    moved = builder.shuffle_vector(row, _splat(builder, args[3]), order)
    mask = _lanes_to(builder, builder.sub(args[2], _WORD(1)))
    moved = builder.and_(moved, builder.not_(mask))
    builder.store(builder.or_(builder.and_(row, mask), moved), address).align = 8
    return context.get_dummy_value()


def copy(words: NDArray[np.int64], to: int, start: int) -> None:
    """Copy the eight words from `start` on to `to` and on, in place."""
    words[to : to + LANES] = words[start : start + LANES].copy()


@instruction(copy, types.void)
def _copy(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    to, start = (_address(context, builder, signature.args[0], args[0], each) for each in args[1:])
    builder.store(_load(builder, start), to).align = 8
    return context.get_dummy_value()


def lowest(bits: int) -> int:
    """Return the place of the lowest bit set; `bits` is not 0."""
    return (int(bits) & -int(bits)).bit_length() - 1


@instruction(lowest, types.int64)
def _lowest(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.cttz(args[0], ir.IntType(1)(0))


def choose(bits: int, some: int, none: int) -> int:
    """Return `some` if any bit is set, else `none`; without a branch, as it can't be foreseen."""
    return some if bits != 0 else none


@instruction(choose, types.int64)
def _choose(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    chosen = builder.select(builder.icmp_signed("!=", args[0], _WORD(0)), args[1], args[2])
    # Else LLVM makes it a branch around the load of what isn't chosen.
    chosen.set_metadata("unpredictable", builder.module.add_metadata([]))
    return chosen


def high(one: int, other: int) -> int:
    """Return the upper word of the product of two unsigned words."""
    return (int(one) % (1 << 64)) * (int(other) % (1 << 64)) >> 64


@instruction(high, types.int64)
def _high(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    twice = ir.IntType(128)
    product = builder.mul(*(builder.zext(each, twice) for each in args))
    return builder.trunc(builder.lshr(product, twice(64)), _WORD)


def at(index: int) -> int:
    """Promise that an index isn't negative, which spares compiled code the test for it."""
    return index


@instruction(at, types.uint64)
def _at(_context: Any, _builder: Any, _signature: Any, args: Any) -> Any:
    return args[0]


def prefetch(words: NDArray[Any], at: int) -> None:
    """Tell the host that what lies around element `at` will be wanted soon: speed only."""


@instruction(prefetch, types.void)
def _prefetch(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    address = builder.bitcast(builder.gep(data, [args[1]]), cgutils.voidptr_t)
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [address, number(1), number(3), number(1)])
    return context.get_dummy_value()
