import io
import json
import pickle
import struct
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made import seeded
from saved import Code, contents, saved

from pmfcli import archive
from pmfcli.artifact import Model, dumps, load, loads
from pmfcli.config import Settings
from pmfcli.core.pairs import Seen
from pmfcli.errors import ModelError, TrainingError
from pmfcli.packing import pack_seen, unpack_seen
from pmfcli.steps import run
from pmfcli.training import train


def test_a_model_comes_back_as_it_was(sample_model: Model) -> None:
    content = dumps(sample_model)
    assert contents(loads(content, "x")) == contents(sample_model)
    assert dumps(loads(content, "x")) == content


@pytest.mark.parametrize(
    "settings",
    [
        {"hierarchical": "none"},
        {"hierarchical": "users", "biases": False},
        {"hierarchical": "none", "noise": "learned"},
        {"priors": "em", "noise": "em"},
        {"solver": "als", "link": "linear"},
        {"method": "bayes"},
        {"method": "bayes", "likelihood": "gaussian", "noise": "user"},
        {"method": "bayes", "hierarchical": "none", "biases": False, "noise": "learned", "prior_scales": False, "habits": 1},
    ],
)
def test_every_kind_of_model_comes_back(sample, settings: dict) -> None:
    model = run(train(sample, Settings(**({"epochs": 3, "holdout": 0.0, "latent": 2} | settings))))
    assert contents(loads(dumps(model), "x")) == contents(model)


def test_a_name_that_is_no_text_does_not_spoil_the_file(sample_model: Model) -> None:
    data = sample_model.data | {"name": "caf\udce9.csv"}  # as Python has a Latin-1 name of a file
    assert loads(dumps(replace(sample_model, data=data)), "x").data["name"] == "caf?.csv"


def test_one_seed_gives_the_same_bytes(sample) -> None:
    a, b, other = (dumps(run(train(sample, Settings(epochs=6, seed=seed)))) for seed in (1, 1, 2))
    assert a == b != other


class Long:
    """What a small file can hold that is not small when it is loaded."""

    def __reduce__(self):
        return bytearray, (50 * 10**12,)


def test_a_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (saved(Code()), saved({"format": "pmf-model", "version": 1, "meta": Code(), "tensors": {}})):
        with pytest.raises(ModelError, match="refused, none of it was run"):
            loads(content, "evil.pt")
    with pytest.raises(ModelError, match="not a model file"):
        loads(pickle.dumps(Code()), "evil.pt")
    with pytest.raises(ModelError, match="refused, none of it was run"):  # 50 TB, were it called
        loads(saved(Long()), "evil.pt")
    capital = saved(Long()).replace(b"/data.pkl", b"/DATA.PKL")  # torch reads it by either name
    with pytest.raises(ModelError, match="refused, none of it was run"):
        loads(capital, "evil.pt")
    with zipfile.ZipFile(buffer := io.BytesIO(capital), "a") as box:
        box.writestr(f"{box.namelist()[0].partition('/')[0]}/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(ModelError, match="not a model file"):
        loads(buffer.getvalue(), "evil.pt")
    assert not (tmp_path / "it-ran").exists()


def directory(content: bytes, moved: int) -> bytearray:
    """Where the records of a file lie that was moved by so much."""
    (start,) = struct.unpack_from("<Q", content, len(content) - 50)
    found = bytearray(content[start:-98])
    for place in range(len(found)):
        if found[place : place + 4] == b"PK\x01\x02":
            (offset,) = struct.unpack_from("<I", found, place + 42)
            struct.pack_into("<I", found, place + 42, offset + moved)
    return found


def end(where: int, entries: int, size: int) -> bytes:
    """The end of a directory, without the record that says where it is."""
    return struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, size, where)


