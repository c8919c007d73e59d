"""PyOD's VAE as it is by default, scoring rows: `PYTHON -I pyod_decide.py ROWS.npy` prints its figures as JSON.

PYTHON has pyod, and needn't have vaeserve. The model is fitted on the first rows, which isn't timed.
"""

import json
import sys
import time

import numpy as np
from pyod.models.vae import VAE  # type: ignore[import-not-found]

FITTED = 4000


def main(path: str) -> None:
    """Fit, and print how many rows a second `decision_function` scores."""
    rows = np.load(path)
    detector = VAE(epoch_num=1, verbose=0).fit(rows[:FITTED])
    detector.decision_function(rows[:FITTED])
    cpu, wall = time.process_time(), time.perf_counter()
    detector.decision_function(rows)
    seconds = time.perf_counter() - wall
    cpu_us = (time.process_time() - cpu) / len(rows) * 1e6
    print(json.dumps({"rows": len(rows), "rows_per_s": round(len(rows) / seconds), "cpu_us_per_row": round(cpu_us, 3)}))


if __name__ == "__main__":
    main(sys.argv[1])
