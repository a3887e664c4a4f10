"""Processes that were started by ``torchrun``: who they are, which ratings each has, and how what they found becomes one.

Users fall to processes in the order of their rows, with about equally many ratings each.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pmfcli.core.approximation import Fitted, Laplace
from pmfcli.core.streams import RANGE
from pmfcli.core.team import Processes, Share, Team, everywhere
from pmfcli.data.ratings import Array, Ratings, Scale, Vocabulary
from pmfcli.errors import DataError, ProcessError


class Part(NamedTuple):
    """What a process has of the ratings of all."""

    share: Share  # its users
    first_rating: int  # among all
    users: Vocabulary  # of all


def join() -> Team:
    """The processes of a run by ``torchrun``, of which this is one.

    Raises:
        ProcessError: they do not find each other.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined] # is there, but not exported
        # torchrun's store outlives a restart: who was there before left addresses in it at which nobody answers
        fresh = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ProcessError(f"torchrun: the processes do not find each other ({why}); start all of them again") from None
    own = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available() and own < torch.cuda.device_count():
        torch.cuda.set_device(own)
    return Processes()


def leave() -> None:
    """The end of working together."""
    if dist.is_initialized():
        dist.destroy_process_group()


def agreed(team: Team, due: bool, told: int) -> tuple[bool, int]:
    """Whether it is time for the first process, and the signal that any of them was told to stop by, or 0."""
    said = torch.zeros(1 + team.size, dtype=torch.int64)
    said[0], said[1 + team.rank] = due and team.rank == 0, told
    said = team.sum(said)
    return bool(said[0]), int(said[1:].max())


def share_out(ratings: Ratings, team: Team) -> tuple[Ratings, Part]:
    """The ratings of this process's users, whose rows begin at 0, of those of all, which every process has.

    Raises:
        DataError: there are not enough users for so many processes.
    """
    cuts = _cuts(np.bincount(ratings.user, minlength=len(ratings.users)), team, ratings.name)
    first, last = cuts[team.rank], cuts[team.rank + 1]
    own = slice(*(int(place) for place in np.searchsorted(ratings.user, [first, last])))
    part = replace(
        ratings,
        user=ratings.user[own] - np.int32(first),
        movie=ratings.movie[own].copy(),
        stars=ratings.stars[own].copy(),
        time=None if ratings.time is None else ratings.time[own].copy(),
        users=Vocabulary(ratings.users.ids[first:last]),
    )
    return part, Part(Share(team, first, len(ratings.users)), int(own.start), ratings.users)


def exchange(ratings: Ratings, team: Team) -> tuple[Ratings, Part]:
    """The same where each process has read some of the ratings, of any users: they send each other what is theirs.

    Raises:
        DataError: there are not enough users for so many processes.
        ProcessError: another process is gone.
    """
    known = dict.fromkeys(_texts(ratings.users.ids, team))
    users = Vocabulary(tuple(np.array([*known], dtype=object)[Vocabulary.order([*known])]))
    titles: dict[str, str] = {}
    for line in _texts(
        [f"{name}\t{title or ''}" for name, title in zip(ratings.movies.ids, ratings.titles, strict=True)], team
    ):
        name, _, title = line.partition("\t")
        titles[name] = titles.get(name) or title
    movies = Vocabulary(tuple(np.array([*titles], dtype=object)[Vocabulary.order([*titles])]))
    user, movie = users.rows(ratings.users.ids)[0][ratings.user], movies.rows(ratings.movies.ids)[0][ratings.movie]
    counts = team.sum(torch.from_numpy(np.bincount(user, minlength=len(users)))).numpy()
    cuts = _cuts(counts, team, ratings.name)
    whose = np.searchsorted(cuts[1:], user, side="right")
    order = np.argsort(whose, kind="stable")
    sizes = np.bincount(whose, minlength=team.size).tolist()

    def mine(column: Array) -> Array:
        found: Array = team.exchange(torch.from_numpy(column[order]), sizes).numpy()
        return found

    user, movie, stars = (mine(column) for column in (user - np.array(cuts)[whose], movie, ratings.stars))
    time = None if ratings.time is None else mine(ratings.time)
    last = np.lexsort((movie, user) if time is None else (time, movie, user))
    key = (user * np.int64(len(movies)) + movie)[last]
    last = last[np.append(key[1:] != key[:-1], True)]  # of a pair that was rated again the latest counts
    ends = everywhere(team, torch.tensor([*ratings.scale], dtype=torch.float64))
    own = replace(
        ratings,
        user=user[last].astype(np.int32),
        movie=movie[last].astype(np.int32),
        stars=stars[last],
        time=None if time is None else time[last],
        users=Vocabulary(users.ids[cuts[team.rank] : cuts[team.rank + 1]]),
        movies=movies,
        titles=tuple(titles[name] or None for name in movies.ids),
        scale=Scale(float(ends.min()), float(ends.max())),
    )
    before = everywhere(team, torch.tensor([own.n]))[: team.rank].sum()
    return own, Part(Share(team, cuts[team.rank], len(users)), int(before), users)


