"""Settings of a job from flags, MEAN_JAX_*, Kubernetes, SLURM and Open MPI; half a job is refused."""

import pytest

from mean_jax.errors import UserError
from mean_jax.job.settings import JobFlags, JobSettings, find_settings, first_host

OURS = {
    "MEAN_JAX_COORDINATOR_ADDRESS": "node1:9911",
    "MEAN_JAX_NUM_PROCESSES": "4",
    "MEAN_JAX_PROCESS_ID": "3",
}
KUBERNETES = {
    "MEAN_JAX_COORDINATOR_ADDRESS": "train-0.train:9911",
    "MEAN_JAX_NUM_PROCESSES": "2",
    "JOB_COMPLETION_INDEX": "1",
}
SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_ID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_JOB_NODELIST": "gpu[001-004]",
    "SLURM_STEP_NODELIST": "gpu[002-003]",
}
SLURM_PORT = 61440 + (4100 + 97) % 4096
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
OPEN_MPI_PORT = 61440 + (1531576320 >> 12) % 4096


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        (JobFlags(), {}, None),
        (JobFlags("a:1", 3, 2), {}, JobSettings("a:1", 3, 2, "flags")),
        (JobFlags("[fe80::1]:9", 2, 0), {}, JobSettings("[fe80::1]:9", 2, 0, "flags")),
        (JobFlags(), OURS, JobSettings("node1:9911", 4, 3, "MEAN_JAX_*")),
        (JobFlags(process_id=1), OURS, JobSettings("node1:9911", 4, 1, "flags")),
        (JobFlags("a:1", 2, 0), OURS, JobSettings("a:1", 2, 0, "flags")),
        (JobFlags(), KUBERNETES, JobSettings("train-0.train:9911", 2, 1, "MEAN_JAX_*")),
        (JobFlags(), KUBERNETES | {"MEAN_JAX_PROCESS_ID": "0"}, JobSettings("train-0.train:9911", 2, 0, "MEAN_JAX_*")),
        (JobFlags(), SLURM, JobSettings(f"gpu002:{SLURM_PORT}", 2, 1, "SLURM")),
        (JobFlags("ib0:77"), SLURM, JobSettings("ib0:77", 2, 1, "flags")),
        (JobFlags("ib0:77", 2, 1), SLURM, JobSettings("ib0:77", 2, 1, "flags")),
        (JobFlags(), OPEN_MPI, JobSettings(f"10.96.0.1:{OPEN_MPI_PORT}", 2, 1, "Open MPI")),
        (JobFlags(), OPEN_MPI | SLURM, JobSettings(f"10.96.0.1:{OPEN_MPI_PORT}", 2, 1, "Open MPI")),
        (
            JobFlags(),
            OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "8192.0;tcp6://[fe80::b9b,2620::2]:43370"},
            JobSettings("[fe80::b9b]:61442", 2, 1, "Open MPI"),
        ),
        (
            JobFlags(),
            without(OPEN_MPI, "OMPI_MCA_orte_hnp_uri") | {"PMIX_NAMESPACE": "prterun-gpu-7-4097@1"},
            JobSettings("gpu-7:61441", 2, 1, "Open MPI"),
        ),
        (
            JobFlags(),
            without(OPEN_MPI, "OMPI_MCA_orte_hnp_uri") | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            JobSettings("127.0.0.1:61440", 2, 1, "Open MPI"),
        ),
        (
            JobFlags("a:1"),
            without(OPEN_MPI, "OMPI_MCA_orte_hnp_uri"),
            JobSettings("a:1", 2, 1, "flags"),
        ),
        # One process, whoever says so.
        (JobFlags(), SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        (JobFlags(num_processes=1), SLURM, None),
        (JobFlags(num_processes=1), {"SLURM_NTASKS": "8"}, None),
        (JobFlags(), {"MEAN_JAX_NUM_PROCESSES": "1", "JOB_COMPLETION_INDEX": "5"}, None),
        (JobFlags(), {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        (JobFlags(), {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NUM_NODES": "1"}, None),
        # TPU pods: JAX's own discovery follows.
        (JobFlags(), {"JOB_COMPLETION_INDEX": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, None),
    ],
)
def test_sources(flags, environ, expected):
    assert find_settings(flags, environ) == expected


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        (JobFlags("a:1"), {}, ["--coordinator_address is given", "--num_processes", "--process_id"]),
        (JobFlags("a:1", 2), {}, ["not --process_id (or MEAN_JAX_PROCESS_ID)"]),
        (JobFlags(process_id=1), {}, ["--process_id is given", "--coordinator_address", "--num_processes"]),
        (JobFlags(), without(OURS, "MEAN_JAX_NUM_PROCESSES"), ["--num_processes (or MEAN_JAX_NUM_PROCESSES)"]),
        (JobFlags(), OURS | {"MEAN_JAX_NUM_PROCESSES": ""}, ["--num_processes (or MEAN_JAX_NUM_PROCESSES)"]),
        (JobFlags(), OURS | {"MEAN_JAX_NUM_PROCESSES": "two"}, ["MEAN_JAX_NUM_PROCESSES=two", "whole number"]),
        (JobFlags(), OURS | {"MEAN_JAX_NUM_PROCESSES": "0"}, ["MEAN_JAX_NUM_PROCESSES=0", "at least 1"]),
        (JobFlags(), OURS | {"MEAN_JAX_PROCESS_ID": "-1"}, ["MEAN_JAX_PROCESS_ID=-1"]),
        (JobFlags(), OURS | {"MEAN_JAX_PROCESS_ID": "4"}, ["MEAN_JAX_PROCESS_ID=4", "from 0 to 3"]),
        (JobFlags("a:1", 2, 2), {}, ["--process_id=2", "--num_processes=2"]),
        (JobFlags(num_processes=1, process_id=1), {}, ["--process_id=1", "--num_processes=1"]),
        (JobFlags("node1", 2, 0), {}, ["--coordinator_address=node1", "HOST:PORT"]),
        (JobFlags("node1:x", 2, 0), {}, ["HOST:PORT"]),
        (JobFlags("node1:0", 2, 0), {}, ["HOST:PORT"]),
        (JobFlags("node1:70000", 2, 0), {}, ["HOST:PORT"]),
        (JobFlags(":80", 2, 0), {}, ["HOST:PORT"]),
        (JobFlags("fe80::1:80", 2, 0), {}, ["HOST:PORT"]),
        (JobFlags("http://a:80", 2, 0), {}, ["HOST:PORT"]),
        (JobFlags(), {"JOB_COMPLETION_INDEX": "0"}, ["JOB_COMPLETION_INDEX", "MEAN_JAX_NUM_PROCESSES"]),
        (JobFlags(), without(KUBERNETES, "MEAN_JAX_NUM_PROCESSES"), ["MEAN_JAX_NUM_PROCESSES"]),
        (
            JobFlags(),
            KUBERNETES | {"JOB_COMPLETION_INDEX": "2"},
            ["JOB_COMPLETION_INDEX=2", "MEAN_JAX_NUM_PROCESSES=2"],
        ),
        (JobFlags(), {"SLURM_NTASKS": "2"}, ["SLURM_NTASKS=2", "srun", "--num_processes=1"]),
        (JobFlags(), {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, ["SLURM_NTASKS=2", "srun"]),  # a batch script
        (JobFlags(), {"SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": "0"}, ["SLURM_JOB_NUM_NODES=2", "srun"]),
        (JobFlags(), without(SLURM, "SLURM_PROCID"), ["SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID is not set"]),
        (JobFlags(), without(SLURM, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ["SLURM_STEP_NUM_TASKS or SLURM_NTASKS"]),
        (JobFlags(), SLURM | {"SLURM_PROCID": "2"}, ["SLURM_PROCID=2", "SLURM_STEP_NUM_TASKS=2"]),
        (JobFlags(), SLURM | {"SLURM_PROCID": "x"}, ["SLURM_PROCID=x"]),
        (JobFlags(), without(SLURM, "SLURM_JOB_ID"), ["SLURM_JOB_ID"]),
        (JobFlags(num_processes=3), SLURM, ["--num_processes=3 contradicts SLURM", "says 2"]),
        (JobFlags(), SLURM | OURS, ["MEAN_JAX_NUM_PROCESSES=4 contradicts SLURM"]),
        (JobFlags("a:1", 2, 0), SLURM, ["--process_id=0 contradicts SLURM", "says 1"]),
        (JobFlags(), without(OPEN_MPI, "OMPI_COMM_WORLD_RANK"), ["OMPI_COMM_WORLD_RANK is not set"]),
        (JobFlags(), without(OPEN_MPI, "OMPI_COMM_WORLD_SIZE"), ["OMPI_COMM_WORLD_SIZE is not set"]),
        (JobFlags(), without(OPEN_MPI, "OMPI_MCA_orte_hnp_uri"), ["-x MEAN_JAX_COORDINATOR_ADDRESS"]),
        (JobFlags(), {"PMI_SIZE": "4", "PMI_RANK": "0"}, ["PMI_SIZE=4", "--coordinator_address"]),
    ],
)
def test_half_or_contradictory_settings_are_refused(flags, environ, words):
    with pytest.raises(UserError) as caught:
        find_settings(flags, environ)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[001-0015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("rack[0-1]node[3,7],login", "rack0node3"),
        ("a-b[09]", "a-b09"),
    ],
)
def test_first_host(nodes, expected):
    assert first_host(nodes) == expected


@pytest.mark.parametrize(("address", "host", "port"), [("a.b:1", "a.b", 1), ("[fe80::1]:9911", "fe80::1", 9911)])
def test_host_and_port(address, host, port):
    settings = JobSettings(address, 2, 0, "flags")
    assert (settings.host, settings.port) == (host, port)


def test_two_steps_of_one_slurm_job_do_not_share_a_port():
    first, second = (find_settings(JobFlags(), SLURM | {"SLURM_STEP_ID": step}) for step in ("0", "1"))
    assert first.port != second.port
