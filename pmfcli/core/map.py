"""Maximum a posteriori by Adam: ``init`` and ``step``, and ``fit``, a generator of Progress.

All ratings at once while they are few, from small random factors, as in the post. Beyond that by blocks of users that take
turns, so that a block has the same users however many processes share it, and about as many ratings as the next.
About five left the least held-out error on 1 to 25 million planted ratings: in fewer passes than one does, and more steadily
than many. A block updates its users and what all users share. The movies' hierarchical mean G X, which needs every user, is
held for one pass over the blocks, gathers its gradient, and X is updated once a pass; with one block this is exactly full-batch
Adam. Blocks start from the principal factors (``spectral.py``): random ones take ten passes to get there.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from pmfcli.core.parallel import take
from pmfcli.core.posterior import (
    Crowd,
    Factors,
    Observations,
    Parameters,
    Scales,
    effective,
    log_likelihood,
    log_prior,
    score,
)
from pmfcli.core.sparse import Pattern, spmm
from pmfcli.core.spectral import Start, principal
from pmfcli.core.team import Share, Team
from pmfcli.core.tree import Tree, leaves, like, plain
from pmfcli.errors import TrainingError

_LARGEST_MOVE = 3.0  # of a row of F W or G X in one step, in learning rates, on average over ratings
_LEAST_SIGMA = 0.01  # of the rating scale: Adam moves a learned sigma by about the learning rate, and must not pass 0
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_BLOCKS, _LEAST_BLOCK, _MOST_BLOCK = 5, 250_000, 4_000_000  # usually; and ratings in one, then
_START = 0.01  # standard deviation of random first factors, as in the post
_LR, _LR_OF_BLOCKS = 0.03, 0.015  # usually; by blocks, from factors that need not grow first


class MapSettings(NamedTuple):
    """How to fit. Scales are in logits, sigma on the unit scale."""

    latent: int
    scales: Scales
    sigma: float
    learn_sigma: bool
    biases: bool
    user_means: bool  # W: hierarchical means for users
    movie_means: bool  # X: hierarchical means for movies
    lr: float | None  # None: what is usual for so many blocks
    blocks: int  # of users, if there are as many


class Adam(NamedTuple):
    """Leaves that share a learning rate, with the moments of their gradients."""

    lr: float
    leaves: tuple[Tensor, ...]
    mean: tuple[Tensor, ...]
    square: tuple[Tensor, ...]
    steps: tuple[Tensor, ...]  # (), float32 each


class State(NamedTuple):
    """Where a fit stands. ``step`` updates the tensors in place."""

    parameters: tuple[Parameters, ...]  # one for each block of users: its own Y, X, b; the same Z, W, c, sigma
    users: tuple[slice, ...]  # of each block
    scales: Scales
    adam: tuple[Adam, ...]  # moved after every block
    adam_x: Adam  # moved once a pass over all blocks


class Info(NamedTuple):
    """What one step saw, before its update."""

    loss: float  # -log p, constants included
    sigma: float


class Progress(NamedTuple):
    """One finished step of ``fit``: the loss and sigma before its update, the state after it."""

    step: int  # counts from 0
    loss: float
    sigma: float
    state: State
    snapshot: Callable[[], Tree]  # all that ``fit`` needs to go on from here, until the next step is asked for


def number_of_blocks(n: int, block_ratings: int | None) -> int:
    """How many blocks so many ratings are taken in, if not by so many ratings each."""
    if block_ratings is not None:
        return max(1, -(-n // block_ratings))
    return max(1, min(_BLOCKS, n // _LEAST_BLOCK), -(-n // _MOST_BLOCK))


def cut(observations: Observations, blocks: int) -> tuple[Observations, ...]:
    """So many blocks of users, with about as many ratings each in all processes together; the weights stay the whole's."""
    o, users = observations, _users(observations, blocks)
    if len(users) == 1:
        return (o,)
    G = torch.empty_like(o.G)
    if len(G):
        G[o.pattern.perm] = o.G  # from the order of pattern.T to that of pattern
    return tuple(_rows(o, G, own) for own in users)


