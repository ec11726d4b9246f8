"""Several labels offered to the pool at once, compiled by numba: int8 by int16 products of tiles, then exact ones.

A block of rows is widened to int16 and multiplied by the labels, tile by tile: 2 rows by 4 labels whose sums stay in
registers. Each number that is loaded serves several products, and the labels' numbers are read once for each block. On
x86 the products become multiply-and-add instructions (vpmaddwd; vpdpwssd with AVX512-VNNI), twice as many at a time as
in single precision. All sums are exact, in whatever order; so the blocks don't matter to the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from neat_backend.models.grid import GRID
from neat_backend.ranking.kernels import Array, Planes, Table, compiled, exact_similarity, insert

_ROWS, _LABELS = 2, 4  # of a tile: 8 sums, 4 + 2 operands and a product fit the 16 registers of AVX2
_BLOCK_ROWS = 32
# int16 values of a register; rows are filled up with zeros to a multiple of it
_LANES = 32 if binding.get_host_cpu_features().get("avx512bw") else 16


class Queries(NamedTuple):
    """Labels to offer together, float32 [m] but for the first two. A query is a label's difference from the centre."""

    label: Array  # its row, int32
    values: Array  # int16, of `filled`: of the query, in units; so large that no sum of products exceeds int32
    unit: Array  # of the query's values
    base: Array  # centre·y, and the error of a bound in single precision
    norm: Array  # length of the difference
    error: Array  # length of what the query leaves out of it


def filled(values: Array) -> Array:
    """Whole numbers [m, d] as int16 with zeros to whole tiles."""
    m, d = values.shape
    result = np.zeros((-m % _LABELS + m, -d % _LANES + d), np.int16)
    result[:m, :d] = values
    return result


@intrinsic
def _multiply_tile(context: Any, rows: Any, i: Any, values: Any, j: Any, found: Any) -> Any:
    """found[i+r, j+c] = rows[i+r]·values[j+c] for the rows and labels of a tile; int16 by int16 to int32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def array(at: int) -> tuple[Any, Any]:
            made = context.make_array(signature.args[at])(context, builder, args[at])
            return made.data, cgutils.unpack_tuple(builder, made.shape)[1]

        i64, i32, half = ir.IntType(64), ir.IntType(32), _LANES // 2
        lanes, sums, wide = ir.VectorType(ir.IntType(16), _LANES), ir.VectorType(i32, half), ir.VectorType(i32, _LANES)
        (left, width), (right, _), (out, columns) = array(0), array(2), array(4)

        def at(data: Any, start: Any, step: int, length: Any) -> Any:
            return builder.gep(data, [builder.mul(builder.add(start, ir.Constant(i64, step)), length)])

        lefts = [at(left, args[1], r, width) for r in range(_ROWS)]
        rights = [at(right, args[3], c, width) for c in range(_LABELS)]
        totals = [cgutils.alloca_once_value(builder, ir.Constant(sums, [0] * half)) for _ in range(_ROWS * _LABELS)]
        picks = [ir.Constant(sums, list(range(first, _LANES, 2))) for first in (0, 1)]
        with cgutils.for_range(builder, builder.udiv(width, ir.Constant(i64, _LANES)), intp=i64) as loop:
            offset = builder.mul(loop.index, ir.Constant(i64, _LANES))

            def load(data: Any) -> Any:
                place = builder.bitcast(builder.gep(data, [offset]), lanes.as_pointer())
                return builder.sext(builder.load(place, align=2), wide)

            loaded = [load(data) for data in lefts], [load(data) for data in rights]
            for total, (a, b) in zip(totals, ((a, b) for a in loaded[0] for b in loaded[1]), strict=True):
                product = builder.mul(a, b)
                even, odd = (builder.shuffle_vector(product, ir.Constant(wide, ir.Undefined), pick) for pick in picks)
                # LLVM makes one instruction of this: multiply, and add neighbours.
                builder.store(builder.add(builder.load(total), builder.add(even, odd)), total)
        kind = ir.FunctionType(i32, [sums])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{half}i32")
        for n, total in enumerate(totals):
            place = builder.gep(at(out, args[1], n // _LABELS, columns), [args[3]])
            builder.store(
                builder.call(reduce, [builder.load(total)]), builder.gep(place, [ir.Constant(i64, n % _LABELS)])
            )
        return context.get_dummy_value()

    return types.void(rows, types.int64, values, types.int64, found), generate


@compiled()
def products(coarse: Array, begin: int, end: int, values: Array, wide: Array, found: Array) -> None:
    """found[r, c] = coarse[begin+r]·values[c] for rows begin..end. values: of `filled`; wide: scratch."""
    for r in range(end - begin):
        for j in range(coarse.shape[1]):
            wide[r, j] = coarse[begin + r, j]
    for c in range(0, values.shape[0], _LABELS):
        for r in range(0, end - begin, _ROWS):
            _multiply_tile(wide, r, values, c, found)  # type: ignore[call-arg] # numba gives the context


@compiled()
def offer_many(
    begin: int, end: int, queries: Queries, planes: Planes, measures: tuple[Array, Array], near: Table, touched: Array
) -> int:
    """Offer several labels to rows begin..end; measures: of `lengths`.

    Rows that took any are written to touched[begin:]; returns their number.
    """
    count = 0
    coarse, rest, step, residual, centre = planes
    alive, ids, neighbours, similarities = near
    labels, values, unit, base, norm, error = queries
    length, along = measures
    k = similarities.shape[1]
    m = len(labels)
    wide = np.zeros((_BLOCK_ROWS, values.shape[1]), np.int16)
    found = np.empty((_BLOCK_ROWS, values.shape[0]), np.int32)
    bound = np.empty(m, np.float32)
    for row in range(begin, end):
        at = (row - begin) % _BLOCK_ROWS
        if at == 0:
            products(coarse, row, min(row + _BLOCK_ROWS, end), values, wide, found)
        if not alive[row]:
            continue
        scale, left, long, here = np.float32(step[row] * GRID), residual[row], length[row], along[row]
        kth = similarities[row, k - 1]
        above = np.int32(0)
        for i in range(m):  # without a branch, so that it becomes vector instructions
            bound[i] = np.float32(found[at, i]) * (scale * unit[i]) + (
                here + (base[i] + (left * norm[i] + long * error[i]))
            )
            above += np.int32(bound[i] >= kth)
        if above == 0:
            continue
        taken = False
        for i in range(m):
            if bound[i] < similarities[row, k - 1] or labels[i] == row:
                continue
            similarity = exact_similarity(coarse, rest, step, centre, row, labels[i])
            taken |= insert(neighbours, similarities, ids, row, labels[i], similarity)
        if taken:
            touched[begin + count] = row
            count += 1
    return count
