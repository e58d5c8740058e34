"""Process 0's end of the control channel: it calls the roll, counts arrivals, and tells all of the end."""

import asyncio
from collections.abc import Callable
import contextlib
import dataclasses
import os
import socket
import time

import mean_jax
from mean_jax.errors import UserError
from mean_jax.job.channel import GRACE_S, LINGER_S, Channel, Message, Note, Peer, read_message
from mean_jax.job.settings import JobSettings


def _names(processes: set[int]) -> str:
    return f"process{'es' if len(processes) > 1 else ''} {', '.join(map(str, sorted(processes)))}"


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on all addresses of this machine, on a loopback host on that alone."""
    if host == "localhost" or host.startswith("127."):
        return socket.create_server((host, port))
    if host == "::1":
        return socket.create_server((host, port), family=socket.AF_INET6)
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # the machine may know IPv6 and have no address of it
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _free_port(host: str) -> int:
    with _listen(host, 0) as listener:
        return int(listener.getsockname()[1])


class Hub(Channel):
    """The end of process 0; `join` awaits everyone's hello and raises UserError if the port is taken."""

    def __init__(self, settings: JobSettings, peer_timeout: float, on_end: Callable[[Note, bool], None]) -> None:
        super().__init__(settings, peer_timeout, on_end)
        self._server: asyncio.Server | None = None
        self._is_complete = asyncio.Event()
        self._arrived: dict[str, set[int]] = {}

    async def _join(self, timeout: float) -> None:
        settings = self.settings
        self.peers[0] = Peer(socket.gethostname(), os.getpid())
        try:
            listener = _listen(settings.host, settings.port)
        except OSError as error:
            raise UserError(
                f"coordinator address {settings.coordinator_address} (from {settings.source}): process 0 cannot "
                f"listen on this port ({os.strerror(error.errno or 0)}); choose another --coordinator_address"
            ) from None
        self._server = await asyncio.start_server(lambda *streams: self._start(self._serve(*streams)), sock=listener)
        try:
            await asyncio.wait_for(self._is_complete.wait(), timeout)
        except TimeoutError:
            missing = _names(set(range(settings.num_processes)) - self.peers.keys())
            raise UserError(
                f"{missing} of {settings.num_processes} (from {settings.source}) did not come to "
                f"{settings.coordinator_address} within {timeout:g} s; start all of them, let their machines reach "
                "this port, or give a longer --connect_timeout"
            ) from None
        port = _free_port(settings.host)
        self.jax_address = self.address_at(port)
        roll = {process: (peer.host, peer.pid) for process, peer in self.peers.items()}
        for peer in self.peers.values():
            peer.heard = time.monotonic()
            peer.send(welcome=roll, port=port)
        self._start(self._watch())

    def _refusal(self, hello: Message | None) -> str | None:
        """Returns why who said this does not belong to the job, None if it does."""
        if not hello or not isinstance(hello.get("hello"), int):
            return "it is not a process of mean-jax"
        process, num_processes = hello["hello"], self.settings.num_processes
        if hello.get("version") != mean_jax.__version__:
            return (
                f"it has mean-jax {hello.get('version')}, process 0 has {mean_jax.__version__}; "
                "install the same version everywhere"
            )
        if hello.get("of") != num_processes:
            return (
                f"it is one of {hello.get('of')} processes, process 0 one of {num_processes}; give all the same number"
            )
        if not 0 <= process < num_processes:
            return f"it is number {process}; processes are numbered from 0 to {num_processes - 1}"
        if process in self.peers:
            return f"{self.describe(process)} is there already; give every process its own --process_id"
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await read_message(reader)
        refusal = self._refusal(hello)
        if hello is None or refusal:
            Peer("", 0, writer).send(refused=refusal)
            writer.close()
            return
        process = hello["hello"]
        peer = self.peers[process] = Peer(str(hello.get("host")), int(hello.get("pid", 0)), writer)
        if len(self.peers) == self.settings.num_processes:
            self._is_complete.set()
        while (message := await read_message(reader)) is not None:
            peer.heard = time.monotonic()
            if "arrive" in message:
                self._arrive(process, message["arrive"])
            elif "end" in message:
                self._start(self._end(Note(**message["end"])))
        peer.writer = None
        writer.close()
        if not self._is_complete.is_set():
            del self.peers[process]  # it may come again
        else:
            self._lose(process, "its connection closed")

    def _arrive(self, process: int, name: str) -> None:
        arrived = self._arrived.setdefault(name, set())
        arrived.add(process)
        if len(arrived) == self.settings.num_processes:
            for peer in self.peers.values():
                peer.send(go=name)
            self._gate(name).set()

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
        await super()._shut()

    async def _barrier(self, name: str, timeout: float | None) -> None:
        self._arrive(0, name)
        try:
            await asyncio.wait_for(self._gate(name).wait(), timeout)
        except TimeoutError:
            missing = _names(self.peers.keys() - self._arrived[name])
            raise UserError(f"{missing} did not reach '{name}' within {timeout:g} s; see what they last said") from None

    async def _end(self, note: Note) -> None:
        if note.kind == "error" and note.process != 0:
            await asyncio.sleep(GRACE_S)
        await self._be_first(note)
        if note.process != 0 and note.kind != "lost":
            note = dataclasses.replace(note, text=f"{self.describe(note.process)}: {note.text}")
        for peer in self.peers.values():
            peer.send(end=dataclasses.asdict(note))
        deadline = time.monotonic() + LINGER_S
        while time.monotonic() < deadline and any(
            peer.writer is not None and not peer.is_lost for peer in self.peers.values()
        ):
            await asyncio.sleep(0.02)
        self._on_end(note, False)
