"""Downloads against a server on loopback: what is published, what is not, and what breaks."""

import hashlib
import io
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pmfcli.data import catalog, download
from pmfcli.data.catalog import CATALOG, DataSet
from pmfcli.data.download import fetch
from pmfcli.errors import DataError, NetworkError, OutputError

RATINGS = b"userId,movieId,rating,timestamp\n1,1,4.0,5\n"


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as box:
        for name, content in members.items():
            box.writestr(name, content)
    return buffer.getvalue()


GOOD = archive({"ml-test/ratings.csv": RATINGS, "ml-test/README.txt": b"licence"})


def data_set(content: bytes = GOOD, **more: str | None) -> DataSet:
    known = {"md5": hashlib.md5(content).hexdigest(), "ratings_sha256": None, **more}
    return DataSet("ml-test", 1, licence="none", **known)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What the server has, by path; content that ends in b'!' is cut off half-way."""
    content: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = content.get(self.path)
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if body.endswith(b"!") else body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(catalog, "_SITE", f"http://127.0.0.1:{server.server_port}")
    yield content
    server.shutdown()
    server.server_close()


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_published_archive_is_checked_and_unpacked(site: dict[str, bytes], tmp_path: Path) -> None:
    site["/ml-test.zip"] = GOOD
    found = fetch(data_set(), tmp_path / "data", None, False)
    assert found.checked == "MD5 of the archive as published"
    assert left(tmp_path) == ["data", "data/ml-test", "data/ml-test/README.txt", "data/ml-test/ratings.csv"]
    assert (found.folder / "ratings.csv").read_bytes() == RATINGS
    site.clear()
    assert fetch(data_set(), tmp_path / "data", None, False).was_there
    with pytest.raises(DataError, match=r"none\.zip: no such file"):  # there or not, it was to be taken
        fetch(data_set(), tmp_path / "data", "none.zip", False)


def test_the_sum_beside_the_archive_counts_where_none_is_known(site: dict[str, bytes], tmp_path: Path) -> None:
    site["/ml-test.zip"] = GOOD
    site["/ml-test.zip.md5"] = f"MD5 (ml-test.zip) = {hashlib.md5(GOOD).hexdigest()}\n".encode()
    assert fetch(data_set(md5=None), tmp_path, None, False).checked.startswith("MD5")
    site["/ml-test.zip.md5"] = b"0" * 32
    with pytest.raises(NetworkError, match="not the published"):
        fetch(data_set(md5=None), tmp_path / "b", None, False)
    site["/ml-test.zip.md5"] = b"nothing"
    with pytest.raises(NetworkError, match="holds no MD5"):
        fetch(data_set(md5=None), tmp_path / "b", None, False)


def test_what_goes_wrong_on_the_way(site: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"answered 404.*--from"):
        fetch(data_set(), tmp_path, None, False)
    site["/ml-test.zip"] = GOOD + b"!"
    with pytest.raises(NetworkError, match="--from"):
        fetch(data_set(), tmp_path, None, False)
    site["/ml-test.zip"] = b"<html>please log in</html>"
    with pytest.raises(NetworkError, match=r"^http://127\.0\.0\.1:\d+/ml-test\.zip: .*not a zip archive"):
        fetch(data_set(), tmp_path, None, False)
    site["/ml-test.zip"] = archive({"ml-test/ratings.csv": b"other"})
    with pytest.raises(NetworkError, match="not the published"):
        fetch(data_set(), tmp_path, None, False)
    with pytest.raises(NetworkError, match="no connection"):
        fetch(data_set(), tmp_path, "http://127.0.0.1:1/x.zip", False)
    assert left(tmp_path) == []


def test_no_more_is_taken_than_a_set_can_be(site: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site["/ml-test.zip"] = GOOD
    site["/ml-test.zip.md5"] = hashlib.md5(GOOD).hexdigest().encode() + b" " * 1_000_000 + b"!"  # the end is not waited for
    assert fetch(data_set(md5=None), tmp_path / "a", None, False).checked.startswith("MD5")
    site["/ml-test.zip"] = site["/large.zip"] = GOOD + b" " * 1_000_000 + b"!"
    monkeypatch.setattr(download, "_LEAST", 100_000)
    for source in (None, f"{catalog._SITE}/large.zip"):
        with pytest.raises(NetworkError, match=r"\.zip: more than 0\.1 MB, too much for ml-test; give an archive with --from"):
            fetch(data_set(), tmp_path / "b", source, False)
        with pytest.raises(NetworkError, match=r"the download was interrupted|no connection"):
            fetch(data_set()._replace(ratings=1_000_000), tmp_path / "b", source, False)
    assert left(tmp_path / "b") == []
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b" " * 1_000_000)))
    with pytest.raises(DataError, match=r"standard input: more than 0\.1 MB"):
        fetch(data_set(), tmp_path / "b", "-", False)
    assert left(tmp_path / "b") == []


def test_an_archive_that_one_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.zip"
    path.write_bytes(GOOD)
    assert fetch(data_set(), tmp_path / "a", str(path), False).checked.startswith("MD5")
    rebuilt = data_set(b"other", ratings_sha256=hashlib.sha256(RATINGS).hexdigest())
    assert fetch(rebuilt, tmp_path / "b", str(path), False).checked.startswith("SHA-256")
    with pytest.raises(DataError, match="not the published"):
        fetch(data_set(b"other"), tmp_path / "c", str(path), False)
    assert fetch(data_set(md5=None), tmp_path / "c", str(path), False).checked.startswith("not checked")
    assert fetch(data_set(), tmp_path / "e", path.as_uri(), False).checked.startswith("MD5")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD)))
    assert fetch(data_set(), tmp_path / "f", "-", False).checked.startswith("MD5")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(GOOD,))
    writer.start()
    assert fetch(data_set(), tmp_path / "g", str(tmp_path / "pipe"), False).checked.startswith("MD5")
    writer.join()
    with pytest.raises(DataError, match="no such file"):
        fetch(data_set(), tmp_path / "d", str(tmp_path / "none.zip"), False)


def link_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as box:
        member = zipfile.ZipInfo("ml-test/ratings.csv")
        member.external_attr = 0o120777 << 16
        box.writestr(member, "/etc/passwd")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive({"../escaped.txt": b"x"}), "outside the folder"),
        (archive({"/tmp/escaped.txt": b"x"}), "outside the folder"),
        (archive({"a\\..\\..\\escaped.txt": b"x"}), "outside the folder"),
        (archive({"C:/escaped.txt": b"x"}), "outside the folder"),
        (link_archive(), "is a link"),
        (archive({"ml-test/ratings.csv": b"0" * 200_000_000}), "zip bomb"),
        (archive({f"{i}": b"" for i in range(1001)}), "1001 files"),
        (archive({}), "empty"),
        (archive({"a": b"x", "a/b": b"x"}), "damaged or not a zip"),
        (archive({"n" * 300: b"x"}), "damaged or not a zip"),
        (GOOD[:-30], "damaged or not a zip"),
        (GOOD[:40] + b"\0" * 20 + GOOD[60:], "damaged or not a zip"),
        (b"not a zip", "damaged or not a zip"),
    ],
    ids=[
        "parent",
        "absolute",
        "backslash",
        "drive",
        "link",
        "bomb",
        "many",
        "empty",
        "clash",
        "long",
        "cut",
        "damaged",
        "text",
    ],
)
def test_unsafe_archives_are_refused_and_leave_nothing(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        fetch(data_set(content), tmp_path / "data" / "deep", str(path), False)
    assert left(tmp_path) in (["data", "data/deep", "mine.zip"], ["mine.zip"])


def test_force_replaces_and_a_failure_does_not(tmp_path: Path) -> None:
    path = tmp_path / "mine.zip"
    path.write_bytes(GOOD)
    fetch(data_set(), tmp_path, str(path), False)
    (tmp_path / "ml-test" / "mark").touch()
    path.write_bytes(GOOD[:-30])
    with pytest.raises(DataError):
        fetch(data_set(), tmp_path, str(path), True)
    assert (tmp_path / "ml-test" / "mark").exists()
    path.write_bytes(GOOD)
    (tmp_path / "ml-test" / "ratings.csv").write_bytes(b"old")
    (tmp_path / "ml-test" / "u.data").write_bytes(b"other ratings")
    fetch(data_set(), tmp_path, str(path), True)
    assert left(tmp_path) == ["mine.zip", "ml-test", "ml-test/README.txt", "ml-test/mark", "ml-test/ratings.csv"]
    assert (tmp_path / "ml-test" / "ratings.csv").read_bytes() == RATINGS


def test_force_leaves_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_bytes(GOOD)
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "notes.txt").touch()
    (tmp_path / "ml-test").symlink_to(tmp_path / "big")
    fetch(data_set(), tmp_path, str(tmp_path / "mine.zip"), True)
    assert left(tmp_path) == ["big", "big/notes.txt", "mine.zip", "ml-test", "ml-test/README.txt", "ml-test/ratings.csv"]


def test_what_is_hidden_in_an_archive_stays_there(tmp_path: Path) -> None:
    """A cache beside the ratings would be read in their place."""
    hidden = {"ml-test/.ratings.csv.pmf-cache": b"x", "__MACOSX/._a": b"x", "ml-test/.git/config": b"x"}
    content = archive({"ml-test/ratings.csv": RATINGS} | hidden)
    (tmp_path / "mine.zip").write_bytes(content)
    fetch(data_set(content), tmp_path, str(tmp_path / "mine.zip"), False)
    assert left(tmp_path) == ["mine.zip", "ml-test", "ml-test/ratings.csv"]


def test_an_archive_without_a_sum_is_at_least_ratings(tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_bytes(archive({"foo/readme.txt": b"x"}))
    with pytest.raises(DataError, match=r"^not ml-test: none of ratings\.csv, .* in this folder$"):
        fetch(data_set(md5=None), tmp_path, str(tmp_path / "mine.zip"), False)
    assert left(tmp_path) == ["mine.zip"]


def test_a_replacement_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.zip"
    path.write_bytes(GOOD)
    fetch(data_set(), tmp_path, str(path), False)
    (tmp_path / "ml-test" / "mark").touch()
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).parent.name == "unpacked":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OutputError, match="No space left"):
        fetch(data_set(), tmp_path, str(path), True)
    assert (tmp_path / "ml-test" / "mark").exists()


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("call", range(5))
def test_an_interrupt_loses_nothing_of_ones_own(tmp_path: Path, call: int, done: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.zip").write_bytes(GOOD)
    folder = tmp_path / "data" / "ml-test"
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "notes.txt").write_text("mine")
    (folder / "ratings.csv").write_bytes(b"old")
    (folder / "link").symlink_to("nowhere")
    rename, calls = os.rename, iter(range(1000))

    def interrupted(source: Path, target: Path) -> None:
        now = next(calls) == call
        if done or not now:
            rename(source, target)
        if now:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    if call < 4:
        with pytest.raises(KeyboardInterrupt):
            fetch(data_set(), tmp_path / "data", str(tmp_path / "mine.zip"), True)
    else:
        fetch(data_set(), tmp_path / "data", str(tmp_path / "mine.zip"), True)
    new = (folder / "ratings.csv").read_bytes() == RATINGS
    assert new == ((call, done) == (3, True) or call == 4)
    assert left(tmp_path / "data") == [
        "ml-test",
        *(["ml-test/README.txt"] if new else []),
        "ml-test/link",
        "ml-test/ratings.csv",
        "ml-test/work",
        "ml-test/work/notes.txt",
    ]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_damage_in_any_compression_is_damage(tmp_path: Path, method: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as box:
        box.writestr("ml-test/ratings.csv", RATINGS * 50)
    for place in range(50, len(buffer.getvalue()) - 120, 7):
        content = bytearray(buffer.getvalue())
        content[place] ^= 0x55
        (tmp_path / "mine.zip").write_bytes(content)
        with pytest.raises(DataError):
            fetch(data_set(buffer.getvalue()), tmp_path / "data", str(tmp_path / "mine.zip"), False)


def test_an_empty_folder_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_bytes(GOOD)
    (tmp_path / "ml-test").mkdir()
    assert not fetch(data_set(), tmp_path, str(tmp_path / "mine.zip"), False).was_there


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(OutputError, match="--data-dir"):
        fetch(data_set(), tmp_path / "data", None, False)
    (tmp_path / "ml-test").write_text("a file")
    with pytest.raises(OutputError, match="--data-dir"):
        fetch(data_set(), tmp_path, None, False)


def test_the_catalogue_is_https_and_complete() -> None:
    assert list(CATALOG) == [f"ml-{n}" for n in ("latest-small", "100k", "1m", "10m", "20m", "25m", "32m", "latest")]
    assert all(data.url.startswith("https://files.grouplens.org/datasets/movielens/ml-") for data in CATALOG.values())
