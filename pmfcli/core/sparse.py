"""The one sparse primitive: dot products of factors over the observed pairs, and its adjoint.

A user x movie matrix is never formed. ``sampled_dot(U, V, pattern)`` gives u_i . v_j for the observed (i, j) only;
``spmm(values, B, pattern)`` multiplies the sparse matrix that holds ``values`` on the same pairs by a dense matrix.
Each is the other's backward, so every model written with them has exact gradients at the cost of two sparse products.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from pmfcli.core.parallel import take

_GATHER_BLOCK = 1 << 20  # pairs gathered at a time where the sparse kernels are missing


class _Orders:
    """Pairs in the order of rows; in that of columns from when it is first asked for."""

    def __init__(self, by_rows: tuple[Tensor, Tensor, Tensor], shape: tuple[int, int]) -> None:
        self.by_rows, self.shape = by_rows, shape  # crow, col and row

    @functools.cached_property
    def perm(self) -> Tensor:
        """From the first to the second."""
        col = self.by_rows[1]
        return torch.sort(col, stable=True).indices.to(col.dtype)

    @functools.cached_property
    def back(self) -> Tensor:
        """From the second to the first."""
        found = torch.empty_like(self.perm)
        found[self.perm.long()] = torch.arange(len(found), dtype=found.dtype, device=found.device)
        return found

    @functools.cached_property
    def by_columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """As ``by_rows``, with rows and columns exchanged."""
        _, col, row = self.by_rows
        col, row = take(row, self.perm), take(col, self.perm)
        return _starts(row, self.shape[1]), col, row

    def to(self, device: torch.device) -> "_Orders":
        """The same on another device."""
        crow, col, row = (part.to(device) for part in self.by_rows)
        found = _Orders((crow, col, row), self.shape)
        if "perm" in vars(self):
            found.perm = self.perm.to(device)
        return found


class Pattern:
    """The observed pairs in compressed form, by rows and, where that is needed, by columns. Made once, used at every step.

    Values that belong to a pattern are vectors of length ``n`` in its own order: sorted by row, then by column.
    ``T`` is the same set of pairs with rows and columns exchanged; ``values[pattern.perm]`` puts values in its order.
    Indices are int32 where they fit, as the kernels want them.
    """

    def __init__(self, orders: _Orders, flipped: bool = False) -> None:
        self._orders, self._flipped = orders, flipped

    @classmethod
    def of(cls, row: Tensor, col: Tensor, shape: tuple[int, int]) -> "Pattern":
        """Build from pairs sorted by row, then column, each at most once.

        Args:
            row, col: integer tensors (n,).
            shape: (rows, columns).

        Raises:
            ValueError: if the pairs are not strictly increasing in (row, col) or fall outside ``shape``.
        """
        kind = torch.int32 if max(len(row), *shape) < 2**31 else torch.int64
        row, col = row.to(kind), col.to(kind)
        if len(row):
            later = (row[1:] > row[:-1]).logical_or_((row[1:] == row[:-1]).logical_and_(col[1:] > col[:-1]))
            if not bool(later.all()) or int(col.min()) < 0 or int(col.max()) >= shape[1]:
                raise ValueError("pairs must be sorted by row, then column, without repeats, and lie within the shape")
            if int(row[0]) < 0 or int(row[-1]) >= shape[0]:
                raise ValueError("a row lies outside the shape")
        return cls(_Orders((_starts(row, shape[0]), col, row), shape))

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._orders.by_columns if self._flipped else self._orders.by_rows

    @property
    def crow(self) -> Tensor:
        """Where each row starts, (rows + 1,)."""
        return self._parts[0]

    @property
    def col(self) -> Tensor:
        """Column of each pair, (n,)."""
        return self._parts[1]

    @property
    def row(self) -> Tensor:
        """Row of each pair, (n,)."""
        return self._parts[2]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        rows, columns = self._orders.shape
        return (columns, rows) if self._flipped else (rows, columns)

    @property
    def perm(self) -> Tensor:
        """This order -> the order of T, (n,)."""
        return self._orders.back if self._flipped else self._orders.perm

    @property
    def n(self) -> int:
        """Number of observed pairs."""
        return len(self.col)

    @property
    def T(self) -> "Pattern":  # noqa: N802 - the transpose, as torch and numpy call it
        """The transposed pattern. No values are carried: permute them with ``perm``."""
        return Pattern(self._orders, not self._flipped)

    def row_counts(self) -> Tensor:
        """Pairs in each row, (rows,)."""
        return self.crow[1:] - self.crow[:-1]

    def col_counts(self) -> Tensor:
        """Pairs in each column, (columns,)."""
        return self.T.row_counts()

    def rows(self, own: slice | Tensor) -> tuple["Pattern", Tensor]:
        """The pattern of some rows alone, all columns kept, and where its values lie among those of this one, (n,)."""
        counts = self.row_counts()[own]
        row = torch.arange(len(counts), dtype=counts.dtype, device=counts.device).repeat_interleave(counts)
        start = self.crow[:-1][own] - counts.cumsum(0, dtype=counts.dtype) + counts
        place = torch.arange(len(row), dtype=counts.dtype, device=counts.device) + take(start, row)
        return Pattern.of(row, take(self.col, place), (len(counts), self.shape[1])), place

    def view(self, start: int, stop: int) -> "Pattern":
        """The pattern of a range of rows, all columns kept; nothing is copied but row numbers."""
        first, last = int(self.crow[start]), int(self.crow[stop])
        crow, row = self.crow[start : stop + 1] - first, self.row[first:last] - start
        return Pattern(_Orders((crow, self.col[first:last], row), (stop - start, self.shape[1])))

    def tiles(self, width: int) -> Iterator[tuple[slice, "Pattern", Tensor | slice]]:
        """Ranges of so many columns, each as a view, with where its values lie: rows of a matrix that a cache can hold.

        A product with a matrix of many more rows than that waits for memory, four times as long as it multiplies. A few more
        columns are not worth another range, whose pairs are searched for at each call.
        """
        if self.shape[1] <= width + width // 8:
            yield slice(None), self, slice(None)
            return
        for start in range(0, self.shape[1], width):
            stop = min(start + width, self.shape[1])
            place = torch.nonzero((self.col >= start).logical_and_(self.col < stop))[:, 0].to(self.col.dtype)
            crow = torch.searchsorted(place, self.crow, out_int32=self.crow.dtype == torch.int32)
            col, row = take(self.col, place) - start, take(self.row, place)
            yield slice(start, stop), Pattern(_Orders((crow, col, row), (self.shape[0], stop - start))), place

    def blocks(self, most_ratings: int, most_rows: int | None = None) -> list[tuple[int, int]]:
        """Rows in blocks, (start, stop), of about equal numbers of ratings, hardly more than so many, of few enough rows."""
        n, rows = self.n, self.shape[0]
        count = max(1, math.ceil(n / most_ratings))
        targets = (torch.arange(1, count, device=self.crow.device) * n // count).to(self.crow.dtype)
        inner = {cut for cut in torch.searchsorted(self.crow, targets).tolist() if 0 < int(self.crow[cut]) < n}
        return list(itertools.pairwise(sorted({0, rows} | inner | set(range(0, rows, most_rows or max(rows, 1))))))

    def to(self, device: torch.device) -> "Pattern":
        """The same pattern on another device; itself where it is there already."""
        return self if self.col.device == device else Pattern(self._orders.to(device), self._flipped)


def named(index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which of ``count`` rows an index (n,) names, ascending, and the place of each of its entries among these: as ``unique``
    with its inverse, without sorting."""
    there = torch.zeros(count, dtype=torch.bool, device=index.device)
    there[index] = True
    return torch.nonzero(there)[:, 0], take(there.cumsum(0) - 1, index)


