"""The settings of a run: typed, checked, unknown keys refused.

A flag wins over PMF_* in the environment, that over a file, that over the default.
"""

import difflib
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from pmfcli.errors import UsageError

LOCAL_FILE = Path("pmf.toml")
ENVIRONMENT = "PMF_"
OTHER_VARIABLES = ("PMF_DATA", "PMF_DATA_DIR", "PMF_MODEL")  # of flags that are no settings
_SCALE: dict[str, Any] = {"ge": 1e-6, "le": 1e6}
_MODEL, _FIT, _RUN = "The model", "The fit", "The machine"


def _field(default: Any, text: str, panel: str, short: str | None = None, **bounds: Any) -> Any:
    return Field(default, description=text, json_schema_extra={"panel": panel, "short": short}, **bounds)


class Settings(BaseModel):
    """All that decides what a training run gives. Scales are standard deviations, in logits where not said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("a number or a name is expected")
        return value

    latent: int = _field(30, "Latent features of a user or movie.", _MODEL, "-k", ge=1, le=10_000)
    hierarchical: Literal["none", "users", "both"] = _field(
        "both", "Which side's prior means come from who rated what.", _MODEL
    )
    biases: bool = _field(True, "A bias for each user and movie.", _MODEL)
    offset: bool = _field(True, "Start from the mean rating instead of the middle of the scale.", _MODEL)
    sigma: float = _field(0.3, "Noise of a rating, as a part of the rating scale; the start if learned.", _MODEL, **_SCALE)
    noise: Literal["fixed", "learned"] = _field("fixed", "Whether sigma is learned with the factors.", _MODEL)
    sigma_u: float = _field(0.3, "Prior scale of the users' own factors.", _MODEL, **_SCALE)
    sigma_v: float = _field(0.32, "Prior scale of the movies' own factors.", _MODEL, **_SCALE)
    sigma_w: float = _field(0.15, "Prior scale of what rating a movie says of its rater.", _MODEL, **_SCALE)
    sigma_x: float = _field(0.3, "Prior scale of what being rated by a user says of a movie.", _MODEL, **_SCALE)
    sigma_b: float = _field(0.5, "Prior scale of the biases.", _MODEL, **_SCALE)
    user_power: float = _field(0.5, "A user's mean divides the sum over n movies by n to this power.", _MODEL, ge=0, le=2)
    movie_power: float = _field(0.25, "The same for a movie with m ratings.", _MODEL, ge=0, le=2)
    rater_power: float = _field(0.25, "How far a user with n ratings counts less for each of their movies.", _MODEL, ge=0, le=2)

    epochs: int = _field(1000, "Passes over the ratings, at most.", _FIT, ge=1, le=10**9)
    lr: float = _field(0.03, "Learning rate of Adam.", _FIT, gt=0)
    early_stop: bool = _field(True, "Stop when the loss, or the held-out error, no longer improves.", _FIT)
    holdout: float = _field(0.1, "Fraction of the ratings held out to find the best epoch; 0 for none.", _FIT, ge=0, lt=1)
    refit: bool = _field(True, "Then fit again on all ratings for that many epochs.", _FIT)
    block_ratings: int = _field(1_000_000, "Beyond this many ratings, update by blocks of users of this size.", _FIT, ge=1)
    seed: int = _field(0, "Seed of all random numbers.", _FIT, ge=0, lt=2**63)

    device: Literal["auto", "cpu", "cuda", "mps"] = _field("auto", "Where to compute.", _RUN)
    threads: int | None = _field(None, "Processor threads; all cores if not given.", _RUN, "-j", ge=1, le=512)


class Flag(NamedTuple):
    """How a setting looks on the command line."""

    name: str
    kind: Any
    default: Any
    text: str
    panel: str
    short: str | None


def flags() -> list[Flag]:
    """One flag for each setting, in order."""
    found = []
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        kind = int if name == "threads" else field.annotation
        found.append(Flag(name, kind, field.default, field.description or "", str(extra["panel"]), extra["short"]))  # type: ignore[arg-type]
    return found


def resolve(given: Mapping[str, Any], file: Path | None, environment: Mapping[str, str]) -> Settings:
    """Settings from flags, environment and file.

    Args:
        given: flags that were given, by setting.
        file: a TOML file; None takes ``./pmf.toml`` if it is there.

    Raises:
        UsageError: an unknown key (names the nearest), a value that does not fit (names where it came from).
    """
    if file is None and LOCAL_FILE.is_file():
        file = LOCAL_FILE
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if file is not None:
        for key, value in _load(file).items():
            _known(key, str(file), "")
            values[key], origin[key] = value, f"{file}: {key}"
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT) and variable not in OTHER_VARIABLES:
            key = variable.removeprefix(ENVIRONMENT).lower()
            _known(key, "the environment", ENVIRONMENT)
            values[key], origin[key] = text, variable
    for key, value in given.items():
        values[key], origin[key] = value, f"--{key.replace('_', '-')}"
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        raise UsageError(f"{origin[key]}: {message}, not {first['input']!r}") from None


def _load(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}; give a TOML file of settings by --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not TOML: {error}") from None


def _known(key: str, where: str, prefix: str) -> None:
    names = list(Settings.model_fields)
    if key in names:
        return
    near = difflib.get_close_matches(key, names, 1, 0.5)
    hint = f"did you mean {prefix}{near[0].upper() if prefix else near[0]}?" if near else f"known: {', '.join(names)}"
    shown = prefix + key.upper() if prefix else key
    raise UsageError(f"{where}: '{shown}' is no setting; {hint}")
