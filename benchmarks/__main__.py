"""`python -m benchmarks NAME`: measure, and say it as JSON."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import (
    calibration,
    client,
    detection,
    exemplars,
    jobs,
    likelihood,
    memory,
    novelty,
    observing,
    pyod_time,
    serving,
    transport,
)
from benchmarks.environment import environment

BENCHMARKS = {
    "calibration": calibration,
    "client": client,
    "detection": detection,
    "exemplars": exemplars,
    "jobs": jobs,
    "likelihood": likelihood,
    "memory": memory,
    "novelty": novelty,
    "observing": observing,
    "pyod": pyod_time,
    "serving": serving,
    "transport": transport,
}


def main(arguments: list[str]) -> None:
    """Run the benchmark that `arguments` name; write its results to --out, or to stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, benchmark in BENCHMARKS.items():
        description = (benchmark.__doc__ or "").splitlines()[0]
        command = names.add_parser(name, help=description, description=description)
        command.add_argument("--out", type=Path, help="the file for the results (default: stdout)")
        benchmark.add_arguments(command)
    options = parser.parse_args(arguments)
    figures = BENCHMARKS[options.name].measure(options)
    results = json.dumps({"benchmark": options.name, **environment(), **figures}, indent=2) + "\n"
    if options.out:
        options.out.write_text(results)
    else:
        sys.stdout.write(results)


if __name__ == "__main__":
    main(sys.argv[1:])
