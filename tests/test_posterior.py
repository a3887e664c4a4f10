"""The posterior against torch.distributions on the dense matrix: an oracle that shares no code with it."""

import pytest
import torch
from made import SCALES, dense_log_posterior, random_pattern, seeded

from pmfcli.core.posterior import Parameters, log_posterior, observe

N_USERS, N_MOVIES, LATENT = 7, 11, 4
MODELS = {
    "the post": {"W": False, "X": False, "biases": False, "with_offset": False, "sigma": 1.0, "spread": 0.01},
    "the paper": {"W": True, "X": False, "biases": False, "with_offset": False, "user_power": 1.0, "sigma": 0.3, "spread": 0.4},
    "both sides": {"W": True, "X": True, "biases": True, "with_offset": True, "sigma": 0.25, "spread": 0.7},
}


def make(W: bool, X: bool, biases: bool, sigma: float, spread: float, **powers):
    """Observations and parameters of a random problem, in float64."""
    pattern = random_pattern(N_USERS, N_MOVIES, 0.4, seed=3)
    generator = seeded(4)

    def randn(*shape: int) -> torch.Tensor:
        return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)

    t = torch.rand(pattern.n, generator=generator, dtype=torch.float64)
    parameters = Parameters(
        Y=randn(N_USERS, LATENT),
        Z=randn(N_MOVIES, LATENT),
        W=randn(N_MOVIES, LATENT) if W else None,
        X=randn(N_USERS, LATENT) if X else None,
        b=randn(N_USERS) if biases else None,
        c=randn(N_MOVIES) if biases else None,
        sigma=torch.tensor(sigma, dtype=torch.float64),
    )
    return observe(pattern, t, **powers), parameters


@pytest.mark.parametrize("name", MODELS)
def test_log_posterior_is_the_dense_one(name: str) -> None:
    settings = MODELS[name]
    observations, parameters = make(**settings)
    shape = {key: settings[key] for key in ("user_power", "with_offset") if key in settings}
    expected = dense_log_posterior(observations, parameters, **shape)
    found = log_posterior(parameters, observations, SCALES)
    assert float(found) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_its_gradient_is_the_dense_one(name: str) -> None:
    settings = MODELS[name]
    observations, parameters = make(**settings)
    leaves = [p.requires_grad_() for p in parameters if p is not None]
    shape = {key: settings[key] for key in ("user_power", "with_offset") if key in settings}
    expected = torch.autograd.grad(dense_log_posterior(observations, parameters, **shape), leaves)
    found = torch.autograd.grad(log_posterior(parameters, observations, SCALES), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_rotation_of_the_factors_changes_nothing() -> None:
    observations, p = make(**MODELS["the post"])
    generator = seeded(5)
    Q, _ = torch.linalg.qr(torch.randn(LATENT, LATENT, generator=generator, dtype=torch.float64))
    rotated = p._replace(Y=p.Y @ Q, Z=p.Z @ Q)
    before, after = (float(log_posterior(q, observations, SCALES)) for q in (p, rotated))
    assert after == pytest.approx(before, rel=1e-12)
    stretched = p._replace(Y=p.Y @ (2 * Q), Z=p.Z @ (2 * Q))
    assert float(log_posterior(stretched, observations, SCALES)) != pytest.approx(before, rel=1e-6)
