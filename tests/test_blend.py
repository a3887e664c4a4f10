"""Blends: the item neighbourhood against its formula, weights against a search, one file that answers like any other."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from made import moody, seeded
from saved import contents, saved

from pmfcli.answers import Asked, Choice, Detail, Visitor, predict, recommend, similar
from pmfcli.artifact import Model, dumps, loads
from pmfcli.blending import _NARROW, NEIGHBOURHOOD, _mass, blend, blend_like
from pmfcli.config import Settings
from pmfcli.core import neighbourhood
from pmfcli.core.blend import weights
from pmfcli.core.kinds import chunk_of, predict_pairs
from pmfcli.core.pairs import Pairs
from pmfcli.core.predictive import Masses, Mixture, pooled
from pmfcli.data.ratings import Block, Ratings
from pmfcli.data.split import random_mask
from pmfcli.errors import DataError, ModelError, UsageError
from pmfcli.evaluation import matched, score_model
from pmfcli.steps import run
from pmfcli.training import train

DETAIL = Detail(0.9, stars=True)


@pytest.fixture(scope="module")
def split(sample: Ratings) -> tuple[Ratings, Ratings]:
    small = sample.select(sample.user < 300)
    held = random_mask(small.n, 0.2, 1)
    return small.select(~held).dense()[0], small.select(held)


@pytest.fixture(scope="module")
def parts(split: tuple[Ratings, Ratings]) -> list[Model]:
    kinds = (
        {"epochs": 60, "holdout": 0.0},
        {"priors": "em", "noise": "em", "latent": 4, "epochs": 10, "holdout": 0.0},
        {"method": "bayes", "latent": 4, "epochs": 40},
    )
    return [run(train(split[0], Settings(**kind))) for kind in kinds]


@pytest.fixture(scope="module")
def blended(parts: list[Model], split: tuple[Ratings, Ratings]) -> Model:
    return blend(parts, ["a", "b", "c"], split[1], True).model


def test_without_steps_what_lies_beyond_an_end_of_the_scale_counts_there(
    parts: list[Model], split: tuple[Ratings, Ratings]
) -> None:
    model = replace(parts[0], posterior=parts[0].posterior._replace(usage=None))
    vars(model)["steps"] = ()  # which is cached
    top = split[1].select(split[1].stars == 5.0)
    said = predict_pairs(model.posterior, model.seen, matched(model, top))
    beyond = 1 - said.below(1.0)
    assert float(beyond.mean()) > 0.1
    found = _mass(model, top)
    assert (found > beyond).all()
    torch.testing.assert_close(found, 1 - said.below(1 - _NARROW))


def test_the_neighbourhood_is_its_formula(split: tuple[Ratings, Ratings], parts: list[Model]) -> None:
    """Every number by a loop over people, on dense arrays."""
    training, _ = split
    seen, shape = parts[0].seen, (len(training.users), len(training.movies))
    found = neighbourhood.fit(seen, shape, *training.scale)
    R, known = np.zeros(shape), np.zeros(shape, dtype=bool)
    R[training.user, training.movie], known[training.user, training.movie] = training.stars, True
    mean, b, c = float(found.mean), found.b.double().numpy(), found.c.double().numpy()
    E = (R - mean - b[:, None] - c[None]) * known
    said = neighbourhood.predict_pairs(
        found,
        seen,
        Pairs(*map(torch.tensor, ([3, 3, 50, 0], [2, 20, 7, 9], [True, True, True, False], [True, True, True, True]))),
    )
    for place, (i, j) in enumerate([(3, 2), (3, 20), (50, 7)]):
        s = np.zeros(shape[1])
        for k in range(shape[1]):
            both = known[:, j] & known[:, k]
            if k != j and both.sum() > 1:
                rho = (E[both, j] @ E[both, k]) / math.sqrt((E[both, j] ** 2).sum() * (E[both, k] ** 2).sum())
                s[k] = (both.sum() - 1) / (both.sum() - 1 + 50) * rho
        nearest = np.argsort(-abs(s))[:100]
        used = [k for k in nearest if known[i, k]]
        expected = mean + b[i] + c[j] + sum(s[k] * E[i, k] for k in used) / (0.5 + sum(abs(s[k]) for k in used))
        assert float(said.centre[0, place]) == pytest.approx(float(training.scale.to_unit(expected)), abs=2e-3)
    assert float(said.centre[0, 3]) == pytest.approx(float(training.scale.to_unit(mean + c[9])), abs=1e-5)


def test_a_visitor_of_the_neighbourhood_is_the_user_with_these_ratings(
    parts: list[Model], split: tuple[Ratings, Ratings]
) -> None:
    training, model = split[0], parts[0]
    found = neighbourhood.fit(model.seen, (len(training.users), len(training.movies)), *training.scale)
    movies, stars = model.seen.of(11)
    everything = torch.arange(len(training.movies))
    own = neighbourhood.predict(found, neighbourhood.people(found, model.seen, torch.tensor([11])), 0 * everything, everything)
    new = neighbourhood.predict(
        found, neighbourhood.visitor(found, movies, training.scale.to_unit(stars)), 0 * everything, everything
    )
    torch.testing.assert_close(new.centre, own.centre, atol=1e-4, rtol=0)


def test_weights_are_where_the_likelihood_is_highest() -> None:
    """Two parts: against a search on a grid, the prior of ten ratings each included."""
    p = torch.rand(300, 2, generator=seeded(1)).double() ** torch.tensor([1.0, 1.4])
    w = torch.linspace(0, 1, 10_001).double()[1:-1]
    value = (p[:, :1] * w + p[:, 1:] * (1 - w)).log().sum(0) + 10 * (w.log() + (1 - w).log())
    assert float(weights(p)[0]) == pytest.approx(float(w[value.argmax()]), abs=2e-4)
    assert weights(torch.ones(50, 4)).tolist() == pytest.approx([0.25] * 4)
    sure = torch.tensor([[0.9, 0.1]])
    few, many = (float(weights(sure.expand(n, 2))[0]) for n in (2, 20_000))
    assert few < 0.6
    assert many > 0.99


def test_a_pool_is_the_weighted_sum() -> None:
    grid, weight = torch.linspace(0, 1, 5), torch.tensor([0.3, 0.7])
    steps = Masses(torch.softmax(torch.randn(6, 5, generator=seeded(2)), 1), grid)
    numbers = Mixture(torch.rand(3, 6, generator=seeded(3)), 0.2 + 0.1 * torch.rand(3, 6, generator=seeded(4)))
    both = pooled([steps, numbers], weight, grid)
    torch.testing.assert_close(both.masses(grid), 0.3 * steps.mass + 0.7 * numbers.masses(grid))
    torch.testing.assert_close(both.mean(), 0.3 * steps.mean() + 0.7 * numbers.mean())
    torch.testing.assert_close(pooled([numbers], torch.ones(1), grid).mean(), numbers.mean())
    torch.testing.assert_close(both.sd(), (both.mass * (grid - both.mean()[:, None]).square()).sum(1).sqrt())
    other = Mixture(numbers.centre[:1] + 0.1, numbers.spread[:1])
    whole = pooled([numbers, other], weight, None)
    for point in (0.2, 0.6):
        torch.testing.assert_close(whole.below(point), 0.3 * numbers.below(point) + 0.7 * other.below(point))
    torch.testing.assert_close(whole.mean(), 0.3 * numbers.mean() + 0.7 * other.mean())
    points = (torch.arange(2000).double() + 0.5) / 2000  # E t = int 1 - F, E t^2 = int 2 t (1 - F)
    above = 1 - torch.stack([whole.below(float(point)) for point in points], 1).double()
    variance = (2 * points * above).mean(1) - above.mean(1).square()
    torch.testing.assert_close(whole.sd().double(), variance.sqrt(), atol=1e-4, rtol=0)
    low, high = whole.interval(0.8)
    open_end = (low > 0) & (high < 1)
    assert bool(open_end.any())
    torch.testing.assert_close(
        (whole.below(high) - whole.below(low))[open_end], torch.full((6,), 0.8)[open_end], atol=1e-4, rtol=0
    )


def test_a_blend_is_not_worse_than_its_parts(parts: list[Model], split: tuple[Ratings, Ratings]) -> None:
    found = blend(parts, ["a", "b", "c"], split[1], True)
    assert [part.name for part in found.parts] == ["a", "b", "c", NEIGHBOURHOOD]
    assert sum(part.weight for part in found.parts) == pytest.approx(1)
    assert found.scores["nll"] <= min(part.scores["nll"] for part in found.parts) + 0.002
    assert found.scores["rmse"] <= min(part.scores["rmse"] for part in found.parts) + 0.01
    assert found.model.metrics["holdout_rmse"] == found.scores["rmse"]
    assert abs(found.scores["coverage"]["0.9"] - 0.9) < 0.03
    again = blend_like(parts, ["x", "y", "z"], found.model)
    assert dumps(replace(again.model, settings={}, metrics={})) == dumps(replace(found.model, settings={}, metrics={}))


def test_the_pool_of_answers_is_the_answer_of_the_pool(blended: Model, parts: list[Model]) -> None:
    pairs = [
        Asked(user, movie) for user in (*blended.users.ids[:3], "nobody") for movie in (*blended.movies.ids[:6], "nothing")
    ]
    weight = blended.posterior.weight.tolist()
    alone = replace(parts[0], posterior=blended.posterior.parts[-1], settings={})
    of_parts = [list(predict(model, pairs, DETAIL)) for model in (*parts, alone)]
    for number, row in enumerate(predict(blended, pairs, DETAIL)):
        for name in row:
            if name.startswith("p_"):
                expected = sum(w * rows[number][name] for w, rows in zip(weight, of_parts, strict=True))
                assert row[name] == pytest.approx(expected, abs=1e-5)
        assert row["source"] == of_parts[0][number]["source"]


def test_it_answers_like_any_other(blended: Model) -> None:
    movies, stars = blended.seen.of(7)
    visitor = Visitor(tuple(movies.tolist()), tuple(stars.tolist()))
    own, new = (recommend(blended, who, Choice(n), DETAIL) for who, n in ((7, 5), (visitor, 20)))
    again = {row["movie"]: row["prediction"] for row in new}
    assert [row["prediction"] for row in own] == pytest.approx([again[row["movie"]] for row in own], abs=0.05)
    lower = recommend(blended, 7, Choice(5, by="lower"), DETAIL)
    assert lower[0]["lo"] >= own[0]["lo"]
    assert len(similar(blended, "movie", 0, 5, "cosine", None)) == 5
    assert len(similar(blended, "user", 0, 5, "cosine", None)) == 5
    assert chunk_of(blended.posterior) >= 64


def test_the_file_is_the_model_and_a_damaged_one_is_refused(blended: Model) -> None:
    content = dumps(blended)
    assert contents(loads(content, "x")) == contents(blended)
    assert dumps(loads(content, "x")) == content
    raw = torch.load(io.BytesIO(content), weights_only=True)
    changes = {
        "weight": lambda t: 2 * t,
        "grid": lambda t: t.flip(0),
        "3.near": lambda t: t + 10**6,
        "3.scale": lambda t: 2 * t,
        "3.noise": lambda t: 1e-9 * t,
        "2.cuts": lambda t: t.flip(2),
        "0.V": lambda t: t[1:],
    }
    for name, change in changes.items():
        damaged = {**raw, "tensors": {**raw["tensors"], name: change(raw["tensors"][name]).contiguous()}}
        with pytest.raises(ModelError, match="damaged model file"):
            loads(saved(damaged), "x")
    wide = {"3.near": raw["tensors"]["3.near"].repeat(1, 2), "3.weight": raw["tensors"]["3.weight"].repeat(1, 2)}
    with pytest.raises(ModelError, match="damaged model file"):
        loads(saved({**raw, "tensors": raw["tensors"] | wide}), "x")
    about = json.loads(raw["meta"])
    more = {**about, "movies": [*about["movies"], "xx"], "titles": [*about["titles"], None]}
    for changed in (more, {**about, "method": "map"}, {**about, "data": {**about["data"], "latest": True}}):
        with pytest.raises(ModelError, match="damaged model file"):
            loads(saved({**raw, "meta": json.dumps(changed)}), "x")
    for change in (
        {"parts": about["posterior"]["parts"][:-1]},
        {"movies": [1] * 4},
        {"movies": [10**9] * 4},
        {"powers": [-1.0] * 4},
        {"parts": [{"kind": "blend"}] * 4},
        {"parts": [{"kind": "neighbourhood"}] * 4},
        {"kind": "unheard of"},
        {"kind": "neighbourhood"},
    ):
        damaged = {**raw, "meta": json.dumps({**about, "posterior": {**about["posterior"], **change}})}
        with pytest.raises(ModelError, match="damaged model file"):
            loads(saved(damaged), "x")


def test_a_part_may_know_more_movies(split: tuple[Ratings, Ratings], parts: list[Model]) -> None:
    training, held = split
    rows = np.arange(len(training.movies) + 1, dtype=np.int32)
    ids = (*training.movies.ids, "new")
    more = replace(
        training,
        movies=replace(training.movies, ids=ids),
        titles=(*training.titles, "New"),
        movie_features=(Block("kind", ("a", "b"), rows, rows % 2, np.ones(len(rows), dtype=np.float32)),),
    )
    wide = run(train(more, Settings(method="bayes", latent=2, epochs=20)))
    model = blend([parts[0], wide], ["narrow", "wide"], held, True).model
    assert model.movies.ids == ids
    assert loads(dumps(model), "x").posterior.movies == (len(ids) - 1, len(ids), len(ids))
    (row,) = predict(model, [Asked(training.users.ids[0], "new")], DETAIL)
    assert row["source"] == "features"
    top = recommend(model, 0, Choice(len(ids), include_seen=True), DETAIL)
    assert {row["movie"] for row in top} == set(ids)
    visitor = Visitor((0, len(ids) - 1), (4.0, 2.0))
    assert len(recommend(model, visitor, Choice(3), DETAIL)) == 3
    assert len(similar(model, "movie", len(ids) - 1, 3, "cosine", None)) == 3


def test_ratings_that_are_no_steps_and_times_are_blended_too() -> None:
    training, held, _ = moody()
    kinds = ({"method": "bayes", "latent": 2, "epochs": 60, "time": "user"}, {"latent": 2, "epochs": 40, "holdout": 0.0})
    models = [run(train(training, Settings(**kind))) for kind in kinds]
    found = blend(models, ["moody", "plain"], held, False)
    assert found.parts[0].weight > 0.8
    assert found.model.settings["time"] == "user"
    pairs = Pairs(*(torch.zeros(1, dtype=kind) for kind in (torch.int64, torch.int64, torch.bool, torch.bool)))
    assert isinstance(predict_pairs(found.model.posterior, found.model.seen, pairs), Mixture)
    told, untold = (score_model(found.model, data).crps.mean() for data in (held, replace(held, time=None)))
    assert told < untold


def test_what_cannot_be_blended(parts: list[Model], split: tuple[Ratings, Ratings], blended: Model, sample: Ratings) -> None:
    training, held = split
    other = run(train(sample.select(sample.user < 200), Settings(epochs=2, latent=2)))
    for models in ([parts[0], other], [other, parts[0]]):
        with pytest.raises(UsageError, match=r"(two|one): not trained on the ratings of (one|two)"):
            blend(models, ["one", "two"], held, True)
    fewer = run(train(held, Settings(epochs=2, latent=2)))
    narrow = replace(fewer, movies=replace(fewer.movies, ids=fewer.movies.ids[:-1]))
    with pytest.raises(UsageError, match="one: not trained on the ratings of two"):
        blend([narrow, parts[0]], ["one", "two"], held, True)
    with pytest.raises(UsageError, match="two: it is a blend; blend its parts"):
        blend([parts[0], blended], ["one", "two"], held, True)
    with pytest.raises(DataError, match="weights need at least 50"):
        blend(parts, ["a", "b", "c"], training, True)
    with pytest.raises(UsageError, match="the model is not a blend"):
        blend_like(parts, ["a", "b", "c"], parts[0])
    with pytest.raises(UsageError, match="that blend has 3 models"):
        blend_like(parts[:2], ["a", "b"], blended)
    with pytest.raises(
        UsageError, match=r"--weights: y takes the place of a in that blend, but has .*; give models .* in the same order"
    ):
        blend_like([parts[1], parts[0], parts[2]], ["y", "x", "z"], blended)
    found = {"sigma_b": 0.7, "sigma_x": 0.3}  # in other ratings
    other = replace(parts[0], settings=parts[0].settings | found | {"seed": 1})
    assert blend_like([other, *parts[1:]], ["a", "b", "c"], blended).passed_over == 0
    both = blend(parts, ["a", "b", "c"], replace(sample.select(sample.user < 300)), False)
    assert both.passed_over == training.n


def test_blend_on_the_command_line(answer: Run, tmp_path: Path, parts: list[Model], split: tuple[Ratings, Ratings]) -> None:
    held = split[1]
    rows = zip(held.user.tolist(), held.movie.tolist(), held.stars.tolist(), strict=True)
    lines = "".join(f"{held.users.ids[u]},{held.movies.ids[m]},{r}\n" for u, m, r in rows)
    (tmp_path / "held.csv").write_text("user,movie,rating\n" + lines)
    for name, model in zip("abc", parts, strict=True):
        (tmp_path / f"{name}.pt").write_bytes(dumps(model))
    done = answer("blend", "a.pt", "b.pt", "c.pt", "--holdout", "held.csv", "-o", "d.pt", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["part"] for row in rows] == ["a.pt", "b.pt", "c.pt", NEIGHBOURHOOD, "all"]
    assert "wrote d.pt" in done.stderr
    assert answer("evaluate", "-m", "d.pt", "--test", "held.csv", "--json").returncode == 0
    assert answer("info", "-m", "d.pt").returncode == 0
    user = held.users.ids[0]
    assert answer("predict", "-m", "d.pt", "--user", user).returncode == 0
    assert answer("recommend", "-m", "d.pt", "--user", user, "-n", "3").stdout.count("\n") == 4
    again = answer("blend", "a.pt", "b.pt", "c.pt", "--weights", "d.pt", "-o", "e.pt", "--format", "csv")
    assert again.returncode == 0
    assert again.stdout.splitlines()[1].startswith("a.pt,map,")
    for arguments, code, said in (
        (["a.pt", "b.pt"], 2, "give one of: --holdout FILE, --weights BLEND.pt"),
        (["a.pt", "b.pt", "c.pt", "--weights", "d.pt", "--skip-bad"], 2, "--skip-bad: with --weights, no ratings are read"),
        (["a.pt", "no.pt", "--holdout", "held.csv"], 4, "no such model"),
        (["a.pt", "d.pt", "--holdout", "held.csv"], 2, "it is a blend"),
        (
            ["a.pt", "b.pt", "--holdout", "held.csv", "-o", "no/x.pt"],
            2,
            "--output no/x.pt: No such file or directory; give a file in a folder",
        ),
        (
            ["a.pt", "b.pt", "--weights", "d.pt", "--no-neighbours"],
            2,
            "--no-neighbours: with --weights, that blend decides this",
        ),
    ):
        done = answer("blend", *arguments)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "blend.pt").exists()
    (tmp_path / "named.csv").write_text("who,what,how\n" + lines)
    named = ("--user-col", "who", "--movie-col", "what", "--rating-col", "how")
    for command in (("blend", "a.pt", "b.pt", "--holdout"), ("compare", "a.pt", "b.pt", "--test")):
        assert answer(*command, "named.csv").returncode == 3
        done = answer(*command, "named.csv", *named)
        assert (done.returncode, "warning" in done.stderr) == (0, False), done.stderr
    (tmp_path / "off.csv").write_text(
        "user,movie,rating\n" + "".join(f"{line.rpartition(',')[0]},9\n" for line in lines.split())
    )
    strangers = "".join(f"nobody{u},nothing{m},3\n" for u in range(10) for m in range(10))
    (tmp_path / "strangers.csv").write_text("user,movie,rating\n" + strangers)
    for file, said in (("off.csv", "ratings have a value that is not in training"), ("strangers.csv", "are the ids the same?")):
        done = answer("blend", "a.pt", "b.pt", "--holdout", file)
        assert (done.returncode, said in done.stderr) == (0, True), done.stderr
