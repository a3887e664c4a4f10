"""What a training run will take, before it begins: parameters, bytes of the model file, peak memory, seconds.

The file is counted: 4 bytes a number of a mode and 2 of a draw, 2 to 8 bytes a rating that it has seen, ids and titles as JSON.

The memory is what the process has when the ratings are read, and a part for each thing that training then holds: what torch
itself takes; bytes a rating (patterns from both sides, weights, values on the way, scores in double precision); copies of all
parameters (gradients, moments, the best so far); square matrices of a block of rows on each thread; draws, held and stacked.
The constants are fitted to peaks of whole runs on 80,000 to 25 million ratings. A GPU's own memory is not told apart.

The seconds are measured: a few epochs on a smaller copy of the ratings, with as many ratings a user and a movie, times the
ratings and the epochs that are expected. A cache holds more of the small copy than of the whole: epochs of 0.9 to 25 million
ratings showed how much that matters. Features are left out of all this.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pmfcli.config import Settings
from pmfcli.core import drift
from pmfcli.core.chains import BUFFER, BURN_IN, FITTED, MOST, WARM_UP
from pmfcli.core.distinct import distinct, index_kind
from pmfcli.core.map import number_of_blocks
from pmfcli.core.noise import most_asked
from pmfcli.core.parallel import NUMBERS
from pmfcli.data.ratings import STEPS, Ratings, Vocabulary
from pmfcli.fitting import SURE
from pmfcli.steps import Steps
from pmfcli.training import LEAST_HELD, MORE, train

_WRAPPED = 8000  # bytes of a file: settings, and what holds it together
_RUNTIME, _RSS = 80e6, 350e6  # bytes: what torch takes when it computes; of a process that has read, where none says
_OF_A_MODE, _OF_A_TEST = 80, 20  # bytes a rating; more of them where some are held out
_OF_DRAWS = {"gaussian": (30, 50), "ordinal": (20, 90)}  # bytes a rating; and for every chain at a time
_COPIES, _IN_BLOCK, _SPREAD = 6, 3, 4  # of the parameters; of a block's square matrices; of all rows', where these are learned
_OF_A_STRETCH = 72  # bytes
_OF_NOISE = 88  # bytes for a number of the covariances that the noise of a mode is found from
_SWEEPS = 225  # of a sampler that stops by itself: 150 to 325 on most data
_USUAL = {  # epochs with a test, and then on all ratings
    "adam": (170, 140),
    "blocks": (70, 28),  # Adam by blocks, whose steps these are; where no difference is chance
    "sure blocks": (30, 15),
    "em": (35, 35),
    "few": (26, 26),  # ALS on few ratings, on more, and where the test is so large that no difference is chance
    "als": (14, 14),
    "sure": (8, MORE),
}
_LEAST_EPOCHS, _UNTESTED, _FEW = 2, 400, 500_000  # by blocks; by Adam without a test; ratings that ALS takes longer for
_PART, _WARM, _WIDE = 300_000, 5_000, 30  # ratings of the small copy, if rows are not wider; of one to warm up
_BLOCK = 30_000  # ratings of a block of it, at least
_BY_SIZE, _BY_SIZE_OF_SWEEPS = 1.08, 1.06  # powers of the ratings that an epoch's seconds grow by, and those of a sweep


class Length(NamedTuple):
    """How long a run is expected to be."""

    epochs: int  # or sweeps
    again: int  # on all ratings, after some were held out
    held: int  # ratings that are held out
    draws: int  # that are kept
    assumes: str  # in words


class Size(NamedTuple):
    """What is expected of a run."""

    parameters: int  # factors, biases and hierarchical weights; of one draw
    model_bytes: int
    peak_bytes: int


def length(ratings: Ratings, settings: Settings) -> Length:
    """The epochs that are given, or fewer where early stopping usually takes fewer."""
    s = settings
    held = round(s.holdout * ratings.n)
    held *= LEAST_HELD <= held < ratings.n
    again = held > 0 and s.refit
    if s.method == "bayes":
        sweeps = s.epochs or _SWEEPS
        burn_in = max(min(WARM_UP, int(BURN_IN * (s.epochs or MOST))), int(BURN_IN * sweeps))
        why = "as given" if s.epochs else "as convergence usually takes"
        return Length(sweeps, sweeps * again, held, min(s.keep, s.chains * (sweeps - burn_in)), f"{sweeps} sweeps, {why}")
    by_size = "sure" if held >= SURE else "few" if ratings.n < _FEW else "als"
    blocks = number_of_blocks(ratings.n, s.block_ratings)
    by_adam = "adam" if blocks == 1 else "sure blocks" if held >= SURE else "blocks"
    usual, best = _USUAL["em" if s.by_em else by_size if s.solver == "als" else by_adam]
    if s.solver == "adam":
        usual, best = (max(_LEAST_EPOCHS, -(-steps // blocks)) for steps in (usual if held else _UNTESTED, best))
    assert s.epochs is not None
    epochs = min(s.epochs, usual) if s.early_stop else s.epochs
    best = min(epochs, best) * again
    more = f", then {best} on all ratings" if again else ""
    why = "as given" if epochs == s.epochs else "as usual with early stopping"
    return Length(epochs, best, held, 1, f"{epochs} epochs{more}, {why}")


def size(ratings: Ratings, settings: Settings) -> Size:
    """The parameters of a model, the bytes of its file, and the peak memory of training; see above.

    Args:
        settings: as ``training.fitted_to`` gives them for these ratings.
    """
    s, n, expected = settings, ratings.n, length(ratings, settings)
    users, movies, d, threads = len(ratings.users), len(ratings.movies), s.latent + s.biases, torch.get_num_threads()
    bayes = s.method == "bayes"
    wide = d if bayes else s.latent
    parameters = (users + movies) * d + movies * wide * s.user_means + users * wide * s.movie_means
    kept = n - expected.held if expected.held and not s.refit else n
    names = json.dumps((ratings.users.ids, ratings.movies.ids, ratings.titles), ensure_ascii=False)
    different = len(distinct(torch.from_numpy(ratings.stars)))
    file = (index_kind(movies).itemsize + index_kind(different).itemsize) * kept + 8 * users + len(names.encode()) + _WRAPPED
    if bayes:
        ordinal, stretches = s.likelihood == "ordinal", _stretches(ratings, s.time)
        moving = stretches + users * (s.time in ("user", "both")) + movies * (s.time in ("movie", "both"))
        rows, of_W = (users + movies) * (d + 1) + users * s.habits * ordinal + moving, movies * d * s.user_means
        held_draw = 2 * rows + 4 * (2 * d * d + 3 * d + s.habits * STEPS * ordinal)
        a_draw = held_draw + 2 * of_W
        file += expected.draws * a_draw + 24 * stretches + 4 * movies * s.user_means
        fixed, each = _OF_DRAWS["ordinal" if ordinal else "gaussian"]
        a_rating = fixed + each * min(s.chains, threads)
        held = min(BUFFER * s.keep, expected.epochs * s.chains)
        of_the_kind = held * held_draw + 3 * expected.draws * a_draw + _OF_A_STRETCH * stretches
    else:
        sums = (
            users * s.latent * s.user_means + movies * s.latent * s.movie_means
        )  # with what is hierarchical, beside the rows' own
        file += 4 * (parameters + sums + 2 * d * d)
        a_rating, of_the_kind = _OF_A_MODE, 4 * _SPREAD * (users + movies) * d * d * s.by_em
    training = _RUNTIME + (a_rating + _OF_A_TEST * bool(expected.held)) * n + of_the_kind
    training += 4 * _COPIES * parameters * s.chains + 4 * _IN_BLOCK * min(threads * NUMBERS, max(users, movies) * d * d)
    if not bayes:
        asked = min(most_asked(d * d), expected.held or n)
        training = max(training, _RUNTIME + _OF_NOISE * asked * d * d + 8 * parameters)
    now, most = _memory()
    return Size(parameters, file, int(max(most, now + training)))


def seconds(ratings: Ratings, settings: Settings) -> float:
    """How long training will take on this machine, in seconds, from the ratings to the model; from a short measurement.

    Raises:
        TrainingError: it diverges at once.
    """
    expected, bayes = length(ratings, settings), settings.method == "bayes"
    few = 7 if bayes else 3 if settings.solver == "adam" else 2
    s = settings.model_copy(update={"epochs": min(few, settings.epochs or few)})
    _spent(_part(ratings, _WARM), s)  # the first time takes longer
    part = _part(ratings, max(_WARM, int(_PART * min(1, (_WIDE / s.latent) ** 2))))
    blocks = number_of_blocks(ratings.n, s.block_ratings)
    if s.solver == "adam" and blocks > 1:
        least = max(-(-part.n // blocks), _BLOCK)  # as many, that begin as they do, unless they were too small to measure
        s = s.model_copy(update={"block_ratings": least})
    steps, before, between, after, draws = _spent(part, s)
    larger = ratings.n / part.n
    slower = float(larger ** (_BY_SIZE_OF_SWEEPS if bayes else _BY_SIZE))
    epochs = expected.epochs * steps["fit"] + expected.again * steps.get("refit", steps["fit"])
    between *= larger if bayes else 1  # the noise of a mode is found from so many ratings, however many there are
    starts = 2 if expected.again else 1
    after *= expected.draws / draws * (min(larger, max(1, FITTED / part.n)) if bayes else larger)
    return epochs * slower + starts * before * larger + between + after


def _spent(ratings: Ratings, settings: Settings) -> tuple[dict[str, float], float, float, float, int]:
    """Seconds of a step of each phase, before the first, between phases, and after the last; how many draws were kept."""
    training = Steps(train(ratings, settings))
    times: dict[str, list[float]] = {}
    start = time.perf_counter()
    for report in training:
        times.setdefault(report.phase, []).append(time.perf_counter() - start)
    whole, draws = time.perf_counter() - start, training.result.metrics.get("draws", 1)
    steps = {phase: float(np.mean(np.diff(of))) for phase, of in times.items() if len(of) > 1}
    steps = {"fit": times["fit"][0]} | steps
    before = max(0.0, times["fit"][0] - steps["fit"])
    last = times.get("refit", times["fit"])
    between = max(0.0, last[0] - times["fit"][-1] - steps.get("refit", 0.0)) if "refit" in times else 0.0
    return steps, before, between, whole - last[-1], draws


def _part(ratings: Ratings, most: int) -> Ratings:
    """A smaller copy: some users, and movies taken together, so that each has about as many ratings as in the whole."""
    if ratings.n <= most:
        return replace(ratings, user_features=(), movie_features=())
    n_users, n_movies = (max(2, len(side) * most // ratings.n) for side in (ratings.users, ratings.movies))
    chosen = np.zeros(len(ratings.users), dtype=bool)
    chosen[np.random.default_rng(0).permutation(len(chosen))[:n_users]] = True
    some = ratings.select(chosen[ratings.user])
    pair, first = np.unique((chosen.cumsum() - 1)[some.user] * n_movies + some.movie % n_movies, return_index=True)
    user, movie = (row.astype(np.int32) for row in np.divmod(pair, n_movies))
    return Ratings(
        user=user,
        movie=movie,
        stars=some.stars[first],
        time=None if some.time is None else some.time[first],
        users=Vocabulary(tuple(map(str, range(n_users)))),
        movies=Vocabulary(tuple(map(str, range(n_movies)))),
        titles=(None,) * n_movies,
        scale=ratings.scale,
        name=ratings.name,
    )


def _stretches(ratings: Ratings, whose: str) -> int:
    """About how many stretches of time effects are of."""
    if whose == "none":
        return 0
    part = _part(ratings, _PART)
    assert part.time is not None
    user, movie, _ = part.tensors()
    groups = drift.groups(user, movie, torch.from_numpy(part.time), whose != "movie", whose != "user")
    return sum(len(group.row) for group in groups) * ratings.n // part.n


def _memory() -> tuple[float, float]:
    """Bytes of this process: now, and at most so far. Where the system does not say, what is usual."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return _RSS, 0.0
    said = dict(line.split(":", 1) for line in lines)
    return 1024.0 * int(said["VmRSS"].split()[0]), 1024.0 * int(said["VmHWM"].split()[0])
