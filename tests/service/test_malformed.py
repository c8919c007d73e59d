"""Messages and frames that are wrong in every way: each is the caller's fault, and the service goes on."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as tuned
from hypothesis import strategies as st

from tests.service import frames
from tests.service.frames import RawConnection
from tests.service.usage import resident_bytes
from vaeserve.local import LocalService, serve_locally
from vaeserve.tensors import to_tensor
from vaeserve.v1 import vae_pb2 as pb
from vaeserve_service.oip import grpc_service_pb2 as oip

MIB = 2**20
EXAMPLES, MESSAGES = 200, 50

REQUESTS: dict[str, Any] = {
    "Score": pb.ScoreRequest,
    "Encode": pb.EncodeRequest,
    "Decode": pb.DecodeRequest,
    "Reconstruct": pb.ReconstructRequest,
    "Generate": pb.GenerateRequest,
    "Interpolate": pb.InterpolateRequest,
    "GetModel": pb.GetModelRequest,
    "ListModels": pb.ListModelsRequest,
    "inference.GRPCInferenceService/ModelInfer": oip.ModelInferRequest,
    "inference.GRPCInferenceService/ModelMetadata": oip.ModelMetadataRequest,
    "inference.GRPCInferenceService/ModelStatistics": oip.ModelStatisticsRequest,
    "inference.GRPCInferenceService/RepositoryIndex": oip.RepositoryIndexRequest,
}
INFER = "inference.GRPCInferenceService/ModelInfer"
# What a caller may hear who got a message wrong, or, as mutations go, got it right.
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}

TABLE7 = pb.ModelSpec(name="table7")
ROWS, LATENTS = np.ones((2, 7), np.float32), np.zeros((2, 3), np.float32)
VALID: list[tuple[str, bytes]] = [
    (method, message.SerializeToString())
    for method, message in {
        "Score": pb.ScoreRequest(model=TABLE7, inputs=[to_tensor(ROWS)], num_samples=2, top_features=3),
        "Encode": pb.EncodeRequest(model=TABLE7, inputs=[to_tensor(ROWS, "numeric")]),
        "Reconstruct": pb.ReconstructRequest(model=TABLE7, inputs=[to_tensor(ROWS)]),
        "Decode": pb.DecodeRequest(model=TABLE7, latents=to_tensor(LATENTS)),
        "Generate": pb.GenerateRequest(model=TABLE7, count=3, seed=1, temperature=0.5),
        "Interpolate": pb.InterpolateRequest(
            model=TABLE7, start=to_tensor(LATENTS[0]), end=to_tensor(LATENTS[1]), steps=3
        ),
        "GetModel": pb.GetModelRequest(model=TABLE7),
        INFER: oip.ModelInferRequest(
            model_name="table7",
            parameters={"num_samples": oip.InferParameter(int64_param=2)},
            inputs=[oip.ModelInferRequest.InferInputTensor(name="numeric", datatype="FP32", shape=ROWS.shape)],
            outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="score")],
            raw_input_contents=[ROWS.tobytes()],
        ),
    }.items()
]

INT64 = st.sampled_from([0, 1, 2, 7, -1, 2**31, 2**62, 2**63 - 1, -(2**63)])
UINT32 = st.sampled_from([0, 1, 2, 3, 7, 257, 10**6, 2**32 - 1])
DOUBLE = st.floats() | st.sampled_from([0.1, 1.0, -0.0, 5e-324])
TEXT = st.sampled_from(["", "table7", "numeric", "1", "0", "-1", "../table7", "\0", "table7" * 2000]) | st.text()
MODEL = st.builds(pb.ModelSpec, name=st.just("table7") | TEXT, version=st.just("") | TEXT)
TENSOR = st.builds(
    pb.Tensor,
    name=st.just("") | TEXT,
    dtype=st.sampled_from([*pb.DataType.values(), 99, -1]),
    shape=st.sampled_from(
        [[], [2, 7], [0, 7], [1, 7], [2, 3], [3], [2**62, 0], [1] * 40, [2**40, 7], [2**63 - 1] * 300]
    )
    | st.lists(INT64, max_size=4),
    data=st.binary(max_size=64)
    | st.sampled_from([b"\0" * 56, b"\xff" * 56, b"\0" * 28, b"\x7f" * 12, b"\0" * 100_000]),
    strings=st.lists(TEXT, max_size=3) | st.just(["a"] * 14),
)
TENSORS = st.lists(TENSOR, max_size=3)


PARAMETER = st.one_of(
    st.builds(oip.InferParameter),
    st.builds(oip.InferParameter, bool_param=st.booleans()),
    st.builds(oip.InferParameter, int64_param=INT64),
    st.builds(oip.InferParameter, uint64_param=st.sampled_from([0, 8, 2**64 - 1])),
    st.builds(oip.InferParameter, double_param=DOUBLE),
    st.builds(oip.InferParameter, string_param=TEXT),
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["num_samples", "bound", "seed", "false_positive_rate", "top_features", "timeout", "priority"])
    | TEXT,
    PARAMETER,
    max_size=2,
)
BYTES = st.binary(max_size=64) | st.sampled_from([b"\0" * 56, b"\xff" * 56, b"\1\0\0\0a" * 14, b"\0" * 100_000])
CONTENTS = st.builds(
    oip.InferTensorContents,
    fp32_contents=st.just([]) | st.lists(st.floats(width=32), min_size=14, max_size=14),
    int_contents=st.just([]) | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=14),
    bool_contents=st.just([]) | st.lists(st.booleans(), min_size=14, max_size=14),
    bytes_contents=st.just([]) | st.lists(st.binary(max_size=3), max_size=14),
)
INPUT = st.builds(
    oip.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["numeric", "latents"]) | TEXT,
    datatype=st.sampled_from(["FP32", "FP64", "FP16", "BF16", "INT8", "UINT64", "BOOL", "BYTES"]) | TEXT,
    shape=st.sampled_from([[], [2, 7], [0, 7], [2, 3], [2**62, 0], [1] * 40, [2**40, 7], [-1, 7]])
    | st.lists(INT64, max_size=4),
    parameters=st.just({}) | PARAMETERS,
    contents=st.none() | CONTENTS,
)


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw a value, or none."""
    return st.none() | values


