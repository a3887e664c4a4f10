"""What EM learns: against the means of many draws."""

import torch
from made import random_pattern, seeded

from pmfcli.core.conditional import pack, unpack
from pmfcli.core.em import doubted
from pmfcli.core.half_step import Side
from pmfcli.core.means import Means


def test_rows_and_their_prior_are_as_unsure_as_the_means_make_them() -> None:
    """Prior means that are drawn anew take their rows along, by what the ratings leave to the prior."""
    g = seeded(4)
    rows, columns, k = 30, 20, 3
    pattern = random_pattern(rows, columns, 0.5, 4)
    means = Means.of(0.4 * torch.ones(pattern.n, dtype=torch.float64), pattern)
    root = torch.randn(k, k, generator=g, dtype=torch.float64) + 2 * torch.eye(k)
    P = root @ root.mT
    said = 3 * torch.rand(rows, 1, generator=g, dtype=torch.float64)  # by the ratings of a row, in units of its prior
    part, z = said / (1 + said), torch.randn(rows, k, generator=g, dtype=torch.float64)
    covariance = torch.linalg.inv(P) / (1 + said)[..., None]
    W, lam = torch.randn(columns, k, generator=g, dtype=torch.float64), torch.full((k,), 2.0, dtype=torch.float64)
    M = means.up(W)
    A = (1 - part) * M + part * z
    found = doubted(Side(A, pack(covariance), P, W, M, lam), means, k, "spherical")

    scale = means.variances(part[:, 0], lam).sqrt()
    draws = torch.randn(20_000, columns, k, generator=g, dtype=torch.float64) @ torch.linalg.inv(torch.linalg.cholesky(P))
    moved = torch.stack([means.up(scale * draw) for draw in draws])
    of_rows = covariance + torch.einsum("sri,srj->rij", (1 - part) * moved, (1 - part) * moved) / len(draws)
    torch.testing.assert_close(unpack(found.spread, k), of_rows, rtol=0, atol=0.03 * float(of_rows.abs().max()))
    off = A - M - part * moved
    own = torch.einsum("sri,sri->i", off, off) / len(draws) + covariance.sum(0).diagonal()
    torch.testing.assert_close(1 / found.precision.diagonal(), (own / rows).mean().expand(k), rtol=2e-3, atol=0)
