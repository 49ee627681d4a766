"""Compose file and Kubernetes manifests: valid, whole, hardened, and fitting the proxy's configs.

No container engine and no cluster is needed: schemas tell the form, and what refers to what is
followed here.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

import proxy
from proxy.config.load import load
from proxy.config.schema import Config
from tests.deployment import DEPLOY, ROOT, rules

BASE = DEPLOY / "kubernetes" / "base"
OPERATOR = DEPLOY / "kubernetes" / "operator"
READY = ROOT / "config" / "make-video.yaml"
URLS = {
    "VIDEO_DOWNLOADER_URL": "video-downloader",
    "YOUTUBE_SEARCH_URL": "youtube-search",
    "AUDIO_TRANSCRIBER_URL": "audio-transcriber",
}


def documents(file: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def read_config(file: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Config:
    """A config as the proxy reads it with these variables."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load(file).config


def egress_ports(config: Config) -> dict[str, tuple[str, int]]:
    """Where each microservice is reached: upstream -> host and port of its listener."""
    return {
        listener.routes[0].upstream: (listener.bind.host, listener.bind.port)
        for listener in config.listeners.values()
        if listener.direction == "egress"
    }


# --- Compose ------------------------------------------------------------------------------------

COMPOSE = (DEPLOY / "docker-compose.yaml").read_text(encoding="utf-8")
EXAMPLE = (DEPLOY / "example.env").read_text(encoding="utf-8")
MODEL = yaml.safe_load(COMPOSE)
SERVICES: dict[str, dict[str, Any]] = MODEL["services"]


def example_values() -> dict[str, str]:
    """What example.env sets, secrets filled in; the collector's address may stay empty."""
    pairs = re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE)
    return {name: value or ("" if name == "OTLP_ENDPOINT" else "secret") for name, value in pairs}


def interpolated(value: str) -> str:
    """A value as Compose makes it with the example's variables."""
    return re.sub(r"\$\{([A-Z_]+)(?::[?-][^}]*)?\}", lambda m: example_values()[m[1]], value)


def test_compose_follows_its_specification() -> None:
    """The schema of the Compose specification accepts it, anchors and merges resolved."""
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(MODEL, json.loads(schema.read_text(encoding="utf-8")))


def test_compose_takes_from_the_environment_what_the_example_has() -> None:
    """Every variable is in example.env, and every line of that is used; secrets have no default."""
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", COMPOSE))
    assert used == set(example_values())
    optional = {"API_KEY", "OTLP_ENDPOINT"}
    empty = set(re.findall(r"^([A-Z_]+)=$", EXAMPLE, re.MULTILINE))
    assert empty == {"REDIS_PASSWORD", "ADMIN_TOKEN", "GRAFANA_ADMIN_PASSWORD"} | optional
    for name in empty - optional:
        assert not re.search(rf"\$\{{{name}(?!:\?)", COMPOSE), name
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "/deploy/.env" in ignored


