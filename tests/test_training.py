import gc
import os
import platform
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from made import ratings_of

from pmfcli import evaluation, fitting
from pmfcli.artifact import dumps, loads
from pmfcli.config import Settings
from pmfcli.core.metrics import scores
from pmfcli.core.predict import means_of_pairs
from pmfcli.data.ratings import Ratings
from pmfcli.data.split import fold_numbers, random_mask
from pmfcli.errors import DataError, UsageError
from pmfcli.evaluation import cross_score, score_model
from pmfcli.fitting import PACES, Report
from pmfcli.processes import side_by_side
from pmfcli.reports import report
from pmfcli.steps import Steps, run
from pmfcli.training import choose_device, held_out, train


def reports(ratings: Ratings, settings: Settings):
    steps = Steps(train(ratings, settings))
    return list(steps), steps.result


def test_a_holdout_finds_the_best_epoch_and_refits_on_everything(sample: Ratings) -> None:
    seen, model = reports(sample, Settings(epochs=1000, latent=8))
    fit, refit = ([r for r in seen if r.phase == phase] for phase in ("fit", "refit"))
    looked = {r.step + 1: r.holdout_rmse for r in fit if r.holdout_rmse is not None}
    best = min(looked, key=looked.get)
    assert model.metrics["epochs"] == best == len(refit)
    assert model.metrics["holdout_rmse"] == looked[best]
    assert len(fit) <= best + PACES["adam"].patience
    assert model.metrics["holdout_rmse"] < model.metrics["holdout_baselines"]["bias"]["rmse"]
    alone = run(train(sample, Settings(epochs=best, latent=8, holdout=0.0)))
    assert torch.equal(alone.posterior.factors.U, model.posterior.factors.U)
    assert torch.equal(alone.posterior.factors.V, model.posterior.factors.V)
    exactly = run(train(sample, Settings(epochs=best, latent=8, holdout=0.0, early_stop=False)))
    assert torch.equal(exactly.posterior.factors.V, model.posterior.factors.V), "nothing but the users settles"
    assert not torch.equal(exactly.posterior.factors.U, model.posterior.factors.U)


