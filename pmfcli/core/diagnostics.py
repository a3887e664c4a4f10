"""Whether chains agree, and how many independent draws they are worth.

Gelman et al., "Bayesian Data Analysis" (3rd ed., 2013), section 11.4-11.5: split R-hat, and the effective sample size from
autocorrelations summed by Geyer's initial positive sequence.
"""

import torch
from torch import Tensor


def r_hat(draws: Tensor) -> Tensor:
    """Split R-hat of each quantity, (quantities,).

    Args:
        draws: (chains, length, quantities), length at least 4. Each chain is cut in halves, which must agree as well.
    """
    halves = _halves(draws)
    n = halves.shape[1]
    within = halves.var(1).mean(0)
    between = n * halves.mean(1).var(0)
    return (((n - 1) / n * within + between / n) / within.clamp(min=torch.finfo(draws.dtype).tiny)).sqrt()


def effective_size(draws: Tensor) -> Tensor:
    """Effective number of independent draws of each quantity over all chains, (quantities,), at most chains x length."""
    halves = _halves(draws)
    chains, n, _ = halves.shape
    within = halves.var(1).mean(0)
    total = ((n - 1) / n * within + halves.mean(1).var(0)).clamp(min=torch.finfo(draws.dtype).tiny)
    spectrum = torch.fft.rfft(halves - halves.mean(1, keepdim=True), n=2 * n, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=1)[:, :n].mean(0) / (n - 1)
    rho = 1 - (within - covariance) / total
    rho[0] = 1
    pairs = rho[: n - n % 2].unflatten(0, (-1, 2)).sum(1)
    positive = (pairs > 0).to(rho).cumprod(0)
    time = (2 * (pairs * positive).sum(0) - 1).clamp(min=1)
    size: Tensor = chains * n / time
    return size


def _halves(draws: Tensor) -> Tensor:
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, draws.shape[1] - half :]])
