"""A million rows of fifty columns: memory, progress, and what comes out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

GIBIBYTE = 1 << 30

RUN = """
import resource, sys
from sparseirm.cli import main
code = main(sys.argv[1:])
peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print("peaks", *peaks)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_million_rows_of_fifty_columns_fit_into_eight_gibibytes(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(0), 1_000_000
    frame = pd.DataFrame(rng.normal(size=(n, 44)).astype(np.float32), columns=[f"x{at}" for at in range(44)])
    for at in range(4):
        frame[f"kind{at}"] = rng.choice([f"level {level}" for level in range(20)], n)
    frame["site"] = rng.choice(["a", "b", "c", "d"], n)
    frame["y"] = (frame["x0"] + frame["x1"] + rng.normal(size=n) > 0).map({True: "yes", False: "no"})
    frame.to_csv(tmp_path / "table.csv", index=False)
    del frame
    flags = ["--target", "y", "--env", "site", "--seeds", "0", "--workers", "2", "--steps", "150"]
    flags += ["--rows", "5000", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", RUN, "fit", str(tmp_path / "table.csv"), *flags],
        capture_output=True,
        text=True,
        env={**__import__("os").environ, "FORCE_COLOR": "1", "TERM": "xterm"},
    )
    assert done.returncode == 0, done.stderr
    own, worker = (1024 * int(part) for part in done.stdout.split("peaks")[1].split())
    assert own + 2 * worker < 8 * GIBIBYTE
    assert "comparing" in done.stderr and "final fit" in done.stderr
    assert (tmp_path / "out" / "result.json").is_file()
