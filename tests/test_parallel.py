"""Work on all cores is the work of one, in parts."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from made import random_pattern, seeded

from pmfcli.core import ordinal, parallel


@pytest.fixture(params=[1, 3])
def cores(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_what_is_taken_is_where_the_index_says(cores: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_LONG", 10)
    index = torch.randint(7, (101,), generator=seeded(1)).to(kind)
    for values in (torch.randn(7), torch.randn(7) > 0, torch.randn(7, requires_grad=True)):
        found = parallel.take(values, index)
        assert torch.equal(found, values[index.long()])
        assert found.requires_grad == values.requires_grad


@pytest.mark.parametrize("length", [0, 1, 10, 11])
def test_parts_are_all_there_once(cores: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_LONG", 1)
    found = parallel.by_parts(lambda own: torch.arange(length)[own], length, torch.device("cpu"), 5)
    assert torch.equal(torch.cat(found), torch.arange(length))


def test_blocks_are_all_rows_once_in_their_order(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_LONG", 1)
    pattern, threads = random_pattern(40, 30, 0.4, seed=3), set()

    def rows(start: int, stop: int) -> torch.Tensor:
        threads.add(threading.current_thread().name)
        return torch.arange(start, stop)

    found = parallel.by_blocks(rows, pattern, numbers=parallel.NUMBERS // 3)  # three rows in a block
    assert torch.equal(torch.cat(found), torch.arange(40))
    assert max(map(len, found)) == 3
    assert ("MainThread" in threads) == (cores == 1)


def test_threads_to_come_have_all_cores_again_even_if_a_part_fails(cores: int) -> None:
    def fail(_: int) -> None:
        raise ValueError("a part")

    with pytest.raises(ValueError, match="a part"), parallel.workers(3, torch.device("cpu")) as each:
        each(fail, range(3))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == cores


def test_a_sweep_over_steps_does_not_depend_on_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    n, before = 1000, torch.get_num_threads()
    x, row, level = torch.randn(n, generator=seeded(1)), torch.arange(n) // 10, torch.arange(n) % 4
    data = ordinal.Levels(ordinal.Steps(level, row), torch.arange(4) / 3, torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(1.0))
    monkeypatch.setattr(parallel, "_CACHED", 128)
    monkeypatch.setattr(parallel, "_LONG", 1)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        g = seeded(2)
        habits = ordinal.init(data, 2, 100, x, g)
        for _ in range(5):
            habits, z, loss = ordinal.step(habits, data, ordinal.Latent(x, torch.ones(n)), g, (g, g))
        found.append((*habits, z, loss))
    torch.set_num_threads(before)
    assert all(map(torch.equal, *found))
