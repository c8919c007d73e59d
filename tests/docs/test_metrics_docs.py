"""docs/metrics.md names what the service exports, no less and no more, and its queries can be asked."""

import re
import shutil
import ssl
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import train_kind
from tests.service.conftest import Authority
from vaeserve.local import serve_locally
from vaeserve.tensors import to_tensor
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub
from vaeserve_export.export import export
from vaeserve_service.callers import hashed, new_token
from vaeserve_service.metrics import CREDENTIALS, REASONS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", re.MULTILINE)
QUERIES = [
    query
    for block in re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)
    for query in re.findall(r"^\S.*(?:\n[ )].*)*", block, re.MULTILINE)
]


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a service with TLS and callers shows after a call that it answers and two that it refuses."""
    folder = tmp_path_factory.mktemp("scraped")
    export(train_kind("table3", folder / "run", steps=20), folder / "repository", name="table3")
    authority = Authority("authority")
    authority.issue().write(folder)
    (folder / "callers.toml").write_text(f'[scorer]\nscopes = ["infer"]\ntokens = ["{hashed(new_token())}"]\n')
    settings = {
        "tls.certificate": folder / "tls.crt",
        "tls.key": folder / "tls.key",
        "access.callers": folder / "callers.toml",
        "access.anonymous": '["infer", "metrics"]',
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    credentials = grpc.ssl_channel_credentials(authority.pem)
    with serve_locally(folder / "repository", log=folder / "log", options=options) as service:
        with grpc.secure_channel(service.target.replace("127.0.0.1", "localhost"), credentials) as channel:
            stub, inputs = VaeServiceStub(channel), [to_tensor(np.zeros((3, 3), np.float32))]
            stub.Score(pb.ScoreRequest(model=pb.ModelSpec(name="table3"), inputs=inputs), timeout=20)
            for path, message in (("VaeService/Score", b""), ("ModelAdmin/Load", b"")):
                refused: Any = channel.unary_unary(f"/vaeserve.v1.{path}")
                with pytest.raises(grpc.RpcError):
                    refused(message, timeout=20)
        url = f"{service.http.replace('http://127.0.0.1', 'https://localhost')}/metrics"
        context = ssl.create_default_context(cadata=authority.pem.decode())
        with urllib.request.urlopen(url, timeout=20, context=context) as response:  # noqa: S310 - loopback
            return str(response.read().decode())


def families(scrape: str) -> dict[str, tuple[str, set[str]]]:
    """Return each metric's type and labels by its name."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in text_string_to_metric_families(scrape)
    }


def test_the_page_names_each_reason_of_a_rejection() -> None:
    """Those by a call's code, and that of the credentials."""
    (told,) = re.findall(r"for a known reason: (.*) \|", PAGE)
    assert set(re.findall(r"`(\w+)`", told)) == {*REASONS.values(), CREDENTIALS}


def test_the_page_names_each_metric_with_its_type_and_labels(scrape: str) -> None:
    """What is on the page is what a service exports: names, types and labels."""
    told = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(PAGE)}
    assert told == families(scrape)


def test_the_queries_ask_for_what_there_is(scrape: str) -> None:
    """Each metric and label value in a query is exported, and each of our metrics is in the tables once."""
    assert len(QUERIES) > 20
    names = {sample.name for family in text_string_to_metric_families(scrape) for sample in family.samples}
    for query in QUERIES:
        assert set(re.findall(r"\b(?:vaeserve|process)_\w+", query)) <= names
    assert 'vaeserve_score_p_value_bucket{le="0.01",model="table3",version="1"}' in scrape
    for sign in ("positive", "negative"):
        assert f'vaeserve_log_likelihood_nats_total{{model="table3",sign="{sign}",version="1"}}' in scrape
    assert len(ROW.findall(PAGE)) == len({name for name, _, _ in ROW.findall(PAGE)})


def test_every_reason_is_on_the_page() -> None:
    """So is each value of a label that is a fixed set."""
    from vaeserve.scores import RowStatus
    from vaeserve_service.access import Reason
    from vaeserve_service.metrics import CREDENTIALS, REASONS

    for value in (*REASONS.values(), CREDENTIALS, *Reason, *(status.name.lower() for status in RowStatus)):
        assert f"`{value}`" in PAGE


def promtool(*arguments: str, text: str = "") -> str:
    """Return what promtool says."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool isn't here: it comes with Debian's package prometheus")
    done = subprocess.run([program, *arguments], check=False, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_finds_no_fault_with_what_is_scraped(scrape: str) -> None:
    """Names, units, types and help are as Prometheus' own linter wants them."""
    assert promtool("check", "metrics", text=scrape) == ""


def test_promtool_can_parse_every_query(tmp_path: Path) -> None:
    """Each query of the page is one that Prometheus takes."""
    rules = [f"- record: query:number{number}\n  expr: |\n    {query.replace(chr(10), chr(10) + '    ')}"
             for number, query in enumerate(QUERIES)]  # fmt: skip
    groups = "groups:\n- name: page\n  rules:\n  " + "\n".join(rules).replace("\n", "\n  ")
    (tmp_path / "rules.yml").write_text(groups + "\n")
    assert f"{len(QUERIES)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yml"))
