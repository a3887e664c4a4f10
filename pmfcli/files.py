"""Files that are whole or not there: written beside, then renamed."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pmfcli.errors import OutputError

_PREFIX = ".pmf-"  # of temporary names, which are short, so that no name is too long but for its own sake


@contextmanager
def replacing(path: Path, prefix: str = _PREFIX) -> Iterator[IO[bytes]]:
    """A file to write, that takes the place of ``path`` in the end; if something goes wrong, the old one stays.

    Through a link, the file that it points to is replaced. The mode of the old one is kept. A pipe or device is written to as
    it is.

    Args:
        prefix: of the name that it has until then.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as there:
            yield there
        return
    path = path.resolve()
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=prefix, delete=False) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        temporary.chmod(mode)
        os.replace(temporary, path)
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """The same, with an error for people.

    Raises:
        OutputError: it cannot be written; nothing is left behind.
    """
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; nothing was written") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new.

    Raises:
        OutputError: it cannot be written; nothing is left behind.
    """
    with writing(path) as file:
        file.write(content)


def check_replaceable(path: Path) -> None:
    """Find out, and change nothing, whether ``replacing`` can write there.

    Raises:
        OSError: it cannot.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            return
    with tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=_PREFIX):
        pass


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
