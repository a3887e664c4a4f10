"""Effects of time: which ratings belong together, what is recovered of what was planted, and what answers make of it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from made import DAY, copies, moody, random_pattern, ratings_of, seeded
from saved import saved

from pmfcli.answers import Asked, Detail, Visitor, predict
from pmfcli.artifact import dumps, loads
from pmfcli.config import Settings
from pmfcli.core import drift
from pmfcli.core.fold_in import fold_in, fold_in_draws
from pmfcli.core.row_sampler import draw_mood, with_mood
from pmfcli.errors import ModelError, TrainingError, UsageError
from pmfcli.evaluation import score_model
from pmfcli.reports import report
from pmfcli.steps import run
from pmfcli.training import train


def test_stretches_end_where_a_person_pauses() -> None:
    user = torch.tensor([0, 0, 0, 0, 1, 1])
    movie = torch.tensor([0, 1, 2, 3, 0, 1])
    time = torch.tensor([5000, 0, 50, 111, 111, 171])
    kinds = drift.groups(user, movie, time, users=True, movies=False)
    assert [kind.stretch.tolist() for kind in kinds] == [
        [2, 0, 0, 1, 3, 3],  # a minute
        [1, 0, 0, 0, 2, 2],  # ten
        [1, 0, 0, 0, 2, 2],  # an hour
        [0, 0, 0, 0, 1, 1],  # a day
    ]
    first = kinds[0]
    assert (first.row.tolist(), first.start.tolist(), first.end.tolist()) == (
        [0, 0, 0, 1],
        [0, 111, 5000, 111],
        [50, 111, 5000, 171],
    )


def test_stretches_of_a_movie_have_twenty_ratings() -> None:
    n = 50
    order = torch.randperm(n, generator=seeded())
    (kind,) = drift.groups(torch.arange(n), torch.zeros(n, dtype=torch.int64), order * DAY, users=False, movies=True)
    assert torch.equal(kind.stretch, (order // 20).int())


def test_the_nearest_stretch_is_found() -> None:
    """Against a search through all of them."""
    g = seeded(3)
    user, movie, time = (torch.randint(most, (300,), generator=g) for most in (12, 9, 40_000))
    kinds = drift.groups(user, movie, time, users=True, movies=True)
    s = drift.stacked(kinds)
    asked = [torch.randint(-1, most, (400,), generator=g) for most in (14, 11)]
    when = torch.randint(-5000, 50_000, (400,), generator=g)
    found = s.find(*asked, when)
    first = 0
    for kind, near in zip(kinds, found, strict=True):
        rows = asked[kind.of_movies]
        for place in range(400):
            far = torch.maximum(kind.start - when[place], when[place] - kind.end).clamp(min=0)
            far = torch.where((kind.row == rows[place]) & (far <= kind.reach), far, 10**9)
            if int(far.min()) == 10**9:
                assert near[place] == -1
            else:
                assert far[int(near[place]) - first] == far.min()
        first += len(kind.row)
    own = s.find(user, movie, time)
    assert all(torch.equal(near - near.min(), kind.stretch.long()) for near, kind in zip(own, kinds, strict=True))


def test_without_dates_every_time_finds_the_same_stretch() -> None:
    g = seeded(3)
    user, time = torch.randint(9, (400,), generator=g), 10**9 + 1000 * torch.randint(300, (400,), generator=g)  # some at once
    movie = torch.randint(4, (400,), generator=g)
    movie[:30] = torch.arange(30) // 3 + 4  # some with one stretch
    old = drift.stacked(drift.groups(user, movie, time, users=True, movies=True))
    new, of_movies = old.without_dates(), old.of_movies.repeat_interleave(old.length)
    for side in ("start", "end"):
        assert torch.equal(getattr(new, side)[~of_movies], getattr(old, side)[~of_movies])
    assert bool((new.end >= new.start).all())
    asked = torch.cat([time + step for step in (-(10**10), -501, -500, -1, 0, 1, 499, 500, 501, 10**10)])
    who, what = torch.randint(9, asked.shape, generator=g), torch.randint(14, asked.shape, generator=g)
    assert torch.equal(new.find(who, what, asked), old.find(who, what, asked))


def test_without_dates_none_of_a_rating_of_a_movie_is_left() -> None:
    movie, time = torch.randint(5, (300,), generator=seeded(4)), 4 * (10**8 + torch.randperm(10**6, generator=seeded(5))[:300])
    movie[0] = 5  # its only rating
    new = drift.stacked(drift.groups(movie, movie, time, users=False, movies=True)).without_dates()
    left = set(torch.cat([new.start, new.end]).tolist())
    assert len(left) > 20
    assert not left & set(time.tolist())


def test_times_that_are_no_seconds_are_refused() -> None:
    rows = torch.tensor([0, 999_999])
    with pytest.raises(TrainingError, match="span too far"):
        drift.groups(rows, rows, torch.tensor([0, 10**14]), users=True, movies=False)


def test_moods_are_found_where_the_time_is_told() -> None:
    training, test, mood = moody()
    settings = {"method": "bayes", "latent": 2, "epochs": 200, "hierarchical": "none"}
    plain, model = (run(train(training, Settings(**settings, time=time))) for time in ("none", "user"))
    told, untold, without = (
        score_model(one, data) for one, data in ((model, test), (model, replace(test, time=None)), (plain, test))
    )
    rmse = [report([one])["rmse"] for one in (told, untold, without)]
    assert rmse[0] < 0.5 * rmse[2]
    assert rmse[1] == pytest.approx(rmse[2], abs=0.05)
    shift = (told.model - untold.model).numpy()
    assert np.corrcoef(shift, mood)[0, 1] > 0.9
    assert (told.sd < untold.sd).all()
    inside, inside_untold = (report([one])["coverage"]["0.9"] for one in (told, untold))
    assert abs(inside - 0.9) < 3 * (0.9 * 0.1 / test.n) ** 0.5
    assert inside_untold > 0.87  # it may be the time of a sitting that training has not seen


def test_a_time_of_no_stretch_has_the_prior() -> None:
    training, _, _ = moody()
    model = run(train(training, Settings(method="bayes", latent=2, epochs=60, time="both")))
    movies = model.movies.ids[:5]
    late = [Asked("u1", movie, 10**9) for movie in movies]
    known = [Asked("u1", movie, int(training.time[training.user == 1].min())) for movie in movies]
    rows = [list(predict(model, pairs, Detail(0.9, stars=False))) for pairs in (late, known)]
    assert all(one["sd"] > other["sd"] for one, other in zip(*rows, strict=True))
    seen, stars = model.seen.of(1)
    visitor = Visitor(tuple(seen.tolist()), tuple(stars.tolist()))
    folded = list(predict(model, [Asked("", movie) for movie in movies], Detail(0.9, stars=False), visitor))
    beside = list(predict(model, [Asked("u1", movie) for movie in movies], Detail(0.9, stars=False)))
    assert [row["prediction"] for row in folded] == pytest.approx([row["prediction"] for row in beside], abs=0.3)


def test_the_mood_of_a_visitor_is_apart_from_their_own_row() -> None:
    """Against dense algebra: x = a + m e, a ~ N(0, S), m ~ N(0, v), e the last axis; and m given x."""
    g = seeded(4)
    root = torch.randn(3, 3, generator=g).double()
    S, v = root @ root.T + torch.eye(3), torch.tensor(0.7).double()
    total = S.clone()
    total[-1, -1] += v
    P = with_mood(torch.linalg.inv(S)[None], v[None])
    torch.testing.assert_close(P[0], torch.linalg.inv(total))
    x = torch.randn(3, generator=g).double()
    draws = draw_mood(x.expand(200_000, 3), P.expand(200_000, 3, 3), v.expand(200_000), g)
    assert not draws[:, :2].any()
    mean = v * torch.linalg.solve(total, x)[-1]
    variance = v - v**2 * torch.linalg.inv(total)[-1, -1]
    assert float(draws[:, 2].mean()) == pytest.approx(float(mean), abs=4 * float(variance / 200_000) ** 0.5)
    assert float(draws[:, 2].var()) == pytest.approx(float(variance), rel=0.02)


def test_a_visitors_noise_is_without_the_movies_effects_of_time() -> None:
    """Against a grid: y = e + n, e ~ N(0, 1) of a movie's time, n ~ N(0, 1 / (4 gamma)), gamma ~ Gamma(2, 2)."""
    count, n, g = 4000, 30, seeded(1)
    one, eye = torch.ones(count), torch.eye(2).expand(count, 2, 2)
    table = drift.Stretches(*(torch.tensor([value]) for value in (1, True, 2**62, 0, 0, 0)))
    effects = drift.Drift(table, 0 * one[:, None].half(), one[:, None], None, torch.zeros(count, n).half())
    p = copies(count, 4.0)._replace(
        V=torch.zeros(count, n, 2).half(),
        weights=None,
        gamma_v=torch.ones(count, n).half(),
        mu_u=torch.zeros(count, 2),
        Lambda_u=1e6 * eye,
        prior_dof=None,
        drift=effects,
    )
    y = 1.25**0.5 * torch.randn(n, generator=g)
    row = fold_in_draws(p, torch.arange(n), 0.5 + y / 4, 1.0, g)
    gamma = torch.linspace(1e-3, 6, 6000).double()
    log_p = (
        gamma.log()
        - 2 * gamma
        - 0.5 * n * (1 / (4 * gamma) + 1).log()
        - 0.5 * y.double().square().sum() / (1 / (4 * gamma) + 1)
    )
    p_gamma = torch.softmax(log_p, 0)
    assert float(row.gamma.mean()) == pytest.approx(float((p_gamma * gamma).sum()), abs=0.06)
    assert float((1 / row.gamma).mean()) == pytest.approx(float((p_gamma / gamma).sum()), rel=0.15)


