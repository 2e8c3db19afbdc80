"""The example for Kubernetes asks for what the server has. No cluster is needed."""

import re

import pytest
import yaml

from musicgen_jax.commands import cli
from musicgen_jax.commands.serve import TOKEN_VARIABLE
from musicgen_jax.runtime import user_folders
from musicgen_jax.storage import hub
from tests.helpers.paths import ROOT

FOLDER = ROOT / "examples/kubernetes"
OBJECTS = {
    found["kind"]: found
    for found in yaml.safe_load_all((FOLDER / "musicgen-jax.yaml").read_text(encoding="utf-8"))
}
TEMPLATE = OBJECTS["Deployment"]["spec"]["template"]
POD = TEMPLATE["spec"]
(CONTAINER,) = POD["containers"]
ARGS = cli._parser().parse_args(CONTAINER["args"])


def variables() -> dict[str, dict]:
    return {each["name"]: each for each in CONTAINER["env"]}


def test_one_of_each():
    assert sorted(OBJECTS) == ["Deployment", "PersistentVolumeClaim", "Service"]


def test_the_options_are_those_of_serve():
    assert ARGS.command.prog == "musicgen-jax serve"
    assert ARGS.host == "0.0.0.0"
    assert ARGS.token is None, "a token among the arguments is in the list of processes"


def test_the_ports_are_one():
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == ARGS.port
    probes = [CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert {probe["port"] for probe in probes} == {port["name"]}
    assert OBJECTS["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert TEMPLATE["metadata"]["annotations"]["prometheus.io/port"] == str(ARGS.port)


def test_the_paths_exist_and_probes_need_no_token():
    pytest.importorskip("starlette")
    from musicgen_jax.serving.http import guard, openapi
    from musicgen_jax.serving.http.settings import Settings

    paths = openapi.document(Settings(model="nano"))["paths"]
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/health"
    for kind in ("startup", "liveness", "readiness"):
        path = CONTAINER[f"{kind}Probe"]["httpGet"]["path"]
        assert path in paths
        assert path in guard._OPEN
    assert TEMPLATE["metadata"]["annotations"]["prometheus.io/path"] in paths


def test_the_token_comes_from_a_secret():
    secret = variables()[TOKEN_VARIABLE]["valueFrom"]["secretKeyRef"]
    text = (FOLDER / "musicgen-jax.yaml").read_text(encoding="utf-8")
    made = f"kubectl create secret generic {secret['name']} --from-literal={secret['key']}="
    assert made in text


def test_models_and_programs_are_in_the_volume(monkeypatch):
    (mount,) = (each for each in CONTAINER["volumeMounts"] if each["name"] == "data")
    (volume,) = (each for each in POD["volumes"] if each["name"] == "data")
    claim = OBJECTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    for name in ("MUSICGEN_JAX_HOME", user_folders.VARIABLE):
        monkeypatch.setenv(name, variables()[name]["value"])
    for folder in (hub.models_home(), user_folders.compiled_programs()):
        assert str(folder).startswith(f"{mount['mountPath']}/")


def test_the_group_of_the_volume_is_the_users_own():
    """Otherwise the folder of compiled programs is refused: others could write to it."""
    context = POD["securityContext"]
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"]
    assert re.search(rf"^USER {context['runAsUser']}:", (ROOT / "Containerfile").read_text(), re.M)


def test_what_runs_may_finish():
    sleep, seconds = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert POD["terminationGracePeriodSeconds"] > int(seconds) + ARGS.max_duration
