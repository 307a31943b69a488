"""What a dialect has to do: write a request as its server takes it, and an answer as clients know it."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from msgspec import Raw

from headwater.openai.constraint import Kind


class UnsupportedRequestError(Exception):
    """The server cannot do what a request asks for. It would refuse it, or, worse, do something else."""

    def __init__(self, param: str, message: str) -> None:
        """`param`: the request's field."""
        super().__init__(f"`{param}` {message}")
        self.param = param


class Translation(ABC):
    """Of the answer to one request."""

    @abstractmethod
    def document(self, said: Any) -> Any:
        """An answer that is not streamed. May change what it is given."""

    @abstractmethod
    def event(self, said: dict[str, Any]) -> list[dict[str, Any]]:
        """What becomes of an event of a stream: nothing, where more is to be seen first. May change it."""

    @abstractmethod
    def end(self) -> list[dict[str, Any]]:
        """Events that belong behind the last one, now that nothing more comes."""


class Dialect(ABC):
    server: ClassVar[str]
    """Whose it is, with the version that it was read or recorded from."""
    paths: ClassVar[frozenset[str]]
    """Where it differs."""
    kinds: ClassVar[frozenset[Kind]]
    """Forms of an answer that the server can keep, however they are asked for."""
    reasoning: ClassVar[str] = "reasoning_content"
    """The field in which the answer to a chat tells what was thought."""
    in_vllms_words: ClassVar[bool] = False
    """Whether it differs in nothing but how a form is asked for, and in fields that only others have: a request without
    any of these need not be looked at."""

    @abstractmethod
    def request(self, path: str, members: dict[str, Raw]) -> dict[str, Raw]:
        """The members of a body as the server takes them: JSON, of which no more is read than has to be. Raises
        UnsupportedRequestError, and msgspec.DecodeError for a member that makes no sense.
        """

    def translation(self, path: str, members: dict[str, Raw], model: str, request_id: str) -> Translation | None:
        """Of the answer; None: it needs none. `members`: as `request` returned them. `model`: that was asked for."""
        return None
