"""The embedded sample: real films, simulated viewers.

The films (``sample_movies.tsv``) are real, with their MovieLens ids; genres and series say what is alike. The viewers are not:
each has a taste drawn for genres, eras and series, picks films that suit it, and rates them with noise. Same seed, same sample.
"""

from importlib import resources

import numpy as np

from pmfcli.data.ratings import Array, Ratings, Scale, Vocabulary

NAME = "sample"
NOTICE = "the embedded sample: real films, simulated viewers"
_SEED, _VIEWERS = 2019, 2000
_MEAN = 2.8  # stars, before viewers choose what suits them
_GENRE_TASTE, _ERA_TASTE, _SERIES_TASTE = 0.6, 0.2, 1.4  # stars, standard deviations over viewers
_QUALITY, _MOOD, _NOISE = 0.35, 0.35, 0.5  # stars, standard deviations over films, viewers, single ratings
_CHOOSY = 2.0  # how far taste decides what a viewer picks
_MEDIAN_SEEN = 37


def read_sample() -> Ratings:
    """Generate the sample: about 80,000 ratings from 0.5 to 5 in half stars, with times."""
    movies, titles, about = _films()
    rng = np.random.default_rng(_SEED)
    kinds = about.shape[1]
    affinity = rng.normal(size=(_VIEWERS, kinds)) @ about.T  # viewers x films, in stars
    popularity = rng.normal(0, 1, len(movies))
    quality = _QUALITY * (0.5 * popularity + rng.normal(size=len(movies)))
    mood = rng.normal(0, _MOOD, _VIEWERS)
    seen_by = _pick(_CHOOSY * affinity + popularity, rng)
    viewer, film = np.nonzero(seen_by)
    mean = _MEAN + mood[viewer] + quality[film] + affinity[viewer, film]
    stars = np.clip(np.round(2 * (mean + rng.normal(0, _NOISE, len(mean)))) / 2, 0.5, 5.0)
    started = rng.integers(946_684_800, 1_546_300_800, _VIEWERS)  # 2000 to 2018
    return Ratings(
        user=viewer.astype(np.int32),
        movie=film.astype(np.int32),
        stars=stars.astype(np.float32),
        time=started[viewer] + rng.integers(0, 86_400 * 200, len(viewer)),
        users=Vocabulary(tuple(str(number) for number in range(1, _VIEWERS + 1))),
        movies=movies,
        titles=titles,
        scale=Scale(0.5, 5.0),
        name=NAME,
    )


def _films() -> tuple[Vocabulary, tuple[str, ...], Array]:
    """Ids, titles, and what each film is like: (films, kinds), in stars per unit of taste."""
    text = resources.files("pmfcli.data").joinpath("sample_movies.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    genres = sorted({genre for row in rows for genre in row[2].split("|")})
    series = sorted({row[3] for row in rows if row[3]})
    about = np.zeros((len(rows), len(genres) + len(series) + 2))
    for i, (_, title, of, part) in enumerate(rows):
        names = of.split("|")
        about[i, [genres.index(name) for name in names]] = _GENRE_TASTE / np.sqrt(len(names))
        if part:
            about[i, len(genres) + series.index(part)] = _SERIES_TASTE
        age = np.clip((int(title[-5:-1]) - 1985) / 15, -2, 2)
        about[i, -2:] = _ERA_TASTE * np.array([age, age**2 - 1]) / 2
    return Vocabulary(tuple(row[0] for row in rows)), tuple(row[1] for row in rows), about


def _pick(appeal: Array, rng: np.random.Generator) -> Array:
    """Which films each viewer has seen, (viewers, films) bool: more appeal, more likely; 12 to half of all films."""
    viewers, films = appeal.shape
    count = np.clip(rng.lognormal(np.log(_MEDIAN_SEEN), 0.5, viewers), 12, films // 2).astype(int)
    noisy = appeal + rng.gumbel(size=appeal.shape)
    rank = np.argsort(np.argsort(-noisy, axis=1), axis=1)
    picked: Array = rank < count[:, None]
    return picked
