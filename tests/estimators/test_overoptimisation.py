"""The fits of Gao et al. recover known curves, and own up when the turn is not in the data."""

from __future__ import annotations

import numpy as np
import pytest

from bon_server.estimators import CurveForm, fit_gao, kl_bound

KL = np.array([kl_bound(n) for n in (1, 2, 4, 8, 16, 32, 64, 128)])
DISTANCE = np.sqrt(KL)


@pytest.mark.parametrize(
    ("form", "beta", "turn"), [(CurveForm.BEST_OF_N, 0.4, 1.0 / 0.8), (CurveForm.RL, 0.9, np.exp(1.0 / 0.9 - 1))]
)
def test_a_known_curve_is_found_with_its_turn(form: CurveForm, beta: float, turn: float) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        bent = DISTANCE if form is CurveForm.BEST_OF_N else np.nan_to_num(np.log(DISTANCE))
    noise = np.random.default_rng(0).normal(scale=1e-3, size=len(KL))
    fit = fit_gao(KL, DISTANCE * (1.0 - beta * bent) + noise, form)
    assert (fit.alpha, fit.beta) == pytest.approx((1.0, beta), abs=0.01)
    assert fit.alpha_ci[0] < 1.0 < fit.alpha_ci[1]
    assert fit.turning_point == "identified"
    assert fit.turning_distance == pytest.approx(turn, rel=0.02)
    assert fit.at(DISTANCE[3]) == pytest.approx(DISTANCE[3] * (1.0 - beta * bent[3]), abs=0.01)


def test_a_curve_that_only_rises_has_no_turn() -> None:
    noise = np.random.default_rng(1).normal(scale=0.05, size=len(KL))
    fit = fit_gao(KL, DISTANCE + noise, CurveForm.BEST_OF_N)
    assert fit.turning_distance is None
    assert "beta includes 0" in fit.turning_point


def test_a_curve_that_bends_up_is_not_said_to_be_straight() -> None:
    fit = fit_gao(KL, DISTANCE * (0.1 + 0.05 * DISTANCE), CurveForm.BEST_OF_N)
    assert fit.turning_distance is None
    assert fit.turning_point.endswith("the interval of beta lies below 0")


def test_a_turn_beyond_the_data_is_not_claimed() -> None:
    fit = fit_gao(KL[:4], (DISTANCE * (1.0 - 0.2 * DISTANCE))[:4], CurveForm.BEST_OF_N)
    assert fit.beta == pytest.approx(0.2)
    assert fit.turning_distance is None
    assert "outside the distances measured" in fit.turning_point


def test_resamples_of_prompts_give_the_interval() -> None:
    random = np.random.default_rng(2)
    slopes = random.normal(1.0, 0.1, size=(2_000, 1))
    replicates = slopes * DISTANCE * (1.0 - 0.4 * DISTANCE)
    fit = fit_gao(KL, DISTANCE * (1.0 - 0.4 * DISTANCE), CurveForm.BEST_OF_N, replicates)
    assert fit.alpha_ci == pytest.approx(np.quantile(slopes, [0.025, 0.975]).tolist(), abs=1e-9)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="points above KL 0"):
        fit_gao([0.0, 0.3, 0.5], [0.0, 0.2, 0.3], CurveForm.RL)
