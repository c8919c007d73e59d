"""Whether what selects, leads, listens and asks finds what it means. Each check yields faults."""

from collections.abc import Iterator, Sequence

from tests.deploy.pods import config_of, is_service, matches, named, pods, services
from tests.deploy.rendering import Manifest, of_kind
from vaeserve_service.health import LIVENESS

COMPONENT = "app.kubernetes.io/component"
# What each probe asks the health service for, and the page that says the same.
ASKED = {
    "startupProbe": (LIVENESS, "/livez"),
    "readinessProbe": ("", "/readyz"),
    "livenessProbe": (LIVENESS, "/livez"),
}
PROBES = tuple(ASKED)

Faults = Iterator[str]


def selectors(manifests: Sequence[Manifest]) -> Faults:
    """Whatever selects pods selects the service's, and no job's; a job's policy selects the job's."""
    serving = services(manifests)
    for pod in serving:
        if not matches(pod.owner["spec"]["selector"]["matchLabels"], pod.labels):
            yield f"{pod}: its selector doesn't match its own pods"
        for spread in pod.spec.get("topologySpreadConstraints", []):
            if not matches(spread["labelSelector"]["matchLabels"], pod.labels):
                yield f"{pod}: spreads other pods than its own over {spread['topologyKey']}"
    for manifest in of_kind(manifests, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = manifest["spec"]
        selector = spec.get("podSelector", spec.get("selector", {}))
        selected = [pod for pod in pods(manifests) if matches(selector.get("matchLabels", selector), pod.labels)]
        if not selected:
            yield f"{named(manifest)}: selects no pod"
        if serving and len(selected) != len(serving):
            yield f"{named(manifest)}: selects {', '.join(map(str, selected))}"


def peers(manifests: Sequence[Manifest]) -> Faults:
    """A policy lets in clients and Prometheus, and out to DNS: none of them has the labels of our pods."""
    for policy in of_kind(manifests, "NetworkPolicy"):
        own = policy["spec"]["podSelector"]["matchLabels"][COMPONENT]
        rules = [rule for way in ("ingress", "egress") for rule in policy["spec"].get(way, [])]
        for peer in [peer for rule in rules for peer in (*rule.get("from", []), *rule.get("to", []))]:
            if peer.get("podSelector", {}).get("matchLabels", {}).get(COMPONENT) == own:
                yield f"{named(policy)}: is of its own pods alone"
        if not any({"port": 53, "protocol": "UDP"} in rule.get("ports", []) for rule in rules):
            yield f"{named(policy)}: keeps pods from DNS"


def ports(manifests: Sequence[Manifest]) -> Faults:
    """Ports are asked for by names and numbers that the container has, and it listens there."""
    for pod in services(manifests):
        (container,) = pod.spec["containers"]
        there = {port["name"]: port["containerPort"] for port in container["ports"]}
        server = config_of(manifests, container).server
        if there != {"grpc": server.grpc_port, "http": server.http_port}:
            yield f"{pod}: its ports are {there}; it listens on {server.grpc_port} and {server.http_port}"
        asked = [(service, port["targetPort"]) for service in of_kind(manifests, "Service")
                 for port in service["spec"]["ports"]]  # fmt: skip
        asked += [(policy, port["port"]) for policy in of_kind(manifests, "NetworkPolicy")
                  for rule in policy["spec"].get("ingress", []) for port in rule["ports"]]  # fmt: skip
        asked += [(pod.owner, way["port"]) for probe in PROBES for way in container[probe].values()
                  if isinstance(way, dict)]  # fmt: skip
        for manifest, port in asked:
            if port not in there and port not in there.values():
                yield f"{named(manifest)}: port {port}; the container has {there}"


def probes(manifests: Sequence[Manifest]) -> Faults:
    """Liveness asks for what loading models never turns off, readiness for the service as a whole, by either port."""
    for pod in pods(manifests):
        for container in filter(is_service, pod.spec["containers"]):
            for probe, (service, path) in ASKED.items():
                way = container.get(probe, {})
                if pod.owner["kind"] == "ServingRuntime" and probe == "startupProbe":
                    continue  # KServe has none
                if way.get("grpc", {}).get("service", "") != service and way.get("httpGet", {}).get("path") != path:
                    yield f"{pod}: {probe} asks for {way.get('grpc') or way.get('httpGet')}"


def routes(manifests: Sequence[Manifest]) -> Faults:
    """A route leads to a port of a Service that is there, an autoscaler scales a Deployment that is, and one alone."""
    offered = {(service["metadata"]["name"], port["port"]) for service in of_kind(manifests, "Service")
               for port in service["spec"]["ports"]}  # fmt: skip
    for route in of_kind(manifests, "GRPCRoute"):
        for rule in route["spec"]["rules"]:
            for end in rule["backendRefs"]:
                if (end["name"], end["port"]) not in offered:
                    yield f"{named(route)}: leads to {end['name']}:{end['port']}, which no Service offers"
    scalers = of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
    names = [deployment["metadata"]["name"] for deployment in of_kind(manifests, "Deployment")]
    for scaler in scalers:
        if scaler["spec"]["scaleTargetRef"]["name"] not in names:
            yield f"{named(scaler)}: scales nothing that is there"
    if len(scalers) > 1:
        yield f"{' and '.join(map(named, scalers))} pull at one Deployment"


def scrapes(manifests: Sequence[Manifest]) -> Faults:
    """Each pod is scraped once, by the scheme that it speaks."""
    for monitor in of_kind(manifests, "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        for endpoint in monitor["spec"]["endpoints"]:
            times = sum(
                port["name"] == endpoint["port"]
                for service in of_kind(manifests, "Service")
                if matches(selector, service["metadata"]["labels"])
                for port in service["spec"]["ports"]
            )
            if times != 1:
                yield f"{named(monitor)}: scrapes each pod's {endpoint['port']} {times} times"
            for pod in services(manifests):
                encrypted = config_of(manifests, pod.spec["containers"][0]).tls.certificate is not None
                if (endpoint.get("scheme") == "https") is not encrypted:
                    yield f"{named(monitor)}: asks by {endpoint.get('scheme', 'http')}"


def encryption(manifests: Sequence[Manifest]) -> Faults:
    """A Service says that it speaks HTTP/2 without TLS where it does; probes speak what the port does."""
    for pod in services(manifests):
        (container,) = pod.spec["containers"]
        config = config_of(manifests, container)
        encrypted = config.tls.certificate is not None
        for service in of_kind(manifests, "Service"):
            protocols = {port["name"]: port.get("appProtocol") for port in service["spec"]["ports"]}
            if protocols["grpc"] != (None if encrypted else "kubernetes.io/h2c"):
                yield f"{named(service)}: says {protocols['grpc']}"
            if "http" in protocols and protocols["http"] != ("https" if encrypted else "http"):
                yield f"{named(service)}: says {protocols['http']}"
        for probe in PROBES:
            if encrypted and container[probe].get("httpGet", {}).get("scheme") != "HTTPS":
                yield f"{pod}: {probe} can't speak TLS"
        if config.access.callers and not (encrypted or config.access.allow_plaintext):
            yield f"{pod}: takes tokens without TLS"
