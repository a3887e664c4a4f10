"""The settings of a run: typed, checked, unknown keys refused.

A flag wins over PMF_* in the environment, that over a file, that over the default.
"""

import contextlib
import difflib
import os
import re
import reprlib
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from pmfcli.errors import UsageError

LOCAL_FILE = Path("pmf.toml")
ENVIRONMENT = "PMF_"
OTHER_VARIABLES = ("PMF_DATA", "PMF_DATA_DIR", "PMF_MODEL")  # of flags that are no settings
_LONGEST = 1 << 20  # letters of a file of settings
_SCALE: dict[str, Any] = {"ge": 1e-6, "le": 1e6}
_MODEL, _FIT, _BAYES, _RUN = "The model", "The fit", "The sampler", "The machine"
_BY_METHOD: dict[str, dict[str, Any]] = {  # defaults that depend on the method
    "map": {"latent": 30, "epochs": 1000, "holdout": 0.1, "habits": 8, "noise": "fixed"},
    "bayes": {"latent": 24, "epochs": None, "holdout": 0.0, "habits": 2, "noise": "both"},
}
_PYDANTIC = re.compile(r"^(Input should be|Unable to parse input string as) |, (unable|got|exceeded) .*")  # round what it wants
FOUND_SCALES = ("sigma_b", "sigma_x")  # of a mode, which come from the ratings where they are not given
_WIDE = {"sigma_u": 0.3, "sigma_v": 0.32, "sigma_x": 0.3}  # where one side has no means, and where EM begins
_WAYS = {  # what makes a run one of a kind
    "map": "--method map",
    "adam": "--method map --solver adam",
    "em": "--priors em",
    "bayes": "--method bayes",
    "ordinal": "--likelihood ordinal",
    "user means": "--hierarchical users or both",
    "movie means": "--hierarchical both",
    "biases": "--biases",
}


def _field(
    default: Any, text: str, panel: str, short: str | None = None, only: str = "", shown: str | None = None, **bounds: Any
) -> Any:
    """A setting: what it is, where ``--help`` shows it, which kinds of fit use it, separated by commas."""
    needs = only.split(",") if only else []
    extra: dict[str, Any] = {"panel": panel, "short": short, "only": needs, "shown": shown}
    return Field(default, description=text, json_schema_extra=extra, **bounds)


