import gzip
import io
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmfcli import memory
from pmfcli.data import delimited, parquet
from pmfcli.data.fields import Columns
from pmfcli.data.readers import read_ratings
from pmfcli.errors import DataError

TRIPLES = [("1", "10", 4.0, 100), ("1", "20", 3.5, 200), ("2", "10", 0.5, 300)]


def triples(ratings) -> list[tuple[str, str, float, int | None]]:
    time = [None] * ratings.n if ratings.time is None else ratings.time.tolist()
    return [
        (ratings.users.ids[u], ratings.movies.ids[m], float(s), t)
        for u, m, s, t in zip(ratings.user, ratings.movie, ratings.stars, time, strict=True)
    ]


def lines(separator: str, header: str = "") -> str:
    return header + "".join(separator.join(map(str, row)) + "\n" for row in TRIPLES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ratings.csv", lines(",", "userId,movieId,rating,timestamp\n")),
        ("ratings.dat", lines("::")),
        ("u.data", lines("\t")),
        ("mine.csv", lines(",", "user,item,score,time\n")),
        ("mine.csv", lines(",", "\ufeffuser_id,item_id,stars,timestamp\n").replace("\n", "\r\n")),
        ("mine.csv", lines(";", "User;Movie;Rating;Timestamp\n")),
        (
            "mine.tsv",
            lines("\t", "timestampless\tuser\tmovie\trating\ttime\n").replace("\n1", "\nx\t1").replace("\n2", "\nx\t2"),
        ),
        ("mine.inter", lines("\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n")),
        ("mine.csv", lines(", ", "user, movie, rating, time\n")),
        ("mine.csv", lines(",", "user,movie,rating,time\n\n").replace("4.0", '"4.0"')),
        (
            "mine.csv",
            "user,movie,rating,time\n1,10,4.0,1970-01-01T00:01:40Z\n1,20,3.5,1970-01-01T00:03:20\n2,10,.5,1970-01-01 00:05\n",
        ),
    ],
)
def test_every_layout_gives_the_same_ratings(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert triples(read_ratings(tmp_path / name).ratings) == TRIPLES


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes")
@pytest.mark.parametrize("end", [b".csv", b".csv.gz", b".parquet"])
def test_the_name_of_a_file_need_not_be_text(tmp_path: Path, end: bytes) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9" + end)
    table = pd.DataFrame(TRIPLES, columns=["user", "movie", "rating", "time"])
    content = table.to_parquet() if end == b".parquet" else lines(",").encode()
    file.write_bytes(gzip.compress(content) if end == b".csv.gz" else content)
    assert triples(read_ratings(file).ratings) == TRIPLES


def test_gzip_parquet_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = lines(",", "user,movie,rating,time\n")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert triples(read_ratings(tmp_path / "a.csv.gz").ratings) == TRIPLES
    frame = pd.DataFrame(TRIPLES, columns=["user", "movie", "rating", "time"])
    for number, kinds in enumerate(({"user": int, "movie": int}, {"user": float}, {"rating": "float32"}, {})):
        path = tmp_path / f"{number}.parquet"
        frame.astype(kinds).to_parquet(path)
        assert triples(read_ratings(path).ratings) == TRIPLES
    for content in (text.encode(), gzip.compress(text.encode())):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert triples(read_ratings(None).ratings) == TRIPLES
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    assert triples(read_ratings(Path(f"/dev/fd/{read}")).ratings) == TRIPLES
    os.close(read)


@pytest.mark.parametrize(
    ("ratings", "titles", "content", "encoding"),
    [
        ("ratings.csv", "movies.csv", 'movieId,title,genres\n10,"Amélie, or so (2001)",Comedy\n', "utf-8"),
        ("ratings.csv", "movies.csv", 'movieId,title\n10,"Amélie, or so (2001)"\n20\n\n', "utf-8-sig"),
        ("ratings.dat", "movies.dat", "10::Amélie, or so (2001)::Comedy\n", "latin-1"),
        ("ratings.dat", "movies.dat", "10::Amélie, or so (2001)::Comedy\n", "utf-8"),
        ("u.data", "u.item", "10|Amélie, or so (2001)|01-Jan-2001||http://x|0\n", "latin-1"),
    ],
)
def test_a_movielens_folder_has_titles(tmp_path: Path, ratings: str, titles: str, content: str, encoding: str) -> None:
    separator = {"ratings.csv": ",", "ratings.dat": "::", "u.data": "\t"}[ratings]
    (tmp_path / ratings).write_text(lines(separator))
    (tmp_path / titles).write_bytes(content.encode(encoding))
    assert read_ratings(tmp_path).ratings.titles == ("Amélie, or so (2001)", None)
    (tmp_path / f"{ratings}.gz").write_bytes(gzip.compress((tmp_path / ratings).read_bytes()))
    (tmp_path / ratings).unlink()
    assert read_ratings(tmp_path).ratings.titles == ("Amélie, or so (2001)", None)


def test_titles_whose_quote_is_not_closed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,1,3\n1,2,4\n2,1,5\n")
    (tmp_path / "movies.csv").write_text('movieId,title\n1,"never closed\n2,Two\n')
    with pytest.raises(DataError, match=r"movies\.csv: not a file of titles \(line 3: unexpected end of data"):
        read_ratings(tmp_path)


def test_titles_in_the_ratings_file_follow_their_movies(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,movie,rating,time,title\nb,y,1,9,Why\na,x,2,5,Ex\na,y,3,1,Why\n")
    assert read_ratings(path).ratings.titles == ("Ex", "Why")


def test_ids_are_text_and_numbers_sort_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,movie,rating\n10,x 1,1\n9,ü,2\n-3,007,3\n10,7,4\n")
    found = read_ratings(path).ratings
    assert found.users.ids == ("-3", "9", "10")
    assert found.movies.ids == ("007", "7", "x 1", "ü")


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("who,what,how,user\na,b,1,z\n")
    assert triples(read_ratings(path, Columns("who", "what", "how")).ratings) == [("a", "b", 1.0, None)]
    with pytest.raises(DataError, match=r"--rating-col: no column 'How' among who, what, how, user; give one of these"):
        read_ratings(path, Columns("who", "what", "How"))
    with pytest.raises(DataError, match=r"--time-col: no column 'missing' among who, what, how, user"):
        read_ratings(path, Columns("who", "what", "how", "missing"))


def test_one_column_has_one_role(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,movie,rating\na,b,1\n")
    with pytest.raises(DataError, match="cannot be two of"):
        read_ratings(path, Columns("user", "user"))


def test_of_duplicates_the_latest_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,movie,rating,time\na,b,1,30\na,b,2,50\na,b,3,40\na,c,5,1\n")
    reading = read_ratings(path)
    assert reading.duplicates == 2
    assert triples(reading.ratings) == [("a", "b", 2.0, 50), ("a", "c", 5.0, 1)]
    path.write_text("user,movie,rating\na,b,1\na,b,2\n")
    assert triples(read_ratings(path).ratings) == [("a", "b", 2.0, None)]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("", r"a\.csv: empty"),
        ("\n \n", r"a\.csv: empty"),
        ("user,movie,rating\n", r"a header but no ratings"),
        ("user,movie,rating\n1,2,3\n\n1,3,good\n", r"a\.csv:4: rating 'good' is not a number"),
        ("user,movie,rating\n1,2,nan\n", r"a\.csv:2: rating 'nan'"),
        ("user,movie,rating\n1,2,inf\n", r"a\.csv:2: rating 'inf'"),
        ("user,movie,rating\n1,2,\n", r"a\.csv:2: rating ''"),
        ("user,movie,rating\n1,2,1_0\n", r"a\.csv:2: rating '1_0'"),
        ("user;movie;rating\n1;2;4\n1;3;4,5\n", r"a\.csv:3: rating '4,5' has a decimal comma, not a point"),
        ("user;movie;rating\n1;2;1,000\n", r"a\.csv:2: rating '1,000' is not a number"),
        ("user,movie,rating,time\n1,2,3,28.02.2001\n", r"time '28\.02\.2001' is neither .* a date, such as 2001-02-28"),
        ("7,dune,play,8.8\n", r"a\.csv:1: '7,dune,play,8\.8' is neither a header nor user, movie, rating\[, time\]; put these"),
        ("1,2\n", r"a\.csv:1: '1,2' is neither a header nor user, movie, rating"),
        ('{"user": "a", "item": "b", "rating": 5}\n' * 2, r"a\.csv:1: JSON, not CSV or TSV; convert it"),
        ('{"user": 1}\n', r"a\.csv:1: JSON, not CSV or TSV; convert it"),
        ('[\n  {"user": "a", "item": "b", "rating": 5}\n]\n', r"a\.csv:1: JSON, not CSV or TSV; convert it"),
        ('[{"user": "a", "item": "b", "rating": 5}]\n', r"a\.csv:1: JSON, not CSV or TSV; convert it"),
        ("user,movie,rating\n1,2,1e300\n", r"a\.csv:2: rating '1e300'"),
        ("user,movie,rating\n1,2,3\n1,3,2e12\n", r"a\.csv:3: rating '2e12'"),  # no model file has such numbers
        ("user,movie,rating\n1,2,3\n,2,3\n", r"a\.csv:3: no user id"),
        ("user,movie,rating\n1,,3\n", r"a\.csv:2: no movie id"),
        ("user,movie,rating\n1,2,3\n1,2\n", r"a\.csv:3: 2 fields where 3 are expected"),
        ("user,movie,rating\n1,2,3,4\n", r"a\.csv:2: 4 fields where 3 are expected"),
        ("user,movie,rating\n1,2,3\n   \n", r"a\.csv:3: 1 fields where 3 are expected"),
        ("1::2::3\n1::2\n", r"a\.csv:2: 2 fields where 3 are expected"),
        ("user,movie,rating,rating\n1,2,3,4\n", r"a\.csv:1: two columns are called rating; rename one"),
        ("user,movie,rating,time\n1,2,3,2001-02-30\n", r"a\.csv:2: time '2001-02-30' is neither"),
        ("user,movie,rating,time\n1,2,3,0001-01-01\n1,3,3,10000-01-01\n", r"a\.csv:3: time '10000-01-01' is neither"),
        ("user,movie,rating\n1,2,3\n".encode("utf-16"), r"a\.csv: UTF-16 text, not UTF-8; convert it"),
        (b"PK\x03\x04ratings", r"a\.csv: a binary file"),
        ("user,movie,rating,time\n1,2,3,4\n1,3,3,soon\n", r"a\.csv:3: time 'soon'"),
        ("user^movie^rating\n1^2^3\n", r"a\.csv:1: no columns in 'user\^movie\^rating'"),
        ("user,movie\n1,2\n", r"a\.csv:1: no column for rating among user, movie"),
        ("user,movie,rating", r"a\.csv: a header but no ratings"),
        ("user,movie,rating\r1,2,3\r", r"a\.csv: lines end in a carriage return alone"),
        ("\nuser,movie,rating\n1,2,3\n", r"a\.csv:1: the first line is blank"),
        ("a,b,c\n1,2,3\n", r"a\.csv:1: no column for user, movie, rating among a, b, c; name them with --user-col"),
        ("user,movie,rating\n" + "1" * 10_000_000 + ",2,3\n", r"a\.csv:2: a row is longer"),
        ("1" * 10_000_000, r"a\.csv:1: the line is longer"),
        (b"user,movie,rating\n1,2,3\n\xff,2,3\n", r"a\.csv:3: not UTF-8"),
        (b"\x7fELF\0\0\0", r"a\.csv: a binary file"),
    ],
)
def test_what_is_wrong_and_where(tmp_path: Path, content: str | bytes, where: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=where) as caught:
        read_ratings(path)
    assert len(str(caught.value)) < 300 + len(str(path))
    assert "\n" not in str(caught.value)


def test_json_is_said_where_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"user_id": "a", "item_id": "b", "stars": 5}\n' * 2)
    with pytest.raises(DataError, match=r"a\.json:1: JSON, not CSV or TSV"):
        read_ratings(path, Columns(rating="stars"))


