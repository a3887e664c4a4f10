"""The model file: tensors and JSON metadata, versioned. It answers alone, and loading it runs no code.

A file is a dict of a few texts and a dict of tensors, written by ``torch.save`` and read with ``weights_only=True``. It is
written to a temporary name and renamed, and its bytes depend on the content alone.
"""

import io
import json
import os
import pickle
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmfcli.core.drift import LARGEST_KEY, Drift, Stretches
from pmfcli.core.posterior import Factors, Parameters
from pmfcli.core.predict import Draws, Head, Laplace, Posterior, Seen
from pmfcli.data.ratings import STEPS, Scale, Vocabulary
from pmfcli.errors import ModelError, OutputError
from pmfcli.text import clean

_Shape = tuple[tuple[int, ...], torch.dtype]

_SHARES_ADD_UP = 1e-2  # but for half precision
_LARGE = 1e12  # of any number in a file, so that no answer overflows
_DRIFT = (*Stretches._fields, *Drift._fields[1:])
_LARGEST = dict.fromkeys(("precision_u", "precision_v", "Lambda_u", "Lambda_v", "alpha"), 1e24)

FORMAT = "pmf-model"
VERSION = 4


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
    def ratings(self) -> tuple[float, ...]:
        """The different ratings that the data has, ascending."""
        return tuple(self.seen.stars.unique().tolist())

    @property
    def steps(self) -> tuple[float, ...]:
        """The same where they are so few that they are the steps of a scale; else none."""
        return self.ratings if len(self.ratings) <= STEPS else ()


