"""What docs/ says of bundles is so."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaeserve.scores import RowStatus, ScoreOptions
from vaeserve_jobs.model import LocalModel

DOCS = Path(__file__).parents[2] / "docs"
SCORE_ALONE = DOCS / "examples" / "score_alone.py"


@pytest.mark.parametrize("kind", ["table7", "mixed", "image"])
def test_a_score_is_reproduced_to_the_bit_without_vaeserve(
    models: Any, inputs_of: Any, tmp_path: Path, kind: str
) -> None:
    """ONNX Runtime, NumPy and the manifest give the scores, p-values and verdicts that vaeserve gives."""
    bundle, inputs = models.bundles[kind], inputs_of(kind, 50)
    np.savez(tmp_path / "rows.npz", allow_pickle=False, **inputs)
    done = subprocess.run(
        [sys.executable, "-I", SCORE_ALONE, bundle.path, tmp_path / "rows.npz"],
        capture_output=True,
        text=True,
        check=True,
    )
    scores = LocalModel.open(bundle.path).score(inputs, ScoreOptions()).scores
    expected = [
        f"{float(score).hex()} {p} {'anomalous' if anomalous else 'normal'}"
        if status == RowStatus.OK
        else f"unscorable {status}"
        for score, p, anomalous, status in zip(
            scores.score, scores.p_value, scores.anomalous, scores.status, strict=True
        )
    ]
    assert done.stdout.splitlines() == expected
    assert "vaeserve" not in {line.split()[1] for line in SCORE_ALONE.read_text().splitlines() if "import" in line}


def test_every_field_of_the_manifest_is_explained() -> None:
    """docs/bundle.md names each field of a manifest, those within its parts too."""
    schema = json.loads((DOCS / "manifest.schema.json").read_text())
    told = (DOCS / "bundle.md").read_text()
    parts = [schema, *(part for part in schema["$defs"].values() if part.get("type") == "object")]
    fields = {field for part in parts for field in part["properties"]}
    assert {"masked", "unscorable", "nullable"} <= fields
    assert not {field for field in fields if f"`{field}`" not in told}
