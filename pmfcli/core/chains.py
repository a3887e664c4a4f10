"""Several chains of the Gibbs sampler side by side, watched until they agree; the draws that are kept of them."""

import contextlib
import math
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined] # is there, but not exported to type checkers

from pmfcli.core import gibbs
from pmfcli.core.diagnostics import effective_size, r_hat
from pmfcli.core.gibbs import GibbsSettings, Problem, State
from pmfcli.core.posterior import Factors, Observations, mean, score
from pmfcli.core.predict import Draws, Head
from pmfcli.errors import TrainingError

BURN_IN = 0.3  # of the sweeps
WARM_UP = 60  # first sweeps, with Gaussian priors: a t prior takes a scale that still grows for outliers, and lets go slowly
CHECK_EVERY, LEAST, MOST = 25, 150, 1000  # sweeps, where their number is not given
AGREE = 1.15  # split R-hat of nine predictions in ten
ENOUGH = 40  # effective draws of half the predictions, for each chain
_WATCHED = 200  # pairs whose prediction is watched
_BUFFER = 3  # times as many draws are held while it runs as are kept in the end


_Verdict = tuple[float | None, float | None]


class Progress(NamedTuple):
    """One finished sweep of all chains."""

    step: int  # counts from 0
    loss: float  # -log likelihood, mean over chains
    sigma: float
    r_hat: float | None  # of the predictions, where it was looked at: nine in ten are below
    ess: float | None  # effective draws: half the predictions have more


class Sampled(NamedTuple):
    """What is left of a run."""

    draws: Draws
    fitted: Tensor  # (n,) mean of the kept draws for the training ratings, on the unit scale
    sweeps: int
    burn_in: int
    loss: float  # mean over the sweeps after burn-in, as sigma
    sigma: float
    r_hat: float | None  # None where there are too few sweeps to say
    ess: float | None


class _Kept(NamedTuple):
    sweep: int
    rows: tuple[Tensor | None, ...]  # U, V, W, gamma_u, gamma_v in half precision
    small: tuple[Tensor, ...]  # mean_u, mu_u, mu_v, Lambda_u, Lambda_v, alpha, prior_dof, noise_dof
    tau: Tensor  # of users, and their lambda: what W is given the rows
    lam: Tensor


