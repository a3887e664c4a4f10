"""Ratings come and people go: what is computed again is where all ratings would have put it, what is left is left."""

import json
import math
import resource
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from made import copies, moody, ratings_of, seeded
from saved import contents

from pmfcli import artifact, updating
from pmfcli.answers import Asked, Detail, predict
from pmfcli.artifact import Model, dumps, loads
from pmfcli.blending import blend
from pmfcli.config import Settings
from pmfcli.core.approximation import Laplace, Ordinal
from pmfcli.core.changes import extended, redrawn, resettled
from pmfcli.core.fold_in import fold_in
from pmfcli.core.pairs import Seen
from pmfcli.core.posterior import Scales, effective, log_posterior, observe
from pmfcli.core.sparse import Pattern
from pmfcli.data.ratings import Block, Ratings, Scale, Vocabulary
from pmfcli.data.readers import read_ratings
from pmfcli.errors import DataError, OutputError, UsageError
from pmfcli.evaluation import score_model
from pmfcli.steps import run
from pmfcli.training import train
from pmfcli.updating import forget, update

DETAIL = Detail(0.9, stars=False)
STARS = Detail(0.9, stars=True)
MODES = {
    "adam": {"epochs": 60},
    "plain": {"epochs": 60, "biases": False, "hierarchical": "none"},
    "als-linear": {"solver": "als", "link": "linear", "hierarchical": "users", "epochs": 30},
    "em": {"priors": "em", "noise": "em", "epochs": 15},
}


def dense(ratings: Ratings) -> Ratings:
    """With the users and movies alone that have ratings, as if read from a file."""
    users, user = np.unique(ratings.user, return_inverse=True)
    movies, movie = np.unique(ratings.movie, return_inverse=True)
    return replace(
        ratings,
        user=user.astype(np.int32),
        movie=movie.astype(np.int32),
        users=Vocabulary(tuple(ratings.users.ids[row] for row in users)),
        movies=Vocabulary(tuple(ratings.movies.ids[row] for row in movies)),
        titles=tuple(ratings.titles[row] for row in movies),
    )


@pytest.fixture(scope="module")
def small(sample: Ratings) -> Ratings:
    few = dense(sample.select(sample.user < 150))
    return replace(few, users=Vocabulary(tuple(f"id-{row:03}" for row in range(150))))


@pytest.fixture(scope="module")
def parts(small: Ratings) -> tuple[Ratings, Ratings]:
    """Old ratings, and new ones: of some users all, of some a half; of three movies all."""
    rng = np.random.default_rng(5)
    late = (small.user % 10 == 3) | ((small.user % 10 == 6) & (rng.random(small.n) < 0.5)) | (small.movie % 80 == 7)
    return dense(small.select(~late)), dense(small.select(late))


def trained(ratings: Ratings, **settings: object) -> Model:
    return run(train(ratings, Settings(**({"holdout": 0.0, "latent": 4} | settings))))


@pytest.fixture(scope="module")
def modes(parts: tuple[Ratings, Ratings]) -> dict[str, Model]:
    return {name: trained(parts[0], **settings) for name, settings in MODES.items()}


@pytest.fixture(scope="module")
def draws(parts: tuple[Ratings, Ratings]) -> Model:
    return trained(parts[0], method="bayes", epochs=150)


def triples(model: Model) -> set[tuple[str, str, float]]:
    rows = zip(model.seen.users().tolist(), model.seen.movie.tolist(), model.seen.stars.tolist(), strict=True)
    return {(model.users.ids[u], model.movies.ids[m], r) for u, m, r in rows}


def triples_of(ratings: Ratings) -> set[tuple[str, str, float]]:
    rows = zip(ratings.user.tolist(), ratings.movie.tolist(), ratings.stars.tolist(), strict=True)
    return {(ratings.users.ids[u], ratings.movies.ids[m], r) for u, m, r in rows}


