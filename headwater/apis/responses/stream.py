"""A response as events, while the chunks of a chat completion come."""

from collections.abc import Callable, Iterator
from typing import Any

from headwater.apis.base import ApiEvent, EventStream
from headwater.apis.blocks import Answer, Block, Change, Kind, What
from headwater.apis.responses.answer import ended, failed, item, item_of, new_id, part_of

Json = dict[str, Any]


class ResponseStream(EventStream):
    def __init__(self, response: Json, keep: Callable[[Json], Json]) -> None:
        """`keep`: is given the response once it is whole, and before its client is."""
        super().__init__()
        self._response = response
        self._keep = keep
        self._answer = Answer()
        self._ids: list[str] = []
        """Of the items, in their order."""
        self._number = 0
        """Of events so far."""

    def feed(self, chunk: Json) -> list[ApiEvent]:
        if self._response["model"] is None:
            self._response["model"] = chunk.get("model")  # of an engine that has but one
        events = self._begin()
        for change in self._answer.feed(chunk):
            events += self._changed(change)
        return events

    def end(self) -> list[ApiEvent]:
        self.over = True
        events = self._begin()
        for change in self._answer.end():
            events += self._changed(change)
        response = self._keep(ended(self._response, self._answer, self._items(broken=False)))
        return [*events, self._event(f"response.{response['status']}", response=response)]

    def fail(self, error: Json) -> list[ApiEvent]:
        self.over = True
        if not self._number:
            told = {name: error.get(name) for name in ("code", "message", "param")}
            return [self._event("error", **told)]
        response = failed(self._response, error, self._items(broken=True))
        return [self._event("response.failed", response=response)]

    def _items(self, *, broken: bool) -> list[Json]:
        answer = self._answer
        return [item_of(block, self._ids[block.index], answer, broken=broken) for block in answer.blocks]

    def _begin(self) -> list[ApiEvent]:
        if self._number:
            return []
        return [self._event(f"response.{name}", response=self._response) for name in ("created", "in_progress")]

    def _event(self, kind: str, **told: Any) -> ApiEvent:
        number, self._number = self._number, self._number + 1
        return ApiEvent(kind, {"type": kind, "sequence_number": number, **told})

    def _changed(self, change: Change) -> Iterator[ApiEvent]:
        match change.what:
            case What.OPENED:
                self._ids.append(new_id(change.block))
                yield from self._opened(change.block)
            case What.GREW:
                yield self._grew(change)
            case What.CLOSED:
                yield from self._closed(change.block)

    def _opened(self, block: Block) -> Iterator[ApiEvent]:
        begun = item(block, self._ids[block.index], "in_progress", [])
        yield self._event("response.output_item.added", output_index=block.index, item=begun)
        if block.kind is not Kind.CALL:
            part = part_of(Block(block.kind, block.index))
            yield self._event("response.content_part.added", **self._place(block), part=part)

    def _grew(self, change: Change) -> ApiEvent:
        block, told = change.block, {"delta": change.piece}
        match block.kind:
            case Kind.CALL:
                name = "response.function_call_arguments.delta"
                return self._event(name, item_id=self._ids[block.index], output_index=block.index, **told)
            case Kind.REASONING:
                return self._event("response.reasoning_text.delta", **self._place(block), **told)
            case Kind.REFUSAL:
                return self._event("response.refusal.delta", **self._place(block), **told)
        return self._event("response.output_text.delta", **self._place(block), **told, logprobs=change.logprobs)

    def _closed(self, block: Block) -> Iterator[ApiEvent]:
        place = self._place(block)
        match block.kind:
            case Kind.CALL:
                told = {"item_id": place["item_id"], "output_index": block.index, "arguments": block.text}
                yield self._event("response.function_call_arguments.done", **told, name=block.name)
            case Kind.REASONING:
                yield self._event("response.reasoning_text.done", **place, text=block.text)
            case Kind.REFUSAL:
                yield self._event("response.refusal.done", **place, refusal=block.text)
            case Kind.TEXT:
                yield self._event("response.output_text.done", **place, text=block.text, logprobs=block.logprobs)
        if block.kind is not Kind.CALL:
            yield self._event("response.content_part.done", **place, part=part_of(block))
        whole = item_of(block, self._ids[block.index], self._answer)
        yield self._event("response.output_item.done", output_index=block.index, item=whole)

    def _place(self, block: Block) -> Json:
        return {"item_id": self._ids[block.index], "output_index": block.index, "content_index": 0}
