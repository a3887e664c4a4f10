"""The data sets that pmf knows by name: where they are, how to check them, what their licence says."""

from typing import NamedTuple

from pmfcli.errors import UsageError

_SITE = "https://files.grouplens.org/datasets/movielens"
_USE = "research use, not commercial; acknowledge it (Harper & Konstan 2015, doi:10.1145/2827872)"
_CLOSED = f"{_USE}; no redistribution without permission of GroupLens"
_OPEN = f"{_USE}; redistribution under the same conditions"


class DataSet(NamedTuple):
    """One published data set."""

    name: str
    ratings: int
    md5: str | None  # of the archive; None: the site keeps an .md5 file beside it
    ratings_sha256: str | None  # of ratings.csv inside, where known: recognises the data in a rebuilt archive
    licence: str

    @property
    def url(self) -> str:
        """Where the archive is published."""
        return f"{_SITE}/{self.name}.zip"


CATALOG = {
    data.name: data
    for data in (
        DataSet("ml-latest-small", 100_836, None, "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646", _OPEN),
        DataSet("ml-100k", 100_000, "0e33842e24a9c977be4e0107933c0723", None, _CLOSED),
        DataSet("ml-1m", 1_000_209, "c4d9eecfca2ab87c1945afe126590906", None, _CLOSED),
        DataSet("ml-10m", 10_000_054, "ce571fd55effeba0271552578f2648bd", None, _CLOSED),
        DataSet("ml-20m", 20_000_263, "cd245b17a1ae2cc31bb14903e1204af3", None, _OPEN),
        DataSet("ml-25m", 25_000_095, "6b51fb2759a8657d3bfcbfc42b592ada", None, _OPEN),
        DataSet("ml-32m", 32_000_204, None, None, _OPEN),
        DataSet("ml-latest", 33_832_162, None, None, _OPEN),
    )
}
DEFAULT = "ml-latest-small"


def look_up(name: str) -> DataSet:
    """The data set of that name.

    Raises:
        UsageError: there is none; names those there are.
    """
    if name not in CATALOG:
        raise UsageError(f"no data set is called '{name}'; known: {', '.join(CATALOG)}")
    return CATALOG[name]