def slopes(model: Model) -> dict[str, torch.Tensor]:
    """The gradient of the log-posterior of all that the model has seen. Its parameters must add up to its factors."""
    p, s = model.posterior, model.settings
    pattern = Pattern.of(model.seen.users(), model.seen.movie, (len(model.users), len(model.movies)))
    powers = {name: s[name] for name in ("user_power", "movie_power", "rater_power")}
    o = observe(
        pattern,
        model.scale.to_unit(model.seen.stars),
        **powers,
        link=s["link"],
        typical=None if p.common is None else p.common.typical,
    )
    o = o._replace(offset=p.head.offset)
    if (W := p.parameters.W) is not None:  # of the crowd that it was trained beside, its common W is left
        share = o.crowd.share + W @ torch.linalg.solve(W.mT @ W, p.common.mean_w - o.crowd.share @ W)
        o = o._replace(crowd=o.crowd._replace(share=share))
    whole = effective(p.parameters, o)
    torch.testing.assert_close((whole.U, whole.V), (p.factors.U, p.factors.V), atol=1e-4, rtol=0)
    leaves = {name: part.clone().requires_grad_() for name, part in p.parameters._asdict().items() if part is not None}
    scales = Scales(*(s[name] for name in ("sigma_u", "sigma_v", "sigma_w", "sigma_x", "sigma_b")))
    log_posterior(p.parameters._replace(**leaves), o, scales).backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("name", MODES)
def test_a_new_user_gets_what_fold_in_gives_where_movies_are_held(modes: dict[str, Model], name: str) -> None:
    model = modes[name]
    movies, t = torch.tensor([2, 5, 30, 71]), torch.tensor([0.9, 0.1, 0.5, 1.0])
    visitor = fold_in(model.posterior, model.seen, movies, t, model.settings["user_power"])
    n = len(model.users)
    start = torch.cat([model.seen.start, model.seen.start[-1:] + 4])
    more = Seen(start, torch.cat([model.seen.movie, movies.int()]), torch.cat([model.seen.stars, model.scale.to_stars(t)]))
    powers = {key: model.settings[key] for key in ("user_power", "movie_power", "rater_power")}
    pattern = Pattern.of(more.users(), more.movie, (n + 1, len(model.movies)))
    o = observe(pattern, model.scale.to_unit(more.stars), **powers, link=model.settings["link"])
    o = o._replace(offset=model.posterior.head.offset)
    wide = extended(model.posterior, n + 1, len(model.movies))
    found = resettled(wide, more, o, torch.tensor([n]), torch.arange(0))
    row = torch.cat([found.factors.U[n], found.factors.b[n:]]) if found.factors.b is not None else found.factors.U[n]
    tolerance = 1e-2 if name == "em" else 1e-3  # in EM the movies are surer by these ratings
    torch.testing.assert_close(row, visitor.A[0, 0], atol=tolerance, rtol=0)
    torch.testing.assert_close(found.noise_u[n:], 1 / visitor.gamma[0], atol=0, rtol=tolerance)
    assert torch.equal(found.factors.V, model.posterior.factors.V)
    assert torch.equal(found.factors.U[:n], model.posterior.factors.U)


@pytest.mark.parametrize("name", MODES)
def test_rows_that_are_computed_are_at_the_mode_given_all(
    modes: dict[str, Model], parts: tuple[Ratings, Ratings], name: str
) -> None:
    old, new = modes[name], parts[1]
    found = update(old, new)
    model = found.model
    assert (found.new, found.changed, found.repeated) == (new.n, 0, 0)
    assert triples(model) == triples_of(parts[0]) | triples_of(new)
    assert model.users.ids[: len(old.users)] == old.users.ids
    assert model.movies.ids[: len(old.movies)] == old.movies.ids
    assert (found.new_users, found.new_movies) == (15, 3)
    touched = torch.tensor([model.users.row(name) for name in new.users.ids])
    left = torch.ones(len(old.users), dtype=torch.bool)
    left[touched[touched < len(left)]] = False
    assert found.recomputed_users == len(touched)
    assert torch.equal(model.posterior.factors.U[: len(left)][left], old.posterior.factors.U[left])
    if name == "em":  # is at no mode
        return
    t = model.scale.to_unit(model.seen.stars)
    for user in touched[:9].tolist():
        mine = slice(int(model.seen.start[user]), int(model.seen.start[user + 1]))
        visitor = fold_in(model.posterior, model.seen, model.seen.movie[mine].long(), t[mine], model.settings["user_power"])
        assert 1 / float(visitor.gamma) == pytest.approx(float(model.posterior.noise_u[user]), rel=0.01)
    slope = slopes(model)
    assert float(slope["Y"][touched].abs().max()) < 0.05  # of a curvature of hundreds
    by_movie = torch.ones(len(model.movies), dtype=torch.bool)
    by_movie[[model.movies.row(name) for name in new.movies.ids]] = False
    by_movie = by_movie[: len(old.movies)]
    assert torch.equal(model.posterior.factors.V[: len(old.movies)][by_movie], old.posterior.factors.V[by_movie])
    assert contents(loads(dumps(model), "x")) == contents(model)