def test_where_the_test_is_large_two_clearly_worse_looks_are_enough(sample: Ratings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(epochs=1000, latent=8, block_ratings=20_000, holdout=0.2, refit=False)
    long, _ = reports(sample, settings)
    monkeypatch.setattr(fitting, "SURE", 1000)
    short, _ = reports(sample, settings)
    errors, fewer = ([report.holdout_rmse for report in of if report.holdout_rmse is not None] for of in (long, short))
    assert fewer == errors[: len(fewer)]
    worse = [error > 1.001 * min(errors[: at + 1]) for at, error in enumerate(errors)]
    assert len(fewer) == next(at for at in range(1, len(worse)) if worse[at - 1] and worse[at]) + 1 < len(errors)


def test_without_refit_the_held_out_ratings_stay_unseen(sample: Ratings) -> None:
    model = run(train(sample, Settings(epochs=30, refit=False, latent=8)))
    with_refit = run(train(sample, Settings(epochs=30, latent=8)))
    assert model.metrics["holdout_rmse"] == with_refit.metrics["holdout_rmse"]
    assert not torch.equal(model.posterior.factors.V, with_refit.posterior.factors.V)


@pytest.mark.parametrize("method", ["map", "bayes"])
def test_who_and_what_held_out_ratings_alone_are_of_is_not_known(sample: Ratings, method: str) -> None:
    few = sample.select(np.arange(sample.n) % 40 == 0).dense()[0]
    found = run(train(few, Settings(method=method, latent=2, epochs=10, holdout=0.3, refit=False)))
    rest = few.select(~random_mask(few.n, 0.3, 0)).dense()[0]
    assert len(rest.users) < len(few.users)
    assert len(rest.movies) < len(few.movies)
    assert (found.users, found.movies, found.titles) == (rest.users, rest.movies, rest.titles)
    assert (found.data["sha256"], found.seen.start[-1]) == (rest.digest(), rest.n)
    assert bool((found.movie_counts > 0).all())
    loads(dumps(found), "x")


def test_a_fold_that_no_model_can_be_fitted_to_is_refused() -> None:
    two = ratings_of([0, 1], [0, 1], [1, 5])
    with pytest.raises(DataError, match=r"only 1 user in 1 rating\(s\)"):
        list(cross_score(two, Settings(), np.array([0, -1])))


def test_people_are_those_of_the_data_in_every_fold(sample: Ratings) -> None:
    """Whomever a fold's model does not know: of user 0 all ratings are held out."""
    few = sample.select((sample.user < 30) & (sample.movie < 60)).dense()[0]
    part = np.where(few.user == 0, 0, np.where(few.movie % 7 == 0, few.user % 2, -1)).astype(np.int8)
    for number, test in enumerate(cross_score(few, Settings(epochs=3, latent=2, holdout=0.0), part, 5)):
        liked = few.user[(part == number) & (few.stars >= 4)]
        assert len(test.ranked.user)
        assert set(test.ranked.user.int().tolist()) <= set(liked.tolist())
        assert test.scored.user.tolist() == few.user[part == number].tolist()


def test_a_fit_stops_when_the_loss_no_longer_moves(sample: Ratings) -> None:
    settings = {"hierarchical": "none", "latent": 2, "holdout": 0.0, "epochs": 3000}
    seen, _ = reports(sample, Settings(**settings))
    assert 50 < len(seen) < 3000
    losses = [r.loss for r in seen[-20:]]
    assert max(losses) - min(losses) <= 1e-5 * abs(losses[-1])
    assert isinstance(seen[0], Report)


def test_a_scale_that_is_not_stars_changes_only_the_units(sample: Ratings) -> None:
    """The same ratings on -10 .. 10 give the same model, in other units."""
    other = Ratings(**{**vars(sample), "stars": (sample.stars - 0.5) / 4.5 * 20 - 10, "scale": type(sample.scale)(-10.0, 10.0)})
    settings = Settings(epochs=20, holdout=0.0, latent=4)
    a, b = run(train(sample, settings)), run(train(other, settings))
    assert b.metrics["train_rmse"] / 20 == pytest.approx(a.metrics["train_rmse"] / 4.5, rel=1e-3)


def test_held_out_ratings_never_inform_training(sample: Ratings) -> None:
    """Other stars for the held-out ratings inside ``train``: the same factors, another held-out error."""
    settings = Settings(epochs=1, refit=False, latent=4)
    held = random_mask(sample.n, settings.holdout, settings.seed)
    changed = replace(sample, stars=np.where(held, np.float32(0.5), sample.stars))
    a, b = run(train(sample, settings)), run(train(changed, settings))
    assert torch.equal(a.posterior.factors.U, b.posterior.factors.U)
    assert torch.equal(a.posterior.factors.V, b.posterior.factors.V)
    assert a.metrics["holdout_rmse"] != b.metrics["holdout_rmse"]
    assert len(a.seen.stars) == (~held).sum()


def test_held_out_pairs_never_inform_training(sample: Ratings) -> None:
    """Not even by which pairs they are: without them altogether, the same model."""
    settings = Settings(epochs=1, refit=False, latent=4)
    held = random_mask(sample.n, settings.holdout, settings.seed)
    a = run(train(sample, settings))
    b = run(train(sample.select(~held), Settings(epochs=1, holdout=0.0, latent=4)))
    assert torch.equal(a.posterior.factors.U, b.posterior.factors.U)
    assert a.seen.of(3)[0].tolist() == b.seen.of(3)[0].tolist()


def test_ratings_at_one_end_of_the_scale_have_a_finite_mean() -> None:
    few = ratings_of([0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 5]).select(np.array([True, True, True, False]))
    model = run(train(few, Settings(holdout=0.0)))
    assert abs(model.posterior.factors.offset) < 5


def test_an_unseen_user_is_better_an_average_user_than_none(sample: Ratings) -> None:
    """All ratings of every tenth user held out: the average user against a user of zeros."""
    held = sample.user % 10 == 0
    model = run(train(sample.select(~held), Settings(latent=8, epochs=100, holdout=0.0)))
    pairs, stars = held_out(sample, held)
    assert not bool(pairs.user_known.any())
    f = model.posterior.factors
    zeros = f._replace(U=f.U - f.U.mean(0), b=f.b - f.b.mean())
    found, other = (scores(model.scale.to_stars(means_of_pairs(g, pairs)), stars).rmse for g in (f, zeros))
    assert found < other


def test_a_side_with_nothing_left_to_learn_from_is_unknown() -> None:
    ratings = ratings_of([0, 0, 1], [0, 1, 0], [1, 2, 3])
    pairs, _ = held_out(ratings, np.array([False, True, True]))
    assert pairs.user_known.tolist() == [True, False]
    assert pairs.movie_known.tolist() == [False, True]


def test_parts_are_held_out_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of each at once would be as much memory as ratings times folds."""
    monkeypatch.setattr(evaluation, "side_by_side", lambda _, calls, workers: (call[2].sum() for call in calls))
    n = 10_000
    ratings = ratings_of(list(range(n)), [0, 1] * (n // 2), [1, 2] * (n // 2))
    numbers = fold_numbers(n, 1000, 0)
    tracemalloc.start()
    try:
        assert list(cross_score(ratings, Settings(threads=2), numbers)) == [10] * 1000
        assert tracemalloc.get_traced_memory()[1] < 100 * n
    finally:
        tracemalloc.stop()
    for part in (numbers * 0, numbers * 0 - 1, numbers * 2):
        with pytest.raises(DataError, match="10000 ratings are too few for this split"):
            next(cross_score(ratings, Settings(threads=2), part))


def test_calls_side_by_side_are_asked_for_as_they_are_made() -> None:
    asked: list[int] = []
    calls = ((asked.append(number) or -number,) for number in range(20))
    found = side_by_side(abs, calls, 2)
    assert (next(found), len(asked)) == (0, 4)
    assert list(found) == list(range(1, 20))


def test_what_a_split_leaves_to_train_on_is_not_called_the_whole() -> None:
    ratings = ratings_of([0, 0, 1], [0, 1, 0], [3, 3, 4])
    with pytest.raises(DataError, match="without the ratings to score: only 1 user in 2 rating"):
        list(cross_score(ratings, Settings(threads=1), np.array([-1, -1, 0])))


def test_evaluation_of_a_saved_model_is_that_of_the_split(sample: Ratings) -> None:
    mask = np.zeros(sample.n, dtype=bool)
    mask[::10] = True
    settings = Settings(epochs=100, latent=4)
    ((split, _),) = cross_score(sample, settings, mask.astype(int) - 1)
    model = run(train(sample.select(~mask), settings))
    scored = score_model(model, sample.select(mask))
    for a, b in zip(split, scored, strict=True):
        assert torch.equal(a, b)
    found = report([split])
    assert (found["n"], found["n_cold"], found["n_trained_on"]) == (mask.sum(), 0, 0)
    assert found["rmse"] < found["baselines"]["bias"]["rmse"] < found["baselines"]["mean"]["rmse"]
    for groups in (found["by_user_ratings"], found["by_movie_ratings"]):
        assert sum(group["n"] for group in groups) == found["n"]
        total = sum(group["n"] * group["rmse"] ** 2 for group in groups)
        assert (total / found["n"]) ** 0.5 == pytest.approx(found["rmse"])
    assert report([score_model(model, sample.select(~mask))])["n_trained_on"] == (~mask).sum()


def test_small_data_is_not_held_out() -> None:
    few = ratings_of([0, 1, 1], [0, 0, 1], [1, 2, 3])
    model = run(train(few, Settings()))
    assert "holdout_rmse" not in model.metrics
    assert torch.equal(model.posterior.factors.U, run(train(few, Settings(holdout=0.0))).posterior.factors.U)
    with pytest.raises(UsageError, match="--device cpu"):
        run(train(few, Settings(device="cuda")))


def test_a_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a GPU that this build cannot use
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UsageError, match=r"--device cuda: 2 processes on 1 GPU\(s\); start one for each, or use --device cpu"):
        choose_device("cuda")


@pytest.mark.parametrize(
    "settings", [{}, {"hierarchical": "none"}, {"method": "bayes", "epochs": 100}], ids=["map", "none", "bayes"]
)
def test_intervals_hold_on_ratings_not_seen(sample, settings: dict) -> None:
    test = random_mask(sample.n, 0.1, 5)
    model = run(train(sample.select(~test), Settings(**settings)))
    covered = report([score_model(model, sample.select(test))])["coverage"]
    if model.settings["likelihood"] == "ordinal":
        covered.pop("0.5")  # of films rated so alike that one step of the scale holds more
    assert covered == {level: pytest.approx(float(level), abs=0.06) for level in covered}


def test_at_size_least_squares_go_on_from_where_they_were(sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sweeps more come to where as many from the start do."""
    settings = Settings(solver="als", latent=4)
    anew = run(train(sample, settings))
    monkeypatch.setattr("pmfcli.training.SURE", 1000)
    seen, again = reports(sample, settings)
    assert [report.step for report in seen if report.phase == "refit"] == [0, 1]
    assert again.metrics["epochs"] == anew.metrics["epochs"] + 2
    assert again.metrics["loss"] <= anew.metrics["loss"] + 1e-3 * abs(anew.metrics["loss"])
    assert again.metrics["holdout_rmse"] == anew.metrics["holdout_rmse"]
    assert again.metrics["train_rmse"] == pytest.approx(anew.metrics["train_rmse"], abs=2e-3)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ, reason="only glibc is told")
def test_freed_memory_is_not_fetched_anew() -> None:
    program = """if True:
        import resource, torch
        from concurrent.futures import ThreadPoolExecutor
        from pmfcli import memory
        torch.set_num_threads(1)
        {}
        def grow():
            grown = torch.ones(500_000)
            for _ in range(22):
                grown = torch.cat([grown, grown[:250_000]])
        def pages():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            with ThreadPoolExecutor(1) as pool:
                pool.submit(grow).result()
            grow()
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(min(pages() for _ in range(5)))
    """

    def pages(first: str) -> int:
        ran = subprocess.run([sys.executable, "-c", program.format(first)], capture_output=True, text=True, check=True)
        return int(ran.stdout)

    assert pages("memory.keep()") < 100 < pages("")


@pytest.mark.parametrize("settings", [{}, {"solver": "als"}, {"solver": "als", "priors": "em"}, {"method": "bayes"}], ids=str)
def test_no_tensor_waits_for_the_garbage_collector(sample: Ratings, settings: dict) -> None:
    """The command line runs it rarely (``__main__``): what training no longer needs has to go by itself."""
    gc.collect()
    gc.disable()
    try:
        run(train(sample, Settings(epochs=4, **settings)))
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [found for found in gc.garbage if isinstance(found, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
