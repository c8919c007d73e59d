"""PyOD's VAE as it is by default, timed: `PYTHON -I pyod_vae.py ROWS.npz SEED` prints its figures as JSON.

PYTHON has pyod, and needn't have vaeserve. The file has `train`, `test` and `anomalous`, the test rows' labels.
"""

import json
import sys
import time

import numpy as np
import pyod  # type: ignore[import-not-found]
import torch
from pyod.models.vae import VAE  # type: ignore[import-not-found]
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler


def main(path: str, seed: int) -> None:
    """Fit on one thread, and print the AUROC and what the fit took, seconds."""
    torch.set_num_threads(1)
    with np.load(path) as arrays:
        train, test, anomalous = arrays["train"], arrays["test"], arrays["anomalous"]
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    VAE(epoch_num=1, verbose=0).fit(train[:64])  # what a first fit loads isn't training
    cpu, wall = time.process_time(), time.perf_counter()
    detector = VAE(random_state=seed, verbose=0).fit(train)
    figures = {"train_cpu_s": time.process_time() - cpu, "train_wall_s": time.perf_counter() - wall}
    auroc = float(roc_auc_score(anomalous, detector.decision_function(test)))
    print(json.dumps({"pyod": pyod.__version__, "auroc": auroc, **figures}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
