"""A posterior as tensors and plain values, for a file; and back, where whatever does not fit is refused."""

from typing import Any

import torch
from torch import Tensor

from pmfcli.core.approximation import Common, Draws, Fitted, Head, Laplace, Ordinal, Weights
from pmfcli.core.blend import Blend
from pmfcli.core.distinct import index_kind, indexed
from pmfcli.core.drift import LARGEST_KEY, MOST_KINDS, Drift, Stretches
from pmfcli.core.kinds import Posterior
from pmfcli.core.neighbourhood import NEAREST, Neighbourhood
from pmfcli.core.pairs import Seen
from pmfcli.core.parallel import take
from pmfcli.core.posterior import Factors, Parameters
from pmfcli.core.usage import Groups, Usage
from pmfcli.data.fields import LARGEST, LATEST
from pmfcli.data.ratings import STEPS

Shape = tuple[tuple[int, ...], torch.dtype]

LARGE = LARGEST  # of any number in a file, so that no answer overflows
_LARGEST = dict.fromkeys(("precision_u", "precision_v", "Lambda_u", "Lambda_v", "alpha"), 1e24)
_ADD_UP = 1e-2  # shares and weights to 1, but for half precision
_DRIFT = (*Stretches._fields, *Drift._fields[1:])
_MOST_PARTS, _LEAST_NOISE, _LEAST_PRECISION = 100, 1e-6, 1e-24


def pack(posterior: Posterior) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The part of a posterior that JSON can hold, and its tensors."""
    p = posterior
    if isinstance(p, Blend):
        parts = [pack(part) for part in p.parts]
        tensors = {f"{number}.{name}": tensor for number, (_, of) in enumerate(parts) for name, tensor in of.items()}
        tensors |= {"weight": p.weight} if p.grid is None else {"weight": p.weight, "grid": p.grid}
        return {"kind": "blend", "parts": [about for about, _ in parts], "movies": p.movies, "powers": p.powers}, tensors
    if isinstance(p, Neighbourhood):
        return {"kind": "neighbourhood"}, p._asdict()
    if isinstance(p, Draws):
        fields: dict[str, Any] = {}
        for name, part in p._asdict().items():
            fields |= part._asdict() if isinstance(part, Weights | Common | Ordinal) else {name: part}
        head, drift = fields.pop("head"), fields.pop("drift")
        if drift is not None:
            moved = drift._asdict() | drift.stretches._asdict()
            fields |= {f"drift_{name}": moved[name] for name in _DRIFT}
        return {"kind": "draws", **head._asdict()}, {name: part for name, part in fields.items() if part is not None}
    f, q = p.factors, p.parameters
    found = {"U": f.U, "V": f.V, "sigma": q.sigma, "noise": p.noise}
    found |= {"precision_u": p.precision_u, "precision_v": p.precision_v, "gamma_u": p.noise_u}
    found |= {"residual": p.residual, "doubt": p.doubt}
    if f.b is not None and f.c is not None:
        found |= {"b": f.b, "c": f.c}
    if q.W is not None:
        found |= {"Y": q.Y, "W": q.W}
    if p.common is not None:
        found |= p.common._asdict()
    if q.X is not None:
        found |= {"Z": q.Z, "X": q.X}
    if p.usage is not None:
        found |= {"grid": p.usage.grid, "stars": p.usage.stars, **p.usage.groups._asdict()}
    return {"kind": "mode", "mean_field": p.mean_field, **p.head._asdict()}, found


def unpack(about: dict[str, Any], tensors: dict[str, Tensor], n_users: int, n_movies: int) -> Posterior:
    """A posterior of so many users and movies.

    Raises:
        KeyError, ValueError and the like: it is not one.
    """
    kind = about["kind"]
    if kind == "blend":
        return _blend(about, tensors, n_users, n_movies)
    if kind == "neighbourhood":
        return _neighbourhood(tensors, n_users, n_movies)
    head = Head(int(about["latent"]), float(about["offset"]), about["link"])
    if (kind, head.link) not in (("mode", "sigmoid"), ("mode", "linear"), ("draws", "linear")):
        raise ValueError("the posterior or the link is none that pmf knows")
    if not abs(head.offset) <= LARGE:
        raise ValueError("the offset is out of bounds")
    if kind == "draws":
        check(tensors, _shapes_of_draws(tensors, n_users, n_movies))
        return _draws(tensors, head, n_users, n_movies)
    check(tensors, _shapes_of_a_mode(tensors, head.latent, n_users, n_movies))
    return _mode(tensors, head, bool(about["mean_field"]))


def pack_seen(seen: Seen, n_movies: int) -> dict[str, Tensor]:
    """The ratings that a model has seen: those of all, and which of them each is; in a few bytes, for there may be billions."""
    stars, rating = indexed(seen.stars)
    return {
        "seen_start": seen.start,
        "seen_movie": seen.movie.to(index_kind(n_movies)),
        "seen_rating": rating,
        "seen_stars": stars,
    }


def unpack_seen(tensors: dict[str, Tensor], n_users: int, n_movies: int) -> Seen:
    """The same of so many users and movies, taken from among the tensors of a model.

    Raises:
        KeyError, ValueError: there are none, or they do not fit.
    """
    found = {name: tensors.pop(name) for name in ("seen_start", "seen_movie", "seen_rating", "seen_stars")}
    n, different = len(found["seen_movie"]), len(found["seen_stars"])
    shapes: dict[str, Shape] = {"seen_start": ((n_users + 1,), torch.int64), "seen_stars": ((different,), torch.float32)}
    shapes |= {"seen_movie": ((n,), index_kind(n_movies)), "seen_rating": ((n,), index_kind(different))}
    check(found, shapes)
    start, movie, rating, stars = (
        found["seen_start"],
        *map(_index, (found["seen_movie"], found["seen_rating"])),
        found["seen_stars"],
    )
    rising = bool((start[1:] >= start[:-1]).all()) and int(start[0]) == 0 and int(start[-1]) == n
    if not rising or (n and not 0 <= int(movie.min()) <= int(movie.max()) < n_movies):
        raise ValueError("the seen pairs do not fit the ids")
    if n and not 0 <= int(rating.min()) <= int(rating.max()) < different:
        raise ValueError("the seen ratings are none")
    first = torch.zeros(n, dtype=torch.bool)  # of a user
    first[start[start < n]] = True
    if n and not bool((movie[1:] > movie[:-1]).logical_or_(first[1:]).all()):
        raise ValueError("the seen pairs are not in order")
    return Seen(start, movie, take(stars, rating))


def _index(narrow: Tensor) -> Tensor:
    return narrow.to(torch.int32).bitwise_and_(0xFFFF) if narrow.dtype == torch.int16 else narrow.to(torch.int32)


def check(tensors: dict[str, Tensor], shapes: dict[str, Shape]) -> None:
    """Refuse tensors of other names, shapes or types, and numbers beyond all bounds.

    Raises:
        KeyError, ValueError: there is one.
    """
    for name, tensor in tensors.items():
        shape, dtype = shapes[name]
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_contiguous()
        if tensor.shape != shape or tensor.dtype != dtype or not plain:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
        if not is_bounded(name, tensor):
            raise ValueError(f"{name} is not finite, or out of all bounds")


def is_bounded(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of that name, as ``pack`` calls it, holds only numbers that a file may hold."""
    largest = _LARGEST.get(name.rpartition(".")[2], LARGE)
    return not tensor.is_floating_point() or not tensor.numel() or float(tensor.abs().max()) <= largest


