"""The control channel by itself: roll call, barriers, ends and losses, without JAX."""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import mean_jax
from mean_jax.errors import UserError
from mean_jax.job.channel import EXIT_PEER_LOST, Note
from mean_jax.job.hub import Hub
from mean_jax.job.member import Member
from mean_jax.job.settings import JobSettings

# A member that joins, says so and waits; an end is printed as JSON and ends it.
MEMBER = """
import dataclasses, json, os, sys, time
from mean_jax.job.member import Member
from mean_jax.job.settings import JobSettings

def on_end(note, is_said):
    print(json.dumps(dataclasses.asdict(note)), flush=True)
    os._exit(note.exit_code)

member = Member(JobSettings(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), "test"), float(sys.argv[4]), on_end)
member.join(20)
print("joined", flush=True)
time.sleep(60)
"""


class End:
    """One process's end of a channel, in this process, and what it was told."""

    def __init__(self, port, num_processes, process, peer_timeout=20.0):
        self.notes = []
        self.is_closed = False
        self.told = threading.Event()
        settings = JobSettings(f"127.0.0.1:{port}", num_processes, process, "test")
        self.channel = (Hub if process == 0 else Member)(settings, peer_timeout, self._on_end)

    def _on_end(self, note, is_said):
        self.notes.append((note, is_said))
        self.told.set()

    def end(self, note):
        """Begins an end, and does not wait for its end."""

        def call():
            with contextlib.suppress(concurrent.futures.CancelledError):
                self.channel.end(note)

        threading.Thread(target=call).start()

    def close(self):
        if not self.is_closed:
            self.is_closed = True
            self.channel.close()

    def wait(self, seconds=10):
        assert self.told.wait(seconds)
        return self.notes[0]


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def ends(port):
    """Returns a function (N, peer timeout) -> N ends, not yet joined; all are closed afterwards."""
    made = []

    def make(num_processes, peer_timeout=20.0, processes=None):
        made.extend(End(port, num_processes, p, peer_timeout) for p in processes or range(num_processes))
        return made

    yield make
    for end in made:
        end.close()


def in_threads(*functions):
    """Calls all at the same time; returns what each returned or raised."""
    results = [None] * len(functions)

    def call(index):
        try:
            results[index] = functions[index]()
        except UserError as error:
            results[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def join_all(ends, timeout=10):
    return in_threads(*(lambda end=end: end.channel.join(timeout) for end in ends))


def test_all_learn_who_is_there_and_where_jax_meets(ends):
    job = ends(3)
    assert join_all(job) == [None, None, None]
    addresses = {end.channel.jax_address for end in job}
    assert len(addresses) == 1
    assert addresses != {job[0].channel.settings.coordinator_address}
    for end in job:
        assert end.channel.describe(2) == f"process 2 on {socket.gethostname()} (pid {os.getpid()})"


def test_a_barrier_opens_when_all_are_there(ends):
    job = ends(2)
    join_all(job)
    order = []

    def late():
        time.sleep(0.3)
        order.append("late")
        job[1].channel.barrier("a")

    in_threads(lambda: (job[0].channel.barrier("a"), order.append("passed")), late)
    assert order == ["late", "passed"]


def test_a_barrier_names_who_did_not_come(ends):
    job = ends(3)
    join_all(job)
    hub, member, _ = in_threads(
        lambda: job[0].channel.barrier("saved", 0.2), lambda: job[1].channel.barrier("saved", 0.2), lambda: None
    )
    assert "process 2 did not reach 'saved' within 0.2 s" in str(hub)
    assert "not all processes reached 'saved'" in str(member)


def test_the_missing_are_named_by_process_0_and_the_others_told(ends):
    hub, member = ends(4, processes=(0, 2))

    def join_hub():
        try:
            hub.channel.join(1.0)
        except UserError as error:
            hub.channel.end(Note(0, "error", 2, str(error)))  # as the commands do
            return str(error)

    error, _ = in_threads(join_hub, lambda: member.channel.join(1.0))
    assert error.startswith("processes 1, 3 of 4 (from test) did not come to 127.0.0.1:")
    assert "within 1 s" in error
    assert member.notes == [(Note(0, "error", 2, error), True)]


def test_a_taken_port_is_named(ends, port):
    (hub,) = ends(2, processes=(0,))
    with socket.create_server(("127.0.0.1", port)), pytest.raises(UserError, match=f"127.0.0.1:{port}.*cannot listen"):
        hub.channel.join(1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "process 0 does not answer there within 1 s"),
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", "another program answers there"),
    ],
)
def test_an_address_without_process_0(ends, port, answer, words):
    (member,) = ends(2, processes=(1,))

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    if answer is None:
        with pytest.raises(UserError, match=words):
            member.channel.join(1)
    else:
        with socket.create_server(("127.0.0.1", port)) as listener:
            thread = threading.Thread(target=serve, args=(listener,))
            thread.start()
            with pytest.raises(UserError, match=words):
                member.channel.join(1)
            thread.join()


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "not a process of mean-jax"),
        (b'{"hello": 1, "of": 2, "version": "0"}\n', "install the same version"),
        (b'{"hello": 1, "of": 3, "version": "VERSION"}\n', "one of 3 processes, process 0 one of 2"),
        (b'{"hello": 0, "of": 2, "version": "VERSION"}\n', "process 0 on .* is there already"),
        (b'{"hello": 7, "of": 2, "version": "VERSION"}\n', "numbered from 0 to 1"),
        (b"x" * 200_000 + b"\n", "not a process of mean-jax"),
    ],
)
def test_process_0_refuses_strangers_and_goes_on(ends, port, hello, words):
    hub, member = ends(2)

    def stranger():
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        with connection, connection.makefile("rb") as lines:
            connection.sendall(hello.replace(b"VERSION", mean_jax.__version__.encode()))
            refused = json.loads(lines.readline())["refused"]
        member.channel.join(10)
        return refused

    joined, refused = in_threads(lambda: hub.channel.join(10), stranger)
    assert joined is None
    assert re.search(words, refused)