def init(observations: Observations, settings: MapSettings, generator: torch.Generator, at_random: bool = False) -> State:
    """First state: factors 0.01 randn and biases 0, or, by blocks, the principal ones; hierarchical weights 0.

    Random ones are also for states that are overwritten.

    Args:
        generator: a CPU generator; the numbers do not depend on the device.
    """
    o, s = observations, settings
    users = _users(o, s.blocks)
    n_users, n_movies = o.pattern.shape
    device, dtype = o.t.device, o.t.dtype
    by_blocks = len(users) > 1
    first = principal(o, s.latent, s.biases, generator) if by_blocks and not at_random else None
    lr = s.lr or (_LR_OF_BLOCKS if by_blocks else _LR)

    def start(rows: int, share: Share) -> Tensor:
        return _START * share.randn(rows, s.latent, generator, dtype).to(device)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, device=device, dtype=dtype, requires_grad=True)

    U, V, b, c = first or Start(start(n_users, o.users), start(n_movies, o.movies), *map(o.t.new_zeros, o.pattern.shape))
    Z = V.requires_grad_()
    W = zeros(n_movies, s.latent) if s.user_means else None
    sigma = torch.tensor(s.sigma, device=device, dtype=dtype, requires_grad=s.learn_sigma)
    parameters = tuple(
        Parameters(
            Y=U[own].clone().requires_grad_(),
            Z=Z,
            W=W,
            X=zeros(len(U[own]), s.latent) if s.movie_means else None,
            b=b[own].clone().requires_grad_() if s.biases else None,
            c=c.requires_grad_() if s.biases else None,
            sigma=sigma,
        )
        for own in users
    )
    leaves = [p for p in (Z, parameters[0].c, sigma) if p is not None and p.requires_grad]
    leaves += [p for block in parameters for p in (block.Y, block.b) if p is not None]
    adam = [_adam(lr, leaves)]
    if W is not None:
        adam.append(_adam(lr * _slower(o.F, o.pattern, o.movies.team, o.users.team, o.crowd), [W]))
    xs = [block.X for block in parameters if block.X is not None]
    adam_x = _adam(lr * _slower(o.G, o.pattern.T, o.users.team, o.users.team) if xs else lr, xs)
    return State(parameters, users, s.scales, tuple(adam), adam_x)


def step(state: State, blocks: tuple[Observations, ...], generator: torch.Generator) -> tuple[State, Info]:
    """One pass over all ratings: one Adam step for each block, in random order, and one for X.

    Raises:
        TrainingError: the loss is not finite; the parameters are then no longer of use.
    """
    team = blocks[0].users.team
    n = int(team.sum(torch.tensor(sum(block.pattern.n for block in blocks))))
    sigma = float(state.parameters[0].sigma.detach())
    held = _movie_means(state, blocks)
    means = None if held is None else team.sum(held.detach().clone()).requires_grad_()
    loss = 0.0
    for number in torch.randperm(len(blocks), generator=generator).tolist():
        p, o = state.parameters[number], blocks[number]
        factors = effective(p._replace(X=None), o)
        if means is not None:
            factors = factors._replace(V=factors.V + means)
        objective = -log_likelihood(score(factors, o.pattern), o.t, p.sigma, o.link)
        objective = objective - log_prior(p, state.scales, o.pattern.n / n)
        torch.autograd.backward(objective)
        loss += _summed(team, objective.detach(), [part for part in (p.Z, p.W, p.c, p.sigma) if part is not None])
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss}")
        for group in state.adam:
            _move(group)
        if p.sigma.requires_grad:
            p.sigma.data.clamp_(min=_LEAST_SIGMA)
    if held is not None and means is not None and means.grad is not None:
        torch.autograd.backward((held * team.sum(means.grad)).sum())  # given a gradient as an argument, it would import sympy
        _move(state.adam_x)
    return state, Info(loss, sigma)


def fit(
    observations: Observations, settings: MapSettings, epochs: int, generator: torch.Generator, resume: Tree = None
) -> Iterator[Progress]:
    """Train for at most ``epochs`` passes, yielding after each; stop by no longer asking.

    Args:
        resume: a snapshot, whose step is yielded once more, to go on from.

    Raises:
        TrainingError: the loss stopped being finite; names the step and the remedy.
    """
    blocks = cut(observations, settings.blocks)
    state = init(observations, settings, generator, at_random=resume is not None)
    first = 0

    def progress(number: int, info: Info) -> Progress:
        def snapshot() -> Tree:
            return {"step": number, "info": plain(info), "state": plain([*leaves(state)]), "generator": generator.get_state()}

        return Progress(number, *info, state, snapshot)

    if resume is not None:
        with torch.no_grad():
            own = tuple(leaves(state))
            for leaf, saved in zip(own, like(tuple(leaf.detach() for leaf in own), resume["state"]), strict=True):
                leaf.copy_(saved)
        generator.set_state(resume["generator"])
        first = resume["step"] + 1
        yield progress(first - 1, Info(*resume["info"]))
    for number in range(first, epochs):
        try:
            state, info = step(state, blocks, generator)
        except TrainingError as error:
            raise TrainingError(f"training diverged at step {number}: {error}; try a smaller --lr") from None
        yield progress(number, info)


