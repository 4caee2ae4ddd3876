"""How a number grows in training, as a curve of five parameters (arXiv 2508.03616)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modwright.core.errors import InvalidInputError

__all__ = ["PARAMETERS", "TrajectoryFit", "fit_trajectory", "trajectory"]

PARAMETERS = ("A", "lam", "gamma", "t0", "K")

Values = NDArray[np.float64]

_LOW, _HIGH = np.array([-12.0, math.log(1e-3), -6.0]), np.array([4.0, math.log(1e5), 4.0])
"""Bounds of ln lam, ln(gamma * last step) and ln t0."""

_STARTS = tuple(itertools.product((0.02, 0.3, 2.0), (1.0, 10.0, 100.0), (0.3, 1.0, 2.0)))


def trajectory(
    steps: Sequence[float] | Values, A: float, lam: float, gamma: float, t0: float, K: float
) -> Values:
    """A exp(-lam x) ln(x) + K with x = gamma t + t0, at steps t (n,).

    A is the amplitude, lam the decay, gamma the time scale (1 / step), t0 the offset, and K what it
    tends to.

    Example:
        >>> trajectory([0, 1e9], A=2, lam=0.1, gamma=1e-3, t0=1, K=5).tolist()
        [5.0, 5.0]
    """
    x = gamma * np.asarray(steps, dtype=float) + t0
    found: Values = A * np.exp(-lam * x) * np.log(x) + K
    return found


@dataclass(frozen=True)
class TrajectoryFit:
    """The curve of least squares through one series.

    A and lam are nearly free together where no peak lies in the window: compare ``fitted``, ``r2``,
    ``peak_step`` and K between layers, not A.

    Attributes:
        params: A, lam, gamma, t0 and K.
        errors: their standard errors.
        covariance: (5, 5), in the order of ``params``.
        fitted: the curve at the steps.
        r2: 1 - RSS / TSS; None of a constant series.
        aic: n ln(RSS / n) + 10.
        peak_step: the stationary point, where it lies in the window.
        unidentified: parameters on a bound, or with a standard error above their size.
    """

    params: dict[str, float]
    errors: dict[str, float]
    covariance: tuple[tuple[float, ...], ...]
    fitted: tuple[float, ...]
    r2: float | None
    aic: float
    peak_step: float | None
    unidentified: tuple[str, ...]


def fit_trajectory(steps: Sequence[float], values: Sequence[float]) -> TrajectoryFit:
    """Fits the five parameters by least squares, unweighted, on a linear axis of time.

    A and K are linear where the others are given, so three are searched (variable projection) from
    27 starts; the best is kept.

    Args:
        steps: training steps of n >= 6 checkpoints, rising from 0 or more.
        values: (n,).

    Raises:
        InvalidInputError: too few steps, steps that do not rise, or numbers that are not finite.

    Example:
        >>> steps = range(0, 4000, 100)
        >>> fit = fit_trajectory(steps, trajectory(steps, A=8, lam=0.5, gamma=1e-3, t0=0.5, K=3))
        >>> round(fit.params["K"], 3), fit.r2 > 0.999999, round(fit.peak_step)
        (3.0, True, 1846)
    """
    from scipy.optimize import least_squares

    t, y = _checked(steps, values)
    last = math.log(t[-1])

    def basis(logs: Values) -> Values:
        """(n, 2): what A and K are multiplied by."""
        lam, gamma, t0 = np.exp(logs - np.array([0.0, last, 0.0]))
        return np.stack([trajectory(t, 1.0, lam, gamma, t0, 0.0), np.ones_like(t)], 1)

    def linear(logs: Values) -> Values:
        scaled = basis(logs)
        size = np.abs(scaled[:, 0]).max() or 1.0  # a steep decay leaves a column near zero
        found = np.linalg.lstsq(scaled / [size, 1.0], y, rcond=None)[0]
        return np.asarray(found / [size, 1.0])

    def residuals(logs: Values) -> Values:
        return np.asarray(basis(logs) @ linear(logs) - y)

    scale = float(np.ptp(y)) or 1.0
    tried = [
        least_squares(
            lambda logs: residuals(logs) / scale,
            np.log(start),
            bounds=(_LOW, _HIGH),
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
            max_nfev=400,
        )
        for start in _STARTS
    ]
    logs = min(tried, key=lambda one: one.cost).x
    (A, K), (lam, gamma, t0) = linear(logs), np.exp(logs - np.array([0.0, last, 0.0]))
    params = dict(zip(PARAMETERS, map(float, (A, lam, gamma, t0, K))))
    fitted = trajectory(t, **params)
    rss, tss = float(np.sum((y - fitted) ** 2)), float(np.sum((y - y.mean()) ** 2))
    covariance = _covariance(t, params, rss)
    errors = dict(zip(PARAMETERS, np.sqrt(np.diag(covariance)).tolist()))
    close = np.minimum(logs - _LOW, _HIGH - logs) < 1e-6
    bound = {name for name, one in zip(("lam", "gamma", "t0"), close) if one}
    free = {name for name in PARAMETERS if not errors[name] <= abs(params[name])}
    return TrajectoryFit(
        params=params,
        errors=errors,
        covariance=tuple(map(tuple, covariance.tolist())),
        fitted=tuple(fitted.tolist()),
        r2=1 - rss / tss if tss > 0 else None,
        aic=len(t) * math.log(max(rss, np.finfo(float).tiny) / len(t)) + 10,
        peak_step=_peak(params, float(t[-1])),
        unidentified=tuple(name for name in PARAMETERS if name in bound | free),
    )


def _checked(steps: Sequence[float], values: Sequence[float]) -> tuple[Values, Values]:
    t, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if t.ndim != 1 or t.shape != y.shape or len(t) <= len(PARAMETERS):
        raise InvalidInputError(
            f"a trajectory needs {len(PARAMETERS) + 1} checkpoints or more, each with a step and a "
            f"value, not {t.size} steps and {y.size} values"
        )
    if not np.isfinite(t).all() or t[0] < 0 or not (np.diff(t) > 0).all():
        raise InvalidInputError("steps of a trajectory rise, from 0 or more")
    for step, value in zip(t, y):
        if not math.isfinite(value):
            raise InvalidInputError(f"the value at step {step:g} is {value}, not a number to fit")
    return t, y


def _covariance(t: Values, params: dict[str, float], rss: float) -> Values:
    """s^2 (J'J)^-1 (5, 5) with s^2 = RSS / (n - 5)."""
    A, lam, gamma, t0 = (params[name] for name in PARAMETERS[:4])
    x = gamma * t + t0
    decay, log = np.exp(-lam * x), np.log(x)
    slope = A * decay * (1 / x - lam * log)
    columns = [decay * log, -A * x * decay * log, slope * t, slope, np.ones_like(t)]
    jacobian = np.stack(columns, 1)
    sizes = np.linalg.norm(jacobian, axis=0)
    sizes[sizes == 0] = 1.0  # columns differ by many orders of magnitude
    inverse = np.linalg.pinv(jacobian / sizes, rcond=1e-14)
    return np.asarray(inverse @ inverse.T / np.outer(sizes, sizes) * rss / (len(t) - 5))


def _peak(params: dict[str, float], last: float) -> float | None:
    """Where x ln x = 1 / lam, if that lies behind step 0 and not behind the last."""
    from scipy.special import lambertw

    x = math.exp(float(lambertw(1 / params["lam"]).real))
    found = (x - params["t0"]) / params["gamma"]
    return found if 0 < found <= last else None