def dumps(model: Model) -> bytes:
    """The bytes of a model file. Equal models give equal bytes."""
    tensors, head = tensors_of(model.posterior)
    seen = model.seen
    tensors |= {"seen_start": seen.start, "seen_movie": seen.movie, "seen_stars": seen.stars}
    meta = {
        "method": model.method,
        "users": model.users.ids,
        "movies": model.movies.ids,
        "titles": model.titles,
        "scale": model.scale,
        **head._asdict(),
        "mean_field": isinstance(model.posterior, Laplace) and model.posterior.mean_field,
        "settings": model.settings,
        "metrics": model.metrics,
        "data": model.data,
        "versions": model.versions,
    }
    buffer = io.BytesIO()
    content = {
        "format": FORMAT,
        "version": VERSION,
        "meta": json.dumps(meta, ensure_ascii=False, allow_nan=False),
        "tensors": {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
    }
    torch.save(content, buffer)
    return buffer.getvalue()


def tensors_of(posterior: Posterior) -> tuple[dict[str, Tensor], Head]:
    """What of a posterior is tensors, and how its factors become a rating."""
    if isinstance(posterior, Draws):
        fields = posterior._asdict()
        head, drift = fields.pop("head"), fields.pop("drift")
        if drift is not None:
            fields |= {f"drift_{name}": tensor for name, tensor in _flat(drift).items()}
        return {name: tensor for name, tensor in fields.items() if tensor is not None}, head
    f, p = posterior.factors, posterior.parameters
    found = {"U": f.U, "V": f.V, "sigma": p.sigma, "noise": posterior.noise}
    found |= {"precision_u": posterior.precision_u, "precision_v": posterior.precision_v}
    if f.b is not None and f.c is not None:
        found |= {"b": f.b, "c": f.c}
    if p.W is not None:
        found |= {"Y": p.Y, "W": p.W}
    if p.X is not None:
        found |= {"Z": p.Z, "X": p.X}
    return found, posterior.head


def _flat(drift: Drift) -> dict[str, Tensor]:
    parts = drift._asdict() | drift.stretches._asdict()
    return {name: part for name, part in parts.items() if isinstance(part, Tensor)}


def loads(content: bytes, name: str) -> Model:
    """A model from the bytes of a file called ``name``.

    Raises:
        ModelError: not a model, damaged, unsafe, or of a newer version.
    """
    _check_archive(content, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(f"{name}: holds something other than tensors and text; refused, none of it was run") from None
    except Exception as error:
        raise ModelError(f"{name}: damaged model file ({type(error).__name__}); train it again") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or not isinstance(raw.get("version"), int):
        raise ModelError(f"{name}: a PyTorch file, but not a model of pmf; train one by: pmf train")
    if raw["version"] < VERSION:
        raise ModelError(f"{name}: model format {raw['version']} is of an earlier pmf; train it again")
    if raw["version"] > VERSION:
        raise ModelError(f"{name}: model format {raw['version']} is newer than this pmf knows ({VERSION}); upgrade pmf")
    try:
        return _model(json.loads(raw["meta"]), raw["tensors"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise ModelError(f"{name}: damaged model file ({type(error).__name__}: {error}); train it again") from None


def load(path: Path) -> Model:
    """A model from a file.

    Raises:
        ModelError: as ``loads``, or no such file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model; train one by: pmf train -o {path}") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; give a model file by --model") from None
    return loads(content, str(path))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new. A pipe or device is written to as it is.

    Raises:
        OutputError: it cannot be written; nothing is left behind.
    """
    temporary = None
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        path = path.resolve()  # through a link, the file it points to is replaced
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: {error.strerror or error}; nothing was written") from None
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_archive(content: bytes, name: str) -> None:
    """A file of ``torch.save`` stores its records as they are, with checksums: refuse what unpacks to more or is damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as box:
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in box.infolist())
            if not stored or sum(member.file_size for member in box.infolist()) > len(content):
                raise ModelError(f"{name}: unpacks to more than it holds; refused")
            damaged = box.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError):
        raise ModelError(f"{name}: not a model file, or cut short, or damaged; train it again") from None
    if damaged is not None:
        raise ModelError(f"{name}: damaged model file (checksum of {damaged}); train it again")


def _model(meta: dict[str, Any], tensors: dict[str, Tensor]) -> Model:
    users, movies = Vocabulary(tuple(meta["users"])), Vocabulary(tuple(meta["movies"]))
    n_users, n_movies, n = len(users), len(movies), len(tensors["seen_movie"])
    method, latent = str(meta["method"]), int(meta["latent"])
    head = Head(latent, float(meta["offset"]), meta["link"])
    if (method, head.link) not in (("map", "sigmoid"), ("map", "linear"), ("bayes", "linear")):
        raise ValueError("the method or the link is none that pmf knows")
    if not 0 <= float(meta["settings"]["user_power"]) <= 2:
        raise ValueError("the power of a user's mean is out of bounds")
    shapes = (
        _shapes_of_draws(tensors, n_users, n_movies)
        if method == "bayes"
        else _shapes_of_a_mode(tensors, latent, n_users, n_movies)
    )
    shapes |= {
        "seen_start": ((n_users + 1,), torch.int64),
        "seen_movie": ((n,), torch.int32),
        "seen_stars": ((n,), torch.float32),
    }
    for name, tensor in tensors.items():
        shape, dtype = shapes[name]
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_contiguous()
        if tensor.shape != shape or tensor.dtype != dtype or not plain:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
        if tensor.is_floating_point() and tensor.numel() and not float(tensor.abs().max()) <= _LARGEST.get(name, _LARGE):
            raise ValueError(f"{name} is not finite, or out of all bounds")
    seen = Seen(tensors["seen_start"], tensors["seen_movie"], tensors["seen_stars"])
    rising = bool((seen.start[1:] >= seen.start[:-1]).all()) and int(seen.start[0]) == 0 and int(seen.start[-1]) == n
    if not rising or (n and not 0 <= int(seen.movie.min()) <= int(seen.movie.max()) < n_movies):
        raise ValueError("the seen pairs do not fit the ids")
    same_user = torch.ones(n, dtype=torch.bool)
    same_user[seen.start[(seen.start < n)]] = False
    if n and not bool((seen.movie[1:] > seen.movie[:-1])[same_user[1:]].all()):
        raise ValueError("the seen pairs are not in order")
    if not all(isinstance(name, str) for name in users.ids + movies.ids) or len(meta["titles"]) != n_movies:
        raise ValueError("the titles do not fit the ids")
    if len(set(users.ids)) != n_users or len(set(movies.ids)) != n_movies:
        raise ValueError("an id stands twice")
    if not isinstance(meta["data"]["latest"], int | None):
        raise ValueError("the latest time is none")
    scale = Scale(float(meta["scale"][0]), float(meta["scale"][1]))
    if not all(abs(number) <= _LARGE for number in (*scale, head.offset)) or scale.lo >= scale.hi:
        raise ValueError("the scale is none")
    return Model(
        method=method,
        posterior=_draws(tensors, head, n_users, n_movies)
        if method == "bayes"
        else _mode(tensors, head, bool(meta["mean_field"])),
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


def _shapes_of_a_mode(tensors: dict[str, Tensor], latent: int, n_users: int, n_movies: int) -> dict[str, _Shape]:
    d = latent + ("b" in tensors)
    user, movie, prior = (n_users, latent), (n_movies, latent), (d, d)
    shapes = {"U": user, "V": movie, "Y": user, "Z": movie, "W": movie, "X": user, "b": (n_users,), "c": (n_movies,)}
    shapes |= {"precision_u": prior, "precision_v": prior, "sigma": (), "noise": ()}
    return {name: (shape, torch.float32) for name, shape in shapes.items()}


def _shapes_of_draws(tensors: dict[str, Tensor], n_users: int, n_movies: int) -> dict[str, _Shape]:
    draws, _, d = tensors["U"].shape
    steps, habits = (len(tensors["grid"]), tensors["cuts"].shape[1]) if "grid" in tensors else (1, 1)
    user, movie, one, prior = (draws, n_users), (draws, n_movies), (draws, d), (draws, d, d)
    rows = {"U": (*user, d), "V": (*movie, d), "W": (*movie, d), "gamma_u": user, "gamma_v": movie}
    rows |= {"share": (*user, habits)}
    small = {"mean_u": one, "mu_u": one, "mu_v": one, "Lambda_u": prior, "Lambda_v": prior, "alpha": (draws,)}
    small |= {"var_w": (n_movies,), "prior_dof": (draws, 2), "noise_dof": (draws, 2)}
    small |= {"cuts": (draws, habits, steps - 1), "habits": (draws, habits), "grid": (steps,)}
    stretches, kinds = (len(tensors[f"drift_{name}"]) if "drift_row" in tensors else 0 for name in ("row", "length"))
    small |= {"drift_precision": (draws, kinds)}
    rows |= {"drift_value": (draws, stretches)}
    rows |= {"drift_usual_u": user, "drift_usual_v": movie}
    of_time = {f"drift_{name}": ((kinds,), torch.int64) for name in ("length", "reach")}
    of_time |= {f"drift_{name}": ((stretches,), torch.int64) for name in ("row", "start", "end")}
    of_time |= {"drift_of_movies": ((kinds,), torch.bool)}
    return (
        of_time
        | {name: (shape, torch.float16) for name, shape in rows.items()}
        | {name: (shape, torch.float32) for name, shape in small.items()}
    )


def _mode(tensors: dict[str, Tensor], head: Head, mean_field: bool) -> Laplace:
    U, V, b, c = tensors["U"], tensors["V"], tensors.get("b"), tensors.get("c")
    if (b is None) != (c is None):
        raise ValueError("one of the biases is missing")
    p = Parameters(tensors.get("Y", U), tensors.get("Z", V), tensors.get("W"), tensors.get("X"), b, c, tensors["sigma"])
    precisions = tensors["precision_u"], tensors["precision_v"]
    if not all(_is_positive(matrix) for matrix in precisions) or min(float(p.sigma), float(tensors["noise"])) <= 0:
        raise ValueError("a variance is not positive")
    return Laplace(Factors(U, V, b, c, head.offset, head.link), p, *precisions, tensors["noise"], mean_field)


def _draws(tensors: dict[str, Tensor], head: Head, n_users: int, n_movies: int) -> Draws:
    t = dict(tensors)
    for name in ("seen_start", "seen_movie", "seen_stars"):
        del t[name]
    drift = _drift({name: t.pop(f"drift_{name}", None) for name in _DRIFT}, n_users, n_movies)
    scale = ("share", "cuts", "habits", "grid")
    optional: dict[str, Any] = {name: t.pop(name, None) for name in ("W", "var_w", "prior_dof", "noise_dof", *scale)}
    one_sided = (optional["W"] is None) != (optional["var_w"] is None) or len({optional[name] is None for name in scale}) > 1
    if not 0 <= t["U"].shape[2] - head.latent <= 1 or len(t["U"]) == 0 or one_sided:
        raise ValueError("the draws do not fit together")
    if optional["grid"] is not None:
        grid, cuts, share = optional["grid"], optional["cuts"], optional["share"].float()
        in_order = (
            bool((grid.diff() > 0).all()) and bool((cuts.diff() >= 0).all()) and 0 <= float(grid[0]) <= float(grid[-1]) <= 1
        )
        if not (2 <= len(grid) <= STEPS and cuts.shape[1] >= 1 and in_order):
            raise ValueError("the steps of the scale are none")
        if bool((share < 0).any()) or float((share.sum(2) - 1).abs().max()) > _SHARES_ADD_UP:
            raise ValueError("the shares of habits do not add up")
    least = {"alpha": 1e-24, "gamma_u": 0, "gamma_v": 0, "var_w": 0, "prior_dof": 2, "noise_dof": 2, "habits": 0}
    positive = all(bool((tensors[name] > bound).all()) for name, bound in least.items() if name in tensors)
    if not positive or not all(_is_positive(matrices) for matrices in (t["Lambda_u"], t["Lambda_v"])):
        raise ValueError("a variance is not positive")
    return Draws(**t, **optional, drift=drift, head=head)


def _drift(parts: dict[str, Any], n_users: int, n_movies: int) -> Drift | None:
    if all(part is None for part in parts.values()):
        return None
    drift = {name: parts.pop(name) for name in Drift._fields[1:]}
    s, precision = Stretches(**parts), drift["precision"]
    whose = torch.repeat_interleave(torch.where(s.of_movies, n_movies, n_users), s.length)
    whole = len(s.length) > 0 and bool((s.length > 0).all()) and len(whose) == len(s.row) and drift["value"] is not None
    if not whole or bool((s.reach < 0).any()) or bool((precision <= 0).any()):
        raise ValueError("the effects of time do not fit together")
    span = int(s.end.max()) - int(s.start.min()) + 3
    far = max(n_users, n_movies) * span > LARGEST_KEY or int(s.end.abs().max()) > _LARGE or int(s.start.abs().max()) > _LARGE
    if far or bool((s.end < s.start).any()) or bool(((s.row < 0) | (s.row >= whose)).any()):
        raise ValueError("the stretches of time are none")
    for row, start in zip(s.row.split(s.length.tolist()), s.start.split(s.length.tolist()), strict=True):
        if not bool(((row.diff() > 0) | ((row.diff() == 0) & (start.diff() >= 0))).all()):
            raise ValueError("the stretches of time are not in order")
    return Drift(s, **drift)


def _is_positive(matrices: Tensor) -> bool:
    return not bool(torch.linalg.cholesky_ex(matrices).info.any())
