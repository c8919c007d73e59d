"""Every composition means what it says, and a fault put into one is found."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import vaeserve
from tests.deploy.meaning import READING, faults, targets
from tests.deploy.pods import named, pods
from tests.deploy.rendering import COMPOSITIONS, ROOT, Manifest, of_kind

pytestmark = pytest.mark.deploy

Rendered = Callable[[str], list[Manifest]]
GONE = object()


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_compositions_have_no_fault(rendered: Rendered, name: str) -> None:
    """Selectors, ports, references, settings, grace, scaling, resources, security and jobs agree."""
    assert faults(rendered(name)) == []


@dataclass(frozen=True)
class Fault:
    """A fault: in which composition, in what of it, at which path, the value put there, and what is said of it."""

    composition: str
    manifest: str
    path: str
    value: object
    said: str

    def __str__(self) -> str:
        return f"{self.manifest} {self.path}"


POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"
LABEL = "app.kubernetes.io/component"

FAULTS = [
    Fault("cpu", "Deployment/vaeserve", f"spec.selector.matchLabels|{LABEL}", "server", "match its own pods"),
    Fault("cpu", "Deployment/vaeserve", f"{POD}.topologySpreadConstraints.0.labelSelector.matchLabels|{LABEL}", "x",
          "spreads other pods"),
    Fault("cpu", "Service/vaeserve", f"spec.selector|{LABEL}", "server", "selects no pod"),
    Fault("cpu", "Service/vaeserve-headless", f"spec.selector|{LABEL}", "server", "selects no pod"),
    Fault("cpu", "PodDisruptionBudget/vaeserve", f"spec.selector.matchLabels|{LABEL}", "x", "selects no pod"),
    Fault("cpu", "NetworkPolicy/vaeserve", f"spec.podSelector.matchLabels|{LABEL}", "x", "selects no pod"),
    Fault("score", "NetworkPolicy/vaeserve-score", f"spec.podSelector.matchLabels|{LABEL}", "x", "selects no pod"),
    Fault("canary", "NetworkPolicy/vaeserve-canary", f"spec.ingress.0.from.0.podSelector.matchLabels|{LABEL}", "canary",
          "is of its own pods alone"),
    Fault("cpu", "NetworkPolicy/vaeserve", "spec.egress", [], "keeps pods from DNS"),
    Fault("cpu", "Service/vaeserve", "spec.ports.0.targetPort", "gprc", "port gprc"),
    Fault("cpu", "NetworkPolicy/vaeserve", "spec.ingress.0.ports.0.port", "gprc", "port gprc"),
    Fault("cpu", "Deployment/vaeserve", f"{CONTAINER}.readinessProbe.grpc.port", 8003, "port 8003"),
    Fault("cpu", "Deployment/vaeserve", f"{CONTAINER}.ports.0.containerPort", 9001, "it listens on 8001"),
    Fault("cpu", "Deployment/vaeserve", f"{CONTAINER}.livenessProbe.grpc.service", GONE, "livenessProbe asks for"),
    Fault("cpu", "Deployment/vaeserve", f"{CONTAINER}.readinessProbe.grpc.service", "liveness", "readinessProbe asks"),
    Fault("kserve", "ServingRuntime/vaeserve", "spec.containers.0.livenessProbe.grpc.service", "live", "asks for"),
    Fault("everything", "Deployment/vaeserve", f"{CONTAINER}.livenessProbe.httpGet.path", "/readyz", "asks for"),
    Fault("everything", "Deployment/vaeserve", f"{CONTAINER}.livenessProbe.httpGet.port", "https", "port https"),
    Fault("everything", "GRPCRoute/vaeserve", "spec.rules.0.backendRefs.0.port", 8080, "which no Service offers"),
    Fault("everything", "GRPCRoute/vaeserve", "spec.rules.0.backendRefs.0.name", "vae", "which no Service offers"),
    Fault("cpu", "HorizontalPodAutoscaler/vaeserve", "spec.scaleTargetRef.name", "vae", "scales nothing"),
    Fault("everything", "ServiceMonitor/vaeserve", "spec.endpoints.0.port", "metrics", "metrics 0 times"),
    Fault("everything", "ServiceMonitor/vaeserve", "spec.endpoints.0.port", "grpc", "grpc 2 times"),
    Fault("everything", "ServiceMonitor/vaeserve", "spec.endpoints.0.scheme", "http", "asks by http"),
    Fault("everything", "ServiceMonitor/vaeserve", "spec.selector.matchLabels|app.kubernetes.io/name", "x",
          "http 0 times"),
    Fault("cpu", "Deployment/vaeserve", f"{POD}.serviceAccountName", "vae", "refers to ServiceAccount/vae,"),
    Fault("cpu", "Deployment/vaeserve", f"{POD}.volumes.0.configMap.name", "vae", "refers to ConfigMap/vae,"),
    Fault("everything", "Deployment/vaeserve", f"{POD}.volumes.1.name", "vae", "mounts"),
    Fault("score", "Job/vaeserve-score", f"{CONTAINER}.args.1", "$(INPUTS)", "INPUTS, which nothing sets"),
    Fault("cpu", "Deployment/vaeserve", f"{CONTAINER}.args.1", "--configuration", "No such option"),
    Fault("cuda", "Deployment/vaeserve", f"{CONTAINER}.env.0.value", "gpu", "runtime.device"),
    Fault("kserve", "ServingRuntime/vaeserve", "spec.containers.0.env.0.value", "fraud", "VAESERVE_SECTION_KEY"),
    Fault("cpu", "Deployment/vaeserve", f"{POD}.terminationGracePeriodSeconds", 35, "killed after 35 s"),
    Fault("kserve", "InferenceService/fraud", "spec.predictor.terminationGracePeriodSeconds", 35, "killed after 35 s"),
    Fault("cpu", "Deployment/vaeserve", f"{CONTAINER}.lifecycle", GONE, "expected a preStop sleep"),
    Fault("cpu", "Deployment/vaeserve", "spec.strategy.rollingUpdate.maxUnavailable", 1, "takes replicas away"),
    Fault("cpu", "Deployment/vaeserve", "spec.minReadySeconds", GONE, "before clients have heard of it"),
    Fault("cpu", "Deployment/vaeserve", "spec.replicas", 2, "also said"),
    Fault("base", "Deployment/vaeserve", "spec.replicas", GONE, "not said"),
    Fault("base", "Deployment/vaeserve", "spec.replicas", 1, "lets 1 of 1 go"),
    Fault("cpu", "PodDisruptionBudget/vaeserve", "spec.unhealthyPodEvictionPolicy", GONE, "keeps a node"),
    Fault("cpu", "HorizontalPodAutoscaler/vaeserve", "spec.minReplicas", 11, "at least 11 and at most 10"),
    Fault("keda", "ScaledObject/vaeserve", "spec.minReplicaCount", 11, "at least 11 and at most 10"),
    Fault("cpu", "HorizontalPodAutoscaler/vaeserve", "spec.metrics.1.pods.target.averageValue", "1k", "another queue"),
    Fault("cpu", "HorizontalPodAutoscaler/vaeserve", "spec.behavior.scaleDown.stabilizationWindowSeconds", 60,
          "before clients have spread"),
    Fault("cpu", "Deployment/vaeserve", f"{CONTAINER}.resources.requests.cpu", "3", "asks for 3 cpu of 2"),
    Fault("cpu", "Deployment/vaeserve", f"{CONTAINER}.resources.limits.memory", "2Gi", "lent memory"),
    Fault("cpu", "Deployment/vaeserve", f"{CONTAINER}.resources.limits.cpu", GONE, "lacks requests or limits"),
    Fault("kserve", "ServingRuntime/vaeserve", "spec.containers.0.env.1.value", "67108864", "may take 2048 MiB"),
    Fault("cuda", "Deployment/vaeserve", f"{CONTAINER}.resources.limits|nvidia.com/gpu", GONE, "computes on cuda"),
    Fault("cpu", "Deployment/vaeserve", f"{POD}.securityContext.runAsNonRoot", GONE, "runAsNonRoot is None"),
    Fault("everything", "Deployment/vaeserve", f"{POD}.initContainers.0.securityContext.capabilities", GONE,
          "fetch: capabilities is None"),
    Fault("train", "Job/vaeserve-train", f"{CONTAINER}.securityContext.readOnlyRootFilesystem", False, "is False"),
    Fault("cpu", "ServiceAccount/vaeserve", "automountServiceAccountToken", GONE, "gives a token"),
    Fault("kserve", "InferenceService/fraud", "spec.predictor.enableServiceLinks", GONE, "variables of Services"),
    Fault("everything", "Service/vaeserve", "spec.ports.0.appProtocol", "kubernetes.io/h2c", "says kubernetes.io/h2c"),
    Fault("everything", "Deployment/vaeserve", f"{CONTAINER}.readinessProbe", {"grpc": {"port": 8001}}, "speak TLS"),
    Fault("everything", "Deployment/vaeserve", f"{CONTAINER}.env", [
        {"name": "VAESERVE_ACCESS_CALLERS", "value": "/run/callers.toml"}], "takes tokens without TLS"),
    Fault("score", "Job/vaeserve-score", "spec.completions", 5, "5 pods for 4 parts"),
    Fault("score", "Job/vaeserve-score", f"{CONTAINER}.args.8", "--json", "begins anew"),
    Fault("score", "Job/vaeserve-score", "spec.podFailurePolicy.rules.0.onExitCodes.values", [1], "exit codes mean"),
    Fault("score", "Job/vaeserve-score", "spec.podFailurePolicy.rules.0.onExitCodes.containerName", "x", "a rule on x"),
    Fault("score", "Job/vaeserve-score", "spec.podFailurePolicy.rules.2.action", "Count", "counts a drained node"),
    Fault("score", "Job/vaeserve-score", f"{POD}.restartPolicy", "OnFailure", "doesn't look at its exit codes"),
    Fault("score", "Job/vaeserve-score", "spec.backoffLimitPerIndex", GONE, "fail the others"),
    Fault("score", "Job/vaeserve-score", "spec.activeDeadlineSeconds", GONE, "may hang for ever"),
    Fault("train", "Job/vaeserve-train", "spec.podFailurePolicy.rules.0.action", "FailIndex", "exit codes mean"),
    Fault("train", "Job/vaeserve-train", "spec.podFailurePolicy", GONE, "doesn't look at its exit codes"),
    Fault("score", "Job/vaeserve-score", "spec.successPolicy", {"rules": [{"succeededCount": 1}]}, "calls a part"),
    Fault("nightly", "CronJob/vaeserve-score", "spec.concurrencyPolicy", "Allow", "runs beside itself"),
    Fault("nightly", "CronJob/vaeserve-score", "spec.jobTemplate.spec.ttlSecondsAfterFinished", GONE, "is gone before"),
    Fault("cpu", "Deployment/vaeserve", f"{CONTAINER}.volumeMounts.1.readOnly", False, "can be written"),
]  # fmt: skip


# The images that have a container's command, by the end of their tag.
TARGETS = {
    "serve": (None, "-cuda"),
    "fetch": ("-jobs",),
    "score": ("-jobs",),
    "train": ("-train",),
    "export": ("-train",),
}


def broken(manifests: list[Manifest], fault: Fault) -> list[Manifest]:
    """Return a copy with a fault put into it. Keys that have dots stand after a bar."""
    made = copy.deepcopy(manifests)
    (place,) = [manifest for manifest in made if named(manifest) == fault.manifest]
    path, _, dotted = fault.path.partition("|")
    *steps, last = [*path.split("."), *([dotted] if dotted else [])]
    node: Any = place
    for step in steps:
        node = node[int(step) if step.isdecimal() else step]
    if fault.value is GONE:
        del node[last]
    else:
        node[int(last) if last.isdecimal() else last] = fault.value
    assert made != manifests
    return made


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_found(rendered: Rendered, fault: Fault) -> None:
    """Manifests with one fault are refused, and told which it is."""
    assert [said for said in faults(broken(rendered(fault.composition), fault)) if fault.said in said]


def test_what_a_request_takes_is_what_the_settings_say() -> None:
    """The factor of a request's memory is the one of the page."""
    page = (ROOT / "docs" / "settings.md").read_text()
    assert f"it may take {READING} times as much memory" in page


