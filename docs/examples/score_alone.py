"""Score rows with a bundle: ONNX Runtime, NumPy and the manifest are all it takes.

python score_alone.py models/NAME/VERSION rows.npz    (an array for each input, by its name)
"""

import hashlib
import json
import os
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime as ort

bundle, rows = Path(sys.argv[1]), np.load(sys.argv[2])
manifest = json.loads((bundle / "manifest.json").read_text())
for name, entry in manifest["files"].items():
    if hashlib.sha256((bundle / name).read_bytes()).hexdigest() != entry["sha256"]:
        sys.exit(f"{name} is not the file that the manifest was written for")

options = ort.SessionOptions()
options.intra_op_num_threads = 1  # more would add in another order, and so to other bits
scorer = ort.InferenceSession(bundle / "scorer.onnx", options, providers=["CPUExecutionProvider"])
inputs = {spec["name"]: rows[spec["name"]] for spec in manifest["signature"]["inputs"]}
noise = np.load(bundle / "noise.npy")[: manifest["num_samples"]]
elbo, status = scorer.run(["elbo", "status"], {**inputs, "noise": noise})

held_out = np.load(bundle / "calibration.npy")[0]  # scores of normal rows, ascending
p_value = (1 + len(held_out) - np.searchsorted(held_out, -elbo)) / (len(held_out) + 1)
for score, p, code in zip(-elbo, p_value, status, strict=True):
    verdict = "anomalous" if p <= manifest["false_positive_rate"] else "normal"
    print(float(score).hex(), p, verdict) if code == 0 else print("unscorable", code)
