"""Several chains of the Gibbs sampler side by side, watched until they agree; the draws that are kept of them."""

import math
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined] # is there, but not exported to type checkers

from pmfcli.core import drift, gibbs, ordinal
from pmfcli.core.approximation import Common, Draws, Head, Ordinal, Weights
from pmfcli.core.diagnostics import effective_size, r_hat
from pmfcli.core.drift import Drift, Group
from pmfcli.core.gibbs import GibbsSettings, Own, Problem, State
from pmfcli.core.means import Means
from pmfcli.core.parallel import by_parts, workers
from pmfcli.core.posterior import Factors, Observations, mean, sides
from pmfcli.core.streams import RANGE, Ranges
from pmfcli.core.tree import Tree, like, plain
from pmfcli.errors import TrainingError

BURN_IN = 0.3  # of the sweeps
WARM_UP = 60  # first sweeps, with Gaussian priors: a t prior mistakes a growing scale for outliers, and recovers slowly
_GROWTH = 20  # first sweeps, in which rows and their means grow alike: whichever is ahead then keeps the lead for hundreds
CHECK_EVERY, LEAST, MOST = 25, 150, 1000  # sweeps, where their number is not given
AGREE = 1.15  # split R-hat of nine predictions in ten
ENOUGH = 75  # effective draws of half the predictions, for each chain
GROWN = 1.3  # split R-hat of the size of U . V: while that still grows, predictions may agree by their biases
FITTED = 1 << 20  # training ratings, at most, whose fit is looked at in the end
_WATCHED = 200  # pairs whose prediction is watched
BUFFER = 3  # times as many draws are held while it runs as are kept in the end


_Verdict = tuple[float | None, float | None]


class Progress(NamedTuple):
    """One finished sweep of all chains."""

    step: int  # counts from 0
    loss: float  # -log likelihood, mean over chains
    sigma: float
    r_hat: float | None  # of the predictions, where it was looked at: nine in ten are below
    ess: float | None  # effective draws: half the predictions have more
    snapshot: Callable[[], Tree]  # all that ``fit`` needs to go on from here, until the next sweep is asked for


class Sampled(NamedTuple):
    """What is left of a run."""

    draws: Draws
    fitted: Tensor  # (m,) mean of the kept draws for training ratings, on the unit scale: for all of them, or an even part
    rated: Tensor  # (m,) these ratings
    sweeps: int
    burn_in: int
    loss: float  # mean over the sweeps after burn-in, as sigma
    sigma: float
    r_hat: float | None  # None where there are too few sweeps to say
    ess: float | None


class _Kept(NamedTuple):
    sweep: int
    rows: dict[str, Tensor]  # what has rows, in half precision
    small: dict[str, Tensor]
    tau: Tensor  # of users, and their lambda: what W is given the rows
    lam: Tensor


def fit(
    observations: Observations,
    settings: GibbsSettings,
    sweeps: int | None,
    chains: int,
    keep: int,
    seed: int,
    features: tuple[Means | None, Means | None] = (None, None),
    groups: tuple[Group, ...] = (),
    resume: Tree = None,
) -> Generator[Progress, None, Sampled]:
    """Sample, yielding after every sweep of all chains; the return value of the generator is what was sampled.

    Args:
        sweeps: how many; None goes on until the chains agree, at most MOST.
        keep: draws to keep, over all chains, evenly spread after burn-in.
        features: of users and of movies. groups: stretches of time, whose effects are sampled too.
        resume: a snapshot to go on from.

    Raises:
        TrainingError: the sampler broke down; names the sweep.
    """
    problem = gibbs.prepare(observations, settings, *features, groups)
    most = sweeps or MOST
    run = _Run(problem, settings, chains, keep, most, seed)
    if resume is not None:
        run.restore(resume)
    with workers(1 if observations.users.shared else chains, observations.t.device) as run_all:
        while run.done < most and not run.agreed:
            run.sweep(run_all)
            look = run.done == most or (run.done >= LEAST and run.done % CHECK_EVERY == 0)
            if look:
                run.look()
            run.agreed = sweeps is None and look and run.agree()
            yield Progress(run.done - 1, *run.losses[-1], *(run.verdict if look else (None, None)), run.snapshot)
    return run.sampled()


