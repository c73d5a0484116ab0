"""Do environments agree on how to use the same columns? The paper's equation 14, on fresh rows."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def disagreement(x: Floats, residual: Floats, env: NDArray[np.int64], ridge: float = 1e-2) -> Floats:
    """How much smaller each environment's error would be with a linear correction of its own.

    ``1 - R_e(b_e) / R_e(b)``, where ``b`` corrects a model's errors linearly in the columns for all rows
    together, and ``b_e`` for those of environment e alone: the terms ``R_e(beta, Phi) - R_e(beta_e, Phi)`` of
    equation 14 of the Sparse IRM paper, relative to the risk. Every row is corrected by a fit to the other
    rows (leave one out, in closed form), so that more columns do not look like disagreement.

    Args:
        x: ``(n, d)`` the columns a model uses, scaled to about unit variance; rows it was not trained on.
        residual: ``(n,)`` or ``(n, k)`` target minus prediction.
        env: ``(n,)`` environment numbers from 0.
        ridge: weight of the squared correction, per row.

    Returns:
        ``(n_envs,)``, at most 1. About 0, or a little below, where an environment agrees with the rest; NaN
        for one with fewer than 2 rows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x, env = rng.normal(size=(400, 1)), np.repeat([0, 1], 200)
        >>> noise = rng.normal(size=400)
        >>> bool((abs(disagreement(x, noise, env)) < 0.01).all())
        True
        >>> disagreement(x, noise + np.where(env == 0, 1, -1) * x[:, 0], env).round(2).tolist()
        [0.5, 0.46]
    """
    errors = residual.reshape(len(x), -1)
    together = _left_out(x, errors, ridge)
    found = np.full(int(env.max()) + 1, np.nan)
    for e in range(len(found)):
        rows = env == e
        if rows.sum() >= 2:
            alone = _left_out(x[rows], errors[rows], ridge)
            found[e] = 1 - (alone**2).sum() / max(float((together[rows] ** 2).sum()), 1e-300)
    return found


def _left_out(x: Floats, errors: Floats, ridge: float) -> Floats:
    """What is left of ``errors`` ``(n, k)`` after ridge regression on ``x``, each row left out of its fit."""
    design = np.column_stack([x, np.ones(len(x))])
    weight = ridge * len(x) * np.ones(design.shape[1])
    weight[-1] = 1e-9 * len(x)
    solved = np.linalg.solve(design.T @ design + np.diag(weight), design.T)
    leverage = np.minimum((design * solved.T).sum(1), 1 - 1e-6)
    return cast(Floats, (errors - design @ (solved @ errors)) / (1 - leverage)[:, None])