def test_a_quote_is_a_letter_where_fields_are_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('user\tmovie\trating\ttitle\n1\t"x\t1\tThe "One\n1\ty\t2\t"Two\n2\ty\t3\tTwo\n')
    assert len(triples(read_ratings(path).ratings)) == 3
    (tmp_path / "ratings.dat").write_text('1::"2::3::4\n2::3::4::5\n3::"2::4::5\n')
    assert len(triples(read_ratings(tmp_path / "ratings.dat").ratings)) == 3


def test_a_stray_quote_swallows_nothing_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('user,movie,rating\n0,1,1\n1,"2,3\n1,3,4\n2,"3,4\n')
    with pytest.raises(DataError, match=r"a\.csv:3: .*quote"):
        read_ratings(path)
    path.write_text('user,movie,rating,review\n1,2,3,"two\nlines"\n1,3,4,one\n')
    assert len(triples(read_ratings(path).ratings)) == 2
    path.write_text('user,movie,rating,review\n1,2,3,"two\nlines"\n1,3,bad,one\n')
    with pytest.raises(DataError, match=r"a\.csv:4: rating 'bad'"):
        read_ratings(path)


def test_a_date_is_not_blamed_for_a_rating(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,movie,rating,time\n1,2,3,2020-01-01T00:00:00Z\n1,3,oops,2020-01-02\n")
    with pytest.raises(DataError, match=r"a\.csv:3: rating 'oops'"):
        read_ratings(path)


@pytest.mark.parametrize("more", ["1600000002999", "1600000002999.0", ""])
def test_milliseconds_are_seconds(tmp_path: Path, more: str) -> None:
    """In text, whole and with a point, and in Parquet; what is bad beside them is what is blamed."""
    path = tmp_path / "a.csv"
    path.write_text(f"user,movie,rating,time\n1,2,3,1600000000123\n1,3,4,{more or 1600000002}\n")
    found = read_ratings(path).ratings
    assert found.time is not None
    assert found.time.tolist() == [1600000000, 1600000002]
    pd.read_csv(path).to_parquet(tmp_path / "a.parquet")
    assert read_ratings(tmp_path / "a.parquet").ratings.time.tolist() == found.time.tolist()
    path.write_text(path.read_text() + "1,4,x,1600000002999\n")
    with pytest.raises(DataError, match=r"a\.csv:4: rating 'x'"):
        read_ratings(path)


def test_dates_and_numbers_may_stand_in_one_column(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "a.csv"
    times = {"2001-02-03": 981158400, "0": 0, "1600000002999": 1600000002, "9999-12-31": 253402214400}
    times |= {"2001-02": 980985600, "2001/02/03": 981158400, "9999-12-31T23:59:59-14:00": None}
    times |= {"0001-01-01": -62135596800, "2001-W05-1": 980726400, "2001-02-03T01:00:00.5+01:00": 981158400, "1.5": 1}
    path.write_text("user,movie,rating,time\n" + "".join(f"1,{i},3,{time}\n" for i, time in enumerate(times)))
    with pytest.raises(DataError, match=r"a\.csv:8: time '9999-12-31T23:59:59-14:00'"):
        read_ratings(path)
    path.write_text(path.read_text() + "1,99,3,soon\n1,98,3,inf\n")
    reading = read_ratings(path, skip_bad=True)
    known = [time for time in times.values() if time is not None]
    assert (reading.skipped, reading.ratings.time.tolist()) == (3, known)
    for number, time in enumerate(times):  # alone, as Arrow may read it, or not
        path.write_text(f"user,movie,rating,time\n1,1,3,{time}\n1,2,3,0\n")
        reading = read_ratings(path, skip_bad=True)
        assert reading.ratings.time[0] == (times[time] or 0), (number, time)
        path.write_text(f"user,movie,rating,time\n1,1,3,{time}\n")
        if times[time] is not None:
            assert read_ratings(path).ratings.time.tolist() == [times[time]]
    assert not recwarn.list


def test_times_of_parquet(tmp_path: Path) -> None:
    table = {"user": ["a", "b"], "movie": ["x", "x"], "rating": [1.0, 2.0]}
    days = pa.array([-719162, 11356], pa.int32())
    for kind in (pa.date32(), pa.timestamp("us"), pa.timestamp("s", "Europe/Berlin")):
        dates = days.cast(pa.date32()).cast(kind)
        pq.write_table(pa.table(table | {"time": dates}), tmp_path / "a.parquet")
        assert read_ratings(tmp_path / "a.parquet").ratings.time.tolist() == [-62135596800, 981158400]
    never = pa.array([(1 << 63) - 1, 981158400_999], pa.timestamp("ms"))
    pq.write_table(pa.table(table | {"time": never}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1 is not a rating"):
        read_ratings(tmp_path / "a.parquet")
    assert read_ratings(tmp_path / "a.parquet", skip_bad=True).ratings.time.tolist() == [981158400]
    lasting = pa.array([1, 2], pa.duration("s"))
    pq.write_table(pa.table(table | {"time": lasting}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"times are of type duration\[s\]"):
        read_ratings(tmp_path / "a.parquet")


def test_an_id_is_surer_than_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,userId,movie,movieId,rating\nAnn,1,Crash,10,5\nAnn,2,Crash,20,1\n")
    found = read_ratings(tmp_path / "a.csv").ratings
    assert (found.users.ids, found.movies.ids) == (("1", "2"), ("10", "20"))


def test_ids_of_parquet_that_are_floats(tmp_path: Path) -> None:
    frame = {"user": [12345678.0, float("nan"), 1e11], "movie": [1, 2, 3], "rating": [1.0, 2.0, 3.0]}
    pq.write_table(pa.table(frame), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 2 is not a rating"):
        read_ratings(tmp_path / "a.parquet")
    assert read_ratings(tmp_path / "a.parquet", skip_bad=True).ratings.users.ids == ("12345678", "100000000000")
    exact = pa.array([1, 2, 3]).cast(pa.decimal128(21, 2))
    pq.write_table(pa.table(frame | {"user": exact}), tmp_path / "a.parquet")
    assert read_ratings(tmp_path / "a.parquet").ratings.users.ids == ("1", "2", "3")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()], ids=str)
def test_a_long_text_of_parquet_that_comes_often_is_kept_once(
    tmp_path: Path, kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 200
    often = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * 1_000_000])
    table = pa.table(
        {"user": list(range(rows)), "movie": often.cast(pa.string()).cast(kind), "rating": [1.0, 2.0] * (rows // 2)}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    del table
    held, read = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *those: held.append(read(*those)) or held[0])
    assert read_ratings(tmp_path / "a.parquet").ratings.movies.ids == ("x" * 1_000_000,)
    assert held[0].nbytes < 1 << 23


def test_texts_of_parquet_are_read_however_they_are_kept(tmp_path: Path) -> None:
    texts = pa.array(["5", None, "é"])
    ordered = pa.DictionaryArray.from_arrays([1, None, 0], ["é", "5"], ordered=True)
    for kind in (
        *(texts.cast(kind) for kind in (pa.binary(), pa.large_string())),
        texts.cast(pa.binary()).dictionary_encode(),
        ordered,
    ):
        table = {"user": kind, "movie": pa.array([b"aa"] * 3, pa.binary(2)), "rating": [b"1", b"2", b"3"]}
        pq.write_table(pa.table(table | {"time": [b"2001-02-03", b"7", b"8"]}), tmp_path / "a.parquet")
        found = read_ratings(tmp_path / "a.parquet", skip_bad=True).ratings
        assert triples(found) == [("5", "aa", 1.0, 981158400), ("é", "aa", 3.0, 8)]


def test_lists_of_parquet_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    table = {"user": [1, 2], "movie": [1, 1], "rating": [1.0, 2.0]}
    lists = pa.array([[1], [2]], pa.list_(pa.int32()))
    wide = pa.array([b"x" * 65] * 2, pa.binary(65))
    kept = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", "2"]))
    for role, column in (("user", lists), ("movie", wide), ("rating", pa.array([{"a": 1}] * 2)), ("user", kept)):
        pq.write_table(pa.table(table | {role: column}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=rf"a\.parquet: column {role} is of type .*; make it text or numbers"):
            read_ratings(tmp_path / "a.parquet")


def test_parts_of_parquet_may_have_other_widths_and_orders(tmp_path: Path) -> None:
    for number, kind in enumerate((pa.int32(), pa.int64(), pa.int64())):
        columns = {"user": pa.array([number], kind), "movie": pa.array(["m"]), "rating": [1.0 + number]}
        order = list(columns) if number < 2 else sorted(columns)
        pq.write_table(pa.table({name: columns[name] for name in order}), tmp_path / f"{number}.parquet")
    assert triples(read_ratings(tmp_path).ratings) == [(f"{n}", "m", 1.0 + n, None) for n in range(3)]
    for names, said in ((["user", "movie"], "0 columns are called rating"), (["user", "user", "movie", "rating"], "2 columns")):
        pq.write_table(pa.Table.from_arrays([pa.array([9])] * len(names), names), tmp_path / "3.parquet")
        with pytest.raises(DataError, match=rf"3\.parquet: {said}"):
            read_ratings(tmp_path)


def test_one_colon_separates_nothing_where_two_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"u{i:02d}::Mission: {i}::{1 + i % 5}::2001-02-03 10:00:{i:02d}\n" for i in range(60)]
    (tmp_path / "a.dat").write_text("".join(rows))
    monkeypatch.setattr(delimited, "LONGEST_LINE", 1 << 9)  # read in pieces, that end anywhere
    found = read_ratings(tmp_path / "a.dat").ratings
    assert (found.n, found.movies.ids[:2]) == (60, ("Mission: 0", "Mission: 1"))
    assert found.time.tolist() == [981194400 + i for i in range(60)]
    (tmp_path / "b.dat").write_text("1:x:9:y:4:z:7\n1::2::3::4\n")
    with pytest.raises(DataError, match=r"b\.dat:1: "):
        read_ratings(tmp_path / "b.dat")


@pytest.mark.parametrize("time", ["1e300", "nan", "-1e18"])
def test_a_time_that_cannot_be_kept_is_refused(tmp_path: Path, time: str, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"user,movie,rating,time\n1,2,3,5\n1,3,3,{time}\n")
    with pytest.raises(DataError, match=r"a\.csv:3: time"):
        read_ratings(path)
    assert not recwarn.list


def test_what_pyarrow_refuses_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"user": [[1], [2]], "movie": [1, 2], "rating": [1.0, 2.0]}).to_parquet(path)
    with pytest.raises(DataError, match=r"a\.parquet"):
        read_ratings(path)
    path = tmp_path / "a.csv"
    path.write_text("user,movie,rating\n1,2,good\n1," + "x" * 200_000 + ",3\n")
    with pytest.raises(DataError, match=r"a\.csv:2: rating 'good'"):
        read_ratings(path)
    with pytest.raises(DataError, match="File name too long"):
        read_ratings(tmp_path / ("x" * 5000))


def test_a_movies_file_of_somebody_else_gives_no_titles(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("user,name,item,rating\n1,Bob,2,3\n")
    for content in ("id,label\n2,x\n", "id;titre\n1;café\n"):
        (tmp_path / "movies.csv").write_text(content, encoding="cp1252")
        assert read_ratings(tmp_path / "ratings.csv").ratings.titles == (None,)


def test_a_missing_title_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,movie,rating,title\na,x,1,Ex\na,y,2,\nb,x,2,\n")
    assert read_ratings(path).ratings.titles == ("Ex", None)


def test_bad_rows_can_be_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,movie,rating,time\n1,10,4.0,100\n1,10\n1,20,x,5\n,20,1,5\n1,20,3.5,200\n2,10,0.5,300\n2,20,1,later\n")
    reading = read_ratings(path, skip_bad=True)
    assert (reading.skipped, triples(reading.ratings)) == (4, TRIPLES)
    path.write_text("user,movie,rating\n1,10,x\n")
    with pytest.raises(DataError, match="none of its rows"):
        read_ratings(path, skip_bad=True)


def test_of_a_quote_that_is_left_open_one_row_is_passed_over(tmp_path: Path) -> None:
    path, reviews = tmp_path / "a.csv", ',"two\nlines"\n'
    good = [f"{u},{m},{1 + (u + m) % 5}{reviews if u == m else ',one' + chr(10)}" for u in range(20) for m in range(10)]
    bad = '7,"The Thing,4,x\n'
    header = "user,movie,rating,review\n"
    path.write_text('user,movie,rating\na 12" x,"open,3\n' + "".join(f"{i},1,3\n" for i in range(50)))
    with pytest.raises(DataError, match=r"a\.csv:2: a quote is not closed"):
        read_ratings(path)
    reading = read_ratings(path, skip_bad=True)
    assert (reading.skipped, reading.ratings.n) == (1, 50)
    path.write_text(header + "".join(good))
    everything = triples(read_ratings(path).ratings)
    for places in ((0,), (100,), (200,), (57, 130), (50, 51, 120), (3, 60, 61, 199)):
        rows = list(good)
        for number, place in enumerate(places):
            rows.insert(place + number, bad)
        path.write_text(header + "".join(rows))
        reading = read_ratings(path, skip_bad=True)
        assert (reading.skipped, triples(reading.ratings)) == (len(places), everything)
        with pytest.raises(DataError, match="quote"):
            read_ratings(path)


@pytest.mark.parametrize("column", ["review", "title"])
def test_a_quote_that_is_left_open_where_nobody_looks_takes_no_ratings(column: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"{u},{m},{1 + (u + m) % 5},ok\n" for u in range(20) for m in range(10)]
    for changed, skipped in (({10: '"x'}, 1), ({10: '"x', 150: '"x'}, 2), ({10: '"x', 150: 'nice" ok'}, 1)):
        lines = list(rows)
        for place, text in changed.items():
            lines[place] = f"99,{place},3,{text}\n"
        text = f"user,movie,rating,{column}\n" + "".join(lines)
        for some in (text, "".join(text.splitlines(keepends=True)[:13]).rstrip()):  # two rows, of which one takes the other
            path.write_text(some)
            with pytest.raises(DataError, match=r"a\.csv:12: a quote is not closed"):
                read_ratings(path)
        path.write_text(text)
        reading = read_ratings(path, skip_bad=True)
        assert (reading.skipped, reading.ratings.n) == (skipped, 200 - skipped)


def test_an_open_quote_in_the_header_takes_no_ratings(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('user,movie,rating,"review\n1,2,3,x\n1,3,4,y\n')
    for skip_bad in (False, True):
        reading = read_ratings(path, skip_bad=skip_bad)
        assert (reading.skipped, reading.ratings.n) == (0, 2)


def test_a_quote_within_a_field_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('user,movie,rating,review\n1,5" disk,4,x\n2,b,3,the "x\n3,c,oops,x\n1,d,5,it"s\n2,"e",1,"two\nlines"\n')
    reading = read_ratings(path, skip_bad=True)
    assert (reading.skipped, reading.ratings.n) == (1, 4)
    assert '5" disk' in reading.ratings.movies.ids


def test_parquet_that_is_none_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(DataError, match="not a readable Parquet"):
        read_ratings(path)
    pd.DataFrame({"user": [1], "movie": [2]}).to_parquet(path)
    with pytest.raises(DataError, match="no column for rating among user, movie"):
        read_ratings(path)
    pd.DataFrame({"user": [1, None], "movie": [2, 3], "rating": [1.0, 2.0]}).to_parquet(path)
    with pytest.raises(DataError, match="row 2 is not a rating"):
        read_ratings(path)
    monkeypatch.setattr(parquet, "_ROW", 1 << 60)
    with pytest.raises(DataError, match="do not fit into the memory"):
        read_ratings(path)


def test_parquet_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"user": ["a" * 100_000 + row for row in "xyz"], "movie": [1, 2, 3], "rating": [1.0, 2.0, 3.0]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    assert read_ratings(path).ratings.n == 3
    monkeypatch.setattr(memory, "_SMALL", 100_000)
    with pytest.raises(DataError, match=r"bytes unpack to 300,\d+; refused as a bomb"):
        read_ratings(path)


def test_a_container_has_less_memory_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr(memory, "_LIMITS", (new, old))
    whole = memory.of_this_machine()
    assert whole > 1 << 28
    for unlimited in ("max", str(1 << 62)):
        new.write_text(unlimited)
        assert memory.of_this_machine() == whole
    for limit in (new, old):
        limit.write_text("50\n")
        assert memory.of_this_machine() == 50
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"user": [1, 2], "movie": [2, 3], "rating": [1.0, 2.0]}), path)
        with pytest.raises(DataError, match="2 rows do not fit into the memory"):
            read_ratings(path)
        limit.unlink()


def test_a_stream_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def __init__(self, content: bytes) -> None:
            self.content, self.given = content, 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:
            buffer[:] = (self.content * (len(buffer) // len(self.content) + 1))[: len(buffer)]
            self.given += len(buffer)
            return len(buffer)

    monkeypatch.setattr(delimited, "of_this_machine", lambda: delimited._PART * 10**8)
    for content, said in ((b"\0", "a binary file"), (b"a", "longer than 65,536 bytes"), (b"1,2,3\n", "more than 0.1 GB")):
        stream = Endless(content)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(stream)))
        with pytest.raises(DataError, match=said):
            read_ratings(None)
        assert stream.given < 200e6


def test_gzip_that_is_damaged_or_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(lines(",").encode())[:-4])
    with pytest.raises(DataError, match="damaged gzip"):
        read_ratings(path)
    path.write_bytes(b"user,movie,rating\n")
    with pytest.raises(DataError, match="not a gzip"):
        read_ratings(path)
    monkeypatch.setattr(memory, "_SMALL", 1000)
    path.write_bytes(gzip.compress(b"user,movie,rating\n" + b" " * 1_000_000))
    with pytest.raises(DataError, match="gzip bomb"):
        read_ratings(path)


def test_terminal_codes_in_a_file_are_made_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('user,movie,rating,title\na,b,1,"\x1b[31mred\x07\ttab"\n')
    assert read_ratings(path).ratings.titles == ("[31mred tab",)


_ids = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
_stars = st.floats(-100, 100, width=16)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.tuples(_ids, _ids), _stars, min_size=1, max_size=30), st.randoms())
def test_what_is_written_is_read_in_any_order(tmp_path_factory, table, random) -> None:
    """Any ids, any order of rows: the same ratings, to the byte."""
    path = tmp_path_factory.getbasetemp() / "any.csv"
    rows = [(user, movie, value) for (user, movie), value in table.items()]
    digests = set()
    for _ in range(2):
        random.shuffle(rows)
        pd.DataFrame(rows, columns=["user", "movie", "rating"]).to_csv(path, index=False)
        found = read_ratings(path).ratings
        digests.add(found.digest())
        assert {(u, m): s for u, m, s, _ in triples(found)} == {pair: np.float32(value) for pair, value in table.items()}
    assert len(digests) == 1
