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
_FEW = 3  # features for each rating: where there are as many, a row is drawn by its ratings
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
    only: Tensor | None = None,
) -> Gaussians:
    """The Gaussian of every row of the pattern given the columns' features: Bayesian linear regression, row by row.

    Args:
        pattern: (rows x columns) which observations each row has.
        columns: (columns, d) what multiplies a row: f_j, or its mean.
        weight: (n,) precision of each observation, in pattern order. target: (n,) z_ij.
        prior: of the rows.
        second: (columns, d (d + 1) / 2) packed covariance of the features, if they are uncertain.
        team: processes that have some of the columns each; the sums over ratings are added up.
        only: (k,) the rows that are asked for, if not all; the prior is of these.

    Raises:
        TrainingError: the precision of a row is not positive definite, as when a weight is not finite.
    """
    d, rows = columns.shape[1], pattern.shape[0] if only is None else len(only)
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
            added = spmm(w, square, tile)
            added = added if only is None else added.index_select(0, only)
            parts = added.split([stop - start for _, start, stop in pieces], 1)
            for (i, start, stop), part in zip(pieces, parts, strict=True):
                gram[:, i, start:stop] += part
    shift = spmm(weight * target, columns, pattern)
    shift = shift if only is None else shift.index_select(0, only)
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


def draw_rows(pattern: Pattern, columns: Tensor, weight: Tensor, target: Tensor, prior: Prior, noise: Tensor) -> Tensor:
    """A draw of every row from its Gaussian, (rows, d), by white noise e, (rows, d).

    Where ratings are few a row is drawn by these, not by its features: with B_j = sqrt(w_j) L^-1 f_j and
    r_j = sqrt(w_j) (z_j - f_j . m),

        A = m + L^-T (e + B' R^-T (R^-1 r - (R + I)^-1 B e))          Lambda = L L'          I + B B' = R R'

    by the root of a covariance after an observation in Andrews, "A square root formulation of the Kalman covariance equations"
    (AIAA Journal 1968). Most movies have few ratings, and most of a sweep would go by precisions that hardly differ.

    Args:
        pattern, columns, weight, target: as for ``conditional``. prior: (rows, d) and (d, d).

    Raises:
        TrainingError, LinAlgError: a precision is not positive definite, as when a weight is not finite.
    """
    d, counts = columns.shape[1], pattern.row_counts()
    many = torch.nonzero(counts > d // _FEW)[:, 0]
    L = torch.linalg.cholesky(prior.precision)
    scaled, centre = torch.linalg.solve_triangular(L, columns.mT, upper=False).mT.contiguous(), prior.mean @ L
    white = noise.clone()
    for m in range(1, d // _FEW + 1):
        rows = torch.nonzero(counts == m)[:, 0]
        if not len(rows):
            continue
        own = pattern.crow[rows, None] + torch.arange(m, device=rows.device)
        root = weight[own].sqrt()[:, :, None]
        B = root * scaled[pattern.col[own]]  # (rows, m, d)
        r, eye = root * target[own][:, :, None] - B @ centre[rows, :, None], torch.eye(m).to(B)
        R = torch.linalg.cholesky(B @ B.mT + eye)
        less = torch.linalg.solve_triangular(R + eye, B @ noise[rows, :, None], upper=False)
        away = torch.linalg.solve_triangular(R, r, upper=False) - less
        white[rows] += (B.mT @ torch.linalg.solve_triangular(R.mT, away, upper=True))[:, :, 0]
    drawn: Tensor = prior.mean + torch.linalg.solve_triangular(L.mT, white.mT, upper=True).mT
    if len(many):
        given = prior._replace(mean=prior.mean[many])
        drawn[many] = conditional(pattern, columns, weight, target, given, only=many).draw_by(noise[many])
    return drawn


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
