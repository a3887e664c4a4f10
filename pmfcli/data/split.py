"""Which ratings are held out: random, the last of each user, the latest in time, k folds."""

import numpy as np

from pmfcli.data.ratings import Array, Ratings
from pmfcli.errors import DataError


def random_mask(n: int, fraction: float, seed: int) -> Array:
    """Hold out ``round(fraction * n)`` of n ratings at random: (n,) bool."""
    mask, held = np.zeros(n, dtype=bool), round(fraction * n)
    if held:
        mask[np.random.default_rng(seed).permutation(n)[:held]] = True
    return mask


def last_mask(ratings: Ratings, per_user: int) -> Array:
    """Hold out each user's last ``per_user`` ratings by time, but never all ratings of a user: (n,) bool.

    Raises:
        DataError: the data has no times.
    """
    order = np.lexsort((_time(ratings), ratings.user))
    user = ratings.user[order]
    ends = np.searchsorted(user, user, side="right")
    starts = np.searchsorted(user, user, side="left")
    place = np.arange(len(user))
    mask = np.zeros(ratings.n, dtype=bool)
    mask[order] = (place >= ends - per_user) & (place > starts)
    return mask


def time_mask(ratings: Ratings, fraction: float) -> Array:
    """Hold out the latest ``round(fraction * n)`` ratings: (n,) bool. Ties in time go by user and movie.

    Raises:
        DataError: the data has no times.
    """
    order = np.argsort(_time(ratings), kind="stable")
    mask = np.zeros(ratings.n, dtype=bool)
    mask[order[ratings.n - round(fraction * ratings.n) :]] = True
    return mask


def fold_numbers(n: int, folds: int, seed: int) -> Array:
    """The fold of each of n ratings, (n,) of 0 .. folds - 1, sizes equal to within one."""
    numbers = np.empty(n, dtype=np.int64)
    numbers[np.random.default_rng(seed).permutation(n)] = np.arange(n) % folds
    return numbers


def _time(ratings: Ratings) -> Array:
    if ratings.time is None:
        raise DataError(f"{ratings.name}: no timestamps to split by; use --split random, or name their column with --time-col")
    return ratings.time