class Settings(BaseModel):
    """All that determines the result of a training run. Scales are standard deviations, in logits if not said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, values: dict[str, Any]) -> dict[str, Any]:
        method = str(values.get("method", "map"))
        wide = values.get("hierarchical") in ("none", "users") or values.get("priors") == "em"
        by_em = "em" in (values.get("priors"), values.get("noise"))
        derived = {
            **_BY_METHOD.get(method, {}),
            **(_WIDE if wide else {}),
            "link": "linear" if method == "bayes" or by_em or values.get("solver") == "als" else "sigmoid",
            "solver": "als" if by_em else "adam",
        }
        return derived | {key: value for key, value in values.items() if value is not None}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("a number or a name")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.method == "bayes" and self.link != "linear":
            raise ValueError("--method bayes samples the linear link; leave --link out")
        if self.solver == "adam" and self.by_em:
            raise ValueError("--priors em and --noise em need the covariances of --solver als; leave --solver out")
        if self.method == "map" and self.solver == "als" and self.noise == "learned":
            raise ValueError("--noise learned is Adam's; with --solver als it is --noise em")
        if self.noise in (("fixed", "em") if self.method == "bayes" else ("user", "movie", "both")):
            ways = "learned, user, movie or both" if self.method == "bayes" else "fixed, learned or em"
            raise ValueError(f"--noise {self.noise} is not for --method {self.method}, whose noise can be {ways}")
        if self.time != "none" and not self.biases:
            raise ValueError("--time moves the biases; leave --no-biases out")
        return self

    method: Literal["map", "bayes"] = _field(
        "map", "One best model (maximum a posteriori), or draws from the posterior (Gibbs sampling).", _MODEL
    )
    latent: int = _field(30, "Latent features per user and movie.", _MODEL, "-k", shown="30; bayes: 24", ge=1, le=10_000)
    hierarchical: Literal["none", "users", "both"] = _field(
        "both", "Whose prior means are learned from who rated what.", _MODEL
    )
    time: Literal["none", "user", "movie", "both"] = _field(
        "none",
        "Whose means change over time: a user's from sitting to sitting, a movie's as it ages. Needs timestamps.",
        _BAYES,
        only="bayes",
    )
    biases: bool = _field(True, "A bias for each user and movie.", _MODEL)
    offset: bool = _field(True, "Centre on the mean rating instead of the middle of the scale.", _MODEL)
    link: Literal["sigmoid", "linear"] = _field(
        "sigmoid",
        "Maps a score x to the rating scale: 1/(1 + e^-x), or its tangent 1/2 + x/4.",
        _MODEL,
        shown="sigmoid; als, em, bayes: linear",
    )
    sigma: float = _field(
        0.3,
        "Noise sd of a rating, as a fraction of the rating scale; the starting value if learned.",
        _MODEL,
        only="map",
        **_SCALE,
    )
    noise: Literal["fixed", "learned", "em", "user", "movie", "both"] = _field(
        "fixed",
        "Sigma: fixed, learned, or by EM, which allows for the uncertainty of the factors; bayes: learned, one for all, "
        "or one for each user, movie, or both.",
        _MODEL,
        shown="fixed; bayes: both",
    )
    likelihood: Literal["gaussian", "ordinal"] | None = _field(
        None,
        "Treat ratings as numbers with Gaussian noise, or as steps of a scale with learned cut points. For map this changes "
        "only its answers; its fit is to numbers.",
        _MODEL,
        shown="ordinal, for up to 25 different ratings",
    )
    habits: int = _field(
        8,
        "Ways of using the scale: how many sets of cut points.",
        _MODEL,
        only="ordinal",
        shown="8; bayes: 2, mixed by each user",
        ge=1,
        le=10,
    )
    priors: Literal["fixed", "em"] = _field(
        "fixed", "Prior scales: fixed, or learned by EM, starting from them.", _MODEL, only="map"
    )
    prior_shape: Literal["spherical", "diagonal", "full"] = _field(
        "full", "Priors learned by EM: one scale, one per feature, or a full covariance.", _MODEL, only="em"
    )
    sigma_u: float = _field(
        0.25,
        "Prior scale of the users' own factors.",
        _MODEL,
        only="map",
        shown="0.25; hierarchical none or users, priors em: 0.3",
        **_SCALE,
    )
    sigma_v: float = _field(
        0.27,
        "Prior scale of the movies' own factors.",
        _MODEL,
        only="map",
        shown="0.27; hierarchical none or users, priors em: 0.32",
        **_SCALE,
    )
    sigma_w: float = _field(
        0.15, "Prior scale of what rating a movie says about the user.", _MODEL, only="map,user means", **_SCALE
    )
    sigma_x: float | None = _field(
        None,
        "Prior scale of what being rated by a user says about the movie.",
        _MODEL,
        only="map,movie means",
        shown="0.4, or less where many users have few ratings; priors em: 0.3",
        **_SCALE,
    )
    sigma_b: float | None = _field(
        None,
        "Prior scale of the biases.",
        _MODEL,
        only="map,biases",
        shown="0.5, or more where users and movies differ more",
        **_SCALE,
    )
    user_power: float = _field(
        0.5,
        "A user's prior mean is the sum over their n movies, divided by n to this power.",
        _MODEL,
        only="user means",
        ge=0,
        le=2,
    )
    movie_power: float = _field(0.25, "The same for a movie with m ratings.", _MODEL, only="movie means", ge=0, le=2)
    rater_power: float = _field(
        0.25,
        "What a user with n ratings adds to a movie's sum is divided by n to this power.",
        _MODEL,
        only="movie means",
        ge=0,
        le=2,
    )

    epochs: int | None = _field(
        None,
        "Passes over the ratings, at most; bayes: sweeps.",
        _FIT,
        shown="1000; bayes: until it converges",
        ge=1,
        le=10**9,
    )
    solver: Literal["adam", "als"] = _field(
        "adam", "Gradient steps, or alternating least squares.", _FIT, only="map", shown="adam; em: als"
    )
    lr: float | None = _field(None, "Learning rate of Adam.", _FIT, only="adam", shown="0.03; in blocks: 0.015", gt=0)
    early_stop: bool = _field(
        True,
        "Stop when the loss or held-out error no longer improves, then re-estimate users given movies, with less noise than "
        "sigma where that clearly predicts better.",
        _FIT,
        only="map",
    )
    holdout: float = _field(
        0.1,
        "Fraction held out to find the best epoch and to score the model; 0 for none.",
        _FIT,
        shown="0.1; bayes: 0",
        ge=0,
        lt=1,
    )
    refit: bool = _field(True, "After --holdout, fit again on all ratings.", _FIT)
    block_ratings: int | None = _field(
        None,
        "Update in blocks of users with this many ratings.",
        _FIT,
        only="adam",
        shown="a fifth of them, 250,000 to 4 million",
        ge=1,
    )
    seed: int = _field(0, "Seed of all random numbers.", _FIT, ge=0, lt=2**63)

    chains: int = _field(1, "Chains of the sampler, side by side.", _BAYES, only="bayes", ge=1, le=64)
    keep: int = _field(100, "Draws kept in the model file, over all chains.", _BAYES, only="bayes", ge=1, le=10_000)
    prior_scales: bool = _field(
        True, "Heavy-tailed (t) priors instead of Gaussian, for unusual users and movies.", _BAYES, only="bayes"
    )

    device: Literal["auto", "cpu", "cuda", "mps"] = _field("auto", "Where to compute.", _RUN)
    threads: int | None = _field(None, "Processor threads.", _RUN, "-j", shown="all cores", ge=1, le=512)

    @property
    def user_means(self) -> bool:
        """Whether the prior means of users come from what they rated."""
        return self.hierarchical != "none"

    @property
    def movie_means(self) -> bool:
        """Whether the prior means of movies come from who rated them."""
        return self.hierarchical == "both"

    @property
    def by_em(self) -> bool:
        """Whether EM learns something of a mode."""
        return "em" in (self.priors, self.noise)

    def kinds(self) -> set[str]:
        """The kinds of fit that these settings are, as ``only`` of a setting names them."""
        found = {"bayes"} if self.method == "bayes" else {"map", self.solver}
        has = {
            "em": self.priors == "em",
            "ordinal": self.likelihood != "gaussian",
            "user means": self.user_means,
            "movie means": self.movie_means,
            "biases": self.biases,
        }
        return found | {kind for kind, so in has.items() if so}

    def lacks(self, name: str) -> str | None:
        """The flags that a run would need for this setting to matter; None if it does."""
        extra = type(self).model_fields[name].json_schema_extra
        assert isinstance(extra, dict)
        needs = [str(kind) for kind in extra["only"]]  # type: ignore[union-attr]
        return next((_WAYS[kind] for kind in needs if kind not in self.kinds()), None)


class Flag(NamedTuple):
    """How a setting looks on the command line."""

    name: str
    kind: Any
    default: Any
    text: str
    panel: str
    short: str | None
    shown: str | None  # the default, in words, where it depends


def flags() -> list[Flag]:
    """One flag for each setting, in order."""
    found = []
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        optional = [kind for kind in get_args(field.annotation) if kind is not type(None)]
        kind = optional[0] if type(None) in get_args(field.annotation) else field.annotation
        looks = (str(extra["panel"]), extra["short"], extra["shown"])
        found.append(Flag(name, kind, field.default, field.description or "", *looks))  # type: ignore[arg-type]
    return found


class Given(NamedTuple):
    """A setting that was given, rather than left as it is by default."""

    value: Any
    origin: str  # for people


def resolve(given: Mapping[str, Any], file: Path | None, environment: Mapping[str, str]) -> Settings:
    """Settings from flags, environment and file: ``settle`` what ``gather`` finds.

    Raises:
        UsageError: as these.
    """
    return settle(gather(given, file, environment))


def gather(flags: Mapping[str, Any], file: Path | None, environment: Mapping[str, str]) -> dict[str, Given]:
    """What was given: by a flag, else in the environment, else in the file.

    Args:
        flags: those that were given, by setting.
        file: a TOML file; None uses ``./pmf.toml`` if it exists.

    Raises:
        UsageError: an unknown key (names the nearest), or a file that is not one of settings.
    """
    if file is None and os.path.lexists(LOCAL_FILE):
        file = LOCAL_FILE
    found: dict[str, Given] = {}
    if file is not None:
        for key, value in _load(file).items():
            if isinstance(value, dict):
                raise UsageError(f"{file}: [{key}]: settings belong at the top level, not in a table; remove that line")
            _known(key, str(file), "")
            found[key] = Given(value, f"{file}: {key}")
    found |= {key: Given(environment[variable], variable) for key, variable in settings_of(environment).items()}
    return found | {key: Given(value, f"--{key.replace('_', '-')}") for key, value in flags.items()}


def settings_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that are settings, by setting.

    Raises:
        UsageError: a variable begins like them and is not a setting (names the nearest).
    """
    found = {}
    for variable in environment:
        if variable.startswith(ENVIRONMENT) and variable not in OTHER_VARIABLES:
            key = variable.removeprefix(ENVIRONMENT).lower()
            _known(key, "the environment", ENVIRONMENT)
            found[key] = variable
    return found


