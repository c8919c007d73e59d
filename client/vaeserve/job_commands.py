"""The commands that run jobs: score, encode and reconstruct rows, and generate and interpolate some."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vaeserve.flags import REQUIRED, Flag, Values, connects, with_flags
from vaeserve.terminal import component, console

app = typer.Typer()

Rows = Annotated[str, typer.Option("--data", help="A file or folder of rows or images.")]
File = Annotated[Path, typer.Option("--out", help="A table: .parquet or .csv. Images: .npz, .npy or .png.")]
Bundle = Annotated[Path | None, typer.Option(help="Compute with this bundle, in this process or in Ray's workers.")]
Server = Annotated[str | None, typer.Option(help="Compute through the service at HOST:PORT.")]
Model = Annotated[str | None, typer.Option(help="The service's model.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

# What the commands over all rows of an input take.
_JOB = {
    "input": Flag(
        Annotated[
            str | None, typer.Argument(metavar="INPUT", help="A file or folder of rows or images, or a table's URL.")
        ]
    ),
    "out": Flag(Annotated[str, typer.Option(help="The folder to write to, new or empty, or its URL.")], REQUIRED),
    "bundle": Flag(Bundle),
    "server": Flag(Server),
    "model": Flag(Model),
    "keep": Flag(Annotated[list[str], typer.Option(help="A column to carry through.")], []),
    "resume": Flag(
        Annotated[bool, typer.Option("--resume", help="Go on where a job to the same place stopped.")], False
    ),
    "shard": Flag(
        Annotated[
            str | None,
            typer.Option(
                metavar="I/N",
                help="Be process I of N, from 0, that share the job; N alone takes I from JOB_COMPLETION_INDEX.",
            ),
        ]
    ),
    "shard_rows": Flag(
        Annotated[int | None, typer.Option(min=1, help="Rows of a shard, about; a million if not given.")]
    ),
    "skip_bad_files": Flag(
        Annotated[bool, typer.Option("--skip-bad-files", help="Leave out files that can't be read, and list them.")],
        False,
    ),
    "engine": Flag(Annotated[str, typer.Option(help="Who runs shards: local, or ray.")], "local"),
    "workers": Flag(
        Annotated[int | None, typer.Option(min=1, help="Threads, or Ray's workers; one a processor if not given.")]
    ),
    "memory": Flag(Annotated[str, typer.Option(help="What rows may take at a time, beside the model.")], "512MiB"),
    "metrics_file": Flag(
        Annotated[Path | None, typer.Option(help="A file for Prometheus' textfile collector, kept up to date.")]
    ),
    "as_json": Flag(Json, False),
}


def _job(command: Callable[..., None]) -> Any:
    """Give a command the flags of a job, which it takes as one mapping, its `job`."""
    return with_flags(command, _JOB, lambda given, own: command(given, **own), in_place_of="job")


@app.command()
@connects
@_job
def score(
    job: Values,
    num_samples: Annotated[int | None, typer.Option(min=1, help="Noise points; the model's if not given.")] = None,
    bound: Annotated[str, typer.Option(help="elbo or iwae.")] = "elbo",
    seed: Annotated[int | None, typer.Option(min=0, help="Draw the noise with this seed.")] = None,
    false_positive_rate: Annotated[float | None, typer.Option(help="The model's if not given.")] = None,
    top_features: Annotated[int, typer.Option(min=0, help="Features to name for each row.")] = 0,
    only_anomalous: Annotated[bool, typer.Option("--only-anomalous", help="Write anomalous rows alone.")] = False,
    top: Annotated[int, typer.Option(help="Write the N worst of the rows that are written to _top.jsonl.")] = 0,
    finish: Annotated[bool, typer.Option("--finish", help="Only write the summary, once all shards are done.")] = False,
) -> None:
    """Score rows: write how anomalous each is, and a summary of them all."""
    with component("jobs"):
        from vaeserve_jobs import command
    if finish:
        command.finish(job["out"], console=console, as_json=job["as_json"])
        return
    command.score(
        job,
        options={
            "num_samples": num_samples,
            "bound": bound,
            "seed": seed,
            "false_positive_rate": false_positive_rate,
            "top_features": top_features,
            "only_anomalous": only_anomalous,
            "top": top,
        },
        console=console,
    )


@app.command()
@connects
@_job
def encode(job: Values) -> None:
    """Encode rows: write each one's posterior, its mean and log-variance."""
    with component("jobs"):
        from vaeserve_jobs import command
    command.encode(job, console=console)


@app.command()
@connects
@_job
def reconstruct(job: Values) -> None:
    """Reconstruct rows: write what the decoder makes of each one's posterior mean, in raw units."""
    with component("jobs"):
        from vaeserve_jobs import command
    command.reconstruct(job, console=console)


@app.command()
@connects
def generate(
    out: File,
    count: Annotated[int, typer.Option(help="How many rows.")],
    bundle: Bundle = None,
    server: Server = None,
    model: Model = None,
    seed: Annotated[int, typer.Option(help="Same seed: same rows.")] = 0,
    temperature: Annotated[float, typer.Option(help="Below 1 the rows are more usual, above 1 less.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Invent rows: what the decoder makes of draws from the prior."""
    with component("jobs"):
        from vaeserve_jobs import command
    command.generate(
        out,
        bundle=bundle,
        server=server,
        model=model,
        count=count,
        seed=seed,
        temperature=temperature,
        console=console,
        as_json=as_json,
    )


@app.command()
@connects
def interpolate(
    data: Rows,
    start: Annotated[int, typer.Option(help="The row to begin with, counted from 0.")],
    end: Annotated[int, typer.Option(help="The row to end with.")],
    out: File,
    bundle: Bundle = None,
    server: Server = None,
    model: Model = None,
    steps: Annotated[int, typer.Option(help="How many rows to make, both ends among them.")] = 11,
    method: Annotated[str, typer.Option(help="linear or spherical.")] = "linear",
    as_json: Json = False,
) -> None:
    """Go from one row to another through the latent space, and write what the decoder makes of the way."""
    with component("jobs"):
        from vaeserve_jobs import command
    command.interpolate(
        data,
        out,
        bundle=bundle,
        server=server,
        model=model,
        start=start,
        end=end,
        steps=steps,
        method=method,
        console=console,
        as_json=as_json,
    )
