"""A rank's end of the line to the process that started it. Here only what starts fast: no torch.

A thread says twice a second that this process lives, and how far it has come; and ends the process as soon as it is
told to, whatever the others of its threads wait for: a rank whose partner is gone may wait for it for ever.
"""

import os
import select
import socket
import sys
import threading
import time
from typing import Final, NamedTuple, NoReturn

from headwater_engine.distributed.line import INTERVAL, Beat, Cause, End, Failed, Loaded, decode, encode

VARIABLE: Final = "HEADWATER_ENGINE_LIFELINE"
"""Has the number of a connected socket that this process has inherited."""
_LONGEST_WORDS: Final = 4000
_LAST_MOMENT: Final = 2.0
"""Seconds that a rank which has failed stays."""
_HARDLY_ANY: Final = 0.02
"""Seconds of CPU time between two beats. This thread takes some, too, and those that listen at sockets."""


class Done(NamedTuple):
    """What a process has done so far."""

    layers: int
    sums: int
    cpu: float


class Lifeline:
    def __init__(self, rank: int) -> None:
        """Takes over the socket; raises KeyError where there is none."""
        self._rank = rank
        self._socket = socket.socket(fileno=int(os.environ[VARIABLE]))
        self._socket.set_inheritable(False)  # it ends with this process, and no child may keep it
        self._lock = threading.Lock()
        self._layers = 0
        self.working = False
        """Whether this rank is within a step."""
        self._sums = 0
        self._adding = False
        self._serves = False
        self._done = Done(0, 0, 0.0)
        """Before the last beat."""

    def start(self) -> None:
        threading.Thread(target=self._live, name="lifeline", daemon=True).start()

    def beat(self) -> None:
        """A layer is done."""
        self._layers += 1

    def begin_sum(self) -> None:
        self._sums += 1
        self._adding = True

    def end_sum(self) -> None:
        self._adding = False

    def loaded(self) -> None:
        self._serves = True
        self._say(Loaded())

    def failed(self, message: str) -> None:
        """Say so, and give whoever watches a moment to tell why all end: perhaps another rank is gone."""
        self._say(Failed(f"Rank {self._rank}: {message[:_LONGEST_WORDS]}", Cause.FAILED))
        time.sleep(_LAST_MOMENT)

    def _say(self, message: Beat | Loaded | Failed) -> None:
        try:
            with self._lock:
                self._socket.sendall(encode(message) + b"\n")
        except OSError:
            self._end("the process that started it is gone")

    def _live(self) -> None:
        heard = b""
        while True:
            if select.select([self._socket], [], [], INTERVAL)[0]:
                received = self._socket.recv(4096)
                heard += received
                if not received:
                    self._end("the process that started it is gone")
                if isinstance(message := decode(heard.partition(b"\n")[0]), End):
                    self._end(message.message)
            self._say(Beat(self._layers, self.working, self._sums, self._stands_still()))

    def _stands_still(self) -> bool:
        """As `Beat.still`. While it loads it may wait for anything."""
        before, self._done = self._done, Done(self._layers, self._sums, time.process_time())
        idle = self._done[:2] == before[:2] and self._done.cpu - before.cpu < _HARDLY_ANY
        return idle and self._serves and not self._adding

    def _end(self, reason: str) -> NoReturn:
        if reason:
            sys.stderr.write(f"rank {self._rank} ends: {reason}\n")  # at once, with its end: others write there, too
            sys.stderr.flush()
        os._exit(1 if reason else 0)


def own_lifeline(rank: int) -> Lifeline | None:
    """Of this process, where whoever started it wants to hear of it."""
    return Lifeline(rank) if VARIABLE in os.environ else None
