"""Other APIs for conversations, made of chat completions: OpenAI's responses and Anthropic's messages.

An `Exchange` is one request: it says what to ask a server that has chat completions, and makes of what that answers
what its client knows. Nothing here has a socket, so a gateway and a server can have it alike.

    responses/  items    ──┐                           ┌──> items, and their events
                           ├──> chat ──> answer ──> blocks
    messages/   blocks   ──┘                           └──> content blocks, and their events
"""

from headwater.apis.base import ApiEvent as ApiEvent
from headwater.apis.base import EventStream as EventStream
from headwater.apis.base import Exchange as Exchange
