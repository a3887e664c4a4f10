"""The noise of a mode, and how unsure its rows are at other noises than the one they were found at."""

import pytest
import torch

from pmfcli.config import Settings
from pmfcli.core.noise import _directions, _heard
from pmfcli.core.pairs import Pairs
from pmfcli.core.rows import rows_of
from pmfcli.data.ratings import Ratings
from pmfcli.training import run, train


@pytest.mark.parametrize("link", ["sigmoid", "linear"])
def test_rows_at_another_noise_are_those_found_there(sample: Ratings, link: str) -> None:
    model = run(train(sample.select(sample.user < 100), Settings(solver="als", latent=5, epochs=4, link=link)))
    p, seen = model.posterior, model.seen
    known = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.9
    pairs = Pairs(seen.users()[:200], seen.movie[:200].long(), known, known)
    for times in (0.1, 1.0, 30.0):
        there = rows_of(p._replace(noise=p.noise / times**0.5), seen, pairs)
        for rows, expected, prior in zip(rows_of(p, seen, pairs), there, (p.precision_u, p.precision_v), strict=True):
            found = _heard(rows, _directions(rows, prior), torch.tensor(times).double(), known)
            torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-3, atol=1e-6)


def test_hardly_any_prior_is_no_reason_to_break_down(sample: Ratings) -> None:
    """Covariances of which rounding leaves no positive definite matrix."""
    wide = {f"sigma_{name}": 1000.0 for name in "uvb"}
    model = run(train(sample, Settings(sigma=0.001, latent=40, epochs=30, **wide)))
    assert 0 < float(model.posterior.noise) < 1
