"""What an API has to do that is made of chat completions."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final, NamedTuple

from headwater.apis.names import Names, renamed

CHAT: Final = "/v1/chat/completions"
TOKENIZE: Final = "/tokenize"


class ApiEvent(NamedTuple):
    """Of a stream of server-sent events."""

    name: str
    data: dict[str, Any]


class BrokenAnswerError(Exception):
    """What a server said is no chat completion that could be told in another API's words."""


class EventStream(ABC):
    """The answer to one request, while it comes. Once it is `over`, nothing more becomes of what is fed."""

    def __init__(self) -> None:
        self.over = False
        """It was told whole, or that it failed."""

    @abstractmethod
    def feed(self, chunk: dict[str, Any]) -> list[ApiEvent]:
        """What a chunk of a chat completion says. Raises BrokenAnswerError."""

    @abstractmethod
    def end(self) -> list[ApiEvent]:
        """The chat completion is whole."""

    @abstractmethod
    def fail(self, error: dict[str, Any]) -> list[ApiEvent]:
        """It will not be. `error`: as within OpenAI's {"error": ...}."""


class Exchange(ABC):
    """One request, which has been read."""

    asked: ClassVar[str] = CHAT
    """The path that a server is to be asked at."""
    request_id: str | None = None
    """Of its answer's x-request-id."""
    names: ClassVar[Names]
    """Of a chat's fields, in this API."""
    streams: bool
    """Whether the client wants events."""

    @abstractmethod
    def chat(self) -> dict[str, Any]:
        """What to ask the server: a body as JSON."""

    @abstractmethod
    def document(self, said: Any) -> dict[str, Any]:
        """An answer that is not streamed, from a chat completion. Raises BrokenAnswerError."""

    @abstractmethod
    def events(self) -> EventStream:
        """For an answer that is streamed."""

    def told(self, error: dict[str, Any]) -> dict[str, Any]:
        """What a server says of the chat that it was asked for, with the names of what the client asked for."""
        return renamed(error, self.names)

    @abstractmethod
    def error(self, status: int, error: dict[str, Any]) -> dict[str, Any]:
        """The document of an answer with a status that is none of success. `error`: as in `EventStream.fail`."""
