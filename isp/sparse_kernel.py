"""Product of a sparse matrix and dense vectors, compiled by numba for this processor; needs `isp[accelerate]`.

Tokens are computed in blocks of 64. The inputs of a block are stored as (inputs, 64), so that a kept weight multiplies
64 consecutive numbers: four vectors of AVX-512. The sums of an output stay in registers while its kept weights are
read. numba cannot express this for an array, so the innermost loop consists of LLVM vector instructions.

Several threads are those of numba's layer "omp", which uses the OpenMP library that torch has loaded and therefore
torch's own threads. Additional threads would compete with these for the cores, because OpenMP's threads stay busy for a
while after each parallel operation of torch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import NumbaError
from numba.extending import intrinsic
from torch import Tensor

BLOCK = 64
"""Number of tokens that are computed together."""
LANES = 16
"""Length of a vector; LLVM splits it if registers are shorter."""
OUTPUTS = 16
"""Number of outputs that are computed before they are written to memory."""


def _add_products(typing: Any, values: Any, columns: Any, x: Any, y: Any, begin: Any, end: Any) -> tuple[Any, Any]:
    """Emit y[:] += values[k] * x[columns[k]] for k from begin to end, with x (inputs, BLOCK); arrays by address."""
    signature = types.void(values, columns, x, y, begin, end)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number, index, integer = ir.FloatType(), ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(number, LANES)
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32"
        )
        kinds = (number, integer, number, number)
        values, columns, x, y = (
            builder.inttoptr(arg, kind.as_pointer()) for arg, kind in zip(args[:4], kinds, strict=True)
        )
        begin, end = args[4:]

        def place(base: Any, vectors: int) -> Any:
            return builder.bitcast(builder.gep(base, [index(vectors * LANES)]), vector.as_pointer())

        def load(base: Any, vectors: int) -> Any:
            return builder.load(place(base, vectors), align=4)

        first = [load(y, number) for number in range(BLOCK // LANES)]
        before = builder.block
        head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
        builder.branch(head)

        builder.position_at_end(head)
        k = builder.phi(index)
        k.add_incoming(begin, before)
        sums = [builder.phi(vector) for _ in first]
        for total, start in zip(sums, first, strict=True):
            total.add_incoming(start, before)
        builder.cbranch(builder.icmp_signed("<", k, end), body, done)

        builder.position_at_end(body)
        undefined = ir.Constant(vector, ir.Undefined)
        weight = builder.insert_element(undefined, builder.load(builder.gep(values, [k])), integer(0))
        weight = builder.shuffle_vector(weight, undefined, ir.Constant(ir.VectorType(integer, LANES), [0] * LANES))
        column = builder.zext(builder.load(builder.gep(columns, [k])), index)
        row = builder.gep(x, [builder.mul(column, index(BLOCK))])
        products = [builder.call(fma, [weight, load(row, number), total]) for number, total in enumerate(sums)]
        k.add_incoming(builder.add(k, index(1)), body)
        for total, product in zip(sums, products, strict=True):
            total.add_incoming(product, body)
        builder.branch(head)

        builder.position_at_end(done)
        for number, total in enumerate(sums):
            builder.store(total, place(y, number), align=4)
        return context.get_dummy_value()

    return signature, emit


_add = intrinsic(_add_products)
_compiled = numba.njit(nogil=True, boundscheck=False, error_model="numpy")


def _pack(x: Any, packed: Any, first_block: int, last_block: int) -> None:
    """Store inputs (tokens, inputs) as (blocks, inputs, BLOCK), filling the last block with zeros."""
    tokens, inputs = x.shape
    for number in range(first_block, last_block):
        block = packed[number]
        begin = number * BLOCK
        length = min(BLOCK, tokens - begin)
        for first in range(0, inputs, 16):
            last = min(inputs, first + 16)
            for token in range(length):
                row = x[begin + token]
                for column in range(first, last):
                    block[column, token] = row[column]
            for token in range(length, BLOCK):
                for column in range(first, last):
                    block[column, token] = 0


def _multiply(values: Any, columns: Any, rows: Any, bias: Any, packed: Any, y: Any, begin: int, end: int) -> None:
    """Compute outputs from `begin` to `end` of y, (tokens, outputs)."""
    tokens = y.shape[0]
    sums = np.empty((OUTPUTS, BLOCK), np.float32)
    for number in range(packed.shape[0]):
        block = packed[number]
        start = number * BLOCK
        length = min(BLOCK, tokens - start)
        for first in range(begin, end, OUTPUTS):
            last = min(end, first + OUTPUTS)
            for output in range(first, last):
                total = sums[output - first]
                for token in range(BLOCK):
                    total[token] = bias[output]
                _add(
                    values.ctypes.data, columns.ctypes.data, block.ctypes.data, total.ctypes.data,
                    rows[output], rows[output + 1],
                )  # fmt: skip
            for token in range(length):
                row = y[start + token]
                for output in range(first, last):
                    row[output] = sums[output - first, token]


_pack_compiled, _multiply_compiled = _compiled(_pack), _compiled(_multiply)


def _multiply_shares(x: Any, values: Any, columns: Any, rows: Any, bias: Any, packed: Any, y: Any, ends: Any) -> None:
    """Pack x and compute y; each thread computes the outputs from one of `ends` to the next."""
    for number in numba.prange(packed.shape[0]):
        _pack_compiled(x, packed, number, number + 1)
    for share in numba.prange(len(ends) - 1):
        _multiply_compiled(values, columns, rows, bias, packed, y, ends[share], ends[share + 1])


@dataclass(frozen=True)
class Rows:
    """A sparse matrix by its rows, and a bias.

    Attributes:
        values: Kept weights, float32, row by row.
        columns: Column of each kept weight, int32.
        rows: Index of the first weight of each row, followed by the number of weights, int64.
        bias: Bias, float32, one number per row.
    """

    values: Tensor
    columns: Tensor
    rows: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Rows:
        """Make rows from the kept weights of a matrix (outputs, inputs)."""
        outputs, columns = weight.nonzero(as_tuple=True)
        rows = torch.zeros(len(weight) + 1, dtype=torch.int64)
        rows[1:] = torch.bincount(outputs, minlength=len(weight)).cumsum(0)
        zeros = weight.new_zeros(len(weight))
        return cls(
            weight[outputs, columns], columns.to(torch.int32), rows, zeros if bias is None else bias.contiguous()
        )

    def multiply(self, x: Tensor) -> Tensor:
        """Compute x @ matrix.T + bias, with as many threads as torch has.

        Args:
            x: Inputs, (tokens, inputs), float32.

        Returns:
            Outputs, (tokens, outputs).
        """
        y = x.new_empty(len(x), len(self.bias))
        packed = x.new_empty(-(-len(x) // BLOCK), x.shape[1], BLOCK)
        given = x.contiguous().numpy()
        arrays = [tensor.numpy() for tensor in (self.values, self.columns, self.rows, self.bias, packed, y)]
        threads = torch.get_num_threads()
        shared = _parallel(os.getpid()) if threads > 1 else None
        if shared is None:
            _pack_compiled(given, packed.numpy(), 0, len(packed))
            _multiply_compiled(*arrays, 0, y.shape[1])
            return y
        share = np.linspace(0, len(self.values), threads + 1)[1:-1]
        inner = np.searchsorted(arrays[2], share)  # threads get equally many weights
        before = numba.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        try:
            shared(given, *arrays, np.array([0, *inner, y.shape[1]]))
        finally:
            numba.set_num_threads(before)
        return y


_started: list[int] = []
"""Process in which numba's threads were started; OpenMP's threads do not survive a fork."""


@functools.cache
def _parallel(process: int) -> Callable[..., None] | None:
    """Return the kernel for several threads, or None if numba has no threads that it can share with torch."""
    if _started:
        return None
    _started.append(process)
    layer = numba.config.THREADING_LAYER
    try:
        if layer == "default":  # the user chose none
            numba.config.THREADING_LAYER = "omp"
        compiled: Callable[..., None] = numba.njit(
            "void(f4[:,::1], f4[::1], i4[::1], i8[::1], f4[::1], f4[:,:,::1], f4[:,::1], i8[::1])",
            nogil=True, boundscheck=False, error_model="numpy", parallel=True,
        )(_multiply_shares)  # fmt: skip
        return compiled if numba.threading_layer() in ("omp", "tbb") else None  # others serve one caller at a time
    except (ValueError, NumbaError):  # the layer cannot be loaded
        return None
    finally:
        numba.config.THREADING_LAYER = layer
