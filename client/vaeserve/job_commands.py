"""The commands that run jobs: score, encode and reconstruct rows, and generate and interpolate some."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vaeserve.flags import connects
from vaeserve.terminal import component, console

app = typer.Typer()

Input = Annotated[
    str | None, typer.Argument(metavar="INPUT", help="A file or folder of rows or images, or a table's URL.")
]
Rows = Annotated[str, typer.Option("--data", help="A file or folder of rows or images.")]
Folder = Annotated[str, typer.Option("--out", help="The folder to write to, new or empty, or its URL.")]
File = Annotated[Path, typer.Option("--out", help="A table: .parquet or .csv. Images: .npz, .npy or .png.")]
Bundle = Annotated[Path | None, typer.Option(help="Compute with this bundle, in this process or in Ray's workers.")]
Server = Annotated[str | None, typer.Option(help="Compute through the service at HOST:PORT.")]
Model = Annotated[str | None, typer.Option(help="The service's model.")]
Keep = Annotated[list[str], typer.Option(help="A column to carry through.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a job to the same place stopped.")]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N", help="Be process I of N, from 0, that share the job; N alone takes I from JOB_COMPLETION_INDEX."
    ),
]
ShardRows = Annotated[int | None, typer.Option(min=1, help="Rows of a shard, about; a million if not given.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad-files", help="Leave out files that can't be read, and list them.")]
Engine = Annotated[str, typer.Option(help="Who runs shards: local, or ray.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads, or Ray's workers; one a processor if not given.")]
Memory = Annotated[str, typer.Option(help="What rows may take at a time, beside the model.")]
Metrics = Annotated[Path | None, typer.Option(help="A file for Prometheus' textfile collector, kept up to date.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
@connects
def score(
    out: Folder,
    data: Input = None,
    bundle: Bundle = None,
    server: Server = None,
    model: Model = None,
    keep: Keep = [],  # noqa: B006 - typer reads it, nobody writes it
    num_samples: Annotated[int | None, typer.Option(min=1, help="Noise points; the model's if not given.")] = None,
    bound: Annotated[str, typer.Option(help="elbo or iwae.")] = "elbo",
    seed: Annotated[int | None, typer.Option(min=0, help="Draw the noise with this seed.")] = None,
    false_positive_rate: Annotated[float | None, typer.Option(help="The model's if not given.")] = None,
    top_features: Annotated[int, typer.Option(min=0, help="Features to name for each row.")] = 0,
    only_anomalous: Annotated[bool, typer.Option("--only-anomalous", help="Write anomalous rows alone.")] = False,
    top: Annotated[int, typer.Option(help="Write the N worst of the rows that are written to _top.jsonl.")] = 0,
    resume: Resume = False,
    shard: Shard = None,
    finish: Annotated[bool, typer.Option("--finish", help="Only write the summary, once all shards are done.")] = False,
    shard_rows: ShardRows = None,
    skip_bad_files: SkipBad = False,
    engine: Engine = "local",
    workers: Workers = None,
    memory: Memory = "512MiB",
    metrics_file: Metrics = None,
    as_json: Json = False,
) -> None:
    """Score rows: write how anomalous each is, and a summary of them all."""
    with component("jobs"):
        from vaeserve_jobs import command
    if finish:
        command.finish(out, console=console, as_json=as_json)
        return
    command.score(
        _order(data, out, bundle, server, model, keep, resume, shard, shard_rows, skip_bad_files),
        command.Way(engine, workers, memory, metrics_file, as_json),
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
def encode(
    out: Folder,
    data: Input = None,
    bundle: Bundle = None,
    server: Server = None,
    model: Model = None,
    keep: Keep = [],  # noqa: B006
    resume: Resume = False,
    shard: Shard = None,
    shard_rows: ShardRows = None,
    skip_bad_files: SkipBad = False,
    engine: Engine = "local",
    workers: Workers = None,
    memory: Memory = "512MiB",
    metrics_file: Metrics = None,
    as_json: Json = False,
) -> None:
    """Encode rows: write each one's posterior, its mean and log-variance."""
    with component("jobs"):
        from vaeserve_jobs import command
    command.encode(
        _order(data, out, bundle, server, model, keep, resume, shard, shard_rows, skip_bad_files),
        command.Way(engine, workers, memory, metrics_file, as_json),
        console=console,
    )


@app.command()
@connects
def reconstruct(
    out: Folder,
    data: Input = None,
    bundle: Bundle = None,
    server: Server = None,
    model: Model = None,
    keep: Keep = [],  # noqa: B006
    resume: Resume = False,
    shard: Shard = None,
    shard_rows: ShardRows = None,
    skip_bad_files: SkipBad = False,
    engine: Engine = "local",
    workers: Workers = None,
    memory: Memory = "512MiB",
    metrics_file: Metrics = None,
    as_json: Json = False,
) -> None:
    """Reconstruct rows: write what the decoder makes of each one's posterior mean, in raw units."""
    with component("jobs"):
        from vaeserve_jobs import command
    command.reconstruct(
        _order(data, out, bundle, server, model, keep, resume, shard, shard_rows, skip_bad_files),
        command.Way(engine, workers, memory, metrics_file, as_json),
        console=console,
    )


def _order(
    data: str | None,
    out: str,
    bundle: Path | None,
    server: str | None,
    model: str | None,
    keep: list[str],
    resume: bool,
    shard: str | None,
    shard_rows: int | None,
    skip_bad_files: bool,
) -> dict[str, Any]:
    return {
        "input": data,
        "out": out,
        "bundle": bundle,
        "server": server,
        "model": model,
        "keep": keep,
        "resume": resume,
        "shard": shard,
        "shard_rows": shard_rows,
        "skip_bad_files": skip_bad_files,
    }


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