def test_a_mistake_is_told_to_all_and_said_once(ends):
    job = ends(3)
    join_all(job)
    job[1].end(Note(1, "error", 2, "--data: missing"))
    for end in job[1:]:
        note, is_said = end.wait()
        assert is_said
        assert (note.process, note.kind, note.exit_code) == (1, "error", 2)
        end.close()
    note, is_said = job[0].wait()
    assert not is_said
    assert note.text == f"process 1 on {socket.gethostname()} (pid {os.getpid()}): --data: missing"


def test_the_same_mistake_is_said_by_process_0(ends):
    job = ends(2)
    join_all(job)
    for process, end in reversed(list(enumerate(job))):
        end.end(Note(process, "error", 2, "--data: missing"))
        time.sleep(0.1)
    job[1].wait()
    job[1].close()
    assert job[0].wait() == (Note(0, "error", 2, "--data: missing"), False)
    assert job[1].notes == [(Note(0, "error", 2, "--data: missing"), True)]


@pytest.mark.parametrize(
    ("number", "peer_timeout", "why"),
    [(signal.SIGKILL, 60.0, "its connection closed"), (signal.SIGSTOP, 3.0, "no sign of life for")],
)
def test_a_killed_or_stopped_process_is_named_by_all(ends, port, number, peer_timeout, why):
    (hub,) = ends(3, peer_timeout, processes=(0,))
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, f"127.0.0.1:{port}", "3", str(process), str(peer_timeout)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in (1, 2)
    ]
    try:
        hub.channel.join(20)
        for member in members:
            assert member.stdout.readline() == "joined\n"
        members[0].send_signal(number)
        started = time.monotonic()
        note, _ = hub.wait()
        assert time.monotonic() - started < peer_timeout + 1
        told = Note(**json.loads(members[1].stdout.readline()))
        assert members[1].wait(5) == EXIT_PEER_LOST
    finally:
        for member in members:
            member.kill()
            member.communicate()
    assert told == note
    assert (note.process, note.kind, note.exit_code) == (1, "lost", EXIT_PEER_LOST)
    assert note.text.startswith(f"process 1 on {socket.gethostname()} (pid {members[0].pid}) was lost: {why}")
    assert "run the same command again" in note.text


def test_a_member_names_process_0(ends):
    hub, member = ends(2)
    join_all([hub, member])
    hub.channel.leave()  # for its part; the member does not know of it
    hub.close()
    note, is_said = member.wait()
    assert (note.process, note.kind, note.exit_code, is_said) == (0, "lost", EXIT_PEER_LOST, False)
    assert f"process 0 on {socket.gethostname()} (pid {os.getpid()}) was lost: its connection closed" in note.text


def test_closing_after_leaving_is_no_loss(ends):
    job = ends(2)
    join_all(job)
    for end in job:
        end.channel.leave()
    job[0].close()
    time.sleep(0.2)
    assert [end.notes for end in job] == [[], []]