def _blend(about: dict[str, Any], tensors: dict[str, Tensor], n_users: int, n_movies: int) -> Blend:
    own = {name: tensor for name, tensor in tensors.items() if "." not in name}
    count, powers = len(about["parts"]), tuple(float(power) for power in about["powers"])
    movies = tuple(int(known) for known in about["movies"])
    check(own, {"weight": ((count,), torch.float32), "grid": ((len(own.get("grid", ())),), torch.float32)})
    weight, grid = own["weight"], own.get("grid")
    if not 1 <= count <= _MOST_PARTS or bool((weight < 0).any()) or abs(float(weight.sum()) - 1) > _ADD_UP:
        raise ValueError("the weights of the parts are none")
    if max(movies) != n_movies or all(one["kind"] == "neighbourhood" for one in about["parts"]):
        raise ValueError("the parts are too few")
    if not len(powers) == len(movies) == count or not all(0 <= power <= 2 for power in powers):
        raise ValueError("the parts do not fit together")
    if grid is not None:
        _check_grid(grid)
    of_part: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        if "." in name:
            number, _, inner = name.partition(".")
            of_part[int(number)][inner] = tensor
    parts = []
    for one, mine, known in zip(about["parts"], of_part, movies, strict=True):
        if not 1 <= known <= n_movies:
            raise ValueError("a part knows other movies")
        part = unpack(one, mine, n_users, known)
        if isinstance(part, Blend):
            raise ValueError("a part is a blend")
        steps = part.grid if isinstance(part, Fitted) else None
        if steps is not None and (grid is None or not torch.equal(grid, steps)):
            raise ValueError("the steps of the scale are not those of a part")
        parts.append(part)
    return Blend(tuple(parts), weight, movies, powers, grid)


