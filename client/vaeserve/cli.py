"""The command line. Each command loads its component when it runs, so that one can be installed without the others.

Exit codes: 0 done, 1 failed or the verdict is no, 2 bad usage or bad input.
"""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

import vaeserve
from vaeserve import job_commands
from vaeserve.errors import CallerError, OperatorError, VaeserveError
from vaeserve.flags import connects
from vaeserve.printable import printable
from vaeserve.terminal import component, console

app = typer.Typer(
    name="vaeserve",
    help="Anomaly detection in production with variational autoencoders.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[str, typer.Argument(help="A file or folder of rows or images, or breast-cancer or digits.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Label = Annotated[str | None, typer.Option(help="The column of labels.")]
Normal = Annotated[str | None, typer.Option(help="The label of normal rows; 0 if not given.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings.")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")]
RowsOption = Annotated[str, typer.Option("--data", help="A file or folder of rows or images.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting.")]


def main() -> NoReturn:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal's encoding hasn't is no reason to fail
    with _closed_pipes():
        try:
            app()
        except VaeserveError as error:
            console.print(Text.assemble(("error:", "bold red"), " ", printable(str(error))))
            sys.exit(2 if isinstance(error, CallerError | OperatorError) else 1)
    sys.exit(0)


@contextmanager
def _closed_pipes() -> Iterator[None]:
    """Exit with 1, in silence, where who reads stdout has gone, such as `head -1`.

    What is left is flushed here, for the interpreter complains of what it can't flush in the end. Source: Python's
    documentation of `signal`, "Note on SIGPIPE".
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # as it is where it was closed from the start
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"vaeserve {vaeserve.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write the run to.")],
    preset: Annotated[str, typer.Option(help="textbook, fast, default or quality.")] = "default",
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody writes it
    label: Label = None,
    normal: Normal = None,
    drop: Annotated[list[str], typer.Option(help="A column not to learn from.")] = [],  # noqa: B006
    kind: Annotated[
        list[str], typer.Option(metavar="COLUMN=KIND", help="What a column is: numeric, binary or categorical.")
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Same seed, same machine: same bits.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed training stopped, if it did.")] = False,
    as_json: Json = False,
) -> None:
    """Train a variational autoencoder on a table or on images."""
    with component("train"):
        from vaeserve_training import command
    command.train(
        data,
        out,
        preset=preset,
        config=config,
        overrides=overrides,
        label=label,
        normal=normal,
        drop=drop,
        kinds=kind,
        seed=seed,
        device=device,
        resume=resume,
        console=console,
        as_json=as_json,
    )


@app.command()
def evaluate(
    run: RunFolder,
    data: Data,
    label: Label = None,
    normal: Normal = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Noise points for the IWAE estimate of log p(x).")] = 64,
    as_json: Json = False,
) -> None:
    """Measure a run on rows: its bounds, its latent dimensions and, where there are labels, how well it detects."""
    with component("train"):
        from vaeserve_training import command
    command.evaluate(run, data, label=label, normal=normal, num_samples=num_samples, console=console, as_json=as_json)


@app.command()
def sweep(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write runs, figures and pictures to.")],
    betas: Annotated[str, typer.Option(help="The weights of the KL.")] = "0.01,0.1,1,4,20",
    compare: Annotated[
        str | None, typer.Option(help="autoencoder: also the same network with a point for its posterior.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings side by side; as many as cores and memory allow if not given.")
    ] = None,
    preset: Annotated[str, typer.Option(help="textbook, fast, default or quality.")] = "default",
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    label: Label = None,
    normal: Normal = None,
    drop: Annotated[list[str], typer.Option(help="A column not to learn from.")] = [],  # noqa: B006
    kind: Annotated[
        list[str], typer.Option(metavar="COLUMN=KIND", help="What a column is: numeric, binary or categorical.")
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Same seed, same machine: same bits.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a sweep stopped, or add to it.")] = False,
    as_json: Json = False,
) -> None:
    """Train under several weights of the KL, and measure what each trades for what."""
    with component("train"):
        from vaeserve_training.sweep import command
    command.sweep(
        data,
        out,
        betas=betas,
        compare=compare,
        jobs=jobs,
        preset=preset,
        config=config,
        overrides=overrides,
        label=label,
        normal=normal,
        drop=drop,
        kinds=kind,
        seed=seed,
        device=device,
        resume=resume,
        console=console,
        as_json=as_json,
    )


@app.command()
def export(
    run: RunFolder,
    repository: Annotated[Path, typer.Option(help="The folder of bundles, NAME/VERSION/.")],
    name: Annotated[str, typer.Option(help="The model's name.")],
    version: Annotated[int | None, typer.Option(min=1, help="By default the next.")] = None,
    false_positive_rate: Annotated[
        float | None, typer.Option(help="The share of normal rows that may be called anomalous.")
    ] = None,
) -> None:
    """Export a run to a verified bundle of ONNX graphs, and print the bundle's path."""
    with component("export"):
        from vaeserve_export import command

        command.export(  # which loads PyTorch
            run, repository, name=name, version=version, false_positive_rate=false_positive_rate, console=console
        )


@app.command()
def report(
    path: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="The folder of a run or of a bundle.")],
    out: Annotated[Path, typer.Option(help="The folder to write to, new or with an older report.")] = Path("report"),
    data: Annotated[str | None, typer.Option("--data", help="Rows to show it on; a run has some of its own.")] = None,
    label: Label = None,
    normal: Normal = None,
) -> None:
    """Draw what a model learned as one HTML page and its pictures, and print the page's path."""
    if (path / "manifest.json").exists():
        with component("export"):
            from vaeserve_export import command as of_bundle

            of_bundle.report(path, out, data=data, label=label, normal=normal, console=console)  # which loads PyTorch
        return
    with component("train"):
        from vaeserve_training import command as of_run

        of_run.report(path, out, data=data, label=label, normal=normal, console=console)