@torch.no_grad()
def gather(state: State) -> Parameters:
    """A copy of the parameters as one, detached: what to keep of a fit."""
    first = state.parameters[0]

    def shared(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.detach().clone()

    def joined(parts: list[Tensor]) -> Tensor:
        whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
        for own, part in zip(state.users, parts, strict=True):
            whole[own] = part
        return whole

    def if_any(parts: list[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return joined(present) if present else None

    return Parameters(
        Y=joined([p.Y for p in state.parameters]),
        Z=first.Z.detach().clone(),
        W=shared(first.W),
        X=if_any([p.X for p in state.parameters]),
        b=if_any([p.b for p in state.parameters]),
        c=shared(first.c),
        sigma=first.sigma.detach().clone(),
    )


def current(state: State, observations: Observations) -> Factors:
    """The effective factors of the state, detached."""
    with torch.no_grad():
        return effective(gather(state), observations)


def _summed(team: Team, value: Tensor, shared: list[Tensor]) -> float:
    """A value, and the gradients of what processes share, summed over them: sent at once, for each time takes a while."""
    if team.size == 1:
        return float(value)
    moved = [part for part in shared if part.grad is not None]
    sums = team.sum(torch.cat([value[None], *(part.grad.flatten() for part in moved if part.grad is not None)]))
    for part, own in zip(moved, sums[1:].split([part.numel() for part in moved]), strict=True):
        part.grad = own.view_as(part)
    return float(sums[0])


def _adam(lr: float, leaves: list[Tensor]) -> Adam:
    mean, square = ([torch.zeros_like(leaf) for leaf in leaves] for _ in range(2))
    steps = [torch.zeros((), dtype=torch.float32, device=leaf.device) for leaf in leaves]
    return Adam(lr, tuple(leaves), tuple(mean), tuple(square), tuple(steps))


@torch.no_grad()
def _move(group: Adam) -> None:
    """One Adam step for the leaves that have a gradient, which is used up.

    The functional form of torch.optim: its moments are part of the state, and it does not import torch's compiler, which
    takes as long as training on 100,000 ratings.
    """
    live = [i for i, leaf in enumerate(group.leaves) if leaf.grad is not None]
    if not live:
        return
    chosen = [[part[i] for i in live] for part in (group.leaves, group.mean, group.square, group.steps)]
    leaves, mean, square, steps = chosen
    adam(
        leaves,
        [leaf.grad for leaf in leaves if leaf.grad is not None],
        mean,
        square,
        [],
        steps,
        fused=leaves[0].device.type in ("cpu", "cuda", "mps"),
        amsgrad=False,
        beta1=_BETA1,
        beta2=_BETA2,
        lr=group.lr,
        weight_decay=0.0,
        eps=_EPSILON,
        maximize=False,
    )
    for leaf in leaves:
        leaf.grad = None


def _slower(weights: Tensor, pattern: Pattern, of_columns: Team, of_ratings: Team, crowd: Crowd | None = None) -> float:
    """What the learning rate of W or X is multiplied by, from the weights F or G.

    Adam moves every entry by about the learning rate, so a row of F W, a sum over all that a user rated, moves by the row sum
    of F times it: 20 times for the users of ml-latest-small, 40 for the movies of a dense set, and training then diverges.

    Args:
        of_columns, of_ratings: processes that have some of them each.
    """
    sums = of_columns.sum(spmm(weights, weights.new_ones(pattern.shape[1], 1), pattern))[:, 0]
    sums = sums if crowd is None else sums + crowd.part
    moves = sums[pattern.row]
    own = torch.stack([moves.sum(), moves.new_tensor(len(moves))]).tolist()  # not every device has double precision
    total, n = of_ratings.sum(torch.tensor(own, dtype=torch.float64))
    return min(1.0, _LARGEST_MOVE / float(total / n))


def _movie_means(state: State, blocks: tuple[Observations, ...]) -> Tensor | None:
    """G X, (n_movies, latent), from all blocks."""
    parts = [spmm(o.G, p.X, o.pattern.T) for p, o in zip(state.parameters, blocks, strict=True) if p.X is not None]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] if parts else None


def _users(o: Observations, blocks: int) -> tuple[slice, ...]:
    """The users of each block: as many blocks in all processes, and in each block the same users of all."""
    rows, first = o.pattern.shape[0], o.users.first
    count = max(1, min(blocks, o.users.of or rows))
    return tuple(slice((number - first) % count, rows, count) for number in range(count))


def _rows(o: Observations, G: Tensor, own: slice) -> Observations:
    """The observations of some users; the weights stay those of the whole data, G in the order of pattern."""
    part, place = o.only(own)
    G = take(take(G, place), part.pattern.perm) if len(G) else G
    return part._replace(G=G)