def test_nothing_new_changes_nothing(modes: dict[str, Model], draws: Model, parts: tuple[Ratings, Ratings]) -> None:
    again = dense(parts[0].select(parts[0].user < 9))
    for model in (modes["adam"], draws):
        found = update(model, again)
        assert (found.new, found.changed, found.repeated, found.recomputed_users) == (0, 0, again.n, 0)
        assert dumps(found.model) == dumps(model)


def test_who_is_found_again_by_the_same_ratings_is_as_noisy_as_before(modes: dict[str, Model]) -> None:
    model = modes["adam"]
    powers = {key: model.settings[key] for key in ("user_power", "movie_power", "rater_power")}
    pattern = Pattern.of(model.seen.users(), model.seen.movie, (len(model.users), len(model.movies)))
    o = observe(pattern, model.scale.to_unit(model.seen.stars), **powers)._replace(offset=model.posterior.head.offset)
    found = resettled(model.posterior, model.seen, o, torch.arange(len(model.users)), torch.arange(0))
    torch.testing.assert_close(found.noise_u, model.posterior.noise_u, rtol=1e-3, atol=0)


def test_a_pair_rated_again_counts_once_and_as_it_is_now(modes: dict[str, Model]) -> None:
    old = modes["adam"]
    movies, stars = old.seen.of(4)
    for value in (0.5, 5.0):
        again = ratings_of([0], [0], [value])
        ids = Vocabulary((old.users.ids[4],)), Vocabulary((old.movies.ids[int(movies[3])],))
        found = update(old, replace(again, users=ids[0], movies=ids[1]))
        assert (found.new, found.changed, found.recomputed_users, found.recomputed_movies) == (0, 1, 1, 1)
        after = found.model.seen.of(4)
        assert torch.equal(after[0], movies)
        assert float(after[1][3]) == value
        assert torch.equal(after[1][:3], stars[:3])
        (was,), (now,) = (list(predict(model, [Asked(ids[0].ids[0], ids[1].ids[0])], DETAIL)) for model in (old, found.model))
        assert (now["prediction"] > was["prediction"]) == (value > float(stars[3]))
        assert old.seen.of(4)[1].tolist() == stars.tolist()


def planted(seed: int) -> tuple[Ratings, Ratings, Ratings]:
    """Of planted factors: old ratings, new ones (of a third of the people most), and those of these people that stay unseen."""
    g = seeded(seed)
    people, films = 150, 60
    truth = torch.randn(people, 2, generator=g) @ torch.randn(2, films, generator=g) + 0.3 * torch.randn(films, generator=g)
    stars = (3 + truth + 0.3 * torch.randn(people, films, generator=g)).mul(2).round().div(2).clamp(0.5, 5)
    kind = torch.rand(people, films, generator=g)
    has = kind < 0.5
    late = torch.arange(people)[:, None] % 3 == 0

    def pick(mask: torch.Tensor) -> Ratings:
        user, movie = mask.nonzero(as_tuple=True)
        whole = ratings_of(user.tolist(), movie.tolist(), stars[mask].tolist())
        return replace(whole, scale=Scale(0.5, 5.0))

    test = late & (kind >= 0.5) & (kind < 0.7)
    return pick(has & ~(late & (kind >= 0.05))), pick(has & late & (kind >= 0.05)), pick(test)


