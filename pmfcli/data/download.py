"""Get a data set: decide, temporary file, verify, unpack safely, rename. The only place that opens sockets."""

import contextlib
import errno
import hashlib
import itertools
import lzma
import os
import re
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from pmfcli.data.catalog import DataSet
from pmfcli.data.reading import BESIDE, LAYOUTS, ratings_file
from pmfcli.errors import DataError, NetworkError, OutputError, PmfError
from pmfcli.text import file_size

_MAX_MEMBERS = 1000
_MAX_RATIO = 50  # unpacked size over archive size; MovieLens archives have about 5
_SMALL = 1 << 20  # an archive this small may unpack to _MAX_RATIO times this
_INSTEAD = "give an archive with --from, or use the sample: pmf train --data sample"
_OF_ARCHIVES = (  # errors from the decompressor, which have no number, or due to the names inside, not to the disk
    None,
    errno.EINVAL,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)
_MOST, _LEAST = 100, 1 << 24  # bytes that a server may send for each rating of a set; and for the smallest
_TIMEOUT = 30  # seconds without an answer


class Fetched(NamedTuple):
    """What a download did."""

    folder: Path
    was_there: bool
    checked: str  # how the content was checked, in words


def fetch(data: DataSet, data_dir: Path, source: str | None, force: bool, progress: Any = False) -> Fetched:
    """Put a data set into ``data_dir / data.name``.

    Args:
        source: an archive to use instead, a path or a URL; None for the published one.
        force: replace a folder that is already there.
        progress: a progress bar as pooch takes it, or False.

    Raises:
        NetworkError: no connection, a refusal, a connection that died, or bytes that are not the published ones.
        DataError: a local archive that is damaged, unsafe or not the published data.
        OutputError: the folder cannot be written.

    Other files in a folder that is replaced stay there, even if this is interrupted, unless the folder is a link.
    """
    folder = data_dir / data.name
    remote = source is None or bool(re.match(r"https?://", source))
    if not remote and source != "-" and not _path(source or "").exists():
        raise DataError(f"{source or '--from'}: no such file; give an archive that you have")
    try:
        if folder.exists() and any(folder.iterdir()) and not force:
            return Fetched(folder, True, "")
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pmf-download-", dir=data_dir) as temporary:
            work = Path(temporary)
            archive = _download(source or data.url, data, work, progress) if remote else _local(source or "", data, work)
            try:
                md5_expected = data.md5 or (_published_md5(data.url) if source is None else None)
                md5_found = _md5(archive)
                unpacked = _unpack(archive, work / "unpacked")
                checked = _verify(data, md5_expected, md5_found, unpacked)
            except DataError as error:
                if remote:
                    what = str(error).replace(str(archive), source or data.url)
                    raise NetworkError(f"{what}; download it again, or give an archive with --from") from None
                raise
            _move(unpacked, folder, work)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}; choose another folder with --data-dir") from None
    return Fetched(folder, False, checked)


class _Bounded:
    """A file that takes no more than so many bytes of a data set."""

    def __init__(self, file: IO[bytes], source: str, data: DataSet, error: type[PmfError] = NetworkError) -> None:
        self._file, self._source, self._name, self._error = file, source, data.name, error
        self._most = max(_LEAST, _MOST * data.ratings)

    def write(self, piece: bytes) -> None:
        if self._file.tell() + len(piece) > self._most:
            raise self._error(f"{self._source}: more than {file_size(self._most)}, too much for {self._name}; {_INSTEAD}")
        self._file.write(piece)

    def flush(self) -> None:
        self._file.flush()


def _download(url: str, data: DataSet, folder: Path, progress: Any) -> Path:
    import logging

    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    downloader = pooch.HTTPDownloader(progressbar=progress, timeout=_TIMEOUT)

    def bounded(url: str, output: str, of: Any) -> None:
        with open(output, "wb") as file:
            downloader(url, _Bounded(file, url, data), of)

    with _network_errors(url):
        return Path(pooch.retrieve(url, None, fname="archive.zip", path=folder, downloader=bounded))


def _local(source: str, data: DataSet, folder: Path) -> Path:
    """The archive that ``--from`` names; a pipe, or standard input, is kept in ``folder`` meanwhile."""
    there = _path(source)
    if source != "-" and (there.is_file() or there.is_dir()):
        return there
    path, name = folder / "archive.zip", "standard input" if source == "-" else source
    with path.open("wb") as file, contextlib.nullcontext(sys.stdin.buffer) if source == "-" else there.open("rb") as stream:
        shutil.copyfileobj(stream, _Bounded(file, name, data, DataError))
    return path


