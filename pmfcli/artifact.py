"""The model file: tensors and JSON metadata, versioned. It is self-contained, and loading it runs no code.

A file is a dict of a few texts and a dict of tensors, as ``torch.save`` writes it and ``archive`` reads it. Its bytes depend on
the content alone.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmfcli import archive, packing
from pmfcli.core.blend import Blend
from pmfcli.core.distinct import distinct, nearest
from pmfcli.core.kinds import Posterior
from pmfcli.core.neighbourhood import Neighbourhood
from pmfcli.core.pairs import Seen
from pmfcli.data.fields import LATEST
from pmfcli.data.ratings import STEPS, Scale, Vocabulary
from pmfcli.errors import ModelError, TrainingError
from pmfcli.text import clean

FORMAT = "pmf-model"
VERSION = 8
_ROUNDING = 1e-5  # as a part of the scale
_KINDS = {"map": "mode", "bayes": "draws", "blend": "blend"}  # of posteriors, by method


@dataclass(frozen=True)
class Model:
    """A trained model, with all that an answer needs."""

    method: str
    posterior: Posterior
    users: Vocabulary
    movies: Vocabulary
    titles: tuple[str | None, ...]
    scale: Scale
    seen: Seen
    settings: dict[str, Any]  # resolved, of the run that made it
    metrics: dict[str, Any]
    data: dict[str, Any]  # name, SHA-256 and size of the training data
    versions: dict[str, str]

    @cached_property
    def steps(self) -> tuple[float, ...]:
        """The different ratings of the data, ascending, if they are few enough to be the steps of a scale; else none.

        Those that the model has probabilities for are steps even if nobody who is left has given them.
        """
        found = distinct(self.seen.stars, STEPS)
        grid = None if isinstance(self.posterior, Neighbourhood) else self.posterior.grid
        if grid is not None:
            found = in_stars(grid, found.tolist(), self.scale)
        return tuple(found.tolist()) if 2 <= len(found) <= STEPS else ()

    @cached_property
    def movie_counts(self) -> Tensor:
        """Training ratings of each movie."""
        return self.seen.movie_counts(len(self.movies))


def in_stars(t: Tensor, steps: Sequence[float], scale: Scale) -> Tensor:
    """Stars from the unit scale, of any shape; snapped to a step or an end of the scale where they differ by rounding alone."""
    stars, known = scale.to_stars(t), torch.tensor(sorted({*steps, *scale}))
    near = known[nearest(known, stars)]
    return torch.where((near - stars).abs() < _ROUNDING * (scale.hi - scale.lo), near, stars)


def dumps(model: Model) -> bytes:
    """The bytes of a model file. Equal models give equal bytes.

    Raises:
        TrainingError: it has numbers that would make ``loads`` refuse the file.
    """
    posterior, tensors = packing.pack(model.posterior)
    wrong = next((name for name, tensor in tensors.items() if not packing.is_bounded(name, tensor)), None)
    if wrong is not None:
        raise TrainingError(f"the model came out with numbers that are not finite, or beyond all bounds ({wrong}); not written")
    tensors |= packing.pack_seen(model.seen, len(model.movies))
    meta = {
        "method": model.method,
        "users": model.users.ids,
        "movies": model.movies.ids,
        "titles": model.titles,
        "scale": model.scale,
        "posterior": posterior,
        "settings": model.settings,
        "metrics": model.metrics,
        "data": model.data,
        "versions": model.versions,
    }
    buffer = io.BytesIO()
    content = {
        "format": FORMAT,
        "version": VERSION,
        "meta": _dumps(meta).encode(errors="replace").decode(),  # names of files need not be text
        "tensors": {name: _alone(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()},
    }
    torch.save(content, buffer)
    return buffer.getvalue()


def _alone(tensor: Tensor) -> Tensor:
    """The same with nothing else in its memory, which would be saved too."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def loads(content: bytes, name: str) -> Model:
    """A model from the bytes of a file called ``name``.

    Raises:
        ModelError: not a model, damaged, unsafe, or of a newer version.
    """
    raw = archive.load(content, name, "model file", "train it again")
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or not isinstance(raw.get("version"), int):
        raise ModelError(f"{name}: a PyTorch file, but not a pmf model; train one with: pmf train")
    if raw["version"] < VERSION:
        raise ModelError(f"{name}: model format {raw['version']} is from an earlier pmf; train it again")
    if raw["version"] > VERSION:
        raise ModelError(f"{name}: model format {raw['version']} is newer than this pmf knows ({VERSION}); upgrade pmf")
    try:
        meta = json.loads(raw["meta"], parse_constant=_no_number)
        _dumps(meta).encode()  # what cannot be written again is refused: half a surrogate pair, a number like 1e999
        return _model(meta, raw["tensors"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise ModelError(f"{name}: damaged model file ({type(error).__name__}: {error}); train it again") from None


def begins_a_model(head: bytes) -> bool:
    """Whether a file begins as those of ``dumps`` do, in any version: with a record that names the format first."""
    length = int.from_bytes(head[26:28], "little")  # of the name of the first record of a zip file
    return head.startswith(b"PK\x03\x04") and head[30 : 30 + length].endswith(b"/data.pkl") and FORMAT.encode() in head


def load(path: Path | str | None) -> Model:
    """A model from a file; None reads standard input.

    Raises:
        ModelError: as ``loads``, or no such file.
    """
    name = "standard input" if path is None else str(path)
    try:
        content = archive.read(None if path is None else Path(path))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model; train one with: pmf train -o {path}") from None
    except OSError as error:
        raise ModelError(f"{name}: {error.strerror or error}; give a model file with --model") from None
    return loads(content, name)


def _dumps(meta: dict[str, Any]) -> str:
    return json.dumps(meta, ensure_ascii=False, allow_nan=False)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} in it")


def _model(meta: dict[str, Any], tensors: dict[str, Tensor]) -> Model:
    users, movies = Vocabulary(tuple(meta["users"])), Vocabulary(tuple(meta["movies"]))
    n_users, n_movies = len(users), len(movies)
    seen = packing.unpack_seen(tensors, n_users, n_movies)
    posterior = packing.unpack(meta["posterior"], tensors, n_users, n_movies)
    if _KINDS.get(meta["method"]) != meta["posterior"]["kind"]:
        raise ValueError("the method is none that pmf knows")
    powers = () if isinstance(posterior, Blend) else ("user_power", "movie_power", "rater_power")
    if not all(0 <= float(meta["settings"][name]) <= 2 for name in powers):
        raise ValueError("a power of the hierarchical means is out of bounds")
    if not all(isinstance(name, str) for name in users.ids + movies.ids) or len(meta["titles"]) != n_movies:
        raise ValueError("the titles do not fit the ids")
    if not all(clean(name) == name for name in users.ids + movies.ids):
        raise ValueError("an id holds control characters, or blanks around it")
    if len(set(users.ids)) != n_users or len(set(movies.ids)) != n_movies:
        raise ValueError("an id stands twice")
    if isinstance(posterior, Blend) and len(seen.movie) and int(seen.movie.max()) >= min(posterior.movies):
        raise ValueError("the seen pairs do not fit a part")
    if meta["settings"]["time"] not in ("none", "user", "movie", "both"):
        raise ValueError("the effects of time are none that pmf knows")
    about, latest = meta["data"], meta["data"]["latest"]
    if not isinstance(about["name"], str) or not all(type(about[of]) is int for of in ("ratings", "users", "movies")):
        raise ValueError("what it says of its data is not that")
    if latest is not None and not (type(latest) is int and abs(latest) <= LATEST):
        raise ValueError("the latest time is none")
    scale = Scale(float(meta["scale"][0]), float(meta["scale"][1]))
    if not all(abs(number) <= packing.LARGE for number in scale) or scale.lo >= scale.hi:
        raise ValueError("the scale is none")
    for part in posterior.parts if isinstance(posterior, Blend) else ():
        if isinstance(part, Neighbourhood) and not torch.equal(part.scale, torch.tensor([*scale])):
            raise ValueError("the scale is not that of a part")
    return Model(
        method=str(meta["method"]),
        posterior=posterior,
        users=users,
        movies=movies,
        titles=tuple(title if title is None else clean(str(title)) for title in meta["titles"]),
        scale=scale,
        seen=seen,
        settings=dict(meta["settings"]),
        metrics=dict(meta["metrics"]),
        data=dict(meta["data"]),
        versions=dict(meta["versions"]),
    )
