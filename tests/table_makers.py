"""Tables that tests fit: the linear model as a frame, and a small mixed one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparseirm.data.synthetic import LinearSEM

SEM = LinearSEM(d_inv=5, d_s=5, d_r=10, alpha=((0.2,), (1.0,), (3.0,)))
CAUSES = [f"cause{at}" for at in range(SEM.d_inv)]
EFFECTS = [f"effect{at}" for at in range(SEM.d_s)]


def sem_table(sem: LinearSEM = SEM, n: int = 300, seed: int = 0, classes: bool = False) -> pd.DataFrame:
    """Rows of the linear model: environments ``a``, ``b`` ..., and ``turned``, where effects are reversed."""
    train = sem.draw([n] * sem.n_envs, seed)
    test = sem.draw([n], seed, "test", sem.alpha[:1], direction=-1.0)
    names = [f"cause{at}" for at in range(sem.d_inv)]
    names += [f"effect{at}" for at in range(sem.d_s)] + [f"noise{at}" for at in range(sem.d_r)]
    frame = pd.DataFrame(np.vstack([train.x.numpy(), test.x.numpy()]), columns=names)
    y = np.concatenate([train.y.numpy(), test.y.numpy()])
    frame["y"] = np.where(y > 0, "high", "low") if classes else y
    frame["site"] = np.repeat([*"abcdefgh"[: sem.n_envs], "turned"], n)
    return frame


def mixed_table(n: int = 240, seed: int = 0) -> pd.DataFrame:
    """Numbers, categories, dates, booleans and holes; the label depends on ``dose`` and ``kind``."""
    rng = np.random.default_rng(seed)
    dose, kind = rng.normal(5, 2, n), rng.choice(["red", "green", "blue"], n)
    label = dose + 3 * (kind == "red") + rng.normal(0, 1, n) > 6
    frame = pd.DataFrame(
        {
            "dose": np.where(rng.random(n) < 0.1, np.nan, dose),
            "kind": np.where(rng.random(n) < 0.05, None, kind),
            "day": pd.date_range("2020-01-01", periods=n).strftime("%Y-%m-%d"),
            "smoker": rng.random(n) < 0.3,
            "label": np.where(label, "ill", "well"),
            "clinic": np.repeat(["north", "south", "west"], n // 3),
        }
    )
    return frame
