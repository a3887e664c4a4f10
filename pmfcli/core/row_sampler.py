"""Rows of one side given their ratings, on every draw of a posterior, with the other side as it was drawn: a sampler of these.

    A_i ~ N(centre_i, (doubt + 1 / tau_i) Lambda_i^-1 + mood_i e e')          e picks the bias
    z_ij ~ N(A_i . f_j + bias_j, drifting_j + 1 / (noise_j gamma_i))

tau and gamma are as in ``gibbs.py``, steps of a scale as in ``ordinal.py``. The draws are the rows of one problem, each with
its own copy of the ratings.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pmfcli.core.approximation import Draws
from pmfcli.core.conditional import Gaussians, Prior, conditional, features
from pmfcli.core.distinct import nearest
from pmfcli.core.gibbs import draw_scales, draw_tau
from pmfcli.core.ordinal import Latent, Steps, count_kinds, draw_kind, draw_latent, draw_share
from pmfcli.core.posterior import inverse
from pmfcli.core.sparse import Pattern


class Sampled(NamedTuple):
    """Where the sampler stands."""

    A: Tensor  # (rows, d)
    tau: Tensor  # (rows,)
    gamma: Tensor  # (rows,)
    share: Tensor | None  # of habits, by ``steps.row``; None: ratings are numbers


class RowSampler(NamedTuple):
    """What is given: rows of the first draw, then of the second, and so on; with n ratings in all."""

    pattern: Pattern  # rows x n
    f: Tensor  # (n, d)
    bias: Tensor  # (n,), or () where there are none
    noise: Tensor  # (n,)
    z: Tensor  # (n,) ratings as numbers, less the offset
    prior: Prior  # centre and Lambda: one of each row
    dof: Tensor | None  # (rows,) of tau; None: it is 1
    noise_dof: Tensor | None  # (rows,) of gamma; None: it is 1
    cuts: Tensor  # (draws S, K - 1) less the offset; (0,) where ratings are numbers
    steps: Steps | None
    habits: Tensor | None  # (rows, S) parameters of the prior of shares; None: these stay
    doubt: Tensor | None = None  # () of the centre, in units of Lambda^-1; None: it is certain
    mood: Tensor | None = None  # (rows,) variance; None: there is none
    drifting: Tensor | None = None  # (n,), or () variance; None: there is none

    @classmethod
    def of(cls, p: Draws, of_movies: bool, one: Pattern, columns: Tensor, t: Tensor, prior: Prior) -> "RowSampler":
        """Users, who have shares of habits, or movies, whose raters keep theirs.

        Args:
            one: (rows x m) pattern of the ratings on one draw, each in a column of its own.
            columns: (m,) row of the other side, t: (m,) rating on the unit scale. prior: one for all rows of a draw.
        """
        (k, offset, link), draws, (rows, m) = p.head, len(p.alpha), one.shape
        B, gamma = (p.U, p.gamma_u) if of_movies else (p.V, p.gamma_v)
        B = B[:, columns].float().flatten(0, 1)
        draw, each = torch.arange(draws).repeat_interleave(m), torch.arange(draws * m)
        pattern = Pattern.of(draw * rows + one.row.repeat(draws), each, (draws * rows, draws * m))
        dof, noise_dof = (
            None if dofs is None else dofs[:, int(of_movies)].repeat_interleave(rows) for dofs in (p.prior_dof, p.noise_dof)
        )
        cuts, steps, habits = B.new_zeros(0), None, None
        if p.ordinal is not None:
            cuts, level = inverse(p.ordinal.cuts.flatten(0, 1), link) - offset, nearest(p.ordinal.grid, t).repeat(draws)
            steps = Steps(level, each if of_movies else pattern.row, draw * p.ordinal.cuts.shape[1])
            habits = None if of_movies else p.ordinal.habits
        return cls(
            pattern=pattern,
            f=features(B, k),
            bias=B[:, k] if B.shape[1] > k else B.new_zeros(()),
            noise=p.alpha[draw] * gamma[:, columns].float().flatten(),
            z=(inverse(t, link) - offset).repeat(draws),
            prior=Prior(*(part.repeat_interleave(rows, 0) for part in prior)),
            dof=dof,
            noise_dof=noise_dof,
            cuts=cuts,
            steps=steps,
            habits=habits,
        )

    @property
    def exact(self) -> bool:
        """Whether nothing is sampled but the rows."""
        return self.dof is None and self.noise_dof is None and self.steps is None

    def start(self, share: Tensor | None) -> Sampled:
        """Rows at their prior mean, with scales 1."""
        ones = self.noise.new_ones(self.pattern.shape[0])
        return Sampled(self.prior.mean, ones, ones, share)

    def conditional(self, now: Sampled, generator: torch.Generator) -> tuple[Sampled, Gaussians, Tensor]:
        """The rows given all else, after a draw of shares and of z: the shares, then the rows, then z - bias, (n,)."""
        z, precision = self.z - self.bias, self._precision(now.gamma)
        if self.steps is not None and now.share is not None:
            latent = Latent(self._x(now.A) + self.bias, precision.sqrt())
            kinds, _ = draw_kind(self.cuts, now.share, self.steps, latent, generator)
            if self.habits is not None:
                counts = count_kinds(kinds.kind, self.steps.row, now.share.shape)
                now = now._replace(share=draw_share(self.habits, counts, generator))
            z = draw_latent(self.cuts, self.steps, kinds.kind, latent, generator) - self.bias
        prior = Prior(self.prior.mean, self._prior_precision(now.tau))
        return now, conditional(self.pattern, self.f, precision, z, prior), z

    def sweep(self, now: Sampled, generator: torch.Generator) -> Sampled:
        """Shares, z, the rows, and their scales, each given all else."""
        now, found, z = self.conditional(now, generator)
        A = found.draw(generator)
        now, gamma = self.with_tau(now._replace(A=A), generator), now.gamma
        if self.noise_dof is not None:
            error = z - self._x(A)
            if self.drifting is not None:  # less the effects of time, drawn given that
                part = self.drifting * self._precision(gamma)
                effect = (self.drifting * (1 - part)).sqrt() * torch.randn(error.shape, generator=generator)
                error = (1 - part) * error - effect
            gamma = draw_scales(self.noise * error.square(), self.pattern, self.noise_dof, generator)
        return now._replace(gamma=gamma)

    def with_tau(self, now: Sampled, generator: torch.Generator) -> Sampled:
        """The same with a draw of tau, by the part of the rows that is neither mood nor doubt, drawn given the last tau."""
        if self.dof is None:
            return now
        off, (centre, Lambda) = now.A, self.prior
        off = off - centre
        if self.mood is not None:
            off = off - draw_mood(off, self._prior_precision(now.tau), self.mood, generator)
        if self.doubt is not None:
            part = 1 / (1 + now.tau * self.doubt)
            white = Gaussians(torch.zeros_like(off), torch.linalg.cholesky(Lambda)).draw(generator)
            off = part[:, None] * off + (self.doubt * part).sqrt()[:, None] * white
        return now._replace(tau=draw_tau(off, Lambda, self.dof, generator))

    def _x(self, A: Tensor) -> Tensor:
        return (self.f * A[self.pattern.row]).sum(1)

    def _precision(self, gamma: Tensor) -> Tensor:
        own = self.noise * gamma[self.pattern.row]
        return own if self.drifting is None else 1 / (1 / own + self.drifting)

    def _prior_precision(self, tau: Tensor) -> Tensor:
        Lambda, doubt = self.prior.precision, self.doubt
        P = tau[:, None, None] * Lambda if doubt is None else Lambda / (doubt + 1 / tau)[:, None, None]
        return P if self.mood is None else with_mood(P, self.mood)


def with_mood(P: Tensor, mood: Tensor) -> Tensor:
    """The precision of rows whose last entry has an independent part more, of variance ``mood`` (draws,), by Sherman-Morrison.

    Args:
        P: (draws, d, d) without it.
    """
    last = P[:, :, -1]
    part = mood / (1 + mood * P[:, -1, -1])
    return P - part[:, None, None] * last[:, :, None] * last[:, None, :]


def draw_mood(off: Tensor, P: Tensor, mood: Tensor, generator: torch.Generator) -> Tensor:
    """That part, 0 in other entries, given how far the rows are from their mean, (draws, d), whose precision with it is P."""
    mean = mood * (P @ off[:, :, None])[:, -1, 0]
    variance = (mood - mood.square() * P[:, -1, -1]).clamp(min=0)
    found = torch.zeros_like(off)
    found[:, -1] = mean + variance.sqrt() * torch.randn(mean.shape, generator=generator)
    return found
