"""The principal factors against a dense singular value decomposition, and what they are good for."""

import pytest
import torch
from made import BASE, random_pattern, seeded
from torch import Tensor

from pmfcli.core import map as map_fit
from pmfcli.core import spectral
from pmfcli.core.posterior import Factors, Observations, mean, observe, score
from pmfcli.core.sparse import Pattern
from pmfcli.core.spectral import principal


def planted(n_users: int, n_movies: int, density: float, noise: float = 0.0) -> tuple[Observations, Tensor]:
    """Two factors, observed in part; and x, (n_users, n_movies), of every pair."""
    pattern = random_pattern(n_users, n_movies, density, seed=1)
    U, V, errors = (
        torch.randn(rows, 2, generator=seeded(rows), dtype=torch.float64) for rows in (n_users, n_movies, pattern.n)
    )
    x = 0.5 * U @ V.T
    t = mean(x[pattern.row.long(), pattern.col.long()] + noise * errors[:, 0], "linear")
    return observe(pattern, t, link="linear", with_offset=False), x


def test_they_are_those_of_the_dense_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "_NOISE", 0.0)
    monkeypatch.setattr(spectral, "_ITERATIONS", 50)
    o, _ = planted(30, 20, 0.5, noise=0.3)
    found = principal(o, 3, False, seeded())
    R = torch.zeros(30, 20, dtype=torch.float64)
    R[o.pattern.row.long(), o.pattern.col.long()] = 4 * (o.t - 0.5)
    n_i, m_j = (R != 0).sum(1), (R != 0).sum(0)
    P, S, Qt = torch.linalg.svd(R / n_i[:, None].sqrt() / m_j.sqrt(), full_matrices=False)
    left = (S[:3] ** 2 - S[3] ** 2) / S[:3]
    expected = o.pattern.n * ((P[:, :3] * left) @ Qt[:3]) / n_i[:, None].sqrt() / m_j.sqrt()
    expected *= (n_i / (n_i + 20))[:, None] * (m_j / (m_j + 20))
    torch.testing.assert_close(found.U @ found.V.T, expected, rtol=1e-6, atol=1e-8)


def test_they_find_what_was_not_seen() -> None:
    o, x = planted(300, 200, 0.2, noise=0.2)
    start = principal(o, 5, True, seeded())
    unseen = torch.ones(x.shape, dtype=torch.bool)
    unseen[o.pattern.row.long(), o.pattern.col.long()] = False
    found = start.b[:, None] + start.c + start.U @ start.V.T
    assert torch.corrcoef(torch.stack([found[unseen], x[unseen]]))[0, 1] > 0.85


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (40, 3)])
def test_more_of_them_than_there_are(shape: tuple[int, int]) -> None:
    every = torch.arange(shape[0] * shape[1])
    pattern = Pattern.of(every // shape[1], every % shape[1], shape)
    start = principal(observe(pattern, torch.ones(pattern.n)), 8, True, seeded())
    assert (start.U.shape, start.V.shape) == ((shape[0], 8), (shape[1], 8))
    assert all(bool(torch.isfinite(part).all()) for part in start)
    assert (start.U != 0).all()


def test_blocks_begin_where_they_predict() -> None:
    o, x = planted(300, 200, 0.2, noise=0.2)
    everything = torch.arange(300 * 200)
    every = Pattern.of(everything // 200, everything % 200, (300, 200))
    errors = {}
    for blocks in (1, 5):
        state = map_fit.init(o, BASE._replace(lr=None, blocks=blocks), seeded())
        predicted = score(map_fit.current(state, o), every).double()
        errors[blocks] = float((predicted - x.flatten()).square().mean().sqrt() / x.std())
    assert errors[1] == pytest.approx(1.0, abs=0.01)
    assert errors[5] < 0.7


def test_where_most_ratings_are_at_one_end_it_says_little() -> None:
    """A low rating among fives is twenty logits from their mean, and no twenty times what it says of its user."""
    pattern = random_pattern(300, 200, 0.1, seed=1)
    t = (torch.rand(pattern.n, generator=seeded(3)) < 0.95).float()
    o = observe(pattern, t)
    first = principal(o, 5, True, seeded())
    x = score(Factors(first.U, first.V, first.b, first.c, o.offset, o.link), pattern)
    assert float((mean(x, o.link) - t).square().mean()) < float(t.var())
    unseen = torch.randint(300, (5000,), generator=seeded(4)), torch.randint(200, (5000,), generator=seeded(5))
    x = (first.U[unseen[0]] * first.V[unseen[1]]).sum(1) + first.b[unseen[0]] + first.c[unseen[1]] + o.offset
    assert float((mean(x, o.link) - 0.95).square().mean()) < 0.05 * float(t.var())
