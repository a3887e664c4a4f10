"""Different values, found without sorting them all, against torch's own unique."""

import pytest
import torch
from made import seeded

from pmfcli.core.distinct import distinct, indexed


@pytest.mark.parametrize("n", [0, 1, 1000, 700_000])
@pytest.mark.parametrize("different", [1, 10, 10**9])
def test_as_unique_finds_them(n: int, different: int) -> None:
    values = torch.randint(different, (n,), generator=seeded(0)).float()
    found, place = values.unique(return_inverse=True)
    assert torch.equal(distinct(values), found)
    among, index = indexed(values)
    assert torch.equal(among, found)
    assert torch.equal(index.long() % (1 << 8 * index.itemsize), place)


def test_values_that_come_late_are_found() -> None:
    values = torch.ones(1_000_000)
    values[-1], values[-2] = 0.5, 2.0
    assert distinct(values).tolist() == [0.5, 1.0, 2.0]


def test_more_than_most_are_noticed() -> None:
    assert len(distinct(torch.arange(200_000.0), 25)) > 25
    assert distinct(torch.arange(200_000.0) % 25, 25).tolist() == list(range(25))