def _starts(sorted_index: Tensor, size: int) -> Tensor:
    every = torch.arange(size + 1, dtype=sorted_index.dtype, device=sorted_index.device)
    return torch.searchsorted(sorted_index, every, out_int32=sorted_index.dtype == torch.int32)


def sampled_dot(U: Tensor, V: Tensor, pattern: Pattern) -> Tensor:
    """u_i . v_j for every observed pair, with an exact backward.

    Args:
        U: (rows, D). V: (columns, D). pattern: the pairs.

    Returns:
        (n,) in the pattern's order.
    """
    result: Tensor = _SampledDot.apply(U, V, pattern)  # type: ignore[no-untyped-call]
    return result


def spmm(values: Tensor, B: Tensor, pattern: Pattern) -> Tensor:
    """A @ B for the sparse A that holds ``values`` on the pattern, with an exact backward in both.

    Args:
        values: (n,). B: (columns, D).

    Returns:
        (rows, D).
    """
    result: Tensor = _Spmm.apply(values, B, pattern)  # type: ignore[no-untyped-call]
    return result


class _SampledDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, U, V, pattern):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(U, V)
        ctx.pattern = pattern
        return _dot(U, V, pattern)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        U, V = ctx.saved_tensors
        pattern = ctx.pattern
        dU = _product(grad, V, pattern) if ctx.needs_input_grad[0] else None
        dV = _product_t(grad, U, pattern) if ctx.needs_input_grad[1] else None
        return dU, dV, None