# Messages of the right form with values that no caller should send.
ABSURD = st.one_of(
    st.builds(
        pb.ScoreRequest,
        model=MODEL,
        inputs=TENSORS | st.just([to_tensor(ROWS)]),
        num_samples=optional(UINT32),
        bound=st.sampled_from([0, 1, 2, -1]),
        seed=optional(st.sampled_from([0, 2**64 - 1])),
        false_positive_rate=optional(DOUBLE),
        top_features=UINT32,
    ).map(lambda message: ("Score", message.SerializeToString())),
    st.builds(pb.EncodeRequest, model=MODEL, inputs=TENSORS).map(
        lambda message: ("Encode", message.SerializeToString())
    ),
    st.builds(pb.DecodeRequest, model=MODEL, latents=TENSOR).map(
        lambda message: ("Decode", message.SerializeToString())
    ),
    # Counts that are allowed are small here: the rows that they make are another test's.
    st.builds(
        pb.GenerateRequest, model=MODEL, count=UINT32.filter(lambda n: n != 10**5), temperature=optional(DOUBLE)
    ).map(lambda message: ("Generate", message.SerializeToString())),
    st.builds(
        pb.InterpolateRequest,
        model=MODEL,
        start=TENSOR | st.just(to_tensor(LATENTS[0])),
        end=TENSOR | st.just(to_tensor(LATENTS[1])),
        steps=UINT32,
        method=st.sampled_from([0, 1, 2, -1]),
    ).map(lambda message: ("Interpolate", message.SerializeToString())),
    st.builds(
        oip.ModelInferRequest,
        model_name=st.sampled_from(["table7", "table7.encode", "table7.decode", "table7.reconstruct", "table7."])
        | TEXT,
        model_version=st.just("") | TEXT,
        id=TEXT,
        parameters=st.just({}) | PARAMETERS,
        inputs=st.lists(INPUT, max_size=2),
        outputs=st.lists(
            st.builds(
                oip.ModelInferRequest.InferRequestedOutputTensor,
                name=st.sampled_from(["score", "mean", "numeric", "attribution_feature"]) | TEXT,
                parameters=st.just({}) | PARAMETERS,
            ),
            max_size=2,
        ),
        raw_input_contents=st.lists(BYTES, max_size=2),
    ).map(lambda message: (INFER, message.SerializeToString())),
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a valid message with bytes changed, cut out or put in."""
    method, content = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.integers(0, 3))
        content = content[:start] + draw(st.binary(max_size=3)) + content[end:]
    return method, content


METHOD = st.sampled_from(list(REQUESTS))
# A string that is no UTF-8, groups within groups, and a length that runs past the end.
BROKEN = st.sampled_from(
    [
        b"\x0a\x04\x0a\x02\xff\xfe",
        b"\x0b" * 5000,
        b"\x0b" * 90 + b"\x0c" * 90,
        b"\x12\xff\xff\xff\xff\x0f",
        b"\xff" * 10,
    ]
)
MALFORMED = (
    mutated()
    | ABSURD
    | st.tuples(METHOD, st.binary(max_size=200))
    | st.tuples(METHOD, BROKEN)
    | st.tuples(METHOD, st.sampled_from([content for _, content in VALID]))  # another RPC's
)


@pytest.fixture(scope="module")
def service(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service of one small model, whose messages may have a mebibyte."""
    folder = tmp_path_factory.mktemp("malformed")
    shutil.copytree(models.bundles["table7"].path, folder / "repository" / "table7" / "1")
    options = ["--set", "limits.message_bytes=1048576", "--set", "limits.tensor_elements=200000"]
    with serve_locally(folder / "repository", log=folder / "log", options=options) as started:
        yield started


@pytest.fixture
def channel(service: LocalService) -> Iterator[grpc.Channel]:
    """A channel to the service."""
    with grpc.insecure_channel(service.target) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _unharmed(service: LocalService, channel: grpc.Channel) -> Iterator[None]:
    """Let every test leave the service alive, and its log free of errors of its own."""
    yield
    assert call(channel, *VALID[0]).code() is grpc.StatusCode.OK
    events = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    assert {event["event"] for event in events} <= {"model loaded", "ready", "serving"}
    assert "Traceback" not in service.log.read_text()


def call(channel: grpc.Channel, method: str, content: bytes, **options: Any) -> Any:
    """Return a call of one of the service's methods, by default of VaeService, with any bytes."""
    path = f"/{method}" if "/" in method else f"/vaeserve.v1.VaeService/{method}"
    opened: Any = channel.unary_unary(path)
    return opened.future(content, timeout=60, **options)


def test_ten_thousand_malformed_messages_are_the_callers_fault(service: LocalService, channel: grpc.Channel) -> None:
    """Whatever a message says, the answer is a code of the caller's, in time, and the memory stays bounded."""
    sent = 0

    @tuned(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(MALFORMED, min_size=MESSAGES, max_size=MESSAGES))
    def send(messages: list[tuple[str, bytes]]) -> None:
        nonlocal sent
        answers = [call(channel, *message) for message in messages]
        for (method, content), answer in zip(messages, answers, strict=True):
            assert answer.code() in EXPECTED, (method, content[:200], answer.code(), answer.details())
        sent += len(messages)

    memory = resident_bytes(service.process.pid)
    send()
    assert sent >= 10_000
    assert resident_bytes(service.process.pid) - memory < 256 * MIB


@pytest.mark.parametrize(
    ("method", "request_", "code", "message"),
    [
        ("Score", pb.ScoreRequest(model=TABLE7, inputs=[pb.Tensor(data=b"\0" * MIB)]), "RESOURCE_EXHAUSTED", "larger"),
        (
            "Score",
            pb.ScoreRequest(model=TABLE7, inputs=[pb.Tensor(dtype=pb.UINT8, shape=[500_000], data=b"\0" * 500_000)]),
            "OUT_OF_RANGE",
            "inputs[0]: shape [500000], 500000 elements; the service takes 200000 in a tensor at most",
        ),
        (
            "Decode",
            pb.DecodeRequest(model=TABLE7, latents=pb.Tensor(dtype=pb.STRING, shape=[500_000], strings=[""] * 500_000)),
            "OUT_OF_RANGE",
            "latents: shape [500000]",
        ),
        (
            "Interpolate",
            pb.InterpolateRequest(model=TABLE7, start=pb.Tensor(dtype=pb.BOOL, shape=[2**62, 9])),
            "OUT_OF_RANGE",
            "start: shape [4611686018427387904, 9]",
        ),
        (
            "Encode",
            pb.EncodeRequest(model=TABLE7, inputs=[pb.Tensor(dtype=pb.BOOL, shape=[2**63 - 1] * 100_000)]),
            "INVALID_ARGUMENT",
            "inputs[0]: 100000 dimensions; expected 16 at most",
        ),
        (
            INFER,
            oip.ModelInferRequest(
                model_name="table7",
                inputs=[oip.ModelInferRequest.InferInputTensor(datatype="BYTES", shape=[150_001, 2])],
                raw_input_contents=[b"\0" * 900_000],
            ),
            "OUT_OF_RANGE",
            "inputs[0]: shape [150001, 2], 300002 elements; the service takes 200000 in a tensor at most",
        ),
    ],
    ids=["message", "elements", "strings", "product", "dimensions", "raw strings"],
)
def test_what_is_too_large_says_so(channel: grpc.Channel, method: str, request_: Any, code: str, message: str) -> None:
    """A message past a limit is refused by name, and before there is memory, or time, for it."""
    if code == "RESOURCE_EXHAUSTED":
        assert len(request_.SerializeToString()) > MIB
    answer = call(channel, method, request_.SerializeToString())
    assert (answer.code().name, message in answer.details()) == (code, True)


MESSAGE = frames.message(VALID[0][1])


def score(**changes: Any) -> bytes:
    """Return the header of a call that scores."""
    return frames.headers(1, frames.SCORE, **changes)


def in_two(headers: bytes) -> bytes:
    """Return a header that is too large for one frame as HEADERS and CONTINUATION."""
    size, block = frames.LARGEST_FRAME, headers[frames.HEAD :]
    rest = frames.frame(frames.CONTINUATION, block[size:], flags=frames.END_HEADERS, stream=1)
    return frames.frame(frames.HEADERS, block[:size], stream=1) + rest


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (score() + frames.data(1, MESSAGE), b"grpc-status\x010"),
        (score() + frames.data(1, frames.message(b"", length=2**32 - 1)), b"grpc-status\x018"),
        (score() + frames.data(1, frames.message(b"", length=MIB + 1)), b"grpc-status\x018"),
        (score() + frames.data(1, MESSAGE[:4] + b"\x20" + MESSAGE[5:]), b"grpc-status\x013"),
        (score() + frames.data(1, frames.message(b"abc", compressed=1)), b"Compression bit set but no encoding"),
        (score(grpc_encoding="gzip") + frames.data(1, frames.message(b"abc", compressed=1)), b"Decompression failed"),
        (score(grpc_encoding="snappy") + frames.data(1, MESSAGE), b"grpc-encoding"),
        (score(content_type="text/html") + frames.data(1, MESSAGE), b"grpc-status\x010"),  # gRPC lets it pass
        (score(te=None) + frames.data(1, MESSAGE), frames.RST_STREAM),
        (score(te="gzip") + frames.data(1, MESSAGE), b"'te' metadata"),
        (score(**{":method": "GET"}) + frames.data(1, MESSAGE), frames.RST_STREAM),
        (score(**{":path": None}) + frames.data(1, MESSAGE), frames.RST_STREAM),
        (score(**{":authority": None}) + frames.data(1, MESSAGE), frames.RST_STREAM),
        (frames.headers(1, "/vaeserve.v1.VaeService/Train") + frames.data(1, MESSAGE), b"grpc-status\x0212"),
        (frames.headers(1, "*") + frames.data(1, MESSAGE), b"grpc-status\x0212"),
        (in_two(score(big="a" * 20_000)), b"metadata size exceeds hard limit"),
        (frames.frame(frames.HEADERS, b"\xff" * 20, flags=frames.END_HEADERS, stream=1), b"hpack"),
        (frames.frame(frames.CONTINUATION, stream=1), None),
        (score(grpc_timeout="0n") + frames.data(1, MESSAGE), b"grpc-status\x014"),
        (score(grpc_timeout="99999999H") + frames.data(1, MESSAGE), b"grpc-status\x010"),
        (score(grpc_timeout="999999999999H") + frames.data(1, MESSAGE), b"grpc-status\x010"),
        (score(grpc_timeout="soon") + frames.data(1, MESSAGE), b"grpc-timeout"),
        (score(grpc_timeout="") + frames.data(1, MESSAGE), b"grpc-timeout"),
        (score(grpc_timeout="-1S") + frames.data(1, MESSAGE), b"grpc-timeout"),
        (score(foo_bin="AAEC/w") + frames.data(1, MESSAGE), b"grpc-status\x010"),
        (score(foo_bin="text") + frames.data(1, MESSAGE), b"grpc-status\x010"),
        (score(foo_bin="!!!") + frames.data(1, MESSAGE), b"illegal base64"),
        (score(foo_bin=b"\xff\xfe") + frames.data(1, MESSAGE), b"illegal base64"),
        (score(foo=b"\xff\xfe") + frames.data(1, MESSAGE), b"grpc-status\x010"),
        (score(foo=b"a\0\r\n") + frames.data(1, MESSAGE), b"grpc-status\x010"),
        (score(Foo="a") + frames.data(1, MESSAGE), (b"Illegal header key", frames.RST_STREAM)),
    ],
)
def test_a_malformed_call_has_an_end(
    service: LocalService, content: bytes, expected: bytes | int | tuple[bytes, int] | None
) -> None:
    """Frames that no gRPC client sends end their call, or their connection, and leave nobody waiting.

    expected: what the call's trailers or the connection's end say, the kind of frame that ends the stream, either of
    both, or None for the connection's end.
    """
    said = [each for each in (expected if isinstance(expected, tuple) else (expected,)) if isinstance(each, bytes)]
    with RawConnection(service.target) as connection:
        connection.greet()
        connection.send(content)
        for answer in connection.frames():
            if answer.kind == frames.HEADERS and answer.flags & frames.END_STREAM:
                assert any(each in answer.payload for each in said)
                return
            if answer.kind == frames.RST_STREAM:
                assert expected == frames.RST_STREAM or isinstance(expected, tuple)
                return
            if answer.kind == frames.GOAWAY and any(each in answer.payload for each in said):
                return
        assert expected is None


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + b"\0" * 100,  # TLS where there is none
        b"garbage" + frames.PREFACE + frames.settings(),
        frames.PREFACE + frames.frame(frames.PING, b"12345678"),
    ],
    ids=["http1", "tls", "garbage", "no settings"],
)
def test_what_is_no_http2_is_closed(service: LocalService, greeting: bytes) -> None:
    """A connection that begins otherwise than HTTP/2 does is closed at once."""
    with RawConnection(service.target, greeting=greeting) as connection:
        assert frames.HEADERS not in {answer.kind for answer in connection.frames()}