@pytest.mark.parametrize("settings", [{"epochs": 150}, {"method": "bayes", "epochs": 60}], ids=["mode", "draws"])
def test_an_update_is_nearly_as_good_as_training_again(settings: dict) -> None:
    old, new, test = planted(1)
    before = trained(old, **settings)
    user = torch.from_numpy(np.concatenate([old.user, new.user]))
    movie, stars = (np.concatenate([getattr(old, name), getattr(new, name)]) for name in ("movie", "stars"))
    order = np.lexsort((movie, user))
    whole = replace(old, user=user.numpy()[order], movie=movie[order], stars=stars[order])
    after = update(before, new).model
    was, now, best = (
        float((score.model - score.stars).square().mean().sqrt())
        for score in (score_model(model, test) for model in (before, after, trained(whole, **settings)))
    )
    assert now < was - 0.7 * (was - best)
    assert now > best - 0.05 * (was - best)


def test_draws_of_known_and_new_users_are_those_of_visitors(draws: Model, parts: tuple[Ratings, Ratings]) -> None:
    """Somebody new, and somebody who rated twice as much: against the fold-in of all of their ratings."""
    known = dense(parts[1].select(np.isin(parts[1].movie, [parts[1].movies.row(name) for name in parts[0].movies.ids])))
    found = update(draws, known)
    assert (found.new_movies, found.recomputed_movies) == (0, 0)
    model, p = found.model, found.model.posterior
    assert torch.equal(p.V, draws.posterior.V)
    for name in ("id-003", "id-006"):
        row = model.users.row(name)
        movies, stars = model.seen.of(row)
        visitor = fold_in(draws.posterior, draws.seen, movies, model.scale.to_unit(stars), model.settings["user_power"])
        spread = (visitor.A.var(0) + visitor.covariance.mean((0, 1)).diagonal()).sqrt()[0]
        away = (p.U[:, row].float().mean(0) - visitor.A[:, 0].mean(0)).abs() / spread
        assert float(away.max()) < 0.5  # of a hundred draws that hang together
        torch.testing.assert_close(p.U[:, row].float().std(0) / spread, torch.ones(len(spread)), atol=0.4, rtol=0)
        assert float((p.ordinal.share[:, row].float().mean(0) - visitor.share[:, 0].mean(0)).abs().max()) < 0.2
    torch.testing.assert_close(p.mean_u, p.U.float().mean(1))
    left = [row for row, name in enumerate(draws.users.ids) if name not in known.users.ids]
    assert torch.equal(p.U[:, left], draws.posterior.U[:, left])
    assert contents(loads(dumps(model), "x")) == contents(model)


DRAWS, DOF, RATERS, U = 4000, 3.0, 5, 0.8