def test_a_visitor_with_many_movies_and_few_users_is_folded_in() -> None:
    """Movie rows beyond the number of users; and a blend with a part that knows none of the visitor's movies."""
    g = np.random.default_rng(3)
    pattern = random_pattern(10, 60, 0.5, seed=2)
    user, movie = pattern.row.tolist(), pattern.col.tolist()
    stars = g.integers(1, 6, len(user)).astype(float).tolist()
    ratings = ratings_of(user, movie, stars, g.integers(0, 10**6, len(user)).tolist())
    model = run(train(ratings, Settings(method="bayes", latent=2, epochs=12, time="both")))
    visitor = Visitor((55, 58), (5.0, 1.0))
    wanted = [Asked("", name) for name in (*model.movies.ids[:3], "nothing")]
    assert len(list(predict(model, wanted, Detail(0.9, stars=False), visitor))) == 4
    folded = fold_in(model.posterior, model.seen, torch.zeros(0, dtype=torch.int64), torch.zeros(0), 0.5)
    assert bool(folded.A.isfinite().all())


def test_a_model_of_time_is_the_same_from_a_file_and_a_damaged_one_is_refused() -> None:
    training, test, _ = moody()
    model = run(train(training, Settings(method="bayes", latent=2, epochs=12, time="both")))
    content = dumps(model)
    assert dumps(loads(content, "x")) == content
    assert torch.equal(score_model(loads(content, "x"), test).model, score_model(model, test).model)
    raw = torch.load(io.BytesIO(content), weights_only=True)
    for name, change in {
        "drift_length": lambda t: t + 1,
        "drift_row": lambda t: t + 80,
        "drift_start": lambda t: t.flip(0),
        "drift_end": lambda t: t - 10**9,
        "drift_reach": lambda t: -t,
        "drift_precision": lambda t: 0 * t,
        "drift_value": lambda t: t[:, 1:],
        "drift_usual_u": lambda t: t[:, 1:],
    }.items():
        damaged = {**raw, "tensors": {**raw["tensors"], name: change(raw["tensors"][name]).contiguous()}}
        with pytest.raises(ModelError, match="damaged model file"):
            loads(saved(damaged), "x")
        without = {**raw, "tensors": {key: part for key, part in raw["tensors"].items() if key != name}}
        with pytest.raises(ModelError, match="damaged model file"):
            loads(saved(without), "x")
    row, count = raw["tensors"]["drift_row"], int(raw["tensors"]["drift_length"][0])
    pair = int((row[: count - 1] == row[1:count]).nonzero()[0])  # a stretch and the next of the same user
    users, starts = torch.arange(len(row)), torch.arange(len(row))
    users[:count] = row[:count].sort(descending=True, stable=True).indices
    starts[[pair, pair + 1]] = starts[[pair + 1, pair]]
    for order in (users, starts):
        turned = {name: raw["tensors"][name][order] for name in ("drift_row", "drift_start", "drift_end")}
        with pytest.raises(ModelError, match="the stretches of time are not in order"):
            loads(saved({**raw, "tensors": raw["tensors"] | turned}), "x")