def behind(prefix: bytes, content: bytes) -> bytes:
    """A file with something before it, that knows where it lies."""
    found = directory(content, len(prefix))
    records = prefix + content[: -98 - len(found)]
    place = len(records) + len(found)
    last = end(len(records), found.count(b"PK\x01\x02"), len(found)) + struct.pack("<4sIQI", b"PK\x06\x07", 0, place, 1)
    return records + bytes(found) + last + content[-22:]


def with_two_directories(seen: bytes, hidden: bytes) -> bytes:
    """A file in which ``zipfile`` finds the records of one, and torch those of the other."""
    first, second = directory(seen, 0), directory(hidden, len(seen))
    records = seen + hidden[: -98 - len(second)]
    place = len(records) + len(second)
    records += bytes(second) + end(len(records), second.count(b"PK\x01\x02"), len(second))
    struct.pack_into("<H", first, first.rfind(b"PK\x01\x02") + 32, 20)  # what follows is a comment, says its last entry
    first += struct.pack("<4sIQI", b"PK\x06\x07", 0, place, 1)
    n = first.count(b"PK\x01\x02")
    return records + bytes(first) + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, n, n, len(first), len(records), 0)


def test_what_is_checked_is_what_torch_reads() -> None:
    legacy, good, evil = io.BytesIO(), saved({"a": torch.zeros(3)}), saved(Long())
    torch.save(Long(), legacy, _use_new_zipfile_serialization=False)
    old = legacy.getvalue()
    for content in (old + good, behind(old, good), with_two_directories(good, evil)):
        with zipfile.ZipFile(io.BytesIO(content)) as box:
            assert "archive/data/0" in box.namelist()  # of the good one
        with pytest.raises(MemoryError):  # 50 TB
            torch.load(io.BytesIO(content), weights_only=True)
        with pytest.raises(ModelError, match="not a model file"):
            loads(content, "evil.pt")