def fit(
    observations: Observations, settings: GibbsSettings, sweeps: int | None, chains: int, keep: int, seed: int
) -> Generator[Progress, None, Sampled]:
    """Sample, yielding after every sweep of all chains; the return value of the generator is what was sampled.

    Args:
        sweeps: how many; None goes on until the chains agree, at most MOST.
        keep: draws to keep, over all chains, evenly spread after burn-in.

    Raises:
        TrainingError: the sampler broke down; names the sweep.
    """
    o = observations
    device = o.t.device
    problem = gibbs.prepare(o)
    seeds = torch.randint(2**62, (chains,), generator=torch.Generator().manual_seed(seed)).tolist()
    generators = [torch.Generator(device).manual_seed(number) for number in seeds]
    states = [gibbs.init(problem, settings, generator) for generator in generators]
    watched = _pairs_to_watch(o, seed)
    seen: list[Tensor] = []  # (chains, watched) a sweep
    losses: list[tuple[float, float]] = []
    held: list[list[_Kept]] = [[] for _ in range(chains)]
    stride, most = 1, sweeps or MOST
    warm_up = min(WARM_UP, int(BURN_IN * most))
    verdict: _Verdict = (None, None)
    with _workers(chains, device) as run_all:
        for number in range(most):
            now = settings if number >= warm_up else settings._replace(prior_scales=False)

            def move(chain: int) -> tuple[State, gibbs.Info]:
                return gibbs.step(states[chain], problem, now, generators[chain])  # noqa: B023 - used before the next turn

            try:
                moved = run_all(move, range(chains))
            except (TrainingError, LinAlgError) as error:
                raise TrainingError(f"the sampler broke down at sweep {number}: {error}; try a smaller --latent") from None
            states = [state for state, _ in moved]
            losses.append((sum(info.loss for _, info in moved) / chains, sum(info.sigma for _, info in moved) / chains))
            seen.append(torch.stack([_watch(state, problem, watched, settings.latent) for state in states]))
            if number % stride == 0:
                for chain, state in zip(held, states, strict=True):
                    chain.append(_keep(number, state))
                if len(held[0]) * chains > _BUFFER * max(keep, chains):
                    held, stride = [chain[::2] for chain in held], 2 * stride
            done = number + 1
            look = done == most or (done >= LEAST and done % CHECK_EVERY == 0)
            if look:
                burn_in = max(warm_up, int(BURN_IN * done))
                verdict = _verdict(torch.stack(seen[burn_in:], 1))
            yield Progress(number, *losses[-1], *(verdict if look else (None, None)))
            if sweeps is None and look and _agree(verdict, chains):
                break
    late = losses[burn_in:]
    kept = [draw for chain in held for draw in _spread_out([d for d in chain if d.sweep >= burn_in], -(-keep // chains))]
    draws = _stack(_spread_out(kept, keep), problem, settings)
    loss, sigma = (sum(part) / len(late) for part in zip(*late, strict=True))
    return Sampled(draws, _fitted(draws, o), done, burn_in, loss, sigma, *verdict)


@contextlib.contextmanager
def _workers(chains: int, device: torch.device) -> Iterator[Callable[..., list[tuple[State, gibbs.Info]]]]:
    """Something to run all chains once: threads that share the cores, where there are cores; else one after the other."""
    cores = torch.get_num_threads()
    count = min(chains, cores)
    if count == 1 or device.type != "cpu":
        yield lambda move, numbers: [move(number) for number in numbers]
        return
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(max(1, cores // count),)) as pool:
        yield lambda move, numbers: list(pool.map(move, numbers))
    torch.set_num_threads(cores)


def _pairs_to_watch(o: Observations, seed: int) -> tuple[Tensor, Tensor]:
    """Random users with random rated movies, mostly pairs without a rating: predictions that a person might ask for."""
    generator = torch.Generator().manual_seed(seed)
    user = torch.randint(o.pattern.shape[0], (_WATCHED,), generator=generator).to(o.t.device)
    movie = o.pattern.col[torch.randint(o.pattern.n, (_WATCHED,), generator=generator).to(o.t.device)].long()
    return user, movie


def _watch(state: State, problem: Problem, pairs: tuple[Tensor, Tensor], latent: int) -> Tensor:
    u, v = state.users.A[pairs[0]], state.movies.A[pairs[1]]
    x = (u[:, :latent] * v[:, :latent]).sum(1)
    return (x + u[:, latent:].sum(1) + v[:, latent:].sum(1)).cpu()


def _agree(verdict: _Verdict, chains: int) -> bool:
    r_hat, ess = verdict
    return r_hat is not None and ess is not None and r_hat <= AGREE and ess >= ENOUGH * chains


def _verdict(late: Tensor) -> _Verdict:
    """R-hat that nine predictions in ten are below, and the median effective size, of (chains, sweeps, pairs) after burn-in."""
    if late.shape[1] < 4:
        return None, None
    found = float(r_hat(late.double()).quantile(0.9)), float(effective_size(late.double()).median())
    return found if all(map(math.isfinite, found)) else (None, None)


def _keep(sweep: int, state: State) -> _Kept:
    u, v = state.users, state.movies
    rows = (u.A, v.A, u.W, u.gamma, v.gamma)
    half = tuple(None if part is None else part.half().cpu() for part in rows)
    dofs = (torch.stack([u.prior_dof, v.prior_dof]), torch.stack([u.noise_dof, v.noise_dof]))
    small = (u.A.mean(0), u.mu, v.mu, u.Lambda, v.Lambda, state.alpha, *dofs)
    return _Kept(sweep, half, tuple(part.cpu() for part in small), u.tau, u.lam)


def _spread_out(draws: list[_Kept], count: int) -> list[_Kept]:
    """At most so many, evenly spaced, the last among them."""
    count = min(count, len(draws))
    return [draws[-1 - (number * len(draws)) // count] for number in reversed(range(count))]


def _stack(kept: list[_Kept], problem: Problem, s: GibbsSettings) -> Draws:
    U, V, W, gamma_u, gamma_v = (
        None if parts[0] is None else torch.stack([part for part in parts if part is not None])
        for parts in zip(*(draw.rows for draw in kept), strict=True)
    )
    assert U is not None
    assert V is not None
    assert gamma_u is not None
    assert gamma_v is not None
    small = (torch.stack(parts) for parts in zip(*(draw.small for draw in kept), strict=True))
    mean_u, mu_u, mu_v, Lambda_u, Lambda_v, alpha, prior_dof, noise_dof = small
    var_w = None
    if W is not None:
        variances = []
        like = problem.z
        for number, draw in enumerate(kept):
            given = (U[number].to(like), mu_u[number].to(like), draw.tau, draw.lam)
            mean_w, variance = gibbs.mean_weights(*given, problem.user_means, W[number].to(like))
            W[number] = mean_w
            variances.append(variance)
        var_w = torch.stack(variances).mean(0).cpu()
    return Draws(
        U=U,
        V=V,
        W=W,
        var_w=var_w,
        gamma_u=gamma_u,
        gamma_v=gamma_v,
        mean_u=mean_u,
        mu_u=mu_u,
        mu_v=mu_v,
        Lambda_u=Lambda_u,
        Lambda_v=Lambda_v,
        alpha=alpha,
        prior_dof=prior_dof if s.prior_scales else None,
        noise_dof=noise_dof if s.noise_scales else None,
        head=Head(s.latent, problem.users.offset, problem.users.link),
    )


@torch.no_grad()
def _fitted(draws: Draws, o: Observations) -> Tensor:
    total = torch.zeros_like(o.t)
    for U, V in zip(draws.U, draws.V, strict=True):
        factors = Factors.of(U.to(o.t), V.to(o.t), draws.head.latent, o.offset, o.link)
        total += mean(score(factors, o.pattern), o.link).clamp(0, 1)
    return total / len(draws.U)
