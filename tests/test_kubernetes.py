"""The manifests against the schemas of Kubernetes, the commands' flags and what mean-jax reads; the entry point run."""

import functools
import importlib
from pathlib import Path
import re
import signal
import subprocess
import time

import kubernetes_validate
import pytest
import yaml

from mean_jax.distributed import JobFlags, JobSettings, find_settings

FOLDER = Path(__file__).parents[1] / "launch" / "kubernetes"
MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml"))
JOBSETS = ("train.yaml", "train-tpu.yaml")
WORKLOADS = (*JOBSETS, "evaluate.yaml", "score.yaml")
# The oldest version that the manifests say they need, and the newest whose schemas are at hand.
VERSIONS = ("1.31.0", kubernetes_validate.latest_version())
# Fields of a JobSet that the manifests use, from its definition in JobSet 0.7 to 0.12; anything else is a mistake.
JOBSET_FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"coordinator", "network", "failurePolicy", "replicatedJobs"},
    "spec.coordinator": {"replicatedJob", "jobIndex", "podIndex"},
    "spec.network": {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"},
    "spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "spec.failurePolicy.rules": {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"},
    "spec.replicatedJobs": {"name", "replicas", "template"},
}
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # DNS-1035, the narrower of what the two APIs ask for


@functools.cache
def load(name):
    (manifest,) = yaml.safe_load_all((FOLDER / name).read_text())
    return manifest


def job_of(name):
    """Returns the Job of a manifest, or that of its JobSet."""
    manifest = load(name)
    if manifest["kind"] == "Job":
        return manifest
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1  # so that a pod's index is that of its process
    metadata = {"name": f"{manifest['metadata']['name']}-{replicated['name']}-0"}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, **replicated["template"]}


def pod_of(name):
    return job_of(name)["spec"]["template"]["spec"]


def container_of(name):
    (container,) = pod_of(name)["containers"]
    return container


