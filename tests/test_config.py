from pathlib import Path

import pytest
from conftest import ROOT

from pmfcli.config import Settings, flags, resolve
from pmfcli.errors import UsageError


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_every_config_loads_and_holds_only_differences(path: Path) -> None:
    settings = resolve({}, path, {})
    assert path.read_text().startswith("# ")
    default = Settings().model_dump()
    written = [line.split(" = ")[0] for line in path.read_text().splitlines() if " = " in line and not line.startswith("#")]
    assert [key for key in written if settings.model_dump()[key] == default[key]] == []


def test_flag_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    file.write_text("latent = 5\nlr = 0.5\nepochs = 7\n")
    found = resolve({"latent": 3}, file, {"PMF_LATENT": "4", "PMF_LR": "0.25", "HOME": "/", "PMF_MODEL": "x.pt"})
    assert (found.latent, found.lr, found.epochs, found.seed) == (3, 0.25, 7, 0)
    monkeypatch.chdir(tmp_path)
    file.rename("pmf.toml")
    assert resolve({}, None, {}).latent == 5


@pytest.mark.parametrize(
    ("given", "file", "environment", "message"),
    [
        ({"latent": 0}, "", {}, r"^--latent: 0 is not valid; give a value that is greater than or equal to 1$"),
        ({"lr": float("nan")}, "", {}, r"^--lr: nan is not valid; give a value that is a finite number$"),
        ({"holdout": 1.0}, "", {}, r"^--holdout: "),
        ({"habits": 99}, "", {}, r"^--habits: 99 is not valid; give a value that is less than or equal to 10$"),
        ({}, "", {"PMF_BIASES": "maybe"}, r"^PMF_BIASES: 'maybe' is not valid; give a value that is a valid boolean$"),
        ({}, "", {"PMF_NOISE": "no"}, r"that is 'fixed', 'learned', 'em', 'user', 'movie' or 'both'$"),
        ({"threads": 100_000}, "", {}, r"^--threads: "),
        ({"sigma_u": 1e-200}, "", {}, r"^--sigma-u: "),
        ({}, "latent = true", {}, r"c\.toml: latent: True is not valid; give a value that is a number or a name$"),
        (
            {},
            "[train]\nlatent = 3",
            {},
            r"c\.toml: \[train\]: settings belong at the top level, not in a table; remove that line$",
        ),
        ({}, "latnet = 3", {}, r"c\.toml: 'latnet' is not a setting; did you mean latent\?"),
        ({}, "xyzzy = 3", {}, r"c\.toml: 'xyzzy' is not a setting; known: method, "),
        ({}, "latent = 'many'", {}, r"c\.toml: latent: 'many' is not valid; give a value that is a valid integer$"),
        ({}, "latent = ", {}, r"c\.toml: not TOML: "),
        ({}, f"latent = {'[' * 5000}", {}, r"c\.toml: a number in it is too long, or a list too deep; "),
        ({}, f"latent = {'9' * 5000}", {}, r"c\.toml: a number in it is too long, or a list too deep; "),
        (
            {},
            f"latent = 0x{'f' * 5000}",
            {},
            r"c\.toml: latent: a number this long is not valid; give a value that is less than or equal to 10000$",
        ),
        ({}, f"latent = '{'x' * 5000}'", {}, r"^.{,300}$"),
        ({}, "", {"PMF_EPOCS": "3"}, r"'PMF_EPOCS' is not a setting; did you mean PMF_EPOCHS\?"),
        ({}, "", {"PMF_MODLE": "x.pt"}, r"'PMF_MODLE' is not a setting; did you mean PMF_MODEL\?"),
        ({}, "", {"PMF_EPOCHS": "few"}, r"^PMF_EPOCHS: 'few' is not valid; give a value that is a valid integer$"),
        (
            {"method": "bayes", "lr": 0.1},
            "",
            {},
            r"^--lr: only for --method map --solver adam, which this run is not; leave it out$",
        ),
        ({"hierarchical": "none", "sigma_w": 0.1}, "", {}, r"^--sigma-w: only for --hierarchical users or both, "),
        ({"hierarchical": "users"}, "movie_power = 0.5", {}, r"c\.toml: movie_power: only for --hierarchical both, "),
        ({"biases": False, "sigma_b": 0.1}, "", {}, r"^--sigma-b: only for --biases, "),
        ({"method": "bayes", "likelihood": "gaussian", "habits": 2}, "", {}, r"^--habits: only for --likelihood ordinal, "),
    ],
)
def test_what_is_wrong_and_where_it_came_from(tmp_path: Path, given: dict, file: str, environment: dict, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(file)
    with pytest.raises(UsageError, match=message) as caught:
        resolve(given, path, environment)
    assert "\n" not in str(caught.value)


def test_the_file_of_a_folder_is_read_however_it_begins_and_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local = tmp_path / "pmf.toml"
    local.write_bytes(b"\xef\xbb\xbflatent = 3\n")
    assert resolve({}, None, {}).latent == 3
    local.unlink()
    local.mkdir()
    with pytest.raises(UsageError, match=r"^pmf\.toml: Is a directory"):
        resolve({}, None, {})
    local.rmdir()
    local.symlink_to("none.toml")
    with pytest.raises(UsageError, match=r"^pmf\.toml: No such file"):
        resolve({}, None, {})


def test_a_file_that_is_not_there_or_has_no_end(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        resolve({}, tmp_path / "none.toml", {})
    (tmp_path / "long.toml").write_text("#" * (1 << 20))
    with pytest.raises(UsageError, match="too long for a file of settings"):
        resolve({}, tmp_path / "long.toml", {})


@pytest.mark.parametrize(
    ("how", "scales"),
    [
        ({}, (0.25, 0.27, None)),
        ({"hierarchical": "users", "sigma_u": 0.2}, (0.2, 0.32, 0.3)),
        ({"hierarchical": "none"}, (0.3, 0.32, 0.3)),
        ({"priors": "em", "sigma_x": 0.1}, (0.3, 0.32, 0.1)),
        ({"noise": "em"}, (0.25, 0.27, None)),
    ],
)
def test_factors_are_wider_where_means_say_less_or_em_begins(how: dict, scales: tuple) -> None:
    found = resolve(how, None, {})
    assert (found.sigma_u, found.sigma_v, found.sigma_x) == scales


def test_every_setting_has_a_flag_with_help() -> None:
    assert [flag.name for flag in flags()] == list(Settings.model_fields)
    assert all(flag.text.endswith(".") for flag in flags())
