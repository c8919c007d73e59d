"""What the pictures of a model show: rows and latents of it, as arrays in one file."""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from vaeserve.errors import RunError
from vaeserve.latents import prior_draws
from vaeserve_training.data import Split
from vaeserve_training.features import tensors_of
from vaeserve_training.randomness import generator_of
from vaeserve_training.sweep.measurement import Decoder, encode, random_ways, way
from vaeserve_training.sweep.plane import Plane
from vaeserve_training.sweep.yardstick import Yardstick
from vaeserve_training.vae import VAE

# Rows, samples and steps of a way in the pictures.
SHOWN = 8
# Cells on a side of the decoded plane, of which every second is shown.
CELLS = 21
# Codes in the pictures.
CODES = 200
DECILES = (0.1, 0.5, 0.9)

Floats = NDArray[np.float32]


class Shown(NamedTuple):
    """What the pictures of a model show; rows are points of a `Space`, [..., width].

    rows, reconstructions: the first held-out rows, and what the decoder makes of their codes, [rows, width].
    samples: decoded at draws from N(0, I). path: decoded between the codes of two held-out rows.
    codes, deviations: of held-out rows in the latent space's `Plane`, the posteriors' means and standard deviations,
    [codes, 2]; those of a deterministic autoencoder are 0. anomalous: the codes of rows that are, of the test's.
    extent: the least and the greatest coordinate of the plane that is shown, [2 axes, 2].
    plane, plane_remoteness: decoded at cells of the plane, [cells, cells, width], and how far that lies from training
    rows, [cells, cells]; see `Yardstick.remoteness`.
    way_remoteness: the same at each step of ways between rows' codes, deciles, [3, steps].
    """

    rows: Floats
    reconstructions: Floats
    samples: Floats
    path: Floats
    codes: Floats
    deviations: Floats
    anomalous: Floats
    extent: Floats
    plane: Floats
    plane_remoteness: Floats
    way_remoteness: Floats

    @classmethod
    @torch.no_grad()
    def of(cls, vae: VAE, yardstick: Yardstick, parts: Split, *, seed: int) -> Self:
        """Return what to show of a model; the same rows and draws for every model of the same split."""
        decoder = Decoder(vae, yardstick.space)
        posterior = encode(vae, yardstick.held_out)
        codes = posterior.mean
        plane = Plane.of(codes)
        extent = plane.extent(codes)
        cells = decoder(plane.cells(extent, CELLS))  # (cells, cells, width)
        draws = torch.from_numpy(prior_draws(SHOWN, vae.latent_dim, seed=seed))
        ways = random_ways(codes, generator_of(torch.device("cpu"), seed))
        anomalous = parts.test if parts.test.anomalous is None else parts.test[parts.test.anomalous]
        of_anomalous = encode(vae, tensors_of(anomalous.signature, anomalous[:CODES].inputs)).mean
        if parts.test.anomalous is None:
            of_anomalous = of_anomalous[:0]
        deviations = torch.zeros_like(codes[:, :2]) if vae.point else plane.deviations(posterior)
        arrays = {
            "rows": yardstick.points[:SHOWN],
            "reconstructions": decoder(codes[:SHOWN]),
            "samples": decoder(draws),
            "path": decoder(way(codes[:1], codes[1:2], steps=SHOWN))[0],
            "codes": plane.coordinates(codes[:CODES]),
            "deviations": deviations[:CODES],
            "anomalous": plane.coordinates(of_anomalous),
            "extent": extent,
            "plane": cells[::2, ::2],
            "plane_remoteness": yardstick.remoteness(cells),
            "way_remoteness": torch.quantile(yardstick.remoteness(decoder(ways)), torch.tensor(DECILES), dim=0),
        }
        return cls(**{name: array.to(torch.float32).numpy() for name, array in arrays.items()})

    def to_bytes(self) -> bytes:
        """Return the arrays as an npz file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self._asdict())
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the arrays from an npz file; raises RunError if it holds others."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(**arrays)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(f"{path}: not what a sweep wrote: {error}; remove its folder to measure again") from None