def _texts(own: Sequence[str], team: Team) -> list[str]:
    """The texts of all processes."""
    said = np.frombuffer("".join(f"{text}\n" for text in own).encode(), dtype=np.uint8)
    return everywhere(team, torch.from_numpy(said.copy())).numpy().tobytes().decode().split("\n")[:-1]


def _cuts(counts: Array, team: Team, name: str) -> list[int]:
    """Where the users of each process begin, and the end, by how many ratings each user has: whole ranges of random numbers."""
    wanted = counts.sum() * np.arange(1, team.size) / team.size
    whole = np.round((np.searchsorted(np.cumsum(counts), wanted) + 1) / RANGE).astype(int) * RANGE
    cuts = [0, *whole.tolist(), len(counts)]
    if any(stop <= start for start, stop in itertools.pairwise(cuts)):
        raise DataError(f"{name}: {len(counts):,} users are too few for {team.size} processes; start fewer")
    return cuts


def held_out_mask(n: int, first: int, fraction: float, seed: int) -> Array:
    """Hold out each of n ratings with this probability: (n,) bool. It is the same however the ratings are shared out.

    Args:
        first: the place of the first of them, among all.
    """
    stream = np.random.PCG64(seed)
    stream.advance(first)
    found: Array = np.random.Generator(stream).random(n) < fraction
    return found


def collected(ratings: Ratings, posterior: Fitted, part: Part) -> tuple[Ratings, Fitted]:
    """The ratings and rows of all in the first process; in others their own."""
    team = part.share.team

    def rows(own: Tensor | None) -> Tensor | None:
        return None if own is None else team.collect(own)

    if isinstance(posterior, Laplace):
        f, p = posterior.factors, posterior.parameters
        U, Y = team.collect(f.U), team.collect(p.Y)
        b = rows(f.b)
        parameters, noise_u = p._replace(Y=Y, X=rows(p.X), b=b), team.collect(posterior.noise_u)
        posterior = posterior._replace(factors=f._replace(U=U, b=b), parameters=parameters, noise_u=noise_u)
    else:

        def draws(own: Tensor) -> Tensor:
            return team.collect(own.transpose(0, 1)).transpose(0, 1).contiguous()

        posterior = posterior._replace(U=draws(posterior.U), gamma_u=draws(posterior.gamma_u))
        if posterior.ordinal is not None:
            posterior = posterior._replace(ordinal=posterior.ordinal._replace(share=draws(posterior.ordinal.share)))
    counts = team.collect(torch.from_numpy(np.bincount(ratings.user, minlength=len(ratings.users))))
    movie, stars = (team.collect(torch.from_numpy(column)).numpy() for column in (ratings.movie, ratings.stars))
    time = None if ratings.time is None else team.collect(torch.from_numpy(ratings.time)).numpy()
    if team.rank:
        return ratings, posterior
    user = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts).numpy()
    return replace(ratings, user=user, movie=movie, stars=stars, time=time, users=part.users), posterior
