"""The end of the control channel in every process but process 0."""

import asyncio
import dataclasses
import os
import socket
import time

import mean_jax
from mean_jax.errors import UserError
from mean_jax.job.channel import GRACE_S, LINGER_S, Channel, Note, Peer, read_message

_RETRY_S = 0.5
_CONNECT_S = 10.0  # for one attempt; the name may lead elsewhere the next time


class Member(Channel):
    """`join` says hello to process 0 until it answers; UserError if it does not, refuses, or is another program."""

    async def _join(self, timeout: float) -> None:
        settings = self.settings
        where = f"coordinator address {settings.coordinator_address} (from {settings.source})"
        deadline = time.monotonic() + timeout
        while True:
            try:
                connecting = asyncio.open_connection(settings.host, settings.port)
                reader, writer = await asyncio.wait_for(connecting, min(timeout, _CONNECT_S))
                try:
                    # A little longer than process 0 waits: it knows who is missing, and says so once for all.
                    greeting = self._greet(reader, writer, where)
                    if await asyncio.wait_for(greeting, deadline + 2 * GRACE_S - time.monotonic()):
                        self._start(self._listen(reader, writer))
                        self._start(self._watch())
                        return
                finally:
                    if not self.peers:
                        writer.close()
                fault = "the connection closed"
            except OSError as error:  # a timeout is one too
                fault = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error) or "no answer"
            if time.monotonic() + _RETRY_S > deadline:
                raise UserError(
                    f"{where}: process 0 does not answer there within {timeout:g} s ({fault}); start it, let this "
                    "machine reach it, or give a longer --connect_timeout"
                )
            await asyncio.sleep(_RETRY_S)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> bool:
        """Returns whether process 0 has welcomed this process, False if it hung up."""
        settings = self.settings
        Peer(settings.host, 0, writer).send(
            hello=settings.process_id,
            of=settings.num_processes,
            version=mean_jax.__version__,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        message = await read_message(reader)
        if message is None:
            return False
        if "end" in message:
            self._on_end(Note(**message["end"]), True)
            return False
        if "refused" in message:
            raise UserError(f"{where}: process 0 refuses process {settings.process_id}: {message['refused']}")
        if "welcome" not in message:
            raise UserError(f"{where}: another program answers there; choose another port for all processes")
        self.peers = {int(process): Peer(host, pid) for process, (host, pid) in message["welcome"].items()}
        self.peers[0].writer = writer
        self.jax_address = self.address_at(message["port"])
        return True

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hub = self.peers[0]
        while (message := await read_message(reader)) is not None:
            hub.heard = time.monotonic()
            if "go" in message:
                self._gate(message["go"]).set()
            elif "end" in message:
                self._is_leaving = True
                self._on_end(Note(**message["end"]), True)
        hub.writer = None
        writer.close()
        self._lose(0, "its connection closed")

    async def _barrier(self, name: str, timeout: float | None) -> None:
        self.peers[0].send(arrive=name)
        try:
            await asyncio.wait_for(self._gate(name).wait(), None if timeout is None else timeout + GRACE_S)
        except TimeoutError:
            raise UserError(f"not all processes reached '{name}' within {timeout:g} s") from None

    async def _end(self, note: Note) -> None:
        await self._be_first(note)
        if note.kind != "lost" and 0 in self.peers:
            self.peers[0].send(end=dataclasses.asdict(note))
            await asyncio.sleep(LINGER_S + 2 * GRACE_S)  # process 0 tells everyone, this process too
            note = dataclasses.replace(note, text=f"{self.describe(note.process)}: {note.text}")
        self._on_end(note, False)
