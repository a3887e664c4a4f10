"""The arrows between rooms: who may import whom, and where torch, pandas and sockets may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from pmfcli.data import cache
from pmfcli.data.fields import Columns

PACKAGE = ROOT / "pmfcli"
ALLOWED = {  # room -> rooms it may import
    "errors": set(),
    "text": set(),
    "memory": set(),
    "files": {"errors"},
    "steps": set(),
    "archive": {"errors", "memory"},
    "config": {"errors"},
    "core": {"core", "errors"},
    "data": {"data", "errors", "files", "memory", "text"},
    "packing": {"core", "data.fields", "data.ratings"},
    "artifact": {"archive", "core", "data.fields", "data.ratings", "errors", "packing", "text"},
    "console": {"errors", "text"},
    "answers": {"artifact", "core", "data.ratings", "errors", "text"},
    "tables": {"answers", "console", "errors", "files"},
    "fitting": {"config", "core", "data.ratings", "errors", "steps"},
    "sharing": {"core", "data.ratings", "errors"},
    "training": {
        "",
        "artifact",
        "config",
        "core",
        "data.ratings",
        "data.split",
        "errors",
        "fitting",
        "memory",
        "sharing",
        "steps",
    },
    "sizing": {"config", "core", "data.ratings", "fitting", "steps", "training"},
    "evaluation": {"artifact", "config", "core", "data.ratings", "errors", "processes", "steps", "training"},
    "reports": {"core", "data.ratings", "evaluation"},
    "plots": {"errors"},
    "processes": {"errors"},
    "checkpoint": {"archive", "core", "errors", "files"},
    "blending": {"", "artifact", "config", "core", "data.ratings", "errors", "evaluation", "reports"},
    "updating": {"artifact", "core", "data.ratings", "errors", "fitting", "text"},
    "tuning": {"config", "data.ratings", "data.split", "errors", "evaluation", "fitting", "reports", "steps", "training"},
    "cli": {
        "",
        "answers",
        "artifact",
        "blending",
        "checkpoint",
        "cli",
        "config",
        "console",
        "core",
        "data",
        "errors",
        "files",
        "memory",
        "text",
        "evaluation",
        "fitting",
        "packing",
        "plots",
        "reports",
        "sharing",
        "sizing",
        "steps",
        "tables",
        "training",
        "tuning",
        "updating",
    },
}
ONLY_IN = {
    "torch": {
        "archive",
        "core",
        "artifact",
        "packing",
        "blending",
        "checkpoint",
        "fitting",
        "data.ratings",
        "answers",
        "sharing",
        "sizing",
        "training",
        "evaluation",
        "reports",
        "updating",
    },
    "torchmetrics": {"core.metrics"},
    "matplotlib": {"plots"},
    "optuna": {"tuning"},
    "pandas": {"data"},
    "pyarrow": {"data", "tables"},
    "typer": {"cli"},
    "pooch": {"data.download"},
    "requests": {"data.download"},
    "socket": set(),
    "pickle": {"archive"},
    "subprocess": set(),
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py" and path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            inside = PACKAGE.joinpath(*module.split(".")[1:]).is_dir() and module.startswith("pmfcli")
            found |= {f"{module}.{alias.name}" if inside else module for alias in node.names}
    return found


def within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms if room) or ("" in rooms and name.startswith("__"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_new_arrow(path: Path) -> None:
    name = name_of(path)
    room = name.split(".")[0]
    for target in imports(path):
        if target.startswith("pmfcli"):
            assert within(target.removeprefix("pmfcli").lstrip("."), ALLOWED[room]), f"{name} imports {target}"
        for library, rooms in ONLY_IN.items():
            if target.split(".")[0] == library:
                assert within(name, rooms), f"{name} imports {library}"


def test_no_arrow_is_allowed_that_nothing_needs() -> None:
    of_rooms: dict[str, set[str]] = {}
    for path in MODULES:
        targets = {target for target in imports(path) if target.startswith("pmfcli")}
        of_rooms.setdefault(name_of(path).split(".")[0], set()).update(t.removeprefix("pmfcli").lstrip(".") for t in targets)
    for room, allowed in ALLOWED.items():
        assert {a for a in allowed if not any(within(target, {a}) for target in of_rooms[room])} == set(), room
    for library, rooms in ONLY_IN.items():
        users = {name_of(path) for path in MODULES if library in {target.split(".")[0] for target in imports(path)}}
        assert {room for room in rooms if not any(within(name, {room}) for name in users)} == set(), library


def test_no_test_imports_another() -> None:
    assert not [path for path in (ROOT / "tests").glob("*.py") if any(name.startswith("test_") for name in imports(path))]


def loads(*arguments: str) -> set[str]:
    """The libraries that a fresh process has loaded after a ``pmf`` command."""
    probe = "import sys, pmfcli.cli; pmfcli.cli.run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=True)
    return {"torch", "pandas", "pyarrow", "pooch", "requests", "sympy"} & set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["download", "--list"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loads(*arguments) == set()


def test_predict_loads_torch_alone(sample_file: Path) -> None:
    assert loads("predict", "--user", "4", "--model", str(sample_file)) == {"torch"}


def test_training_on_text_loads_torch_and_pyarrow_alone(tmp_path: Path) -> None:
    rows = [f"{i % 7},{i % 5},{1 + i % 9 / 2},{i}" for i in range(35)]
    (tmp_path / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows, ""]))
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,One (2001),Drama\n")
    assert loads("train", "--data", str(tmp_path), "--epochs", "2", "-o", str(tmp_path / "m.pt")) == {"torch", "pyarrow"}


def test_training_on_the_sample_or_from_a_cache_loads_torch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LEAST", 1)
    how = ["--epochs", "2", "-o", str(tmp_path / "m.pt")]
    assert loads("train", "--data", "sample", *how) == {"torch"}
    (tmp_path / "a.csv").write_text("userId,movieId,rating\n1,1,3\n1,2,4\n2,1,5\n2,2,1\n")
    cache.read(tmp_path / "a.csv", Columns(), False)
    assert loads("train", "--data", str(tmp_path / "a.csv"), *how) == {"torch"}
