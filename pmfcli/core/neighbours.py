"""Similar movies, similar users: rows of a factor matrix that lie near one of them."""

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "dot", "euclidean"]
_NUMBERS = 1 << 22  # of rows in full precision at a time


@torch.no_grad()
def similar(vectors: Tensor, row: int, allowed: Tensor, n: int, metric: Metric = "cosine") -> tuple[Tensor, Tensor, Tensor]:
    """The ``n`` allowed rows most similar to a row, on average over draws; the row itself is never among them; ties go by row.

    Factors of different draws are rotated against each other, their similarities are not: these are averaged.

    Args:
        vectors: (draws, rows, latent), of any precision.
        allowed: (rows,) bool; where these are more rows, the others are 0.
        metric: cosine of the angle, dot product, or minus the Euclidean distance.

    Returns:
        Rows, similarities (higher is nearer) and their standard deviations over draws, each at most (n,).
    """
    others = allowed.clone()
    others[row] = False
    rows = torch.nonzero(others)[:, 0]
    own = _at(vectors, torch.tensor([row]))
    means, spreads = [], []
    for block in rows.split(max(1, _NUMBERS // vectors[:, 0].numel())):
        theirs = _at(vectors, block)
        if metric == "cosine":
            similarity = torch.nn.functional.cosine_similarity(theirs, own, dim=2)
        elif metric == "dot":
            similarity = (theirs @ own.mT)[:, :, 0]
        else:
            similarity = -(theirs - own).norm(dim=2)
        means.append(similarity.mean(0))
        spreads.append((similarity - means[-1]).square().mean(0).sqrt())
    mean, sd = torch.cat(means), torch.cat(spreads)
    order = torch.sort(mean, descending=True, stable=True).indices[:n]
    return rows[order], mean[order], sd[order]


def _at(vectors: Tensor, rows: Tensor) -> Tensor:
    known = rows < vectors.shape[1]
    return vectors[:, rows * known].float() * known[:, None]