def settle(given: Mapping[str, Given]) -> Settings:
    """Settings from those that were given, and the defaults that go with them.

    Raises:
        UsageError: a value that is not valid (names where it came from), or a setting of another kind of fit.
    """
    try:
        settings = Settings(**{key: one.value for key, one in given.items()})
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise UsageError(message) from None
        key = str(first["loc"][0])
        wanted = _PYDANTIC.sub("", message)
        try:
            shown = reprlib.repr(first["input"])
        except ValueError:  # more digits than Python writes
            shown = "a number this long"
        raise UsageError(f"{given[key].origin}: {shown} is not valid; give a value that is {wanted}") from None
    for key, one in given.items():
        if way := settings.lacks(key):
            raise UsageError(f"{one.origin}: only for {way}, which this run is not; leave it out")
    return settings


def _load(file: Path) -> dict[str, Any]:
    try:
        with contextlib.nullcontext(sys.stdin) if str(file) == "-" else file.open(encoding="utf-8") as stream:
            text = stream.read(_LONGEST)  # what is no file may have no end
        if len(text) == _LONGEST:
            raise UsageError(f"{file}: too long for a file of settings; give a TOML file of settings with --config")
        return tomllib.loads(text.removeprefix("\ufeff"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}; give a TOML file of settings with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not TOML: {error}") from None
    except (ValueError, RecursionError):
        raise UsageError(
            f"{file}: a number in it is too long, or a list too deep; give one plain value for each setting"
        ) from None


def _known(key: str, where: str, prefix: str) -> None:
    names = list(Settings.model_fields)
    names += [variable.removeprefix(ENVIRONMENT).lower() for variable in OTHER_VARIABLES] if prefix else []
    if key in names:
        return
    near = difflib.get_close_matches(key, names, 1, 0.5)
    hint = f"did you mean {prefix}{near[0].upper() if prefix else near[0]}?" if near else f"known: {', '.join(names)}"
    shown = prefix + key.upper() if prefix else key
    raise UsageError(f"{where}: '{shown}' is not a setting; {hint}")