class _Spmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, B, pattern):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(values, B)
        ctx.pattern = pattern
        return _product(values, B, pattern)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        values, B = ctx.saved_tensors
        pattern = ctx.pattern
        dvalues = _dot(grad, B, pattern) if ctx.needs_input_grad[0] else None
        dB = _product_t(values, grad, pattern) if ctx.needs_input_grad[1] else None
        return dvalues, dB, None


def _dot(U: Tensor, V: Tensor, p: Pattern) -> Tensor:
    if not has_kernels(U.device.type, U.dtype):
        blocks = [slice(a, a + _GATHER_BLOCK) for a in range(0, p.n, _GATHER_BLOCK)]
        parts = [(U[p.row[s]] * V[p.col[s]]).sum(1) for s in blocks]
        return torch.cat(parts) if parts else U.new_zeros(0)
    zeros = _csr(p.crow, p.col, U.new_zeros(p.n), p.shape)
    product: Tensor = torch.sparse.sampled_addmm(zeros, U.contiguous(), V.contiguous().t(), beta=0.0)
    return product.values()


def _product(values: Tensor, B: Tensor, p: Pattern) -> Tensor:
    if not has_kernels(B.device.type, B.dtype):
        return _gather_product(values, B, p.row, p.col, p.shape[0])
    return _csr(p.crow, p.col, values, p.shape) @ B.contiguous()


def _product_t(values: Tensor, B: Tensor, p: Pattern) -> Tensor:
    if not has_kernels(B.device.type, B.dtype):
        return _gather_product(values, B, p.col, p.row, p.shape[1])
    return _csr(p.T.crow, p.T.col, take(values, p.perm), p.T.shape) @ B.contiguous()


def _gather_product(values: Tensor, B: Tensor, into: Tensor, from_: Tensor, size: int) -> Tensor:
    out = B.new_zeros(size, B.shape[1])
    for a in range(0, len(values), _GATHER_BLOCK):
        s = slice(a, a + _GATHER_BLOCK)
        out.index_add_(0, into[s], values[s, None] * B[from_[s]])
    return out


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, values.contiguous(), size=shape, check_invariants=False)


@functools.lru_cache
def has_kernels(device: str, dtype: torch.dtype) -> bool:
    """Whether this build has the CSR kernels for the device and dtype: probed once on a 2 x 2 matrix.

    Where it does not, the same numbers come from gathers and ``index_add_``, in blocks of bounded size.
    """
    warnings.filterwarnings("ignore", message="Sparse (CSR|CSC) tensor support is in beta")
    warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
    try:
        eye = torch.eye(2, device=device, dtype=dtype)
        index = torch.tensor([0, 1, 2], device=device, dtype=torch.int32)
        a = _csr(index, index[:2], torch.ones(2, device=device, dtype=dtype), (2, 2))
        torch.sparse.sampled_addmm(a, eye, eye, beta=0.0)
        return bool(torch.equal(a @ eye, eye))
    except RuntimeError:  # also of what is not implemented
        return False
