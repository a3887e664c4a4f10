"""Similar movies, similar users: rows of a factor matrix that lie near one of them."""

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "dot", "euclidean"]


@torch.no_grad()
def similar(vectors: Tensor, row: int, allowed: Tensor, n: int, metric: Metric = "cosine") -> tuple[Tensor, Tensor]:
    """The ``n`` allowed rows most similar to a row; the row itself is never among them; ties go by row.

    Args:
        vectors: (rows, latent). allowed: (rows,) bool.
        metric: cosine of the angle, dot product, or minus the Euclidean distance.

    Returns:
        Rows and similarities (higher is nearer), each at most (n,).
    """
    others = allowed.clone()
    others[row] = False
    rows = torch.nonzero(others)[:, 0]
    if metric == "cosine":
        similarity = torch.nn.functional.cosine_similarity(vectors[rows], vectors[row][None], dim=1)
    elif metric == "dot":
        similarity = vectors[rows] @ vectors[row]
    else:
        similarity = -(vectors[rows] - vectors[row]).norm(dim=1)
    order = torch.sort(similarity, descending=True, stable=True).indices[:n]
    return rows[order], similarity[order]