def pod_environment(name, index):
    """Returns the variables that the cluster would give to a pod."""
    job, environ = job_of(name)["spec"], {}
    if job.get("completionMode") == "Indexed":
        environ["JOB_COMPLETION_INDEX"] = str(index)
    annotations = {}
    if "coordinator" in load(name)["spec"]:
        first = f"{load(name)['metadata']['name']}-{load(name)['spec']['coordinator']['replicatedJob']}-0-0"
        annotations["jobset.sigs.k8s.io/coordinator"] = f"{first}.{load(name)['metadata']['name']}"
    for item in container_of(name).get("env", []):
        if "value" in item:
            environ[item["name"]] = re.sub(r"\$\((\w+)\)", lambda match: environ[match[1]], item["value"])
        else:
            path = item["valueFrom"]["fieldRef"]["fieldPath"]
            environ[item["name"]] = annotations[re.fullmatch(r"metadata\.annotations\['(.*)'\]", path)[1]]
    return environ


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_follow_the_schemas(name, version):
    manifest = job_of(name) if name in JOBSETS else load(name)
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_refuse_an_unknown_field():
    manifest = load("score.yaml")
    manifest = {**manifest, "spec": {**manifest["spec"], "backofLimit": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


def check_fields(value, path=""):
    if isinstance(value, list):
        for item in value:
            check_fields(item, path)
    elif path in JOBSET_FIELDS:
        assert set(value) <= JOBSET_FIELDS[path], path
        for key, item in value.items():
            check_fields(item, f"{path}.{key}".lstrip("."))


@pytest.mark.parametrize("name", JOBSETS)
def test_jobsets(name):
    jobset = load(name)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    check_fields(jobset)
    policy = jobset["spec"]["failurePolicy"]
    assert policy["restartStrategy"] == "BlockingRecreate" and policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job = job_of(name)["spec"]
    # Another pod in the place of a lost one could not join; JobSet starts all of them again.
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    # Names of pods become host names: <job>-<index>.
    assert DNS_LABEL.fullmatch(f"{job_of(name)['metadata']['name']}-{job['completions'] - 1}")


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads(name):
    pod, container = pod_of(name), container_of(name)
    assert DNS_LABEL.fullmatch(load(name)["metadata"]["name"]) and DNS_LABEL.fullmatch(container["name"])
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    rule = job_of(name)["spec"]["podFailurePolicy"]["rules"][0]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [1, 2]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    claim = load("volume.yaml")["metadata"]["name"]
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim
    mounted = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "data")
    paths = [argument.partition("=")[2] for argument in container["args"] if "=/" in argument]
    assert len(paths) >= 2 and all(path.startswith(f"{mounted}/") for path in paths)
    resources = container["resources"]
    accelerators = {key for key in resources["limits"] if "/" in key}
    assert len(accelerators) == 1 and resources["limits"]["memory"] == resources["requests"]["memory"]


@pytest.mark.parametrize("name", WORKLOADS)
def test_commands_know_their_flags(name):
    command, *arguments = container_of(name)["args"]
    flags = importlib.import_module(f"mean_jax.cli.{command.removeprefix('mean-jax-')}")._FLAGS
    flags.unparse_flags()
    flags([command, *arguments])  # raises for an unknown flag, a wrong value, or a required flag that is missing


def test_processes_find_each_other():
    count = job_of("train.yaml")["spec"]["completions"]
    for index in range(count):
        settings = find_settings(JobFlags(), pod_environment("train.yaml", index))
        address = "mean-jax-train-workers-0-0.mean-jax-train:9911"
        assert settings == JobSettings(address, count, index, settings.source)


def test_tpu_pods_leave_it_to_the_discovery_of_jax():
    environ = pod_environment("train-tpu.yaml", 1)
    assert environ == {"JOB_COMPLETION_INDEX": "1"}
    assert find_settings(JobFlags(), environ | {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}) is None
    topology = pod_of("train-tpu.yaml")["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    chips = container_of("train-tpu.yaml")["resources"]["limits"]["google.com/tpu"]
    assert rows * columns == chips * job_of("train-tpu.yaml")["spec"]["completions"]


@pytest.mark.parametrize("name", ["evaluate.yaml", "score.yaml"])
def test_jobs_of_one_process(name):
    assert find_settings(JobFlags(), pod_environment(name, 0)) is None


def test_image_copies_what_it_installs():
    text = (FOLDER / "Dockerfile").read_text()
    root = FOLDER.parents[1]
    sources = [word for line in re.findall(r"^COPY (?:--\S+ )?(.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert {"mean_jax", "configs", "pyproject.toml", "README.md", "LICENSE"} < set(sources)
    assert all((root / source).exists() for source in sources)
    assert 'ENTRYPOINT ["/usr/local/bin/entrypoint"]' in text and "USER 1000" in text
    for name in WORKLOADS:
        assert "command" not in container_of(name)  # it would replace the entry point


def start(folder, body, *arguments, index=None):
    """Starts the entry point with a command of the test's in place of mean-jax-train."""
    command = folder / "mean-jax-train"
    command.write_text(f"#!/usr/bin/env bash\n{body}\n")
    command.chmod(0o755)
    environ = {"PATH": f"{folder}:/usr/bin:/bin"} | ({} if index is None else {"JOB_COMPLETION_INDEX": index})
    script = ["bash", FOLDER / "entrypoint.sh", "mean-jax-train", *arguments]
    return subprocess.Popen(script, env=environ, cwd=folder, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("body", "index", "code"),
    [
        ("touch run.json", None, 0),
        ("true", None, 143),  # stopped, and more to do
        ("true", "0", 143),
        ("true", "1", 0),  # pod 0 speaks for all
        ("exit 2", None, 2),
        ("exit 75", "1", 75),
        ("kill -KILL $$", None, 137),
    ],
)
def test_entrypoint_exit_codes(tmp_path, body, index, code):
    process = start(tmp_path, body, "--config=mean", "--workdir=.", index=index)
    process.communicate(timeout=10)
    assert process.returncode == code


def test_entrypoint_hands_sigterm_on_and_waits(tmp_path):
    body = "trap 'sleep 0.3; touch saved; exit 0' TERM; echo started; while true; do sleep 0.05; done"
    process = start(tmp_path, body, "--workdir=.")
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # an impatient second one changes nothing here
    process.communicate(timeout=10)
    assert process.returncode == 143 and (tmp_path / "saved").exists()


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.004, 0.006, 0.01, 0.02])
def test_entrypoint_told_to_stop_at_once_leaves_nothing_behind(tmp_path, delay):
    """The end of the command's output shows that it has ended too."""
    process = start(tmp_path, "while true; do sleep 0.05; done", "--workdir=.")
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode in (-signal.SIGTERM, 143)


def test_scripts_parse():
    for script in (*FOLDER.glob("*.sh"), *(FOLDER.parent / "slurm").iterdir()):
        subprocess.run(["bash", "-n", script], check=True)