def test_what_is_no_model_is_refused(sample_model: Model, tmp_path: Path) -> None:
    content = dumps(sample_model)
    for size in (0, 1, 100, len(content) // 2, len(content) - 1):
        with pytest.raises(ModelError, match="cut short"):
            loads(content[:size], "x")
    with pytest.raises(ModelError, match="not a pmf model"):
        loads(saved({"weight": torch.zeros(3)}), "x")
    with pytest.raises(ModelError, match="not a pmf model"):
        loads(saved(torch.zeros(3)), "x")
    with pytest.raises(ModelError, match="newer than this pmf"):
        loads(saved({"format": "pmf-model", "version": 99, "meta": "", "tensors": {}}), "x")
    with pytest.raises(ModelError, match="no such model; train one"):
        load(tmp_path / "none.pt")
    with pytest.raises(ModelError, match="directory"):
        load(tmp_path)


def test_a_pipe_without_end_is_not_read_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        given, begins = 0, b""

        def read(self, size: int = -1) -> bytes:
            assert size > 0
            self.given += size
            return self.begins + bytes(size - len(self.begins))

    monkeypatch.setattr(archive, "of_this_machine", lambda: 10**8)
    for begins, said in ((b"\0", "not a model file"), (b"PK\x03\x04", "more than 0.1 GB, too much for the memory")):
        stream = Endless()
        stream.begins = begins
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        with pytest.raises(ModelError, match=said):
            load(None)
        assert stream.given < 10**8


def test_a_damaged_byte_is_noticed_or_harmless(sample_model: Model) -> None:
    """Whatever byte is changed: an error of ours, or the very same model. Never anything else."""
    content = bytearray(dumps(sample_model))
    for place in range(0, len(content), len(content) // 150):
        damaged = bytes(content[:place]) + bytes([content[place] ^ 0xFF]) + bytes(content[place + 1 :])
        try:
            assert dumps(loads(damaged, "x")) == bytes(content)
        except ModelError:
            continue


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("U", torch.zeros(1).expand(2000, 10**9)),
        ("U", torch.zeros(3, 30)),
        ("V", torch.zeros(230, 7)),
        ("b", torch.full((2000,), float("nan"))),
        ("seen_movie", torch.full((3,), 9, dtype=torch.uint8)),
        ("seen_stars", torch.tensor([float("nan")])),
        ("seen_start", torch.zeros(2001, dtype=torch.int64)),
        ("unheard_of", torch.zeros(1)),
        ("b", torch.empty(2000, device="meta")),
        ("b", torch.full((2000,), 1e30)),
        ("noise", torch.tensor(1e30)),
        ("noise", torch.tensor(1e-30)),
        ("residual", torch.tensor(1e-30)),
        ("people", torch.zeros(8)),
        ("people", torch.full((8,), -1.0)),
        ("stars", torch.tensor([5.0, 0.5])),
        ("cuts", torch.arange(72.0).view(8, 9).flip(1)),
        ("grid", torch.linspace(1, 0, 10)),
        ("within", torch.zeros(8)),
        ("rounding", torch.full((8,), -0.1)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(sample_model: Model, name: str, tensor: torch.Tensor) -> None:
    raw = torch.load(io.BytesIO(dumps(sample_model)), weights_only=True)
    raw["tensors"][name] = tensor
    with pytest.raises(ModelError, match=r"damaged model file|refused, none of it was run"):
        loads(saved(raw), "x")


@pytest.mark.parametrize("name", ["seen_movie", "seen_rating"])
def test_an_index_beyond_what_there_is_is_refused(sample_model: Model, name: str) -> None:
    raw = torch.load(io.BytesIO(dumps(sample_model)), weights_only=True)
    raw["tensors"][name][-1] = 255
    with pytest.raises(ModelError, match=r"damaged model file \(ValueError: the seen"):
        loads(saved(raw), "x")


def test_seen_pairs_that_are_not_in_order_are_refused(sample_model: Model) -> None:
    """What is searched for among them would not be found."""
    raw = torch.load(io.BytesIO(dumps(sample_model)), weights_only=True)
    movie = raw["tensors"]["seen_movie"]
    assert int(raw["tensors"]["seen_start"][1]) >= 2
    for pair in ([1, 0], [0, 0]):
        damaged = {**raw, "tensors": {**raw["tensors"], "seen_movie": torch.cat([movie[pair], movie[2:]])}}
        with pytest.raises(ModelError, match="the seen pairs are not in order"):
            loads(saved(damaged), "x")


@pytest.mark.parametrize("name", ["sigma", "noise", "gamma_u", "residual", "doubt", "precision_u", "precision_v"])
def test_a_variance_of_a_mode_that_is_not_positive_is_refused(sample_model: Model, name: str) -> None:
    raw = torch.load(io.BytesIO(dumps(sample_model)), weights_only=True)
    for factor in (0, -1):
        damaged = {**raw, "tensors": {**raw["tensors"], name: factor * raw["tensors"][name]}}
        with pytest.raises(ModelError, match="a variance is not positive"):
            loads(saved(damaged), "x")


def test_numbers_that_would_be_refused_are_not_written(sample_model: Model) -> None:
    factors = sample_model.posterior.factors
    for number in (1e13, float("nan")):
        V = torch.full_like(factors.V, number)
        with pytest.raises(TrainingError, match=r"beyond all bounds \(V\)"):
            dumps(replace(sample_model, posterior=sample_model.posterior._replace(factors=factors._replace(V=V))))


def test_titles_of_a_strangers_model_are_made_harmless(sample_model: Model) -> None:
    titles = ("\x1b[31mred\u202e\n", None, *sample_model.titles[2:])
    assert loads(dumps(replace(sample_model, titles=titles)), "x").titles[:2] == ("[31mred", None)


@pytest.mark.parametrize("n_movies", [3, 256, 257, 65_536, 65_537])
@pytest.mark.parametrize("different", [1, 10, 256, 40_000, 70_000])
def test_seen_ratings_are_narrow_and_come_back(n_movies: int, different: int) -> None:
    generator = seeded(0)
    users, each = 40_000, min(n_movies, 2)
    movie = torch.cat([torch.zeros(users, 1), torch.full((users, 1), n_movies - 1.0)], 1)[:, :each].int().flatten()
    stars = torch.randint(different, (len(movie),), generator=generator) / 8
    seen = Seen(torch.arange(users + 1) * each, movie, stars)
    packed = pack_seen(seen, n_movies)
    assert sum(packed[name].nbytes for name in ("seen_movie", "seen_rating")) == len(movie) * (
        (1 if n_movies <= 256 else 2 if n_movies <= 65_536 else 4) + (1 if different <= 256 else 2)
    )
    found = unpack_seen(packed, users, n_movies)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, seen, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": [0, 1e999]},
        {"scale": [5, 5]},
        {"users": ["1"] * 2000},
        {"users": ["\x9b1", *map(str, range(1999))]},
        {"users": [" 1", *map(str, range(1999))]},
        {"titles": []},
        {"movies": 3},
        {"settings": None},
        {"settings": {}},
        {"data": {"latest": "soon"}},
        {"data": {}},
        {"data": {"latest": None}},
        {"data": {"latest": None, "name": "x", "ratings": "many", "users": 1, "movies": 1}},
        {"metrics": {"noise": float("nan")}},
        {"versions": {"pmf": "\ud800"}},
        {"settings": {"user_power": -1e6}},
        {"posterior": {"offset": float("nan")}},
        {"posterior": {"link": "probit"}},
        {"posterior": {"offset": 1e300}},
        {"posterior": {"offset": 10**400}},
        {"posterior": {"kind": "draws"}},
    ],
)
def test_metadata_that_does_not_fit_is_refused(sample_model: Model, change: dict) -> None:
    raw = torch.load(io.BytesIO(dumps(sample_model)), weights_only=True)
    meta = json.loads(raw["meta"])
    if "posterior" in change:
        change = {"posterior": meta["posterior"] | change["posterior"]}
    raw["meta"] = json.dumps(meta | change)
    with pytest.raises(ModelError, match="damaged model file"):
        loads(saved(raw), "x")
    for text in ("[" * 100_000, json.dumps(meta | {"metrics": {"loss": "much"}}).replace('"much"', "1e999")):
        raw["meta"] = text
        with pytest.raises(ModelError, match="damaged model file"):
            loads(saved(raw), "x")


def test_a_packed_archive_is_refused_before_it_unpacks(sample_model: Model) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(dumps(sample_model))) as box, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in box.infolist():
            packed.writestr(member.filename, b"\0" * 10_000_000)
    with pytest.raises(ModelError, match="unpacks to more"):
        loads(buffer.getvalue(), "x")


