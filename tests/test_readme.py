"""The README cannot drift from the commands: its sessions are run, its table names every command and its example."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from conftest import COMMANDS, ROOT, in_a_terminal

README = (ROOT / "README.md").read_text()


def sessions() -> Iterator[tuple[str, list[str]]]:
    """Each command of the ```console blocks, with the lines that are shown under it."""
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            yield command, [line for line in shown if line.strip()]


def shape(line: str, drawn: bool) -> str:
    """A line without its numbers, rules and padding: what has to be the same on every machine.

    Of a model that is drawn, the films of a list are not: rounding differs between machines, and after some sweeps all does.
    """
    bare = " ".join(re.sub(r"[-−]?[\d,]*\.?\d+(e-?\d+)?|─+", "#", line).split())
    return "# #" if drawn and bare.startswith("# # ") else bare


def test_the_sessions_run_and_print_what_is_shown(movielens: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ml-latest-small").symlink_to(movielens)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for command, shown in sessions():
        code, output = in_a_terminal(command, tmp_path)
        assert code == 0, f"{command}: {output}"
        assert "\x1b" not in output
        drawn = "bayes" in command
        printed = [shape(line, drawn) for line in output.splitlines()]
        continued = " " * 16 if drawn else "\n"  # how the second line of a long title begins
        missing = [line for line in shown if shape(line, drawn) not in printed and not line.startswith(continued)]
        assert not missing, f"$ {command} printed\n{output}\nwithout {missing}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_table_with_its_example(command: str) -> None:
    example = import_module(f"pmfcli.cli.{command}").EXAMPLE
    assert re.search(rf"^\| `pmf {command}` \| .+ \| `{re.escape(example)}` \|$", README, re.MULTILINE)


def test_the_setup_commands_are_those_of_the_project() -> None:
    assert re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL) == [
        "pip install -e '.[dev]' && pmf demo",
        "pip install -e '.[dev]' && pytest",
    ]
    assert {path.name for path in (ROOT / "configs").glob("*.toml")} == set(re.findall(r"`configs/(\w+\.toml)`", README))


def test_the_demo_tours_offline(tmp_path: Path) -> None:
    code, output = in_a_terminal("pmf demo", tmp_path)
    assert code == 0, output
    assert {line.split()[2] for line in output.splitlines() if line.startswith("$ pmf ")} == {
        "train",
        "predict",
        "recommend",
        "similar",
        "evaluate",
    }
    assert "real films, simulated viewers" in output
    assert not list(tmp_path.iterdir())
