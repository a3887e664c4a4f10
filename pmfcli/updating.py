"""A saved model whose ratings change, without the file that it was trained on: ratings are added, or people are removed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from pmfcli.artifact import Model
from pmfcli.core.approximation import Draws, Fitted, Laplace
from pmfcli.core.blend import Blend
from pmfcli.core.changes import extended, kept, redrawn, resettled, undated
from pmfcli.core.pairs import Seen
from pmfcli.core.posterior import Observations, observe
from pmfcli.core.sparse import Pattern
from pmfcli.data.ratings import Array, Ratings, Vocabulary
from pmfcli.errors import DataError, UsageError
from pmfcli.fitting import seen as as_seen
from pmfcli.text import short


class Updated(NamedTuple):
    """A model with more ratings, and what they changed."""

    model: Model
    new: int  # ratings of pairs that it had not seen
    changed: int  # pairs that have another rating now
    repeated: int  # pairs with the rating that it knew
    new_users: int
    new_movies: int
    recomputed_users: int  # new ones among them
    recomputed_movies: int
    rated_movies_left: int  # movies with new ratings that stay as they were


class Forgotten(NamedTuple):
    """A model without some people, and what that changed."""

    model: Model
    forgotten_users: int
    forgotten_ratings: int
    forgotten_movies: int  # that nobody else had rated
    recomputed_movies: int  # that they had rated
    rated_movies_left: int  # that they had rated, and that stay, in a model or in a part of a blend


def update(model: Model, ratings: Ratings) -> Updated:
    """Add ratings to a model: the rows of users and movies with new ratings are recomputed, all else stays as it is.

    In a mode these are all such users and movies; in draws all such users, but only the movies that are new.

    Raises:
        UsageError: a kind of model that cannot be updated.
        DataError: a rating that is not on the model's scale.
    """
    _check_kind(model)
    _check_scale(model, ratings)
    users, user = _joined(model.users, ratings.users)
    movies, movie = _joined(model.movies, ratings.movies)
    user, movie = user[ratings.user], movie[ratings.movie]
    old = _ratings(model)
    keys, new_keys = (u * np.int64(len(movies)) + m for u, m in ((old.user, old.movie), (user, movie)))
    place = np.searchsorted(keys, new_keys).clip(max=old.n - 1)
    new = keys[place] != new_keys
    other = ~new & (old.stars[place] != ratings.stars)
    stars = old.stars.copy()
    stars[place[other]] = ratings.stars[other]
    order = np.argsort(np.concatenate([keys, new_keys[new]]), kind="stable")
    by_id = dict(zip(ratings.movies.ids, ratings.titles, strict=True))
    merged = replace(
        old,
        user=np.concatenate([old.user, user[new]]).astype(np.int32)[order],
        movie=np.concatenate([old.movie, movie[new]]).astype(np.int32)[order],
        stars=np.concatenate([stars, ratings.stars[new]])[order],
        users=users,
        movies=movies,
        titles=(*model.titles, *(by_id[name] for name in movies.ids[len(model.movies) :])),
    )
    touched_users, touched_movies = (torch.from_numpy(np.unique(rows[new | other])).long() for rows in (user, movie))
    found = Updated(
        model,
        new=int(new.sum()),
        changed=int(other.sum()),
        repeated=int((~new & ~other).sum()),
        new_users=len(users) - len(model.users),
        new_movies=len(movies) - len(model.movies),
        recomputed_users=len(touched_users),
        recomputed_movies=0,
        rated_movies_left=0,
    )
    if not found.recomputed_users:
        return found
    posterior, seen = model.posterior, as_seen(merged)
    assert isinstance(posterior, Fitted)
    posterior = extended(posterior, len(users), len(movies))
    if isinstance(posterior, Laplace):
        observations = _observations(merged, posterior, model.settings)
        posterior = resettled(posterior, seen, observations, touched_users, touched_movies)
        again = touched_movies
    else:
        again = touched_movies[touched_movies >= len(model.movies)]
        old_rows, power = (len(model.users), len(model.movies)), float(model.settings["user_power"])
        posterior = redrawn(posterior, seen, merged.tensors()[2], touched_users, old_rows, power)
    dates = [model.data["latest"], None if ratings.time is None else int(ratings.time.max())]
    latest = max((date for date in dates if date is not None), default=None)
    return found._replace(
        model=_model(model, posterior, merged, seen, latest),
        recomputed_movies=len(again),
        rated_movies_left=len(touched_movies) - len(again),
    )


def forget(model: Model, users: Sequence[int]) -> Forgotten:
    """Remove users from a model, by row, and the movies that nobody else rated.

    In a mode the movies that they rated are recomputed without them. Draws of movies stay, and so does a neighbourhood. Dates
    that may be theirs are left out: that of the latest rating, and those at which stretches of a movie's ratings begin and end.

    Raises:
        UsageError: fewer than two users, or movies, with ratings would be left.
    """
    old = _ratings(model)
    gone = np.isin(old.user, users)
    left = old.select(~gone)
    rated, still = np.unique(old.movie[gone]), np.unique(left.movie)
    if min(len(np.unique(left.user)), len(still)) < 2:
        raise UsageError("--user: fewer than two users or movies with ratings would be left; remove the file instead")
    keep_users = np.setdiff1d(np.arange(len(model.users)), users)
    keep_movies = np.setdiff1d(np.arange(len(model.movies)), np.setdiff1d(rated, still))
    left = left.of(keep_users, keep_movies)
    seen = as_seen(left)
    touched = torch.from_numpy(np.searchsorted(keep_movies, np.intersect1d(rated, still)))

    def without(part: Any, settings: dict[str, Any], count: int) -> Any:
        """A part that knows so many movies."""
        index = torch.from_numpy(keep_movies[keep_movies < count])
        part = undated(kept(part, torch.from_numpy(keep_users), index))
        if not isinstance(part, Laplace):
            return part
        nobody = touched[:0]
        return resettled(part, seen, _observations(left, part, settings, len(index)), nobody, touched)

    p = model.posterior
    if isinstance(p, Blend):
        of = model.settings["parts"]
        parts = [without(part, of[str(number)], p.movies[number]) for number, part in enumerate(p.parts)]
        posterior: Any = p._replace(parts=tuple(parts), movies=tuple(int((keep_movies < count).sum()) for count in p.movies))
    else:
        posterior = without(p, model.settings, len(model.movies))
    modes = [isinstance(part, Laplace) for part in (p.parts if isinstance(p, Blend) else (p,))]
    return Forgotten(
        _model(model, posterior, left, seen, None),  # the latest rating may have been theirs
        forgotten_users=len(set(users)),
        forgotten_ratings=int(gone.sum()),
        forgotten_movies=len(model.movies) - len(keep_movies),
        recomputed_movies=len(touched) if any(modes) else 0,
        rated_movies_left=0 if all(modes) else len(touched),
    )


def _check_kind(model: Model) -> None:
    if isinstance(model.posterior, Blend):
        raise UsageError("the model is a blend: update its parts, and blend them again with pmf blend --weights")
    if model.settings["time"] != "none":
        raise UsageError(f"the model has effects of time (--time {model.settings['time']}): train it again on all ratings")
    if model.data.get("features"):
        raise UsageError("the model has features of users or movies: train it again on all ratings")


def _check_scale(model: Model, ratings: Ratings) -> None:
    (lo, hi), p = model.scale, model.posterior
    t = model.scale.to_unit(torch.from_numpy(ratings.stars).double()).float()
    grid = p.grid if isinstance(p, Draws) else None
    right = (t >= 0) & (t <= 1) if grid is None else torch.isin(t, grid)
    if bool(right.all()):
        return
    first = int(torch.nonzero(~right)[0])
    user, movie = ratings.users.ids[ratings.user[first]], ratings.movies.ids[ratings.movie[first]]
    known = f"{lo:g} to {hi:g}" if grid is None else ", ".join(f"{step:g}" for step in model.scale.to_stars(grid).tolist())
    raise DataError(
        f"{ratings.name}: rating {ratings.stars[first]:g} of movie '{short(movie)}' by user '{short(user)}' is not on the "
        f"model's scale, {known}; correct it, or train again on all ratings"
    )


def _joined(known: Vocabulary, others: Vocabulary) -> tuple[Vocabulary, Array]:
    """The ids of both, those that are known first, and the rows of the others, (others,)."""
    row, is_known = known.rows(others.ids)
    row[~is_known] = len(known) + np.arange(int((~is_known).sum()))
    new = (name for name, there in zip(others.ids, is_known, strict=True) if not there)
    return Vocabulary((*known.ids, *new)), row


def _ratings(model: Model) -> Ratings:
    """What the model has seen."""
    seen = model.seen
    return Ratings(
        user=seen.users().int().numpy(),
        movie=seen.movie.numpy(),
        stars=seen.stars.numpy(),
        time=None,
        users=model.users,
        movies=model.movies,
        titles=model.titles,
        scale=model.scale,
        name=str(model.data["name"]),
    )


def _observations(ratings: Ratings, mode: Laplace, settings: dict[str, Any], n_movies: int | None = None) -> Observations:
    """The ratings as a mode was fitted to them, with its offset and what its users have in common.

    Args:
        n_movies: how many movies, the first ones, it knows; None for all.
    """
    user, movie, t = ratings.tensors()
    pattern = Pattern.of(user, movie, (len(ratings.users), len(ratings.movies) if n_movies is None else n_movies))
    powers: dict[str, Any] = {name: float(settings[name]) for name in ("user_power", "movie_power", "rater_power")}
    typical = None if mode.common is None else mode.common.typical
    found = observe(pattern, t, **powers, with_offset=False, link=mode.head.link, typical=typical)
    return found._replace(offset=mode.head.offset)


def _model(model: Model, posterior: Any, ratings: Ratings, seen: Seen, latest: int | None) -> Model:
    changed = {
        "sha256": _sorted(ratings).digest(),
        "ratings": ratings.n,
        "users": len(ratings.users),
        "movies": len(ratings.movies),
        "latest": latest,
        "changes": int(model.data.get("changes", 0)) + 1,  # since it was trained, whose scores stand in the metrics
    }
    return replace(
        model,
        posterior=posterior,
        users=ratings.users,
        movies=ratings.movies,
        titles=ratings.titles,
        seen=seen,
        data=model.data | changed,
    )


def _sorted(ratings: Ratings) -> Ratings:
    """With the ids in the order in which a file of these ratings would be read."""
    order_u, order_m = Vocabulary.order(ratings.users.ids), Vocabulary.order(ratings.movies.ids)
    user, movie = np.argsort(order_u)[ratings.user].astype(np.int32), np.argsort(order_m)[ratings.movie].astype(np.int32)
    order = np.lexsort((movie, user))
    return replace(
        ratings,
        user=user[order],
        movie=movie[order],
        stars=ratings.stars[order],
        users=Vocabulary(tuple(ratings.users.ids[row] for row in order_u)),
        movies=Vocabulary(tuple(ratings.movies.ids[row] for row in order_m)),
    )