def test_compose_refers_to_nothing_that_is_missing() -> None:
    """Services depended on, networks, named volumes, and mounted files exist; none is left over."""
    volumes, networks = set(), set()
    for service in SERVICES.values():
        networks |= set(service["networks"])
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_dir(), source
                assert mount.endswith(":ro")
            else:
                volumes.add(source)
        for name, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "test" in SERVICES[name]["healthcheck"]
    assert volumes == set(MODEL["volumes"])
    assert networks == set(MODEL["networks"])
    assert (DEPLOY / SERVICES["proxy"]["build"]["context"] / "Dockerfile").is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_compose_services_have_only_the_rights_they_need(name: str) -> None:
    """Read-only root, no capabilities, no new privileges, limits, a check or the choice of none."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)
    assert service["healthcheck"].get("disable") or service["healthcheck"]["test"]
    image = interpolated(service["image"])
    assert ":" in image
    if not service["image"].startswith("$"):
        assert not image.endswith(":latest")


def test_compose_publishes_the_proxy_and_what_is_for_this_machine_alone() -> None:
    """Callers reach 8000, this machine Grafana, Jaeger and the admin API, nobody the app."""
    published = {
        interpolated(port): name
        for name, service in SERVICES.items()
        for port in service.get("ports", [])
    }
    assert published == {
        "8000:8000": "proxy",
        "127.0.0.1:9901:9901": "proxy",
        "127.0.0.1:3000:3000": "grafana",
        "127.0.0.1:16686:16686": "jaeger",
    }
    watched = {name for name, service in SERVICES.items() if "watch" in service["networks"]}
    assert watched == {"proxy", "prometheus", "grafana", "jaeger"}
    assert SERVICES["jaeger"]["profiles"] == ["traces"]  # only where it is asked for


def test_compose_environment_fits_the_ready_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's URLs name egress ports, each before the right service; all have one Redis."""
    ours = {k: interpolated(v) for k, v in SERVICES["proxy"]["environment"].items()}
    assert set(ours) <= set(re.findall(r"\$\{(\w+)", READY.read_text().replace("${NAME", "")))
    config = read_config(READY, monkeypatch, **ours)
    reached = egress_ports(config)
    for name in ("make-video", "make-video-worker"):
        theirs = {k: interpolated(v) for k, v in SERVICES[name]["environment"].items()}
        assert theirs["REDIS_URL"] == ours["REDIS_URL"]
        for variable, upstream in URLS.items():
            host, port = reached[upstream]
            assert host == "0.0.0.0"
            assert theirs[variable] == f"http://proxy:{port}"
    assert config.listeners["ingress"].bind.port == 8000
    assert config.admin.bind.port == 9901
    assert config.metrics is not None
    assert config.metrics.bind.port == 9464
    assert SERVICES["proxy"]["stop_grace_period"] == f"{config.drain_timeout + 5:g}s"


def test_prometheus_and_grafana_find_one_another() -> None:
    """Scrape target, data source, and dashboards are where the containers have them."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "reliability-proxy")
    assert job["dns_sd_configs"][0]["names"] == ["proxy"]
    assert job["dns_sd_configs"][0]["port"] == 9464
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "files.yaml").read_text())[
        "providers"
    ]
    mounts = SERVICES["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
    assert "--enable-feature=exemplar-storage" in SERVICES["prometheus"]["command"]


# --- Kubernetes ---------------------------------------------------------------------------------

MANIFESTS = (
    "namespace.yaml",
    "app.yaml",
    "worker.yaml",
    "network-policies.yaml",
    "disruption-budgets.yaml",
)
OBJECTS = [document for name in MANIFESTS for document in documents(BASE / name)]
PLACES = yaml.safe_load((BASE / "kustomization.yaml").read_text())


def objects(kind: str) -> Iterator[dict[str, Any]]:
    """Those of one kind."""
    return (thing for thing in OBJECTS if thing["kind"] == kind)


def workloads() -> dict[str, dict[str, Any]]:
    """StatefulSet and Deployment by name."""
    return {w["metadata"]["name"]: w for k in ("StatefulSet", "Deployment") for w in objects(k)}


def pod(name: str) -> dict[str, Any]:
    """The pod's specification in a workload."""
    return dict(workloads()[name]["spec"]["template"]["spec"])


@functools.cache
def places() -> dict[str, str]:
    """The literals of the ConfigMap `make-video-places`."""
    (entry,) = (e for e in PLACES["configMapGenerator"] if e["name"] == "make-video-places")
    return dict(literal.split("=", 1) for literal in entry["literals"])


