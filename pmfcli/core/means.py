"""The hierarchical prior means F W of one side, and their ridge regression by conjugate gradients.

    (F' T F + lambda I) W = R          T = diag(tau)

With R = F' T (A - mu) this is the mean of W given the rows A; with noise added to R it is a draw of W (Simm et al., "Macau:
scalable Bayesian factorization with high-dimensional side information using MCMC", 2017, section 3). F is never squared: an
iteration costs two sparse products. There are few, as F' F is nearly a diagonal and a few directions: that of what everybody
rates, and those of what is rated together. They are found once, as in Frangella, Tropp & Udell, "Randomized Nystrom
preconditioning" (SIAM J. Matrix Anal. Appl. 2023); what they leave of the diagonal is kept beside them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.parallel import take
from pmfcli.core.posterior import Crowd
from pmfcli.core.sparse import Pattern, spmm
from pmfcli.core.team import WHOLE, Share

_TOLERANCE = 3e-4  # of the residual, relative to the right side, both in the norm of the preconditioner
_MOST_ITERATIONS = 200
_DIRECTIONS = 24  # of F' F that are known
_ROUNDING = 1e-6  # of the largest square: a direction with less is none


class Means(NamedTuple):
    """The weights F with their transpose, ready to multiply."""

    weight: Tensor  # (n,)
    pattern: Pattern  # rows x columns
    weight_t: Tensor  # (n,) in the order of pattern.T
    sizes: tuple[int, ...]  # columns of each block: what a block is scaled by is its own
    usual: Tensor  # (columns,) what a row of which nothing is known has: nothing, or the mean of features
    loadings: Tensor  # (columns, directions) B, whose B B' is the part of F' F in its main directions
    rows: Share = WHOLE  # which of them these are
    columns: Share = WHOLE
    crowd: Crowd | None = None  # e q', which is added to the weights

    @classmethod
    def of(
        cls, weight: Tensor, pattern: Pattern, rows: Share = WHOLE, columns: Share = WHOLE, crowd: Crowd | None = None
    ) -> "Means":
        """One block, from weights (n,) in the order of the pattern."""
        weight_t, nothing = take(weight, pattern.perm), weight.new_zeros(pattern.shape[1])
        found = cls(weight, pattern, weight_t, (pattern.shape[1],), nothing, nothing[:, None], rows, columns, crowd)
        return found._replace(loadings=found._main_directions())

    @classmethod
    def of_features(cls, weight: Tensor, pattern: Pattern) -> "Means":
        """One block of features: weights (n,) in the order of the pattern."""
        found = cls.of(weight, pattern)
        return found._replace(usual=found.down(weight.new_ones(pattern.shape[0], 1))[:, 0] / pattern.shape[0])

    def beside(self, other: "Means") -> "Means":
        """The columns of both, of the same rows."""
        one, two = self.pattern, other.pattern
        columns = one.shape[1] + two.shape[1]
        row = torch.cat([one.row.long(), two.row.long()])
        col = torch.cat([one.col.long(), two.col.long() + one.shape[1]])
        order = torch.argsort(row * columns + col)
        pattern = Pattern.of(row[order], col[order], (one.shape[0], columns))
        crowd = self.crowd
        if crowd is not None:
            crowd = crowd._replace(share=torch.cat([crowd.share, crowd.share.new_zeros(two.shape[1])]))
        found = Means.of(torch.cat([self.weight, other.weight])[order], pattern, crowd=crowd)
        return found._replace(sizes=self.sizes + other.sizes, usual=torch.cat([self.usual, other.usual]))

    def each(self, of_block: Tensor) -> Tensor:
        """What blocks have, (blocks,), for every column, (columns, 1)."""
        sizes = torch.tensor(self.sizes, device=of_block.device)
        return of_block.repeat_interleave(sizes, output_size=self.pattern.shape[1])[:, None]

    def up(self, W: Tensor) -> Tensor:
        """F W, (rows, d)."""
        found = spmm(self.weight, W, self.pattern)
        found = found if self.crowd is None else self.crowd.added_to(found, self.crowd.mean(W))
        return self.columns.team.sum(found)

    def down(self, B: Tensor) -> Tensor:
        """F' B, (columns, d)."""
        found = spmm(self.weight_t, B, self.pattern.T)
        if self.crowd is not None:
            found = torch.addmm(found, self.crowd.share[:, None], (self.crowd.part @ B)[None])
        return self.rows.team.sum(found)

    def squares(self, tau: Tensor) -> Tensor:
        """The diagonal of F' diag(tau) F, (columns,)."""
        found = spmm(self.weight_t.square(), tau[:, None], self.pattern.T)[:, 0]
        if self.crowd is not None:
            part, share, _ = self.crowd
            found += 2 * share * spmm(self.weight_t, (tau * part)[:, None], self.pattern.T)[:, 0]
            found += share.square() * (tau @ part.square())
        return self.rows.team.sum(found)

    def variances(self, tau: Tensor, lam: Tensor) -> Tensor:
        """Var W_k given the rows and all other W, in units of Lambda^-1, (columns, d), or (columns, 1) where lambda has no d.

        Not the diagonal of the inverse, which would take a solution for each column: on MovieLens F_i Var(W) F_i' comes out a
        sixth too small. It is exact where the prior alone decides.
        """
        return 1 / (lam + self.squares(tau)[:, None])

    def up_squared(self, variances: Tensor) -> Tensor:
        """The variance of F W, (rows, d), from those of W."""
        found = spmm(self.weight.square(), variances, self.pattern)
        if self.crowd is not None:
            part, share, _ = self.crowd
            found += 2 * part[:, None] * spmm(self.weight, share[:, None] * variances, self.pattern)
            found += part.square()[:, None] * (share.square() @ variances)
        return self.columns.team.sum(found)

    def dot(self, A: Tensor, B: Tensor) -> Tensor:
        """The dot product of each column of A and B, (columns, d): (d,)."""
        return self.columns.team.sum((A * B).sum(0))

    @torch.no_grad()
    def _main_directions(self) -> Tensor:
        """B: after a subspace iteration from random directions Q, K Q (Q' K Q)^-1/2 for K = F' F."""

        def product(Q: Tensor) -> Tensor:
            return self.down(self.up(Q))

        def scaled(Y: Tensor, other: Tensor) -> Tensor:
            gram = self.columns.team.sum(other.to(kind).mT @ Y.to(kind)).cpu()
            square, turn = torch.linalg.eigh(0.5 * (gram + gram.mT))
            scale = torch.where(square > _ROUNDING * square.abs().amax(), square, torch.inf).rsqrt()
            found: Tensor = Y @ (turn * scale).to(Y)
            return found

        kind = torch.float32 if self.weight.device.type == "mps" else torch.float64
        Q = self.columns.randn(self.pattern.shape[1], _DIRECTIONS, torch.Generator().manual_seed(0), self.weight.dtype)
        Y = product(Q.to(self.weight.device))
        Q = scaled(Y, Y)
        return scaled(product(Q), Q)


