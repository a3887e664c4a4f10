"""A start for training: the principal factors of the ratings, in which rare users and movies count as much as they should.

    R_ij = (t_ij - g(m)) / g'(m) - b_i - c_j where rated, 0 elsewhere        D_u^-1/2 R D_v^-1/2 = P S Q'
    U = sqrt(n) D_u^-1/2 P S^1/2        V = sqrt(n) D_v^-1/2 Q S^1/2, rows and biases damped where ratings are few

D are the numbers of ratings of users and of movies: n_i m_j / n ratings of user i and movie j are to be expected, and where
they are, x_ij = U_i . V_j. Such a start is from Keshavan, Montanari & Oh, "Matrix completion from a few entries" (IEEE Trans.
Inf. Theory 2010). The factors are found by subspace iterations with a few directions more than are wanted (Halko, Martinsson &
Tropp, "Finding structure with randomness", SIAM Review 2011, Algorithm 4.4). The first of these says how large S is by noise
alone; what is above it is kept, as (S^2 - noise^2) / S. (Where as many are wanted as there are, the last one counts as noise.)
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pmfcli.core.parallel import RATINGS, take
from pmfcli.core.posterior import Observations, mean, slope
from pmfcli.core.sparse import Pattern, spmm

_ITERATIONS, _MORE = 4, 5
_DAMPING = 20.0  # ratings: with so many, a user or movie has half of what its own say; more where g is flat, and R noise
_NOISE = 0.01  # standard deviation, added: a factor that is 0 on both sides would stay so
_RATINGS = RATINGS // 2  # at a time: in double precision


class Start(NamedTuple):
    """Effective factors and biases, in logits."""

    U: Tensor  # (n_users, latent)
    V: Tensor  # (n_movies, latent)
    b: Tensor  # (n_users,) 0 without biases
    c: Tensor  # (n_movies,)


@torch.no_grad()
def principal(observations: Observations, latent: int, biases: bool, generator: torch.Generator) -> Start:
    """The principal factors of observations, and damped biases.

    In double precision, where there is any: directions that matter about as much as each other would turn with the rounding.

    Args:
        generator: a CPU generator; the numbers that it draws depend neither on the device nor on the number of processes.
    """
    o, pattern, sum_ = observations, observations.pattern, observations.users.team.sum
    n_users, n_movies = pattern.shape
    kind = torch.float32 if o.t.device.type == "mps" else torch.float64
    centre = o.t.new_tensor(o.offset)
    damping = _DAMPING * float(0.25 / slope(centre, o.link)) ** 2
    n_i, m_j = pattern.row_counts().to(kind), sum_(pattern.col_counts()).to(kind)
    n = sum_(n_i.sum())
    R = (o.t - mean(centre, o.link)) / slope(centre, o.link)
    b, c = n_i.new_zeros(n_users), n_i.new_zeros(n_movies)
    if biases:
        c = sum_(_product(take(R, pattern.perm), n_i.new_ones(n_users, 1), pattern.T)[:, 0]) / (m_j + damping)
        R -= take(c.to(R), pattern.col)
        b = _product(R, n_i.new_ones(n_movies, 1), pattern)[:, 0] / (n_i + damping)
        R -= take(b.to(R), pattern.row)
    R_t = take(R, pattern.perm)
    root_u, root_v = (count.clamp(min=1).rsqrt()[:, None] for count in (n_i, m_j))

    def of_users(Q: Tensor) -> Tensor:
        return root_u * _product(R, root_v * Q, pattern)

    width = min(latent + _MORE, o.users.of or n_users, n_movies)
    Q = torch.randn(n_movies, width, generator=generator, dtype=torch.float64).to(n_i)
    for _ in range(_ITERATIONS):
        Q = _orthonormal(root_v * sum_(_product(R_t, root_u * of_users(Q), pattern.T)))
    P = of_users(Q)
    square, turn = (part.to(P) for part in torch.linalg.eigh(sum_(P.mT @ P).cpu()))
    square, turn = square.flip(0).clamp(min=torch.finfo(kind).tiny), turn.flip(1)[:, :latent]
    kept = (square[:latent] - square[min(latent, width - 1)]) / square[:latent].sqrt()  # of S

    def side(rows: Tensor, scale: Tensor, root: Tensor, count: Tensor) -> Tensor:
        found = rows @ (turn * scale) * (root * (count / (count + damping))[:, None] * n.sqrt())
        return pad(found, (0, latent - found.shape[1])).to(o.t)

    U = side(P, (kept / square[:latent]).sqrt(), root_u, n_i)
    V = side(Q, kept.sqrt(), root_v, m_j)
    U += _NOISE * o.users.randn(n_users, latent, generator, o.t.dtype).to(o.t.device)
    V += _NOISE * o.movies.randn(n_movies, latent, generator, o.t.dtype).to(o.t.device)
    return Start(U, V, b.to(o.t), c.to(o.t))


def _orthonormal(columns: Tensor) -> Tensor:
    """On the CPU, as not every device has such decompositions."""
    found: Tensor = torch.linalg.qr(columns.cpu())[0]
    return found.to(columns)


def _product(values: Tensor, B: Tensor, pattern: Pattern) -> Tensor:
    """``spmm`` in the precision of B, (rows, d), for values that are kept in less."""
    parts = [pattern.view(*bounds) for bounds in pattern.blocks(_RATINGS)]
    own = values.split([part.n for part in parts])
    return torch.cat([spmm(some.to(B), B, part) for some, part in zip(own, parts, strict=True)])
