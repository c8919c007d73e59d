"""What no schema sees in manifests: whether they mean together what each alone says. Each check yields faults."""

import re
import shlex
from collections.abc import Callable, Sequence

import typer

from tests.deploy.pods import Pod, amount, config_of, is_service, job_spec, named, pods, services
from tests.deploy.rendering import Manifest, of_kind
from tests.deploy.wiring import Faults, encryption, peers, ports, probes, routes, scrapes, selectors
from vaeserve.cli import app

GPU = "nvidia.com/gpu"
# Seconds between two questions of a gRPC client to DNS, at least.
RESOLVING = 30
# How many times its size a request takes while it is read (docs/settings.md).
READING = 28
# What a user makes: claims and secrets that no folder here has.
GIVEN_CLAIMS = {"vaeserve-data", "vaeserve-models"}
GIVEN_SECRETS = {"vaeserve-tls", "vaeserve-callers", "vaeserve-metrics", "vaeserve-models"}
# Of the image, and of every pod of an indexed Job.
GIVEN_VARIABLES = {"MODELS_URL", "JOB_COMPLETION_INDEX"}


def references(manifests: Sequence[Manifest]) -> Faults:
    """What a pod refers to is there: accounts, ConfigMaps, claims, secrets, volumes, and variables in arguments."""
    there = {named(manifest) for manifest in manifests}
    claims = {f"PersistentVolumeClaim/{name}" for name in GIVEN_CLAIMS}
    secrets = {f"Secret/{name}" for name in GIVEN_SECRETS}
    for pod in pods(manifests):
        wanted = [f"ServiceAccount/{pod.spec['serviceAccountName']}"] if "serviceAccountName" in pod.spec else []
        for volume in pod.spec.get("volumes", []):
            if "configMap" in volume:
                wanted.append(f"ConfigMap/{volume['configMap']['name']}")
            if "secret" in volume:
                wanted.append(f"Secret/{volume['secret']['secretName']}")
            if "persistentVolumeClaim" in volume:
                wanted.append(f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}")
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        mounted = set()
        for container in pod.containers:
            wanted += [f"ConfigMap/{source['configMapRef']['name']}" for source in container.get("envFrom", [])
                       if "configMapRef" in source]  # fmt: skip
            wanted += [f"Secret/{source['secretRef']['name']}" for source in container.get("envFrom", [])
                       if "secretRef" in source]  # fmt: skip
            mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
            unknown = set(re.findall(r"\$\((\w+)\)", shlex.join(container.get("args", [])))) - variables(
                manifests, container
            )
            if unknown:
                yield f"{pod}: {container['name']} is given {', '.join(sorted(unknown))}, which nothing sets"
        if mounted != volumes:
            yield f"{pod}: mounts {sorted(mounted)} of the volumes {sorted(volumes)}"
        for reference in wanted:
            if reference not in there | claims | secrets:
                yield f"{pod}: refers to {reference}, which isn't there"


def variables(manifests: Sequence[Manifest], container: Manifest) -> set[str]:
    """Return the names of a container's variables."""
    found = GIVEN_VARIABLES | {variable["name"] for variable in container.get("env", [])}
    sources = [source["configMapRef"]["name"] for source in container.get("envFrom", []) if "configMapRef" in source]
    for config in of_kind(manifests, "ConfigMap"):
        if config["metadata"]["name"] in sources:
            found |= config["data"].keys()
    return found


def commands(manifests: Sequence[Manifest]) -> Faults:
    """A container's arguments are a command of ours, and its settings are ones that the service takes."""
    for pod in pods(manifests):
        for container in pod.containers:
            if "command" in container:
                continue  # it isn't ours
            command, *words = container["args"]
            try:
                typer.main.get_group(app).commands[command].make_context(command, list(words))
                if is_service(container):
                    config_of(manifests, container)
            except Exception as error:  # whatever the command line or the settings say
                yield f"{pod}: {shlex.join(container['args'])}: {error}"


def stopping(manifests: Sequence[Manifest]) -> Faults:
    """A pod is killed only after it has waited for the proxies, said that it goes, and answered the longest call."""
    for pod in pods(manifests):
        for container in pod.spec["containers"]:
            if not is_service(container):
                continue
            waits = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            drain = config_of(manifests, container).drain
            grace = grace_of(manifests, pod)
            if waits < 1:
                yield f"{pod}: ends while calls still arrive; expected a preStop sleep"
            if grace <= waits + drain.lame_duck_s + drain.grace_s:
                yield f"{pod}: is killed after {grace:g} s; {waits} + {drain.lame_duck_s:g} + {drain.grace_s:g} s pass"


