"""Similar movies, similar users: rows of a factor matrix that lie near one of them."""

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "dot", "euclidean"]


@torch.no_grad()
def similar(vectors: Tensor, row: int, allowed: Tensor, n: int, metric: Metric = "cosine") -> tuple[Tensor, Tensor, Tensor]:
    """The ``n`` allowed rows most similar to a row, on average over draws; the row itself is never among them; ties go by row.

    Factors of different draws are rotated against each other, their similarities are not: these are averaged.

    Args:
        vectors: (draws, rows, latent). allowed: (rows,) bool.
        metric: cosine of the angle, dot product, or minus the Euclidean distance.

    Returns:
        Rows, similarities (higher is nearer) and their standard deviations over draws, each at most (n,).
    """
    others = allowed.clone()
    others[row] = False
    rows = torch.nonzero(others)[:, 0]
    theirs, own = vectors[:, rows], vectors[:, row]
    if metric == "cosine":
        similarity = torch.nn.functional.cosine_similarity(theirs, own[:, None], dim=2)
    elif metric == "dot":
        similarity = (theirs @ own[:, :, None])[:, :, 0]
    else:
        similarity = -(theirs - own[:, None]).norm(dim=2)
    mean = similarity.mean(0)
    sd = (similarity - mean).square().mean(0).sqrt()
    order = torch.sort(mean, descending=True, stable=True).indices[:n]
    return rows[order], mean[order], sd[order]