def _neighbourhood(tensors: dict[str, Tensor], n_users: int, n_movies: int) -> Neighbourhood:
    near = (n_movies, tensors["near"].shape[1])
    shapes: dict[str, Shape] = {"near": (near, torch.int32), "weight": (near, torch.float16)}
    shapes |= {name: (shape, torch.float32) for name, shape in {"mean": (), "noise": (), "scale": (2,)}.items()}
    check(tensors, shapes | {"b": ((n_users,), torch.float32), "c": ((n_movies,), torch.float32)})
    found = Neighbourhood(**tensors)
    if near[1] > NEAREST:
        raise ValueError("the neighbours are too many")
    inside = not found.near.numel() or 0 <= int(found.near.min()) <= int(found.near.max()) < n_movies
    width = float(found.scale[1] - found.scale[0])
    if not inside or not width > 0 or not _LEAST_NOISE * width <= float(found.noise):
        raise ValueError("the neighbours do not fit")
    return found


def _check_grid(grid: Tensor) -> None:
    if not 2 <= len(grid) <= STEPS or not bool((grid.diff() > 0).all()) or not 0 <= float(grid[0]) <= float(grid[-1]) <= 1:
        raise ValueError("the steps of the scale are none")


def _check_cuts(cuts: Tensor) -> None:
    if cuts.shape[-2] < 1 or not bool((cuts.diff() >= 0).all()):
        raise ValueError("the cut points are none")


def _shapes_of_a_mode(tensors: dict[str, Tensor], latent: int, n_users: int, n_movies: int) -> dict[str, Shape]:
    d = latent + ("b" in tensors)
    user, movie, prior = (n_users, latent), (n_movies, latent), (d, d)
    shapes = {"U": user, "V": movie, "Y": user, "Z": movie, "W": movie, "X": user, "b": (n_users,), "c": (n_movies,)}
    shapes |= {"precision_u": prior, "precision_v": prior, "gamma_u": (n_users,)}
    shapes |= {"mean_w": (latent,)} | dict.fromkeys(("sigma", "noise", "residual", "doubt", "typical"), ())
    steps, groups = (len(tensors["grid"]), len(tensors["people"])) if "grid" in tensors else (1, 1)
    shapes |= {"grid": (steps,), "stars": (2,), "cuts": (groups, steps - 1), "people": (groups,), "within": (groups,)}
    shapes |= {"rounding": (groups,)}
    return {name: (shape, torch.float32) for name, shape in shapes.items()}


def _shapes_of_draws(tensors: dict[str, Tensor], n_users: int, n_movies: int) -> dict[str, Shape]:
    draws, _, d = tensors["U"].shape
    steps, habits = (len(tensors["grid"]), tensors["cuts"].shape[1]) if "grid" in tensors else (1, 1)
    user, movie, one, prior = (draws, n_users), (draws, n_movies), (draws, d), (draws, d, d)
    rows = {"U": (*user, d), "V": (*movie, d), "W": (*movie, d), "gamma_u": user, "gamma_v": movie}
    rows |= {"share": (*user, habits)}
    small = {"mean_u": one, "mu_u": one, "mu_v": one, "Lambda_u": prior, "Lambda_v": prior, "alpha": (draws,)}
    small |= {"var_w": (n_movies,), "mean_w": one, "typical": (), "prior_dof": (draws, 2), "noise_dof": (draws, 2)}
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
    scales = {name: tensors[name] for name in ("noise", "residual", "doubt")} | {"noise_u": tensors["gamma_u"]}
    positive = all(bool((scale > 0).all()) for scale in (p.sigma, *scales.values()))
    positive = positive and all(float(scales[name]) >= _LEAST_NOISE for name in ("noise", "residual"))
    if not positive or not all(_is_positive(matrix) for matrix in precisions):
        raise ValueError("a variance is not positive")
    factors = Factors(U, V, b, c, head.offset, head.link)
    usage, common = _usage(tensors), _common(tensors, p.W)
    return Laplace(factors, p, *precisions, **scales, mean_field=mean_field, usage=usage, common=common)


def _common(tensors: dict[str, Tensor], W: Tensor | None) -> Common | None:
    """Taken from among the tensors; there if W is."""
    found: Common | None = _whole(Common, tensors)
    if (found is None) != (W is None) or (found is not None and float(found.typical) < 0):
        raise ValueError("the hierarchical means do not fit together")
    return found