@pytest.mark.parametrize(
    "content",
    [
        score(flags=frames.END_HEADERS | frames.END_STREAM),
        score() + frames.data(1, MESSAGE[:3]),
        score() + frames.data(1, MESSAGE[:-1]),
    ],
    ids=["none", "no length", "cut off"],
)
def test_a_call_without_its_message_is_forgotten_when_taken_back(service: LocalService, content: bytes) -> None:
    """A call that ends before its message holds up no other, and its caller's reset or deadline ends it at the latest.

    grpcio never answers it; until then it counts among the connection's streams.
    """
    with RawConnection(service.target) as connection:
        connection.greet()
        connection.send(content + frames.headers(3, frames.SCORE) + frames.data(3, MESSAGE) + frames.rst_stream(1))
        assert any(
            answer.stream == 3 and answer.kind == frames.HEADERS and answer.flags & frames.END_STREAM
            for answer in connection.frames()
        )
    with RawConnection(service.target) as connection:
        connection.greet()
        timed = frames.headers(1, frames.SCORE, flags=frames.END_HEADERS | frames.END_STREAM, grpc_timeout="200m")
        connection.send(timed)
        assert any(answer.kind in (frames.HEADERS, frames.RST_STREAM) for answer in connection.frames())


def test_binary_metadata_of_any_bytes_passes(channel: grpc.Channel) -> None:
    """A caller's metadata, binary too, has no part in the answer, and keeps nobody waiting."""
    metadata = [("foo-bin", b"\0\xff"), ("grpc-trace-bin", b"\0"), ("foo", "bar")]
    assert call(channel, *VALID[0], metadata=metadata).code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("method", "content"),
    [
        *VALID,
        ("Score", b"\xff"),
        ("Score", pb.ScoreRequest(model=pb.ModelSpec(name="x" * 500_000)).SerializeToString()),
    ],
)
def test_no_answer_waits_for_the_deadline(channel: grpc.Channel, method: str, content: bytes) -> None:
    """Every answer, refusals with names of any length among them, comes by itself, long before its deadline."""
    answer = call(channel, method, content)
    assert answer.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