def test_time_on_the_command_line(answer: Run, tmp_path: Path) -> None:
    training, test, _ = moody()
    files = {}
    for name, part in (("train", training), ("test", test)):
        files[name] = tmp_path / f"{name}.csv"
        rows = zip(part.user.tolist(), part.movie.tolist(), part.stars.tolist(), part.time.tolist(), strict=True)
        files[name].write_text("user,movie,rating,time\n" + "".join(f"{u},{m},{r:.3f},{t}\n" for u, m, r, t in rows))
    bare = tmp_path / "bare.csv"
    bare.write_text("".join(",".join(line.split(",")[:3]) + "\n" for line in files["test"].read_text().splitlines()))
    model = tmp_path / "m.pt"
    fit = ["train", "--method", "bayes", "-k", "2", "--epochs", "60", "--time", "user", "-o", str(model)]
    done = answer(*fit, "--data", bare)
    assert (done.returncode, model.exists()) == (2, False)
    assert "no timestamps; name their column with --time-col" in done.stderr
    done = answer("train", "--time", "user", "--data", files["train"], "-o", model)
    assert done.returncode == 2
    assert "only for --method bayes" in done.stderr
    assert "leave --no-biases out" in answer(*fit, "--no-biases", "--data", files["train"]).stderr
    assert answer(*fit, "--data", files["train"]).returncode == 0
    told, untold = (answer("evaluate", "-m", model, "--test", file, "--json") for file in (files["test"], bare))
    assert "the model is given the dates of the test ratings (--time user)" in told.stderr
    assert "has no dates: the model (--time user) treats them as unknown" in untold.stderr
    assert json.loads(told.stdout)["rmse"] < 0.8 * json.loads(untold.stdout)["rmse"]
    day = int(training.time[training.user == 1].max())
    pairs = f"user,movie,time\n1,3,{day}\n1,4,1970-01-01\n"
    rows = answer("predict", "-", "-m", model, "--format", "csv", stdin=pairs).stdout.splitlines()
    plain = answer("predict", "-", "-m", model, "--format", "csv", stdin="user,movie\n1,3\n1,4\n").stdout.splitlines()
    assert len(rows) == len(plain) == 3
    assert rows[1] != plain[1]
    some = answer("predict", "-", "-m", model, "--format", "csv", stdin=f"user,movie,time\n1,3,{day}\n1,4,\n1,3,\n1,3,{day}\n")
    for line, expected in zip(some.stdout.splitlines()[1:], (rows[1], plain[2], plain[1], rows[1]), strict=True):
        numbers, others = (list(map(float, one.split(",")[4:8])) for one in (line, expected))
        assert numbers == pytest.approx(others, rel=1e-5)  # rounding depends on what else is asked for
    untimed = answer("train", "--data", files["train"], "--epochs", "2", "-k", "2", "-o", tmp_path / "plain.pt")
    assert untimed.returncode == 0
    odd = answer("predict", "-", "-m", tmp_path / "plain.pt", stdin="user,movie,time\n1,3,soon\n1,3,\n1,3\n")
    assert (odd.returncode, odd.stdout.count("\n")) == (0, 4)
    odd = answer("predict", "-", "-m", model, stdin="user,movie,time\n1,3,soon\n")
    assert odd.returncode == 3
    assert "standard input:2: time 'soon' is neither seconds since 1970 nor a date" in odd.stderr


def test_settings_of_time() -> None:
    with pytest.raises(UsageError, match="no timestamps"):
        run(train(ratings_of([0, 0, 1, 1], [0, 1, 0, 1], [1, 2, 3, 4]), Settings(method="bayes", time="movie")))
