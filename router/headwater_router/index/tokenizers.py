"""The tokenizers of models, on threads of their own, for as long as they say what the engines say.

Rendering and tokenizing a long prompt takes longer than all the rest of a decision, so it is done aside: a request
waits for it, and others go on meanwhile. Where too much waits already, a prompt is matched by its text.

A tokenizer that is not the engine's would match prompts against blocks that hold something else, and nobody would
notice but for a cache that does not help. So its word is held against theirs: what it counts against the prompt tokens
in the usage of each answer, and its ids against the engine's own (`endpoints.parity`). One that is wrong is not used
any more, which the log, a metric and the admin API say, until it is found to be right again.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import structlog

log = structlog.get_logger(__name__)

_THREADS: Final = 4
_MOST_WAITING: Final = 16 << 20
"""Bytes of JSON that are being read, or wait for it."""
_MOST_WRONG: Final = 8
"""Answers in a row whose usage has another number of prompt tokens."""

_Made = TypeVar("_Made")


class Tokenizer(Protocol):
    """What `index.tokenizer` gives, array("I") or list; None where it cannot say, as for images."""

    def chat(self, body: Mapping[str, Any]) -> Any: ...

    def completion(self, body: Mapping[str, Any]) -> Any: ...


@dataclass(slots=True)
class _Model:
    tokenizer: Tokenizer | None
    """None while it is loaded, and where there is none."""
    wrong: int = 0
    distrust: str = ""
    """Why it is not used. Empty: it is."""


class Tokenizers:
    """All methods are for one thread."""

    def __init__(
        self,
        by_model: Mapping[str, Tokenizer] | None = None,
        *,
        folder: Path | None = None,
        load: Callable[[Path], Tokenizer] | None = None,
    ) -> None:
        """`folder`: has one for each further model, by its name, which `load` reads when the model is asked for."""
        self._models = {name: _Model(tokenizer) for name, tokenizer in (by_model or {}).items()}
        self._folder = folder
        self._load = load
        self._threads = ThreadPoolExecutor(_THREADS, "tokenizer")
        self._waiting = 0
        self._loading: set[asyncio.Task[None]] = set()
        self.busy = 0
        """Prompts that were matched by their text because too many waited."""

    def of(self, model: str) -> Tokenizer | None:
        """To be used for its prompts now. `model`: one that is served, by its own name."""
        known = self._models.get(model)
        if known is None:
            known = self._models[model] = _Model(None)
            if self._folder is not None and self._load is not None and _is_name(model):
                task = asyncio.ensure_future(self._read(known, self._load, self._folder / model))
                self._loading.add(task)
                task.add_done_callback(self._loading.discard)
        return None if known.distrust else known.tokenizer

    def in_use(self) -> dict[str, Tokenizer]:
        """By model, distrusted ones too."""
        return {name: each.tokenizer for name, each in self._models.items() if each.tokenizer is not None}

    def distrust(self, model: str) -> str | None:
        """Why its tokenizer is not used; empty where it is, None where there is none."""
        known = self._models.get(model)
        return None if known is None or known.tokenizer is None else known.distrust

    def has_room(self, size: int) -> bool:
        if self._waiting + size <= _MOST_WAITING or not self._waiting:
            return True
        self.busy += 1
        return False

    async def run(self, size: int, work: Callable[[], _Made]) -> _Made:
        """On a thread; `size`: bytes that it is made of."""
        self._waiting += size
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= size

    def counted(self, model: str, ours: int, theirs: int) -> None:
        """An answer said how many tokens its prompt had, of which the tokenizer had said it, too."""
        known = self._models.get(model)
        if known is None:
            return
        known.wrong = 0 if ours == theirs else known.wrong + 1
        if known.wrong >= _MOST_WRONG:
            self._distrust(model, known, f"it counted {ours} tokens in a prompt, the engine {theirs}")

    def compared(self, model: str, difference: str) -> None:
        """It was held against an engine's own ids; empty: they are the same."""
        known = self._models.get(model)
        if known is None:
            return
        if difference:
            self._distrust(model, known, difference)
        elif known.distrust:
            log.info("the tokenizer says what the engine says again", model=model)
            known.distrust, known.wrong = "", 0

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _distrust(self, model: str, known: _Model, reason: str) -> None:
        if not known.distrust:
            log.error(
                "the tokenizer is not the engine's: prompts are matched by their text", model=model, reason=reason
            )
        known.distrust = reason

    async def _read(self, known: _Model, load: Callable[[Path], Tokenizer], folder: Path) -> None:
        try:
            known.tokenizer = await asyncio.get_running_loop().run_in_executor(self._threads, load, folder)
            log.info("tokenizer loaded", folder=str(folder))
        except FileNotFoundError:
            return  # There is none for this model.
        except (OSError, ValueError) as error:
            log.error("a tokenizer cannot be read", folder=str(folder), reason=str(error))


def _is_name(model: str) -> bool:
    """Of a folder within the one that all of them are in."""
    return all(part not in ("", ".", "..") and "\0" not in part and "\\" not in part for part in model.split("/"))
