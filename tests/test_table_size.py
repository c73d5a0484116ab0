"""A million rows of fifty columns: memory, progress, and what comes out."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

GIBIBYTE = 1 << 30
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def resident(process: int) -> int:
    """Bytes of memory that a process and its children use now; 0 for one that has ended."""
    try:
        own = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    return own + sum(resident(int(child)) for child in children)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_a_million_rows_of_fifty_columns_fit_into_eight_gibibytes(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(0), 1_000_000
    frame = pd.DataFrame(rng.normal(size=(n, 44)).astype(np.float32), columns=[f"x{at}" for at in range(44)])
    for at in range(4):
        frame[f"kind{at}"] = pd.Categorical.from_codes(
            rng.integers(20, size=n), [f"level {k}" for k in range(20)]
        )
    frame["site"] = pd.Categorical.from_codes(rng.integers(4, size=n), list("abcd"))
    label = (frame["x0"] + frame["x1"] + rng.normal(size=n) > 0).astype(int)
    frame["y"] = pd.Categorical.from_codes(label, ["no", "yes"])
    frame.to_csv(tmp_path / "table.csv", index=False, float_format="%.5f")
    del frame
    command = [sys.executable, "-m", "sparseirm.cli", "fit", str(tmp_path / "table.csv"), "--target", "y"]
    command += ["--env", "site", "--seeds", "0", "--workers", "2", "--rows", "5000"]
    command += ["--out", str(tmp_path / "out")]
    with (tmp_path / "said").open("w+") as said:
        terminal = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}
        fit = subprocess.Popen(command, stdout=said, stderr=said, env=terminal)
        peak = 0
        while fit.poll() is None:
            peak = max(peak, resident(fit.pid))
            time.sleep(0.1)
        said.seek(0)
        told = said.read()
    assert fit.returncode == 0, told
    print(f"peak {peak / GIBIBYTE:.2f} GiB")
    assert GIBIBYTE < peak < 8 * GIBIBYTE
    assert "comparing" in told and "final fit" in told
    assert (tmp_path / "out" / "result.json").is_file()
