"""A row's Gaussian given the other side: one conditional, four uses.

    P_i = Lambda_i + sum_{j in O_i} w_ij f_j f_j'          mean_i = P_i^-1 ( Lambda_i m_i + sum_{j in O_i} w_ij f_j z_ij )

Alternating least squares takes its mean, the Gibbs sampler draws it, fold-in of a new user calls it with that user's ratings,
and the uncertainty of an answer is its covariance. Salakhutdinov & Mnih, "Bayesian PMF" (ICML 2008), Eq. 11-13, with weights
and row-wise prior means. The other side's rows f may be uncertain themselves (``second``): then this is the mean-field
update of Lim & Teh, "Variational Bayesian approach to movie rating prediction" (KDD Cup 2007), Eq. 10-13.

Symmetric matrices are packed: the upper triangle, row by row, as a vector of d (d + 1) / 2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.sparse import Pattern, spmm
from pmfcli.core.team import ALONE, Team
from pmfcli.errors import TrainingError

_NUMBERS = 1 << 24  # of packed squares at a time, on a device with memory of its own
_COLUMNS = 24  # of them at a time, on a CPU: so few stay in its cache, where a product is four times as fast; of 8 each
_TILE = 1 << 16  # columns at a time there
_JITTER = 100  # units in the last place of the largest diagonal entry, added where a precision fails


class Prior(NamedTuple):
    """N(mean_i, precision^-1) for every row."""

    mean: Tensor  # (rows, d), or (d,) for all
    precision: Tensor  # (rows, d, d), or (d, d) for all


class Gaussians(NamedTuple):
    """One Gaussian a row."""

    shift: Tensor  # (rows, d) precision times mean
    cholesky: Tensor  # (rows, d, d) lower L with L L' = precision

    @property
    def mean(self) -> Tensor:
        """(rows, d)."""
        return torch.cholesky_solve(self.shift[:, :, None], self.cholesky)[:, :, 0]

    def draw(self, generator: torch.Generator) -> Tensor:
        """One draw of every row, (rows, d)."""
        b = self.shift
        return self.draw_by(torch.randn(b.shape, generator=generator, dtype=b.dtype, device=b.device))

    def draw_by(self, noise: Tensor) -> Tensor:
        """The same by white noise (rows, d): L^-T (L^-1 shift + noise)."""
        half = torch.linalg.solve_triangular(self.cholesky, self.shift[:, :, None], upper=False)
        drawn: Tensor = torch.linalg.solve_triangular(self.cholesky.mT, half + noise[:, :, None], upper=True)[:, :, 0]
        return drawn

    def covariance(self) -> Tensor:
        """(rows, d, d)."""
        return torch.cholesky_inverse(self.cholesky)


def conditional(
    pattern: Pattern,
    columns: Tensor,
    weight: Tensor,
    target: Tensor,
    prior: Prior,
    second: Tensor | None = None,
    team: Team = ALONE,
) -> Gaussians:
    """The Gaussian of every row of the pattern given the columns' features: Bayesian linear regression, row by row.

    Args:
        pattern: (rows x columns) which observations each row has.
        columns: (columns, d) what multiplies a row: f_j, or its mean.
        weight: (n,) precision of each observation, in pattern order. target: (n,) z_ij.
        prior: of the rows.
        second: (columns, d (d + 1) / 2) packed covariance of the features, if they are uncertain.
        team: processes that have some of the columns each; the sums over ratings are added up.

    Raises:
        TrainingError: the precision of a row is not positive definite, as when a weight is not finite.
    """
    d, rows = columns.shape[1], pattern.shape[0]
    gram = columns.new_zeros(rows, d, d)  # its upper triangle is filled, which is the lower one of its transpose
    on_cpu = columns.device.type == "cpu"
    groups = _triangle(d, _COLUMNS if on_cpu else max(_COLUMNS, _NUMBERS // max(1, len(columns))))
    for among, tile, own in pattern.tiles(_TILE if on_cpu else len(columns)):
        w = weight[own] if isinstance(own, slice) else weight.index_select(0, own)
        f, unsure = columns[among], None if second is None else second[among]
        done = 0
        for pieces in groups:
            square = torch.cat([f[:, i, None] * f[:, start:stop] for i, start, stop in pieces], 1)
            if unsure is not None:
                square += unsure[:, done : done + square.shape[1]]
                done += square.shape[1]
            added = spmm(w, square, tile).split([stop - start for _, start, stop in pieces], 1)
            for (i, start, stop), part in zip(pieces, added, strict=True):
                gram[:, i, start:stop] += part
    shift = spmm(weight * target, columns, pattern)
    if team.size > 1:
        packed, shift = team.sum(torch.cat([pack(gram), shift], 1)).split([d * (d + 1) // 2, d], 1)
        gram = unpack(packed, d)
    gram = gram.add_(prior.precision).mT  # stored by columns, as the factorization wants it
    pull = torch.einsum("...ij,...j->...i", prior.precision, prior.mean)
    cholesky, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed.any()):  # by rounding, where the prior is far weaker than the observations and these span too little
        diagonal = gram.diagonal(dim1=1, dim2=2)
        diagonal += (failed > 0)[:, None] * _JITTER * torch.finfo(gram.dtype).eps * diagonal.amax(1, keepdim=True)
        cholesky, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed.any()):
            raise TrainingError("the precision of a row is not positive definite")
    return Gaussians(shift + pull, cholesky)


def _triangle(d: int, width: int) -> list[list[tuple[int, int, int]]]:
    """An upper triangle row by row, in groups of so many numbers: pieces of its rows, (row, start, stop)."""
    groups: list[list[tuple[int, int, int]]] = [[]]
    room = width
    for i in range(d):
        start = i
        while start < d:
            stop = min(d, start + room)
            groups[-1].append((i, start, stop))
            room -= stop - start
            start = stop
            if not room:
                groups.append([])
                room = width
    return [group for group in groups if group]


def features(A: Tensor, latent: int) -> Tensor:
    """What rows A (..., d) multiply the other side by: their factors, and 1 for its bias if they have one themselves."""
    return A if A.shape[-1] == latent else torch.cat([A[..., :latent], torch.ones_like(A[..., :1])], -1)


def outer(vectors: Tensor) -> Tensor:
    """v v' packed, for every row v of (rows, d)."""
    i, j = torch.triu_indices(vectors.shape[1], vectors.shape[1], device=vectors.device)
    return vectors.index_select(1, i) * vectors.index_select(1, j)


def pack(matrices: Tensor) -> Tensor:
    """The upper triangles of symmetric (rows, d, d)."""
    i, j = torch.triu_indices(matrices.shape[-1], matrices.shape[-1], device=matrices.device)
    return matrices[..., i, j]


def unpack(packed: Tensor, d: int) -> Tensor:
    """Symmetric (rows, d, d) from packed (rows, d (d + 1) / 2)."""
    i, j = torch.triu_indices(d, d, device=packed.device)
    place = torch.empty(d, d, dtype=torch.int64, device=packed.device)
    place[i, j] = place[j, i] = torch.arange(len(i), device=packed.device)
    square: Tensor = packed.index_select(-1, place.flatten()).unflatten(-1, (d, d))
    return square
