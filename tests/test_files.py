"""Files that are whole or not there, whatever comes between."""

import os
import resource
from pathlib import Path

import pytest

from pmfcli.cli.outputs import check_folder
from pmfcli.errors import OutputError, UsageError
from pmfcli.files import replacing, write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write_atomically(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="nothing was written"):
            write_atomically(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    assert path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:  # noqa: PT012
        file.write(b"new")
        raise KeyboardInterrupt
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"model.pt": b"old"}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_new_file_has_the_mode_that_others_have(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "new", b"")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~mask
        assert os.umask(mask) == mask  # it was asked for, and put back
    finally:
        os.umask(before)


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(path, b"model")
    assert os.read(read, 100) == b"model"
    assert path.is_fifo()
    os.close(read)


def test_a_write_goes_through_a_link_and_keeps_the_mode(tmp_path: Path) -> None:
    real = tmp_path / "real.pt"
    real.write_bytes(b"old")
    real.chmod(0o640)
    (tmp_path / "link.pt").symlink_to(real)
    write_atomically(tmp_path / "link.pt", b"new")
    assert (tmp_path / "link.pt").is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_any_name_that_a_file_can_have_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("m" * 255)
    check_folder("--output", path)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match=r"^--output .*: File name too long; "):
        check_folder("--output", tmp_path / ("m" * 256))