def grace_of(manifests: Sequence[Manifest], pod: Pod) -> float:
    """Return the seconds until a pod is killed; of a ServingRuntime's, its InferenceService says them."""
    for service in of_kind(manifests, "InferenceService"):
        if pod.owner["kind"] == "ServingRuntime":
            return float(service["spec"]["predictor"]["terminationGracePeriodSeconds"])
    return float(pod.spec.get("terminationGracePeriodSeconds", 30))


def rollouts(manifests: Sequence[Manifest]) -> Faults:
    """A rollout takes no replica away before another is there, and a drained node waits for no pod that is down."""
    for pod in services(manifests):
        spec = pod.owner["spec"]
        if spec["strategy"]["rollingUpdate"]["maxUnavailable"] != 0:
            yield f"{pod}: a rollout takes replicas away first"
        if spec.get("minReadySeconds", 0) < RESOLVING:
            yield f"{pod}: others make way for it before clients have heard of it"
        scaled = of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
        if ("replicas" in spec) is bool(scaled):
            yield f"{pod}: its number of replicas is {'also' if scaled else 'not'} said"
        least = spec.get("replicas") or min(map(least_replicas, scaled), default=0)
        for budget in of_kind(manifests, "PodDisruptionBudget"):
            if not 0 < budget["spec"]["maxUnavailable"] < least:
                yield f"{named(budget)}: lets {budget['spec']['maxUnavailable']} of {least} go at once"
            if budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
                yield f"{named(budget)}: keeps a node for pods that aren't ready"


def least_replicas(scaler: Manifest) -> int:
    """Return the least number of replicas that an autoscaler keeps."""
    spec = scaler["spec"]
    return int(spec["minReplicas"] if scaler["kind"] == "HorizontalPodAutoscaler" else spec["minReplicaCount"])


def scaling(manifests: Sequence[Manifest]) -> Faults:
    """An autoscaler's least is at most its most, it aims at what it should, and waits for clients to spread."""
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"):
        spec = scaler["spec"]
        if scaler["kind"] == "ScaledObject":
            most, behavior = spec["maxReplicaCount"], spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        else:
            most, behavior = spec["maxReplicas"], spec["behavior"]
        if not 1 <= least_replicas(scaler) <= most:
            yield f"{named(scaler)}: at least {least_replicas(scaler)} and at most {most}"
        for pod in services(manifests):
            config = config_of(manifests, pod.spec["containers"][0])
            window = behavior["scaleDown"]["stabilizationWindowSeconds"]
            if window <= config.connections.age_s * 1.1:
                yield f"{named(scaler)}: goes down after {window} s, before clients have spread"
            if targets(scaler)["vaeserve_queue_rows"] != 2 * config.batching.max_rows:
                yield f"{named(scaler)}: aims at another queue than two full batches"


def targets(scaler: Manifest) -> dict[str, float]:
    """Return an autoscaler's targets by metric, for each pod."""
    if scaler["kind"] == "HorizontalPodAutoscaler":
        metrics = [metric["pods"] for metric in scaler["spec"]["metrics"]]
        return {metric["metric"]["name"]: amount(metric["target"]["averageValue"]) for metric in metrics}
    found = {}
    for trigger in scaler["spec"]["triggers"]:
        (name,) = re.findall(r"vaeserve_\w+", trigger["metadata"]["query"])
        found[name] = amount(trigger["metadata"]["threshold"])
    return found


def resources(manifests: Sequence[Manifest]) -> Faults:
    """Processor and memory are asked for and limited, memory isn't lent twice, a GPU in use is a limit."""
    for pod in pods(manifests):
        for container in pod.containers:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            if not {"cpu", "memory"} <= requests.keys() & limits.keys():
                yield f"{pod}: {container['name']} lacks requests or limits"
                continue
            for name in requests:
                if amount(requests[name]) > amount(limits.get(name, "0")):
                    yield f"{pod}: {container['name']} asks for {requests[name]} {name} of {limits.get(name)}"
            if amount(requests["memory"]) != amount(limits["memory"]):
                yield f"{pod}: {container['name']} is lent memory that it may lose"
            cuda = is_service(container) and config_of(manifests, container).runtime.device == "cuda"
            if cuda is not (GPU in limits):
                yield f"{pod}: {container['name']} computes on {'cuda' if cuda else 'cpu'} with limits {limits}"


def memory(manifests: Sequence[Manifest]) -> Faults:
    """The largest request and the fullest queue of a model fit in a pod's memory."""
    for pod in pods(manifests):
        for container in filter(is_service, pod.containers):
            limits = config_of(manifests, container).limits
            needed = READING * limits.message_bytes + limits.queue_bytes
            if needed > amount(container["resources"]["limits"].get("memory", "0")):
                yield f"{pod}: a request and a queue may take {needed / 2**20:.0f} MiB"


