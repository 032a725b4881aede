"""The manifests of examples/mariadb-operator.

Kinds of Kubernetes itself must fit its own schemas. For those of mariadb-operator and cert-manager, FIELDS has what the
manifests may use, and what the operator copies from a MariaDB into a pod must fit the schema of a pod. Kubernetes drops or
refuses a field that it does not know: here it is an error.
"""

import copy
import pathlib

import kubernetes_validate
import pytest
import yaml

KUBERNETES = "1.37"
MANIFESTS = pathlib.Path(__file__).parents[1] / "mariadb-operator"
FILES = sorted(path.name for path in MANIFESTS.glob("*.yaml"))

OF_POD = object()
# As in mariadb-operator 26.6.0 and cert-manager 1.21. A list has the type of its items.
FIELDS = {
    "k8s.mariadb.com/v1alpha1 MariaDB": {
        "args": OF_POD, "env": OF_POD, "image": OF_POD, "podSecurityContext": OF_POD,
        "rootPasswordSecretKeyRef": {"name": str, "key": str, "generate": bool},
        "securityContext": OF_POD, "serviceAccountName": OF_POD, "sidecarContainers": OF_POD, "startupProbe": OF_POD,
        "storage": {"size": str}, "volumeMounts": OF_POD, "volumes": OF_POD,
    },
    "cert-manager.io/v1 Issuer": {"selfSigned": {}, "ca": {"secretName": str}},
    "cert-manager.io/v1 Certificate": {
        "commonName": str, "dnsNames": [str], "duration": str, "isCA": bool, "issuerRef": {"name": str},
        "privateKey": {"algorithm": str, "size": int}, "secretName": str, "usages": [str],
    },
}
# The operator knows fewer fields of a sidecar than Kubernetes does of a container.
SIDECAR = {"args", "command", "env", "image", "imagePullPolicy", "name", "resources", "volumeMounts"}


def documents(name):
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def misfits(value, fields, path):
    """What of `value` does not fit `fields`."""
    if isinstance(fields, list) and isinstance(value, list):
        for item in value:
            yield from misfits(item, fields[0], f"{path}[]")
    elif isinstance(fields, dict) and isinstance(value, dict):
        for key in value:
            if key not in fields:
                yield f"{path}.{key} is unknown"
            else:
                yield from misfits(value[key], fields[key], f"{path}.{key}")
    elif fields is not OF_POD and type(value) is not fields:
        yield f"{path} is not a {getattr(fields, '__name__', type(fields).__name__)}"


def misfits_of_core(document):
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message[:200]}"


def pod_of(mariadb):
    """The pod that the operator makes."""
    spec = mariadb["spec"]
    of_container = ("args", "env", "image", "securityContext", "startupProbe", "volumeMounts")
    of_pod = ("serviceAccountName", "volumes")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": mariadb["metadata"],
        "spec": {
            "containers": [
                {"name": "mariadb", **{key: spec[key] for key in of_container if key in spec}},
                *spec.get("sidecarContainers", []),
            ],
            "securityContext": spec["podSecurityContext"],
            **{key: spec[key] for key in of_pod if key in spec},
        },
    }


def all_misfits(document):
    kind = f"{document['apiVersion']} {document['kind']}"
    if kind not in FIELDS:
        return list(misfits_of_core(document))
    metadata = {"name": str, "namespace": str}
    found = list(misfits(document, {"apiVersion": str, "kind": str, "metadata": metadata, "spec": FIELDS[kind]}, ""))
    if document["kind"] == "MariaDB":
        for sidecar in document["spec"].get("sidecarContainers", []):
            found += [f"a sidecar's {key} is unknown" for key in sidecar.keys() - SIDECAR]
        found += misfits_of_core(pod_of(document))
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_manifests_fit_the_schemas(name):
    assert [all_misfits(document) for document in documents(name)] == [[] for _ in documents(name)]


def objects(value):
    """Each object in a document, but free text and labels."""
    if isinstance(value, dict):
        yield value
        for key, item in value.items():
            if key not in ("data", "labels", "matchLabels", "selector"):
                yield from objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from objects(item)


@pytest.mark.parametrize("name", FILES)
def test_an_unknown_field_is_noticed_wherever_it_stands(name):
    for document in documents(name):
        for number in range(len(list(objects(document)))):
            broken = copy.deepcopy(document)
            list(objects(broken))[number]["unknown"] = 1
            assert all_misfits(broken), (document["kind"], list(objects(document))[number])


@pytest.mark.parametrize("name", FILES)
def test_each_volume_has_its_config_map_or_secret(name):
    made = {(it["kind"], it["metadata"]["name"]) for it in documents(name)}
    made |= {("Secret", it["spec"]["secretName"]) for it in documents(name) if it["kind"] == "Certificate"}
    wanted = set()
    for document in documents(name):
        for part in objects(document):
            for volume in part.get("volumes", []):
                if "configMap" in volume:
                    wanted.add(("ConfigMap", volume["configMap"]["name"]))
                else:
                    wanted.add(("Secret", volume["secret"]["secretName"]))
    assert wanted and wanted <= made