@pytest.mark.parametrize("method", ["map", "bayes"])
def test_a_crowd_that_is_none_is_refused(sample, method: str) -> None:
    model = run(train(sample, Settings(method=method, epochs=3, latent=2)))
    p = model.posterior
    half = torch.load(io.BytesIO(dumps(model)), weights_only=True)
    half["tensors"].pop("mean_w")
    negative = p.common._replace(typical=torch.tensor(-1.0))
    for broken in (*(dumps(replace(model, posterior=p._replace(common=none))) for none in (None, negative)), saved(half)):
        with pytest.raises(ModelError, match="damaged"):
            loads(broken, "x")


@pytest.mark.parametrize("broken", ["share", "grid", "cuts"])
def test_a_scale_that_is_none_is_refused(sample, broken: str) -> None:
    model = run(train(sample, Settings(method="bayes", epochs=3, latent=2)))
    p = model.posterior.ordinal
    changed = {
        "share": {"share": -5 * p.share},
        "grid": {"grid": 1e9 * (1 + p.grid)},
        "cuts": {"cuts": p.cuts[:, :0], "share": p.share[..., :0], "habits": p.habits[:, :0]},
    }[broken]
    with pytest.raises(ModelError, match="damaged"):
        loads(dumps(replace(model, posterior=model.posterior._replace(ordinal=p._replace(**changed)))), "x")
