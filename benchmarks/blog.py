"""The post's dense training against ``pmf train --config configs/blog.toml``: time of training, of the process, peak memory.

    python benchmarks/blog.py data/ml-latest-small

The dense form visits every cell of the users x movies matrix, as the post does, with -1 where there is no rating. Both run
1000 steps in a process of their own, in turn, on the same ratings.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "blog.toml"


def dense(folder: Path) -> None:
    """Train in the dense form; print the loss of steps 0, 50, 100, … as the post does, and the seconds as JSON at last."""
    import pandas as pd
    import torch
    from torch.distributions import HalfNormal, Normal

    ratings = pd.read_csv(folder / "ratings.csv").pivot(index="userId", columns="movieId", values="rating")
    lo, hi = ratings.min().min(), ratings.max().max()
    matrix = torch.from_numpy(((ratings - lo) / (hi - lo)).fillna(-1).to_numpy("float32"))
    rated = matrix > -1
    generator = torch.Generator().manual_seed(0)
    U = (0.01 * torch.randn(matrix.shape[0], 30, generator=generator)).requires_grad_()
    V = (0.01 * torch.randn(matrix.shape[1], 30, generator=generator)).requires_grad_()
    sigma = torch.tensor(1.0, requires_grad=True)
    prior = Normal(0.0, 0.3)
    began = time.perf_counter()
    adam = torch.optim.Adam([U, V, sigma], lr=0.03)
    for step in range(1000):
        likelihood = (Normal(torch.sigmoid(U @ V.t()), sigma).log_prob(matrix) * rated).sum()
        loss = -(likelihood + prior.log_prob(U).sum() + prior.log_prob(V).sum() + HalfNormal(100.0).log_prob(sigma))
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step % 50 == 0:
            print(f"{step:4d} {loss.item():12.1f}", flush=True)
    print(json.dumps({"seconds": time.perf_counter() - began}))


def measure(command: list[str]) -> tuple[float, float, float]:
    """Seconds of training, seconds of the process, its peak MB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    last = process.stdout.read().splitlines()[-1]
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return json.loads(last)["seconds"], time.perf_counter() - began, usage.ru_maxrss / 1024


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        sparse = ["train", "--data", str(folder), "--config", str(CONFIG), "-o", f"{scratch}/blog.pt", "--json"]
        runs = {
            "dense, as the post": [sys.executable, __file__, "--dense", str(folder)],
            "pmf train --config configs/blog.toml": [sys.executable, "-m", "pmfcli", *sparse],
        }
        found = {name: measure(command) for name, command in runs.items()}
    print(f"{'':40s} training   process   peak")
    for name, (training, process, peak) in found.items():
        print(f"{name:40s} {training:6.1f} s {process:7.1f} s {peak:4.0f} MB")
    dense_form, tool = found.values()
    print(f"times faster: training {dense_form[0] / tool[0]:.1f}, whole process {dense_form[1] / tool[1]:.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--dense"]:
        dense(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/ml-latest-small"))