class _Run:
    """Chains on their way, with what is watched and held of them."""

    def __init__(self, problem: Problem, settings: GibbsSettings, chains: int, keep: int, most: int, seed: int) -> None:
        o = problem.users
        self._problem, self._settings, self._keep = problem, settings, keep
        seeds = torch.randint(2**62, (chains,), generator=torch.Generator().manual_seed(seed)).tolist()
        self._generators = [torch.Generator(o.t.device).manual_seed(number) for number in seeds]
        self._sources = [_own(o, number) if o.users.of is not None else None for number in seeds]
        self._states = [gibbs.init(problem, settings, *each) for each in zip(self._generators, self._sources, strict=True)]
        self._pairs = _pairs_to_watch(o, seed)
        self._seen: list[Tensor] = []  # (chains, watched + 1) a sweep
        self.losses: list[tuple[float, float]] = []  # with sigma
        self._held: list[list[_Kept]] = [[] for _ in range(chains)]
        self._stride = 1
        self._burn_in = self._warm_up = min(WARM_UP, int(BURN_IN * most))
        self.done = 0  # sweeps
        self.verdict: _Verdict = (None, None)
        self.agreed = False

    def sweep(self, run_all: Callable[..., list[tuple[State, gibbs.Info]]]) -> None:
        """One more, of all chains."""
        how = self._settings._replace(weight_scales=self.done >= _GROWTH)
        if self.done < self._warm_up:
            how = how._replace(prior_scales=False)

        def move(chain: int) -> tuple[State, gibbs.Info]:
            return gibbs.step(self._states[chain], self._problem, how, self._generators[chain], self._sources[chain])

        chains = len(self._states)
        try:
            moved = run_all(move, range(chains))
        except (TrainingError, LinAlgError) as error:
            raise TrainingError(f"the sampler broke down at sweep {self.done}: {error}; try a smaller --latent") from None
        self._states = [state for state, _ in moved]
        self.losses.append((sum(info.loss for _, info in moved) / chains, sum(info.sigma for _, info in moved) / chains))
        latent = self._settings.latent
        self._seen.append(torch.stack([_watch(state, self._problem, self._pairs, latent) for state in self._states]))
        if self.done % self._stride == 0:
            for chain, state in zip(self._held, self._states, strict=True):
                chain.append(_keep(self.done, state, self._problem))
            if len(self._held[0]) * chains > BUFFER * max(self._keep, chains):
                self._held, self._stride = [chain[::2] for chain in self._held], 2 * self._stride
        self.done += 1

    def look(self) -> None:
        """Whether the chains agree by now."""
        self._burn_in = max(self._warm_up, int(BURN_IN * self.done))
        self.verdict = _verdict(self._late()[..., :-1])

    def agree(self) -> bool:
        """Whether they do, in what they predict and in the size of U . V."""
        found, effective = self.verdict
        if found is None or effective is None or found > AGREE or effective < ENOUGH * len(self._states):
            return False
        return float(r_hat(self._late()[..., -1:].double())) <= GROWN

    def _late(self) -> Tensor:
        return torch.stack(self._seen[self._burn_in :], 1)

    def snapshot(self) -> Tree:
        """All that it takes to go on from here."""
        found: dict[str, Any] = {"done": self.done, "burn_in": self._burn_in, "agreed": self.agreed, "stride": self._stride}
        found |= {"verdict": self.verdict, "losses": self.losses, "states": self._states, "held": self._held}
        found |= {"asked": [None if one is None else (one.rows.asked, one.ratings.asked) for one in self._sources]}
        found |= {"seen": torch.stack(self._seen)}
        return plain(found) | {"generators": [generator.get_state() for generator in self._generators]}

    def restore(self, saved: Tree) -> None:
        """Go on from a snapshot."""
        self.done, self._burn_in, self.agreed, self._stride = (saved[name] for name in ("done", "burn_in", "agreed", "stride"))
        self.verdict, self.losses, self._seen = saved["verdict"], list(saved["losses"]), list(saved["seen"].unbind())
        self._states = list(like(tuple(self._states), saved["states"]))
        self._held = [[_Kept(*draw) for draw in chain] for chain in saved["held"]]
        for generator, state in zip(self._generators, saved["generators"], strict=True):
            generator.set_state(state)
        for one, asked in zip(self._sources, saved["asked"], strict=True):
            if one is not None:
                one.rows.asked, one.ratings.asked = asked

    def sampled(self) -> Sampled:
        """What is left in the end."""
        share = -(-self._keep // len(self._held))
        late = [[draw for draw in chain if draw.sweep >= self._burn_in] for chain in self._held]
        draws = _spread_out([draw for chain in late for draw in _spread_out(chain, share)], self._keep)
        stacked = _stack(draws, self._problem, self._settings)
        losses = self.losses[self._burn_in :]
        loss, sigma = (sum(part) / len(losses) for part in zip(*losses, strict=True))
        return Sampled(stacked, *_fitted(stacked, self._problem), self.done, self._burn_in, loss, sigma, *self.verdict)


def _own(o: Observations, seed: int) -> Own:
    """Random numbers by ranges of users, none of which two processes have a part of."""
    users, device = o.users, o.t.device
    edges = [*range(-users.first % RANGE, o.pattern.shape[0], RANGE), o.pattern.shape[0]]
    if edges[0] != 0:
        raise ValueError("a process has a part of a range of users")
    number = users.first // RANGE
    sizes, ratings = torch.tensor(edges).diff().tolist(), o.pattern.crow[torch.tensor(edges).to(device)].diff().tolist()
    return Own(Ranges(2 * seed, number, sizes, device), Ranges(2 * seed + 1, number, ratings, device))


def _pairs_to_watch(o: Observations, seed: int) -> tuple[Tensor, Tensor]:
    """Random users with random rated movies, mostly pairs without a rating: predictions that a person might ask for."""
    generator = torch.Generator().manual_seed(seed)
    if o.users.of is not None:  # who rated what is not known to all processes
        user = torch.randint(o.users.of, (_WATCHED,), generator=generator) - o.users.first
        movie = torch.randint(o.pattern.shape[1], (_WATCHED,), generator=generator)
        return user.to(o.t.device), movie.to(o.t.device)
    user = torch.randint(o.pattern.shape[0], (_WATCHED,), generator=generator).to(o.t.device)
    movie = o.pattern.col[torch.randint(o.pattern.n, (_WATCHED,), generator=generator).to(o.t.device)].long()
    return user, movie


def _watch(state: State, problem: Problem, pairs: tuple[Tensor, Tensor], latent: int) -> Tensor:
    """What a draw predicts for the watched pairs, x, or the mean rating where the scale of x is for the prior to say; and last
    the logarithm of the mean square of U . V.

    Effects of time are left out: with them biases mix sooner than apart, and a prediction at a time is of their parts. Chains
    that stop by the sum are too short: on ml-latest-small their held-out error is 0.004 stars larger.
    """
    users, movies, alpha, habits, _ = state
    own, team = (pairs[0] >= 0) & (pairs[0] < len(users.A)), problem.users.users.team
    pairs = torch.where(own, pairs[0], 0), pairs[1]
    u, v = users.A[pairs[0]], movies.A[pairs[1]]
    x = (u[:, :latent] * v[:, :latent]).sum(1)
    size = x.square()
    x = x + u[:, latent:].sum(1) + v[:, latent:].sum(1)
    if habits is not None and problem.levels is not None:
        spread = (alpha * users.gamma[pairs[0]] * movies.gamma[pairs[1]]).rsqrt()
        x = ordinal.masses(habits.cuts[None], habits.share[pairs[0]][None], x[None], spread[None]) @ problem.levels.grid
    x, size = team.sum(torch.stack([x, size]) * own)
    return torch.cat([x, size.mean(0, keepdim=True).log()]).cpu()


def _verdict(late: Tensor) -> _Verdict:
    """R-hat that nine predictions in ten are below, and the median effective size, of (chains, sweeps, pairs) after burn-in."""
    if late.shape[1] < 4:
        return None, None
    found = float(r_hat(late.double()).quantile(0.9)), float(effective_size(late.double()).median())
    return found if all(map(math.isfinite, found)) else (None, None)


def _keep(sweep: int, state: State, problem: Problem) -> _Kept:
    u, v, alpha, habits, effects = state
    rows = {"U": u.A, "V": v.A, "gamma_u": u.gamma, "gamma_v": v.gamma}
    mu_v = v.mu if v.W is None or problem.movie_means is None else v.mu + problem.movie_means.usual @ v.W
    users = problem.users.users
    small = {"mean_u": users.mean(u.A), "mu_u": u.mu, "mu_v": mu_v, "Lambda_u": u.Lambda, "Lambda_v": v.Lambda, "alpha": alpha}
    small |= {"prior_dof": torch.stack([u.prior_dof, v.prior_dof]), "noise_dof": torch.stack([u.noise_dof, v.noise_dof])}
    if habits is not None:
        rows["share"] = habits.share
        small |= {"cuts": mean(habits.cuts + problem.users.offset, problem.users.link), "habits": habits.prior}
    if effects:
        rows["drift"] = torch.cat([one.value for one in effects])
        small["drift"] = torch.stack([one.precision for one in effects])
    half = {name: part.half().cpu() for name, part in rows.items()}
    return _Kept(sweep, half, {name: part.cpu() for name, part in small.items()}, u.tau, u.lam)


def _spread_out(draws: list[_Kept], count: int) -> list[_Kept]:
    """At most so many, evenly spaced, the last among them."""
    count = min(count, len(draws))
    return [draws[-1 - (number * len(draws)) // count] for number in reversed(range(count))]


def _stack(kept: list[_Kept], problem: Problem, s: GibbsSettings) -> Draws:
    found = {name: torch.stack([draw.rows[name] for draw in kept]) for name in kept[0].rows}
    found |= {name: torch.stack([draw.small[name] for draw in kept]) for name in kept[0].small if name != "drift"}
    moved = None
    if problem.groups:
        precision = torch.stack([draw.small["drift"] for draw in kept])
        value = found.pop("drift")
        parts = value.split([len(group.row) for group in problem.groups], 1)
        sides = ((False, problem.users.pattern.shape[0]), (True, problem.users.pattern.shape[1]))
        on_cpu = [group._replace(row=group.row.cpu(), part=group.part.float().cpu()) for group in problem.groups]
        means = [drift.usual([part.float() for part in parts], on_cpu, *side) for side in sides]
        usual = [None if one is None else one.half() for one in means]
        moved = Drift(drift.stacked(problem.groups), value, precision, *usual)
    weights, common = None, None
    if problem.user_means is not None:
        W_means, variances, like = [], [], problem.z
        for number, draw in enumerate(kept):
            given = (found["U"][number].to(like), found["mu_u"][number].to(like), draw.tau, draw.lam)
            W_mean, variance = gibbs.mean_weights(*given, problem.user_means)
            W_means.append(W_mean.half().cpu())
            variances.append(variance)
        W = torch.stack(W_means)
        found["mu_u"] = found["mu_u"] + problem.user_means.usual.cpu() @ W.float()
        if s.user_means:  # the rest of W is of features: a visitor's are unknown
            rated = problem.users.pattern.shape[1]
            weights = Weights(W[:, :rated], torch.stack(variances).mean(0)[:rated].cpu())
            if problem.users.crowd is not None:
                crowd = problem.users.crowd.to(torch.device("cpu"))
                common = Common(crowd.mean(weights.W.float()), crowd.typical)
    steps = None
    if problem.levels is not None:
        steps = Ordinal(found.pop("share"), found.pop("cuts"), found.pop("habits"), problem.levels.grid.cpu())
    prior_dof, noise_dof = found.pop("prior_dof"), found.pop("noise_dof")
    return Draws(
        **found,
        prior_dof=prior_dof if s.prior_scales else None,
        noise_dof=noise_dof if s.user_noise or s.movie_noise else None,
        weights=weights,
        common=common,
        ordinal=steps,
        drift=moved,
        head=Head(s.latent, problem.users.offset, problem.users.link),
    )


@torch.no_grad()
def _fitted(draws: Draws, problem: Problem) -> tuple[Tensor, Tensor]:
    """The mean of draws for the training ratings, (m,), and these: of very many some, evenly spread."""
    o = problem.users
    own = torch.arange(0, o.pattern.n, max(1, -(-o.pattern.n // FITTED)), device=o.t.device)
    row, col = o.pattern.row[own], o.pattern.col[own]
    sizes = [len(group.row) for group in problem.groups]
    groups = [group._replace(stretch=group.stretch[own]) for group in problem.groups]
    total = o.t.new_zeros(len(own))

    def product(U: Tensor, V: Tensor, some: slice) -> Tensor:
        found: Tensor = torch.linalg.vecdot(U.index_select(0, row[some]), V.index_select(0, col[some]))
        return found

    for number in range(len(draws.U)):
        U, V = draws.U[number].to(o.t), draws.V[number].to(o.t)
        both = sides(Factors.of(U, V, draws.head.latent, o.offset, o.link))
        x = torch.cat(by_parts(partial(product, *both), len(own), o.t.device)) + o.offset
        if draws.drift is not None:
            x = x + drift.total(draws.drift.value[number].to(o.t).split(sizes), groups, x)
        t = mean(x, o.link)
        if draws.ordinal is None:
            total += t.clamp(0, 1)
            continue
        gamma = draws.gamma_u[number].to(o.t)[row] * draws.gamma_v[number].to(o.t)[col]
        spread = 0.25 / (draws.alpha[number].to(o.t) * gamma).sqrt()
        share, cuts = draws.ordinal.share[number].to(o.t)[row], draws.ordinal.cuts[number].to(o.t)
        total += ordinal.masses(cuts[None], share[None], t[None], spread[None]) @ draws.ordinal.grid.to(o.t)
    return total / len(draws.U), o.t[own]