def _usage(tensors: dict[str, Tensor]) -> Usage | None:
    names = ("grid", "stars", *Groups._fields)
    if not any(name in tensors for name in names):
        return None
    grid, stars, *groups = (tensors[name] for name in names)
    found = Usage(grid, stars, Groups(*groups))
    _check_grid(grid)
    _check_cuts(found.groups.cuts)
    if not float(stars[1]) > float(stars[0]):
        raise ValueError("the scale is none")
    _, people, within, rounding = found.groups
    positive = bool((people >= 0).all()) and bool((within >= _LEAST_NOISE).all()) and bool((rounding >= 0).all())
    if not positive or not bool(people.any()):
        raise ValueError("the groups are none")
    return found


def _draws(tensors: dict[str, Tensor], head: Head, n_users: int, n_movies: int) -> Draws:
    t = dict(tensors)
    drift = _drift({name: t.pop(f"drift_{name}", None) for name in _DRIFT}, n_users, n_movies)
    weights, ordinal = (_whole(kind, t) for kind in (Weights, Ordinal))
    common = _common(t, None if weights is None else weights.W)
    dofs: dict[str, Any] = {name: t.pop(name, None) for name in ("prior_dof", "noise_dof")}
    if not 0 <= t["U"].shape[2] - head.latent <= 1 or len(t["U"]) == 0:
        raise ValueError("the draws do not fit together")
    if ordinal is not None:
        share = ordinal.share.float()
        _check_grid(ordinal.grid)
        _check_cuts(ordinal.cuts)
        if bool((share < 0).any()) or float((share.sum(2) - 1).abs().max()) > _ADD_UP:
            raise ValueError("the shares of habits do not add up")
    least = {"alpha": _LEAST_PRECISION, "gamma_u": 0, "gamma_v": 0, "var_w": 0, "prior_dof": 2, "noise_dof": 2, "habits": 0}
    positive = all(bool((tensors[name] > bound).all()) for name, bound in least.items() if name in tensors)
    if not positive or not all(_is_positive(matrices) for matrices in (t["Lambda_u"], t["Lambda_v"])):
        raise ValueError("a variance is not positive")
    if drift is not None and t["U"].shape[2] == head.latent:
        raise ValueError("there are effects of time, and no biases")
    return Draws(**t, **dofs, weights=weights, common=common, ordinal=ordinal, drift=drift, head=head)


def _whole(kind: Any, tensors: dict[str, Tensor]) -> Any:
    """What has all of its tensors, which are taken from among those of a posterior; None if it has none."""
    parts = [tensors.pop(name, None) for name in kind._fields]
    if all(part is None for part in parts):
        return None
    if any(part is None for part in parts):
        raise ValueError("the tensors do not fit together")
    return kind(*parts)


def _drift(parts: dict[str, Any], n_users: int, n_movies: int) -> Drift | None:
    if all(part is None for part in parts.values()):
        return None
    drift = {name: parts.pop(name) for name in Drift._fields[1:]}
    s, precision = Stretches(**parts), drift["precision"]
    sizes = s.length.tolist()
    whole = min(sizes, default=0) > 0 and sum(sizes) == len(s.row) and drift["value"] is not None
    sides = (bool((~s.of_movies).any()), bool(s.of_movies.any()))
    whole = whole and len(sizes) <= MOST_KINDS and sides == (drift["usual_u"] is not None, drift["usual_v"] is not None)
    if not whole or bool((s.reach < 0).any()) or bool((precision < _LEAST_PRECISION).any()):
        raise ValueError("the effects of time do not fit together")
    whose = torch.repeat_interleave(torch.where(s.of_movies, n_movies, n_users), s.length)
    first, last = int(s.start.min()), int(s.end.max())
    far = max(n_users, n_movies) * (last - first + 3) > LARGEST_KEY or max(abs(first), abs(last)) > LATEST
    if far or bool((s.end < s.start).any()) or bool(((s.row < 0) | (s.row >= whose)).any()):
        raise ValueError("the stretches of time are none")
    for row, start in zip(s.row.split(sizes), s.start.split(sizes), strict=True):
        if not bool(((row.diff() > 0) | ((row.diff() == 0) & (start.diff() >= 0))).all()):
            raise ValueError("the stretches of time are not in order")
    return Drift(s, **drift)


def _is_positive(matrices: Tensor) -> bool:
    return not bool(torch.linalg.cholesky_ex(matrices).info.any())