def restricted(manifests: Sequence[Manifest]) -> Faults:
    """Every container meets the restricted Pod Security Standard, on a read-only root, as the image's user."""
    for pod in pods(manifests):
        for container in pod.containers:
            security = pod.spec.get("securityContext", {}) | container.get("securityContext", {})
            expected = {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            for name, value in expected.items():
                if security.get(name) != value:
                    yield f"{pod}: {container['name']}: {name} is {security.get(name)}"


def tokens(manifests: Sequence[Manifest]) -> Faults:
    """No pod has a token for Kubernetes, nor variables of its Services, which would read as settings."""
    specs = [pod.spec for pod in pods(manifests) if pod.owner["kind"] != "ServingRuntime"]
    specs += [service["spec"]["predictor"] for service in of_kind(manifests, "InferenceService")]
    for spec in specs:
        if spec.get("automountServiceAccountToken") is not False:
            yield "a pod has a token"
        if spec.get("enableServiceLinks") is not False:
            yield "a pod has variables of Services"
    for account in of_kind(manifests, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{named(account)}: gives a token"


def jobs(manifests: Sequence[Manifest]) -> Faults:
    """An indexed Job is cut into as many parts as it has pods, ends by our exit codes, and is cleared away."""
    for manifest in of_kind(manifests, "Job", "CronJob"):
        spec = job_spec(manifest)
        pod = spec["template"]["spec"]
        if spec.get("ttlSecondsAfterFinished", 0) < 3600:
            yield f"{named(manifest)}: is gone before anyone has looked"
        if "activeDeadlineSeconds" not in spec:
            yield f"{named(manifest)}: may hang for ever"
        yield from _ending(manifest, spec)
        if manifest["kind"] == "CronJob" and manifest["spec"].get("concurrencyPolicy") != "Forbid":
            yield f"{named(manifest)}: runs beside itself"
        if spec.get("completionMode") != "Indexed":
            continue
        (container,) = pod["containers"]
        parts = container["args"][container["args"].index("--shard") + 1]
        if int(parts) != spec["completions"]:
            yield f"{named(manifest)}: {spec['completions']} pods for {parts} parts"
        if "--resume" not in container["args"]:
            yield f"{named(manifest)}: a second pod begins anew"
        rules = spec.get("successPolicy", {}).get("rules", [{"succeededCount": spec["completions"]}])
        if any(rule != {"succeededCount": spec["completions"]} for rule in rules):
            yield f"{named(manifest)}: calls a part a success"
        if "backoffLimitPerIndex" not in spec:
            yield f"{named(manifest)}: one part's failures fail the others"


def _ending(manifest: Manifest, spec: Manifest) -> Faults:
    """What our exit codes mean to Kubernetes."""
    pod = spec["template"]["spec"]
    if pod["restartPolicy"] != "Never" or "podFailurePolicy" not in spec:
        yield f"{named(manifest)}: Kubernetes doesn't look at its exit codes"
        return
    containers = {container["name"] for container in [*pod["containers"], *pod.get("initContainers", [])]}
    bad_input = "FailIndex" if spec.get("completionMode") == "Indexed" else "FailJob"
    said: dict[int, str] = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes", {"values": []})
        said |= dict.fromkeys(codes["values"], rule["action"])
        if codes.get("containerName", next(iter(containers))) not in containers:
            yield f"{named(manifest)}: a rule on {codes['containerName']}, which isn't there"
    drained = {"type": "DisruptionTarget", "status": "True"}
    ignored = [drained in rule.get("onPodConditions", []) and rule["action"] == "Ignore"
               for rule in spec["podFailurePolicy"]["rules"]]  # fmt: skip
    if not any(ignored):
        yield f"{named(manifest)}: counts a drained node as a failure"
    if said != {2: bad_input, 143: "Ignore"}:
        yield f"{named(manifest)}: exit codes mean {said}"


def repositories(manifests: Sequence[Manifest]) -> Faults:
    """The bundles are mounted where the service looks for them, and it can't write to them."""
    for pod in services(manifests):
        (container,) = pod.spec["containers"]
        path = str(config_of(manifests, container).repository.path)
        mounts = [mount for mount in container["volumeMounts"] if mount["mountPath"] == path]
        if [mount.get("readOnly") for mount in mounts] != [True]:
            yield f"{pod}: {path} isn't mounted, or can be written"


CHECKS: tuple[Callable[[Sequence[Manifest]], Faults], ...] = (
    selectors,
    peers,
    ports,
    probes,
    routes,
    scrapes,
    references,
    stopping,
    rollouts,
    scaling,
    resources,
    memory,
    restricted,
    tokens,
    encryption,
    jobs,
    repositories,
)


def faults(manifests: Sequence[Manifest]) -> list[str]:
    """Return every fault of manifests that are applied together; of wrong settings, which other checks read, those."""
    return list(commands(manifests)) or [fault for check in CHECKS for fault in check(manifests)]