class _Preconditioner(NamedTuple):
    """D + B B', which F' T F + lambda I nearly is, of every column of W."""

    diagonal: Tensor  # (columns, 1 or d) D
    loadings: Tensor  # (columns, directions) B
    core: Tensor  # (1 or d, directions, directions) (I + B' D^-1 B)^-1

    @classmethod
    def of(cls, means: Means, tau: Tensor, lam: Tensor) -> "_Preconditioner":
        B = means.loadings
        diagonal = (means.squares(tau) - B.square().sum(1)).clamp(min=0)[:, None] + lam
        within = means.columns.team.sum(torch.stack([(B / one).mT @ B for one in diagonal.split(1, 1)]))
        inverse = torch.linalg.inv(within.cpu().double() + torch.eye(B.shape[1]).double())
        return cls(diagonal, B, inverse.to(B))

    def apply(self, R: Tensor, means: Means) -> Tensor:
        """R over it, (columns, d)."""
        found = R / self.diagonal
        within = means.columns.team.sum(self.loadings.mT @ found)
        return found.sub_((self.loadings @ (self.core @ within.mT[:, :, None])[:, :, 0].mT).div_(self.diagonal))


def ridge(
    means: Means, right: Tensor, tau: Tensor, lam: Tensor, start: Tensor | None = None, tolerance: float = _TOLERANCE
) -> Tensor:
    """W of the equation above, all columns at once, by conjugate gradients.

    Args:
        right: (columns, d). tau: (rows,) weights of the rows. lam: (), (d,) or (columns, 1), positive.
        start: (columns, d) first guess, if there is one better than 0.
    """
    preconditioner = _Preconditioner.of(means, tau, lam)

    def product(W: Tensor) -> Tensor:
        return means.down(tau[:, None] * means.up(W)).addcmul_(lam, W)

    W, residual = (torch.zeros_like(right), right) if start is None else (start, right - product(start))
    scaled = preconditioner.apply(residual, means)
    direction, size = scaled, means.dot(residual, scaled)
    enough = (tolerance**2 * means.dot(right, preconditioner.apply(right, means))).clamp(min=torch.finfo(right.dtype).tiny)
    columns = int(means.columns.team.sum(torch.tensor(len(right))))  # without rounding so many iterations would do
    for _ in range(min(_MOST_ITERATIONS, 2 * columns)):
        if bool((size <= enough).all()):
            break
        step = product(direction)
        length = size / means.dot(direction, step).clamp(min=torch.finfo(right.dtype).tiny)
        W, residual = torch.addcmul(W, length, direction), torch.addcmul(residual, length, step, value=-1)
        scaled = preconditioner.apply(residual, means)
        size, before = means.dot(residual, scaled), size
        direction = scaled.addcmul_(size / before.clamp(min=torch.finfo(right.dtype).tiny), direction)
    return W