def _path(source: str) -> Path:
    return Path(source.removeprefix("file://"))


def _published_md5(url: str) -> str:
    import requests

    with _network_errors(url + ".md5"), requests.get(url + ".md5", timeout=_TIMEOUT, stream=True) as answer:
        answer.raise_for_status()
        head = b"".join(itertools.islice(answer.iter_content(1), 1000))
    found = re.search(r"\b[0-9a-f]{32}\b", head.decode("latin-1").lower())
    if found is None:
        raise NetworkError(f"{url}.md5 holds no MD5 sum; give an archive with --from")
    return found.group()


@contextlib.contextmanager
def _network_errors(url: str) -> Iterator[None]:
    import requests

    try:
        yield
    except requests.exceptions.HTTPError as error:
        code = error.response.status_code if error.response is not None else "an error"
        raise NetworkError(f"{url}: the server answered {code}; {_INSTEAD}") from None
    except (requests.exceptions.RequestException, ConnectionError, TimeoutError) as error:
        reason = "no connection" if isinstance(error, requests.exceptions.ConnectionError) else "the download was interrupted"
        raise NetworkError(f"{url}: {reason}; {_INSTEAD}") from None


def _md5(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; give a zip archive with --from") from None


def _unpack(archive: Path, target: Path) -> Path:
    """Unpack into ``target``, refusing whatever could leave it or fill the disk; return the folder that holds the files."""
    try:
        with zipfile.ZipFile(archive) as box:
            members = box.infolist()
            _check_members(archive, members)
            for member in members:
                hidden = any(part.startswith(".") for part in PurePosixPath(member.filename).parts)
                if not hidden:  # such as a cache, which would be read in the place of the ratings
                    box.extract(member, target)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
        raise DataError(f"{archive}: damaged or not a zip archive ({error})") from None
    except OSError as error:
        if error.errno in _OF_ARCHIVES:
            raise DataError(f"{archive}: damaged or not a zip archive ({error})") from None
        raise
    inside = list(target.iterdir()) if target.exists() else []
    if not inside:
        raise DataError(f"{archive}: the archive is empty")
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def _check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > _MAX_MEMBERS:
        raise DataError(f"{archive}: {len(members)} files inside, more than {_MAX_MEMBERS}; refused")
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in member.filename:
            raise DataError(f"{archive}: member '{member.filename}' points outside the folder; refused")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{archive}: member '{member.filename}' is a link; refused")
    unpacked, packed = sum(member.file_size for member in members), archive.stat().st_size
    if unpacked > _MAX_RATIO * max(packed, _SMALL):
        raise DataError(f"{archive}: {packed:,} bytes would unpack to {unpacked:,}; refused as a zip bomb")


def _verify(data: DataSet, md5_expected: str | None, md5_found: str, unpacked: Path) -> str:
    if md5_expected == md5_found:
        return "MD5 of the archive as published"
    ratings = unpacked / "ratings.csv"
    if data.ratings_sha256 is not None and ratings.is_file():
        with ratings.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == data.ratings_sha256:
                return "SHA-256 of ratings.csv as published"
    if md5_expected is not None or data.ratings_sha256 is not None:
        wanted = f"MD5 {md5_expected}" if md5_expected is not None else f"a ratings.csv with SHA-256 {data.ratings_sha256}"
        raise DataError(f"not the published {data.name}: the archive's MD5 is {md5_found}; expected is {wanted}")
    try:
        ratings_file(unpacked)
    except DataError as error:
        raise DataError(f"not {data.name}: {str(error).partition(': ')[2].partition(';')[0]}") from None
    return f"not checked: no published checksum at hand (MD5 {md5_found})"


def _move(unpacked: Path, folder: Path, work: Path) -> None:
    """Put the new folder in its place, with what else the old one had, but no ratings; if that breaks off, the old is back."""
    old, kept = work / "replaced", []
    if folder.exists() and not folder.is_symlink():
        mine = (left.name for left in folder.iterdir() if left.name not in (*LAYOUTS, *BESIDE))
        kept = [name for name in mine if not os.path.lexists(unpacked / name)]
    try:
        for name in kept:
            os.rename(folder / name, unpacked / name)
        if folder.exists():
            os.rename(folder, old)
        os.rename(unpacked, folder)
    except BaseException:
        if os.path.lexists(old) and not folder.exists():
            os.rename(old, folder)
        for name in kept:
            if os.path.lexists(unpacked / name):
                os.rename(unpacked / name, folder / name)
        raise
