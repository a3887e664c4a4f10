import itertools

import pytest
import torch
from made import random_pattern, seeded

from pmfcli.core import sparse
from pmfcli.core.sparse import Pattern, sampled_dot, spmm


@pytest.fixture(params=["kernels", "gather"])
def either_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the same numbers: the CSR kernels, and gathers in blocks smaller than the data."""
    if request.param == "gather":
        monkeypatch.setattr(sparse, "has_kernels", lambda device, dtype: False)
        monkeypatch.setattr(sparse, "_GATHER_BLOCK", 7)
    return request.param


@pytest.fixture
def pattern() -> Pattern:
    return random_pattern(6, 9, 0.4, seed=1)


def factors(rows: int, seed: int, latent: int = 3) -> torch.Tensor:
    generator = seeded(seed)
    return torch.randn(rows, latent, generator=generator, dtype=torch.float64, requires_grad=True)


def test_sampled_dot_is_the_dense_product_on_the_pairs(pattern: Pattern, either_path: str) -> None:
    U, V = factors(6, 2), factors(9, 3)
    torch.testing.assert_close(sampled_dot(U, V, pattern), (U @ V.T)[pattern.row, pattern.col])


def test_spmm_is_the_dense_product(pattern: Pattern, either_path: str) -> None:
    values, B = factors(pattern.n, 4, 1)[:, 0], factors(9, 5)
    dense = torch.zeros(6, 9, dtype=torch.float64).index_put((pattern.row, pattern.col), values)
    torch.testing.assert_close(spmm(values, B, pattern), dense @ B)
    C = factors(6, 6)
    torch.testing.assert_close(spmm(values[pattern.perm], C, pattern.T), dense.T @ C)


def test_gradients_are_exact(pattern: Pattern, either_path: str) -> None:
    U, V = factors(6, 2), factors(9, 3)
    assert torch.autograd.gradcheck(lambda u, v: sampled_dot(u, v, pattern), (U, V))
    values = factors(pattern.n, 4, 1)[:, 0].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, b: spmm(x, b, pattern), (values, V))
    assert torch.autograd.gradcheck(lambda x, b: spmm(x, b, pattern.T), (values, U))


def test_transposing_twice_changes_nothing(pattern: Pattern) -> None:
    twice = pattern.T.T
    assert all(torch.equal(getattr(twice, name), getattr(pattern, name)) for name in ("crow", "col", "row", "perm"))
    assert twice.shape == pattern.shape
    values = torch.arange(pattern.n)
    assert torch.equal(values[pattern.perm][pattern.T.perm], values)


@pytest.mark.parametrize("own", [slice(None), slice(2, 5), slice(1, 6, 2), slice(0, 6, 3), slice(5, 5)])
def test_rows_alone(pattern: Pattern, own: slice) -> None:
    U, V = factors(6, 2), factors(9, 3)
    part, place = pattern.rows(own)
    assert part.n == int(torch.isin(pattern.row, torch.arange(6)[own]).sum())
    torch.testing.assert_close(sampled_dot(U[own], V, part), sampled_dot(U, V, pattern)[place])


def test_rows_are_a_view(pattern: Pattern) -> None:
    U, V = factors(6, 2), factors(9, 3)
    first, last = int(pattern.crow[2]), int(pattern.crow[5])
    seen = pattern.view(2, 5)
    torch.testing.assert_close(sampled_dot(U[2:5], V, seen), sampled_dot(U, V, pattern)[first:last])
    values = torch.arange(1.0, pattern.n + 1).to(V)
    torch.testing.assert_close(spmm(values[first:last], V, seen), spmm(values, V, pattern)[2:5])


def test_blocks_cover_all_rows_once() -> None:
    counts = torch.tensor([0, 50, 0, 1, 2, 3, 100, 0, 4, 0])
    row = torch.arange(10).repeat_interleave(counts)
    col = torch.cat([torch.arange(count) for count in counts.tolist()])
    pattern = Pattern.of(row, col, (10, 100))
    for size in (1, 7, 30, 1000):
        for most_rows in (None, 1, 4, 100):
            bounds = pattern.blocks(size, most_rows)
            assert bounds[0][0] == 0
            assert bounds[-1][1] == len(counts)
            assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
            assert all(stop - start <= (most_rows or 10) for start, stop in bounds)
            assert most_rows or all(counts[start:stop].sum() > 0 for start, stop in bounds)
            assert all(counts[start:stop].sum() - counts[start:stop].max() <= size for start, stop in bounds)


@pytest.mark.parametrize(
    ("row", "col"), [([1, 0], [0, 0]), ([0, 0], [1, 1]), ([0, 0], [1, 0]), ([0], [9]), ([0], [-1]), ([6], [0]), ([-1], [0])]
)
def test_pairs_that_are_no_pattern_are_refused(row: list[int], col: list[int]) -> None:
    with pytest.raises(ValueError, match=r"sorted|outside"):
        Pattern.of(torch.tensor(row), torch.tensor(col), (6, 9))