def pod_config(name: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The proxy's config in a workload's pod, read with that pod's variables."""
    (proxy,) = pod(name)["initContainers"]
    (volume,) = (v for v in pod(name)["volumes"] if v["name"] == "config")
    (entry,) = (e for e in PLACES["configMapGenerator"] if e["name"] == volume["configMap"]["name"])
    file = entry["files"][0].removeprefix("config.yaml=")
    given = {item["name"]: item["value"] for item in proxy["env"] if "value" in item}
    secret = {"REDIS_URL": "redis://:secret@redis:6379/0"}
    return read_config(BASE / file, monkeypatch, **places(), **given, **secret)


@pytest.mark.parametrize("version", ["1.29", "1.33", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(
    "thing", OBJECTS, ids=lambda thing: f"{thing['kind']}-{thing['metadata']['name']}"
)
def test_manifests_are_what_kubernetes_expects(thing: dict[str, Any], version: str) -> None:
    """By its own schemas, unknown fields refused; 1.29 is the first with native sidecars."""
    kubernetes_validate.validate(thing, version, strict=True)


def test_generated_manifests_are_what_the_script_writes() -> None:
    """Config and rules are those of the repository; else: python deploy/kubernetes/generate.py."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import generate, json;"
        "print(json.dumps({str(p): f() for p, f in generate.FILES.items()}))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, DEPLOY / "kubernetes"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    for path, content in json.loads(done.stdout).items():
        assert Path(path).read_text(encoding="utf-8") == content, path


def test_kustomizations_name_every_file() -> None:
    """None is missing or forgotten but the ServiceMonitor, which is the other choice."""
    for folder, other in ((BASE, set()), (OPERATOR, {"service-monitor.yaml"})):
        content = yaml.safe_load((folder / "kustomization.yaml").read_text())
        named = {name for name in content["resources"] if name.endswith(".yaml")}
        for generator in content.get("configMapGenerator", []):
            named |= {entry.partition("=")[2] for entry in generator.get("files", [])}
        present = {file.name for file in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert present == named | other


@pytest.mark.parametrize("folder", [BASE, OPERATOR], ids=["base", "operator"])
def test_kustomize_builds(folder: Path) -> None:
    """What kustomize makes is valid too, and with the operator nothing is scraped twice."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    done = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for thing in yaml.safe_load_all(done.stdout):
        if "coreos" not in thing["apiVersion"]:
            kubernetes_validate.validate(thing, "1.29", strict=True)
        if thing["kind"] in ("StatefulSet", "Deployment"):
            template = thing["spec"]["template"]["metadata"]
            assert ("annotations" in template) == (folder == BASE)
            reference = template["labels"]["app.kubernetes.io/part-of"]
            assert reference == thing["metadata"]["namespace"] == "make-video"
    assert "includeTemplates:" not in (folder / "kustomization.yaml").read_text()  # kustomize 5


@pytest.mark.parametrize("name", ["make-video", "make-video-worker"])
def test_the_proxy_is_a_native_sidecar(name: str) -> None:
    """It starts before the app and ends after it; probes ask the port that needs no token."""
    (proxy,) = pod(name)["initContainers"]
    assert proxy["restartPolicy"] == "Always"
    paths = {probe: proxy[probe]["httpGet"] for probe in proxy if probe.endswith("Probe")}
    assert paths == {
        "startupProbe": {"path": "/readyz", "port": "metrics"},
        "readinessProbe": {"path": "/readyz", "port": "metrics"},
        "livenessProbe": {"path": "/livez", "port": "metrics"},
    }
    assert {"name": "metrics", "containerPort": 9464} in proxy["ports"]
    template = workloads()[name]["spec"]["template"]["metadata"]
    assert template["annotations"]["prometheus.io/port"] == "9464"


@pytest.mark.parametrize("name", ["make-video", "make-video-worker"])
def test_pods_keep_to_the_restricted_standard(name: str) -> None:
    """Pod Security Standard `restricted`; the proxy's root file system is read-only besides."""
    spec = pod(name)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in (*spec["initContainers"], *spec["containers"]):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]
    (proxy,) = spec["initContainers"]
    assert proxy["securityContext"]["readOnlyRootFilesystem"] is True
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert proxy["securityContext"]["runAsUser"] == int(user[1])
    (namespace,) = objects("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", ["make-video", "make-video-worker"])
def test_pods_refer_to_nothing_that_is_missing(name: str) -> None:
    """Mounts have volumes, volumes have claims or ConfigMaps, ports of probes have names."""
    spec = pod(name)
    claims = {c["metadata"]["name"] for c in objects("PersistentVolumeClaim")}
    own = {c["metadata"]["name"] for c in workloads()[name]["spec"].get("volumeClaimTemplates", [])}
    maps = {generator["name"] for generator in PLACES["configMapGenerator"]}
    for volume in spec["volumes"]:
        assert volume.get("configMap", {}).get("name") in maps | {None}
        assert volume.get("persistentVolumeClaim", {}).get("claimName") in claims | {None}
    volumes = {volume["name"] for volume in spec["volumes"]} | own
    mounted = set()
    for container in (*spec["initContainers"], *spec["containers"]):
        mounted |= {mount["name"] for mount in container["volumeMounts"]}
        for source in container.get("envFrom", []):
            assert source["configMapRef"]["name"] in maps
        for variable in container["env"]:
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            assert reference is None or reference["name"] == "make-video"
    assert mounted == volumes
    labels = workloads()[name]["spec"]["template"]["metadata"]["labels"]
    assert workloads()[name]["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_a_drained_node_takes_one_pod_of_each_at_a_time() -> None:
    """Every workload has a budget that selects its pods, and that lets a single replica go."""
    budgets = {
        budget["metadata"]["name"]: budget["spec"] for budget in objects("PodDisruptionBudget")
    }
    assert set(budgets) == set(workloads())
    for name, workload in workloads().items():
        assert budgets[name]["selector"] == workload["spec"]["selector"]
        assert budgets[name]["maxUnavailable"] == 1


def test_images_are_named_by_version() -> None:
    """Ours by the version of this repository, in Compose and for Kubernetes; none is `latest`."""
    tags = {image["name"]: image["newTag"] for image in PLACES["images"]}
    assert tags["reliability-proxy"] == proxy.__version__
    assert example_values()["PROXY_IMAGE"] == f"reliability-proxy:{proxy.__version__}"
    assert f"reliability-proxy:{proxy.__version__}" in SERVICES["proxy"]["image"]
    assert "latest" not in {*tags.values(), example_values()["MAKE_VIDEO_IMAGE"].partition(":")[2]}


def test_the_mirror_has_a_volume_of_its_own_in_every_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app's proxy has a mirror and a claim for each pod; the worker's has neither."""
    assert pod_config("make-video", monkeypatch).mirrors
    app = workloads()["make-video"]
    assert app["kind"] == "StatefulSet"
    (claim,) = app["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    (proxy,) = pod("make-video")["initContainers"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/data"} in proxy["volumeMounts"]
    assert not pod_config("make-video-worker", monkeypatch).mirrors


@pytest.mark.parametrize("name", ["make-video", "make-video-worker"])
def test_pods_call_their_microservices_through_the_proxy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By 127.0.0.1, on which the egress ports listen and which nobody else reaches."""
    config = pod_config(name, monkeypatch)
    (container,) = pod(name)["containers"]
    given = {item["name"]: item.get("value") for item in container["env"]}
    for variable, upstream in URLS.items():
        host, port = egress_ports(config)[upstream]
        assert host == "127.0.0.1"
        assert given[variable] == f"http://127.0.0.1:{port}"
        (target,) = config.upstreams[upstream].targets
        assert f"http://{target.host}:{target.port}" in places().values()
    assert config.admin.bind.host == "127.0.0.1"


def test_circuits_have_the_same_rules_in_both_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are shared through Redis, so what one trips on is what the other would."""
    ours = pod_config("make-video-worker", monkeypatch).upstreams
    theirs = pod_config("make-video", monkeypatch).upstreams
    assert set(ours) == set(URLS.values())
    for name, upstream in ours.items():
        assert upstream == theirs[name]


@pytest.mark.parametrize("name", ["make-video", "make-video-worker"])
def test_pods_wait_for_the_drain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grace period holds the pause before the app's end, that end, and the drain."""
    (container,) = pod(name)["containers"]
    pause = 0.0
    if "lifecycle" in container:
        _, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        pause = float(seconds)
    drain = pod_config(name, monkeypatch).drain_timeout
    assert pod(name)["terminationGracePeriodSeconds"] >= pause + 30 + drain


def test_services_lead_to_ports_that_are_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number, and to pods that exist."""
    config = pod_config("make-video", monkeypatch)
    assert config.metrics is not None
    open_ports = {config.listeners["ingress"].bind.port, config.metrics.bind.port}
    labels = workloads()["make-video"]["spec"]["template"]["metadata"]["labels"]
    for service in objects("Service"):
        assert service["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= open_ports
    headless = workloads()["make-video"]["spec"]["serviceName"]
    assert headless in {service["metadata"]["name"] for service in objects("Service")}


def test_network_policies_allow_what_the_configs_need_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In: callers' port and metrics, not the app's own. Out: names, Redis, the microservices."""
    config = pod_config("make-video", monkeypatch)
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in objects("NetworkPolicy")}
    assert policies["nothing-by-default"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }

    def ports(direction: str) -> set[int]:
        allowed = [rule for spec in policies.values() for rule in spec.get(direction, [])]
        return {port["port"] for rule in allowed for port in rule["ports"]}

    assert config.metrics is not None
    assert ports("ingress") == {config.listeners["ingress"].bind.port, config.metrics.bind.port}
    assert config.redis is not None
    targets = {config.upstreams[name].targets[0].port for name in URLS.values()}
    assert ports("egress") == {53, 6379} | targets
    for spec in policies.values():
        selected = spec["podSelector"].get("matchLabels", {})
        for workload in workloads().values():
            labels = workload["spec"]["template"]["metadata"]["labels"]
            if selected.items() <= labels.items():
                break
        else:
            pytest.fail(f"selects no pod: {selected}")


@pytest.mark.parametrize("file", ["pod-monitor.yaml", "service-monitor.yaml"])
def test_monitors_find_the_pods(file: str) -> None:
    """They select labels that exist, scrape a port that exists, and name the job as alerts do."""
    *others, monitor = documents(OPERATOR / file)
    spec = monitor["spec"]
    (endpoint,) = spec["podMetricsEndpoints" if monitor["kind"] == "PodMonitor" else "endpoints"]
    known = {"port", "path", "interval", "scrapeTimeout", "relabelings"}
    assert set(endpoint) == known
    jobs = [r["replacement"] for r in endpoint["relabelings"] if r["targetLabel"] == "job"]
    assert jobs == ["reliability-proxy"]
    wanted = spec["selector"]["matchLabels"].items()
    if monitor["kind"] == "PodMonitor":
        for workload in workloads().values():
            template = workload["spec"]["template"]
            assert wanted <= template["metadata"]["labels"].items()
            names = {port["name"] for port in template["spec"]["initContainers"][0]["ports"]}
            assert endpoint["port"] in names
    else:
        services = [*objects("Service"), *others]
        found = [s for s in services if wanted <= s["metadata"].get("labels", {}).items()]
        assert len(found) == len(workloads())
        for service in found:
            kubernetes_validate.validate(service, "1.29", strict=True)
            assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_prometheus_rule_has_all_rules() -> None:
    """Those that promtool has tried."""
    (rule,) = documents(OPERATOR / "prometheus-rule.yaml")
    assert rule["kind"] == "PrometheusRule"
    kept = [rule for group in rule["spec"]["groups"] for rule in group["rules"]]
    assert kept == list(rules())
