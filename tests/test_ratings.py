import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import ratings_of

from pmfcli.data.ratings import Ratings, Scale, Vocabulary
from pmfcli.data.sample import read_sample
from pmfcli.data.split import fold_numbers, last_mask, random_mask, time_mask
from pmfcli.errors import DataError


@given(st.floats(-1e3, 1e3), st.floats(0.01, 1e3), st.floats(0, 1))
def test_a_scale_goes_there_and_back(lo: float, width: float, place: float) -> None:
    scale = Scale(lo, lo + width)
    stars = lo + place * width
    assert scale.to_stars(scale.to_unit(stars)) == pytest.approx(stars, abs=1e-9 * (abs(lo) + width))
    assert scale.to_unit(lo) == 0


def test_a_vocabulary_knows_what_it_knows() -> None:
    vocabulary = Vocabulary(("1", "2", "x"))
    rows, known = vocabulary.rows(["x", "nobody", "1"])
    assert known.tolist() == [True, False, True]
    assert rows[known].tolist() == [2, 0]
    assert vocabulary.row("nobody") is None


@pytest.mark.parametrize(
    ("user", "movie", "stars", "message"),
    [
        ([0, 0], [0, 1], [1.0, 2.0], "only 1 user"),
        ([0, 1], [0, 0], [1.0, 2.0], "only 1 movie"),
        ([0], [0], [1.0], "only 1 user in 1 rating"),
        ([0, 1], [0, 1], [3.0, 3.0], "all 2 ratings are 3"),
    ],
)
def test_data_with_nothing_to_learn_is_refused(user: list[int], movie: list[int], stars: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ratings_of(user, movie, stars).check_trainable()


def test_splits_hold_out_what_they_say(sample: Ratings) -> None:
    assert random_mask(1000, 0.1, 0).sum() == 100
    assert (random_mask(1000, 0.1, 0) == random_mask(1000, 0.1, 0)).all()
    assert (random_mask(1000, 0.1, 0) != random_mask(1000, 0.1, 1)).any()
    folds = fold_numbers(1003, 5, 0)
    assert sorted(np.bincount(folds).tolist()) == [200, 200, 201, 201, 201]

    assert sample.time is not None
    late = time_mask(sample, 0.2)
    assert late.sum() == round(0.2 * sample.n)
    assert sample.time[late].min() >= sample.time[~late].max()

    last = last_mask(sample, 3)
    for user in (0, 7, 1999):
        mine = sample.user == user
        assert (last & mine).sum() == 3
        assert sample.time[last & mine].min() >= sample.time[~last & mine].max()


def test_the_last_ratings_are_never_all_of_a_user() -> None:
    ratings = ratings_of([0, 1, 1, 1], [0, 0, 1, 2], [1, 2, 3, 4], [5, 3, 1, 2])
    assert last_mask(ratings, 2).tolist() == [False, True, False, True]
    assert last_mask(ratings, 9).tolist() == [False, True, False, True]
    with pytest.raises(DataError, match="no timestamps"):
        last_mask(ratings_of([0, 1], [0, 1], [1, 2]), 1)


def test_the_sample_is_the_sample(sample: Ratings) -> None:
    assert (len(sample.users), len(sample.movies)) == (2000, 230)
    assert sample.titles[sample.movies.ids.index("1")] == "Toy Story (1995)"
    assert sample.titles[sample.movies.ids.index("260")].startswith("Star Wars")
    assert np.bincount(sample.user).min() >= 12
    assert set(np.unique(sample.stars)) == set(np.arange(0.5, 5.5, 0.5, dtype=np.float32))
    assert sample.digest() == read_sample().digest()