@app.command()
def serve(
    repository: Annotated[Path | None, typer.Option(help="The folder of bundles, NAME/VERSION/.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="0 takes a free one.")] = None,
    http_port: Annotated[int | None, typer.Option(help="/metrics, /livez, /readyz.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
) -> None:
    """Serve the bundles of a repository over gRPC until SIGTERM."""
    with component("serve"):
        from vaeserve_service import command
    command.serve(
        config,
        overrides,
        {
            "repository.path": repository,
            "server.host": host,
            "server.grpc_port": grpc_port,
            "server.http_port": http_port,
            "runtime.device": device,
        },
        console=console,
    )


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="The caller who gets it.")],
    scope: Annotated[list[str], typer.Option(help="What it is for: infer, admin, metrics or reflection.")] = ["infer"],  # noqa: B006
) -> None:
    """Make a token: print it on stdout, this once, and on stderr the lines for the service's file of callers."""
    with component("serve"):
        from vaeserve_service import command
    command.token(name, scope, console=console)


app.add_typer(job_commands.app)


@app.command()
@connects
def health(
    target: Annotated[str, typer.Argument(metavar="HOST:PORT")],
    name: Annotated[str, typer.Option(help="A model, or liveness; the whole service if not given.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 5.0,
) -> None:
    """Ask a service whether it serves; exit 0 if it does and 1 if not."""
    with vaeserve.Client(target, timeout=timeout) as client:
        serving = client.health(name)
    print("SERVING" if serving else "NOT_SERVING")
    raise typer.Exit(0 if serving else 1)


@app.command()
@connects
def bench(
    target: Annotated[str, typer.Argument(metavar="HOST:PORT")],
    model: Annotated[str, typer.Option(help="The model to ask.")],
    version: Annotated[str, typer.Option(help="Its version; the newest if not given.")] = "",
    callers: Annotated[int, typer.Option(min=1, help="Calls at once.")] = 64,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a call.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long, beside a second to warm up.")] = 10.0,
    coalesce_ms: Annotated[
        float, typer.Option(min=0, max=1000, help="Let the client join calls of so many milliseconds.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Load a service with rows that its model invents; say how many calls it answers, and how fast."""
    from vaeserve import bench

    load = bench.Load(callers, rows, seconds, coalesce_ms)
    measured = bench.bench(target, model, version=version, load=load)
    if as_json:
        print(json.dumps(measured.to_json()))
    else:
        measured.show(Console(highlight=False))


@app.command()
def inspect(bundle: Annotated[Path, typer.Argument(help="The folder of a bundle.")], as_json: Json = False) -> None:
    """Show what a bundle takes and promises."""
    from vaeserve.bundle import Bundle
    from vaeserve.inspection import show

    opened = Bundle.open(bundle)
    if as_json:
        print(opened.manifest.model_dump_json(indent=2))
    else:
        show(opened, Console(highlight=False))


@app.command()
def verify(
    bundle: BundleFolder,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Check that a bundle is what it says and keeps what it promises; exit 1 if not."""
    with component("export"):
        from vaeserve_export import command

        command.verify(bundle, device=device, as_json=as_json)


@app.command()
def calibrate(
    bundle: BundleFolder,
    data: RowsOption,
    label: Label = None,
    normal: Normal = None,
    version: Annotated[int | None, typer.Option(min=1, help="By default the next.")] = None,
    false_positive_rate: Annotated[
        float | None, typer.Option(help="The share of normal rows that may be called anomalous.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Calibrate a bundle on new normal rows: write its next version, with the same graphs, and print its path."""
    with component("export"):
        from vaeserve_export import command
    command.calibrate(
        bundle,
        data,
        label=label,
        normal=normal,
        version=version,
        false_positive_rate=false_positive_rate,
        console=console,
        as_json=as_json,
    )


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The folder of the bundle that is served.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The folder of the bundle to take its place.")],
    data: RowsOption,
    label: Label = None,
    normal: Normal = None,
    as_json: Json = False,
) -> None:
    """Score rows by two bundles, and show what would change from the first to the second."""
    with component("export"):
        from vaeserve_export import command

        command.compare(a, b, data, label=label, normal=normal, console=console, as_json=as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("demo"),
) -> None:
    """Train, export, serve and score two data sets that come with scikit-learn."""
    with component("all"):
        from vaeserve import demo
    demo.run(out, Console(highlight=False))