@pytest.mark.parametrize("kind", ["gaussian", "tails", "steps"])
def test_a_new_movie_on_every_draw_has_its_posterior(kind: str) -> None:
    """People of whom all is certain rate a movie that is new: against its posterior on a grid, scales integrated out.

    Its prior is as wide as the two movies that are known differ from the prior's mean, 0, and the prior as a third.
    """
    p = copies(DRAWS, DOF if kind == "tails" else None)
    p = p._replace(weights=None, Lambda_u=1e6 * p.Lambda_u, mu_u=p.mu_u + U, U=(p.U + U).expand(-1, RATERS, 1))
    p = p._replace(gamma_u=p.gamma_u.expand(-1, RATERS))
    t, cuts, share = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0]), torch.tensor([[0.3, 0.7], [0.1, 0.9]]), torch.tensor([0.75, 0.25])
    alpha = float(p.alpha[0] * p.gamma_u[0, 0])
    Lambda = 3 / (float(p.V[0].float().square().sum()) + 1 / float(p.Lambda_v[0]))
    if kind == "tails":
        apart = torch.tensor([1e6, DOF])
        p = p._replace(prior_dof=apart.expand(DRAWS, 2), noise_dof=apart.expand(DRAWS, 2))
        alpha = float(p.alpha[0])  # the scales of people's noise are drawn too, and are 1
    elif kind == "steps":
        turned = torch.tensor([[0, 1], [1, 0]]).repeat(DRAWS // 2, 1)  # which habit is the first means nothing
        shares = share[turned][:, None].half().expand(-1, RATERS, 2)
        p = p._replace(ordinal=Ordinal(shares, cuts[turned], 1e6 * share[turned], torch.tensor([0.0, 0.5, 1.0])))
    seen = Seen(torch.arange(RATERS + 1), torch.full((RATERS,), 2, dtype=torch.int32), t)
    found = redrawn(extended(p, RATERS, 3), seen, t, torch.arange(RATERS), (RATERS, 2), 0.5)
    assert torch.equal(found.V[:, :2], p.V)
    v = torch.linspace(-20, 20, 8001).double()
    errors = (4 * t.double()[:, None] - 2 - U * v).square().sum(0)
    log_p = -0.5 * Lambda * v.square() - 0.5 * alpha * errors
    if kind == "tails":
        log_p = -(DOF + 1) / 2 * (DOF + Lambda * v.square()).log() - (DOF + RATERS) / 2 * (DOF + alpha * errors).log()
    elif kind == "steps":
        below = torch.special.ndtr((4 * cuts.double()[:, :, None] - 2 - U * v) * math.sqrt(alpha))
        high, middle = (share.double()[:, None] * torch.stack([1 - below[:, 1], below[:, 1] - below[:, 0]])).sum(1)
        log_p = -0.5 * Lambda * v.square() + 4 * high.log() + middle.log()
    mass = torch.softmax(log_p, 0)
    mean = float((mass * v).sum())
    sd = math.sqrt(float((mass * (v - mean) ** 2).sum()))
    drawn = found.V[:, 2, 0].double()
    assert float(drawn.mean()) == pytest.approx(mean, abs=4 * sd / math.sqrt(DRAWS))
    assert float(drawn.std()) == pytest.approx(sd, rel=0.06)


def test_new_movies_of_draws_are_known_by_their_ratings(draws: Model, parts: tuple[Ratings, Ratings]) -> None:
    found = update(draws, parts[1])
    model = found.model
    assert (found.new_movies, found.recomputed_movies) == (3, 3)
    assert found.rated_movies_left == len(parts[1].movies) - 3
    assert contents(loads(dumps(model), "x")) == contents(model)
    for name in model.movies.ids[-3:]:
        rows = [(user, stars) for user, movie, stars in triples(model) if movie == name]
        said = [row["prediction"] for row in predict(model, [Asked(user, name) for user, _ in rows], DETAIL)]
        stars = [value for _, value in rows]
        usual = [row["prediction"] for row in predict(draws, [Asked(user, name) for user, _ in rows], DETAIL)]
        assert np.mean(np.square(np.subtract(said, stars))) < 0.9 * np.mean(np.square(np.subtract(usual, stars)))
        assert np.corrcoef(said, stars)[0, 1] > 0.3


def answers(model: Model, users: list[str], movies: list[str], time: int | None = None) -> list[dict]:
    return list(predict(model, [Asked(user, movie, time) for user in users for movie in movies], DETAIL))


def check_forgotten(old: Model, ratings: Ratings, names: list[str], time: int | None = None) -> Model:
    """Ids, pairs and counts are those of the ratings without them; answers of others stay, but for what was computed again."""
    rows = [old.users.row(name) for name in names]
    found = forget(old, rows)
    model = loads(dumps(found.model), "x")
    assert contents(model) == contents(found.model)
    left = dense(ratings.select(~np.isin(ratings.user, rows)))
    assert (model.users, model.movies, model.titles) == (left.users, left.movies, left.titles)
    assert triples(model) == triples_of(left)
    assert model.data["sha256"] == left.digest()
    assert (model.data["ratings"], model.data["users"], model.data["movies"]) == (left.n, len(left.users), len(left.movies))
    assert found.forgotten_ratings == ratings.n - left.n
    assert found.forgotten_movies == len(old.movies) - len(left.movies)
    theirs = {old.movies.ids[movie] for row in rows for movie in old.seen.of(row)[0].tolist()}
    others = [name for name in left.movies.ids if name not in theirs or not found.recomputed_movies]
    assert others
    users = list(left.users.ids[:3] + left.users.ids[-3:])
    before, after = (answers(one, users, others[:20], time) for one in (old, model))
    for was, now in zip(before, after, strict=True):
        if found.recomputed_movies:  # how sure a mode is of people depends on where the movies that they rated are
            assert (now["rating"], now["prediction"]) == (was["rating"], pytest.approx(was["prediction"], abs=1e-5))
            assert now["sd"] == pytest.approx(was["sd"], rel=2e-3)
        else:
            assert now == was
    assert model.data["latest"] is None
    content = dumps(model)
    assert all(name.encode() in dumps(old) and name.encode() not in content for name in names)
    return model


@pytest.fixture(scope="module")
def distinct(parts: tuple[Ratings, Ratings]) -> Ratings:
    """With people of distinctive names, the first of whom alone rated some movie."""
    ratings = parts[0]
    alone = (ratings.movie % 50 == 3) & (ratings.user != 5)
    ratings = dense(ratings.select(~alone | (ratings.movie % 50 != 3)))
    ids = tuple(f"{name}-of-Ürümqi" for name in ratings.users.ids)
    return replace(ratings, users=Vocabulary(ids))


def test_a_step_that_only_the_forgotten_gave_stays_one(small: Ratings) -> None:
    stars = np.maximum(small.stars, np.sort(np.unique(small.stars))[1])
    stars[np.flatnonzero(small.user == 5)[0]] = small.scale.lo
    old = run(train(replace(small, stars=stars), Settings(method="bayes", epochs=10, latent=2)))
    model = loads(dumps(forget(old, [5]).model), "x")
    assert small.scale.lo not in model.seen.stars
    assert model.steps == old.steps
    for row in predict(model, [Asked(user, movie) for user in model.users.ids[:9] for movie in model.movies.ids[:9]], STARS):
        assert sum(row[f"p_{step:g}"] for step in model.steps) == pytest.approx(1, abs=1e-5)


def test_a_mode_forgets(distinct: Ratings) -> None:
    old = trained(distinct, epochs=60)
    gone = [old.users.ids[5], old.users.ids[0], old.users.ids[-1]]
    model = check_forgotten(old, distinct, gone)
    assert len(model.movies) < len(old.movies)
    theirs = {old.movies.ids[movie] for name in gone for movie in old.seen.of(old.users.row(name))[0].tolist()}
    touched = [row for row, name in enumerate(model.movies.ids) if name in theirs]
    slope = slopes(model)
    assert float(slope["Z"][touched].abs().max()) < 0.05
    assert float(slope["c"][touched].abs().max()) < 0.05
    assert isinstance(model.posterior, Laplace)
    assert len(model.posterior.parameters.X) == len(model.users)
    again = forget(old, [5, 5, 0, len(old.users) - 1])
    assert again.forgotten_users == 3
    assert dumps(again.model) == dumps(model)


def test_draws_with_effects_of_time_forget() -> None:
    ratings, _, _ = moody()
    ratings = replace(ratings, users=Vocabulary(tuple(f"somebody-{row:03}" for row in range(len(ratings.users)))))
    old = trained(ratings, method="bayes", latent=2, epochs=15, time="both")
    time = int(ratings.time[ratings.user == 4][0])
    model = check_forgotten(old, ratings, ["somebody-003", "somebody-000"], time)
    own, before = model.posterior.drift.stretches, old.posterior.drift.stretches
    assert own.length[~own.of_movies].sum() < before.length[~before.of_movies].sum()
    assert torch.equal(own.length[own.of_movies], before.length[before.of_movies])
    assert torch.equal(own.start, own.without_dates().start)


def test_a_blend_forgets(distinct: Ratings, small: Ratings) -> None:
    held = replace(small, users=Vocabulary(tuple(f"{name}-of-Ürümqi" for name in small.users.ids)))
    models = [trained(distinct, epochs=40), trained(distinct, method="bayes", epochs=20, latent=2)]
    old = blend(models, ["a", "b"], held, True).model
    found = forget(old, [5])
    assert found.recomputed_movies == found.rated_movies_left > 0
    check_forgotten(old, distinct, [old.users.ids[5], old.users.ids[9]])
    alone = forget(models[0], [5]).model
    assert torch.equal(found.model.posterior.parts[0].factors.V, alone.posterior.factors.V)
    with pytest.raises(UsageError, match="the model is a blend: update its parts, and blend them again"):
        update(old, held)


def test_what_cannot_be_done(modes: dict[str, Model], draws: Model, parts: tuple[Ratings, Ratings], small: Ratings) -> None:
    tiny = trained(ratings_of([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], [1, 2, 3, 4, 5]), epochs=3, latent=1)
    for rows in ([0, 1, 2], [0, 1], [1, 2]):
        with pytest.raises(UsageError, match="fewer than two users or movies"):
            forget(tiny, rows)
    assert len(forget(tiny, [2]).model.users) == 2
    between = parts[1].select(np.arange(parts[1].n) < 1)
    between.stars[0] = 3.25  # which nobody gave: a mode is of numbers
    assert update(modes["adam"], between).model.steps == modes["adam"].steps
    few = parts[1].select(np.arange(parts[1].n) < 40)
    for model, value in ((modes["adam"], 5.5), (modes["adam"], 0.25), (draws, 3.25), (draws, 6.0)):
        stars = few.stars.copy()
        stars[7] = value
        with pytest.raises(DataError, match=rf"rating {value:g} of movie '\d+' by user 'id-003' is not on the model's scale"):
            update(model, replace(few, stars=stars, name="new.csv"))
    rows = np.arange(len(small.movies), dtype=np.int32)
    featured = replace(small, movie_features=(Block("kind", ("a", "b"), rows, rows % 2, np.ones(len(rows), np.float32)),))
    for model, said in (
        (trained(featured, method="bayes", latent=1, epochs=3), "features of users or movies: train it again"),
        (trained(small, method="bayes", latent=1, epochs=3, time="user"), r"effects of time \(--time user\): train it again"),
    ):
        with pytest.raises(UsageError, match=said):
            update(model, few)


OLD = "user,movie,rating\n" + "".join(f"{u},{m},{1 + (u * m) % 5}\n" for u in range(2, 9) for m in range(2, 9))
NEW = "user,movie,rating,title\n1,8,5,Eight\n1,1,4,One\n3,3,1,Three\n3,1,4,One\n4,4,2,Four\n"


def test_on_the_command_line(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text(OLD)
    (tmp_path / "new.csv").write_text(NEW)
    (tmp_path / "all.csv").write_text(OLD + "".join(line.rpartition(",")[0] + "\n" for line in NEW.splitlines()[1:]))
    assert answer("train", "--data", "old.csv", "-o", "pmf.pt", "--latent", "2", "--epochs", "20").returncode == 0
    before = (tmp_path / "pmf.pt").read_bytes()
    done = answer("update", "pmf.pt", "-", "-o", "new.pt", "--json", stdin=NEW)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "schema": "pmf.update",
        "version": 1,
        "model": "new.pt",
        "method": "map",
        "new": 3,
        "changed": 1,
        "repeated": 1,
        "new_users": 1,
        "new_movies": 1,
        "recomputed_users": 2,
        "recomputed_movies": 3,
        "rated_movies_left": 0,
        "ratings": 52,
        "users": 8,
        "movies": 8,
    }
    assert "standard input: 3 new rating(s), 1 replacing another, 1 that the model already has; 1 new user(s)" in done.stderr
    assert "computed: 2 user(s), 3 movie(s)\nleft as trained: 6 user(s), 5 movie(s), and all shared parameters\n" in done.stderr
    assert (tmp_path / "pmf.pt").read_bytes() == before
    data = json.loads(answer("info", "-m", "new.pt", "--json").stdout)["data"]
    assert data["sha256"] == read_ratings(tmp_path / "all.csv").ratings.digest()  # ids that come first, and are behind
    assert (data["ratings"], data["users"], data["movies"], data["changes"]) == (52, 8, 8, 1)
    said = answer("predict", "-m", "new.pt", "--user", "1", "--format", "csv").stdout.splitlines()
    assert [line.split(",")[:4] for line in said[1:]] == [["1", "8", "", "5.0"], ["1", "1", "One", "4.0"]]
    done = answer("update", "pmf.pt", "new.csv")
    assert "in place of the old model" in done.stderr
    assert (tmp_path / "pmf.pt").read_bytes() == (tmp_path / "new.pt").read_bytes()
    written = (tmp_path / "pmf.pt").stat().st_ino
    done = answer("update", "pmf.pt", "new.csv", "--json")
    assert (json.loads(done.stdout)["repeated"], "wrote" in done.stderr) == (5, False)
    assert done.stderr.endswith("nothing is new: the model is unchanged\n")
    assert (tmp_path / "pmf.pt").stat().st_ino == written
    done = answer("forget", "-m", "new.pt", "--user", "1", "--user", "3", "--json")
    found = json.loads(done.stdout)
    assert (found["forgotten_users"], found["forgotten_ratings"], found["forgotten_movies"]) == (2, 10, 1)
    assert "forgot 2 user(s) with 10 rating(s), and 1 movie(s) that nobody else rated" in done.stderr
    left = "the rows of other people and movies, and all shared parameters"
    assert f"still as learned with them, until the model is trained again: {left}" in done.stderr
    assert answer("predict", "-m", "new.pt", "--user", "3").returncode == 5
    (tmp_path / "bad.csv").write_text("user,movie,rating\n1,1,9\n")
    (tmp_path / "odd.csv").write_text("who,what,stars\n1,1,3\n")
    now = (tmp_path / "new.pt").read_bytes()
    for arguments, code, complaint in (
        (
            ["update", "new.pt", "bad.csv"],
            3,
            "bad.csv: rating 9 of movie '1' by user '1' is not on the model's scale, 1 to 5",
        ),
        (["update", "new.pt", "odd.csv"], 3, "name them with --user-col"),
        (["update", "new.pt", "none.csv"], 3, "no such file"),
        (["update", "none.pt", "new.csv"], 4, "no such model"),
        (["update", "new.csv", "new.pt"], 4, "not a model file"),
        (["update", "-", "-", "-o", "x.pt"], 2, "give --output, and the ratings as a file"),
        (["update", "new.pt", "new.csv", "-o", "new.csv"], 2, "these are the ratings"),
        (["update", "new.pt", "new.csv", "-o", "no/x.pt"], 2, "--output no/x.pt"),
        (["forget", "-m", "new.pt", "--user", "nobody"], 5, "the model knows no user 'nobody'"),
        (["forget", "-m", "new.pt"], 2, "--user"),
        (["forget", "-m", "-", "--user", "4"], 2, "give --output"),
        (["forget", "-m", "new.pt", *(f"--user={u}" for u in (2, 4, 5, 6, 7))], 2, "fewer than two users"),
    ):
        done = answer(*arguments)
        assert (done.returncode, done.stdout, complaint in done.stderr) == (code, "", True), (arguments, done.stderr)
        assert (tmp_path / "new.pt").read_bytes() == now
    assert answer("update", "new.pt", "odd.csv", "--user-col=who", "--movie-col=what", "--rating-col=stars").returncode == 0


@pytest.mark.parametrize("output", [None, "{}/pmf.pt", "link.pt"], ids=["none", "absolute", "link"])
@pytest.mark.parametrize(("module", "name"), [(updating, "update"), (artifact, "dumps")], ids=["update", "dumps"])
def test_what_another_command_wrote_meanwhile_is_not_lost(
    answer: Run,
    tmp_path: Path,
    sample_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    output: str | None,
    module: ModuleType,
    name: str,
) -> None:
    path = tmp_path / "pmf.pt"
    path.write_bytes(dumps(sample_model))
    (tmp_path / "link.pt").symlink_to(path)
    named = "pmf.pt" if output is None else output.format(tmp_path)
    (tmp_path / "new.csv").write_text("user,movie,rating\nann,1,5\n")
    as_it_is = getattr(module, name)

    def slow(*arguments: Any) -> Any:
        path.write_bytes(path.read_bytes())
        return as_it_is(*arguments)

    monkeypatch.setattr(module, name, slow)
    done = answer("update", "pmf.pt", "new.csv", *(["-o", named] if output else []))
    assert done.returncode == OutputError.exit_code
    assert done.stderr.endswith(
        f"pmf: {named}: another command has changed it in the meantime; nothing was written, run this one again\n"
    )
    assert answer("update", "pmf.pt", "new.csv", "-o", "other.pt").returncode == 0


def test_a_failed_write_leaves_the_old_model(answer: Run, tmp_path: Path, sample_model: Model) -> None:
    (tmp_path / "pmf.pt").write_bytes(dumps(sample_model))
    before = (tmp_path / "pmf.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        codes = [
            answer("update", "pmf.pt", "-", stdin="user,movie,rating\nann,1,5\n").returncode,
            answer("forget", "--user", "4").returncode,
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert codes == [OutputError.exit_code] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["pmf.pt"]
    assert (tmp_path / "pmf.pt").read_bytes() == before