def test_two_autoscalers_are_refused(rendered: Rendered) -> None:
    """So are an HPA and a ScaledObject of one Deployment."""
    both = rendered("cpu") + of_kind(rendered("keda"), "ScaledObject")
    assert [said for said in faults(both) if "pull at one Deployment" in said]


def test_what_is_applied_together_leaves_each_other_alone(rendered: Rendered) -> None:
    """Of the service, its canary and the jobs, the Services, budgets and policies select each its own pods only."""
    for selecting in (rendered("cpu"), rendered("score"), rendered("train")):
        others = [
            manifest for name in ("cpu", "score", "train") for manifest in of_kind(rendered(name), "Deployment", "Job")
        ]
        kinds = of_kind(selecting, "Service", "PodDisruptionBudget", "NetworkPolicy")
        for manifest in kinds:
            spec = manifest["spec"]
            selector = spec.get("podSelector", spec.get("selector"))
            labels = selector.get("matchLabels", selector)
            assert sum(labels.items() <= pod.labels.items() for pod in pods(others)) == 1


def test_both_autoscalers_aim_at_the_same(rendered: Rendered) -> None:
    """The HPA and the ScaledObject have the same targets, bounds and behaviour."""
    (hpa,), (keda,) = of_kind(rendered("cpu"), "HorizontalPodAutoscaler"), of_kind(rendered("keda"), "ScaledObject")
    assert targets(hpa) == targets(keda)
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (
        keda["spec"]["minReplicaCount"], keda["spec"]["maxReplicaCount"],
    )  # fmt: skip
    assert hpa["spec"]["behavior"] == keda["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]


def test_the_nightly_job_is_the_other_one(rendered: Rendered) -> None:
    """The CronJob makes the Job of jobs/score, of its settings, and nothing applies that Job itself."""
    (job,), (cron,) = of_kind(rendered("score"), "Job"), of_kind(rendered("nightly"), "CronJob")
    assert cron["spec"]["jobTemplate"]["spec"] == job["spec"]
    assert not of_kind(rendered("nightly"), "Job")


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_images_are_this_version(rendered: Rendered, name: str) -> None:
    """Each image is of one repository, and its tag this version with the image's target."""
    for pod in pods(rendered(name)):
        for container in pod.containers:
            tag = re.fullmatch(rf"vaeserve:{re.escape(vaeserve.__version__)}(-cuda|-jobs|-train)?", container["image"])
            assert tag, container["image"]
            command = "fetch" if "command" in container else container["args"][0]
            assert tag[1] in TARGETS[command]
