"""What a chat asks for beside content, calls of functions, a form, reasoning, and how its answers are held to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.constraint import Constraint, form_of
from headwater.openai.errors import BadRequestError
from headwater_engine.formats.enforced import Calling, Wish, enforced
from headwater_engine.formats.functions import Function
from headwater_engine.formats.reader import Reader, Speech
from headwater_engine.grammar.schemas import check_schema
from headwater_engine.server.served_model import ServedModel

_MOST_BYTES: Final = 256 * 1024
"""Of functions that are enforced, as a grammar."""


@dataclass(frozen=True, slots=True)
class Manner:
    """Of the answers to one chat."""

    constraint: Constraint | None
    read: Callable[[], Reader] | None
    """Makes a reader for each; None: they are nothing but content."""


def wish_of(request: ChatCompletionRequest, speech: Speech) -> Wish:
    """Raises BadRequestError, which names the field, also for what this model has no way to do."""
    form = form_of(request)
    functions = [_function(tool["function"]) for tool in request.callable_tools]
    if any(each.strict for each in functions) or request.tool_choice.mode == "required":
        functions = [_checked(each) for each in functions]
    calling = Calling.NEVER
    if functions:
        calling = Calling.ALWAYS if request.tool_choice.mode == "required" else Calling.MAYBE
    if calling is Calling.ALWAYS and speech.calls is None:
        raise BadRequestError(
            "`tool_choice` cannot be enforced: how this model writes calls is not known; --tool-call-parser says it.",
            param="tool_choice",
        )
    one_only = not request.parallel_tool_calls or (request.tool_choice.names is not None and calling is Calling.ALWAYS)
    wish = Wish(functions, calling, many=not one_only, form=form, budget=request.thinking_token_budget)
    for other in ("min_tokens", "allowed_token_ids"):
        if wish.holds_arguments and getattr(request, other):
            raise BadRequestError(f"`{other}` cannot be kept where arguments are held to their schema.", param=other)
    return wish


def _function(value: dict[str, object]) -> Function:
    parameters = value.get("parameters")
    return Function(
        str(value["name"]), parameters if isinstance(parameters, dict) else {}, strict=value.get("strict") is True
    )


def _checked(function: Function) -> Function:
    """One that can be held to, as far as that is known before there is a grammar. Raises BadRequestError."""
    try:
        check_schema(function.parameters)
    except ValueError as error:
        if function.strict:
            message = f"`tools`: the parameters of {function.name} cannot be enforced: {error}."
            raise BadRequestError(message, param="tools", code="unsupported_constraint") from None
        return function.loosened(needed=True)
    return function


def manner_of(wish: Wish, model: ServedModel, prompt: str) -> Manner:
    """`prompt`: as the template wrote it. Raises BadRequestError."""
    speech = model.speech
    thinking = speech.thinking
    is_open = thinking is not None and thinking.is_open(prompt)
    # A form and calls come at once where the prompt has ended the reasoning; a budget counts in what is begun again.
    at_once = thinking is not None and thinking.is_over(prompt) and wish.budget is None
    try:
        constraint = enforced(wish, Speech(speech.calls) if at_once else speech, model.spelling, is_open=is_open)
    except ValueError as error:
        raise BadRequestError(
            f"`thinking_token_budget` cannot be kept: {error}.", param="thinking_token_budget"
        ) from None
    if constraint is not None and len(constraint.text) + len(constraint.lead) > _MOST_BYTES:
        raise BadRequestError(
            f"`tools` are too long to be held to: as a grammar they have more than {_MOST_BYTES} bytes.", param="tools"
        )
    if not (wish.functions or thinking is not None or speech.has_channels):
        return Manner(constraint, None)
    functions = {each.name: each for each in wish.functions}
    most, only = None if wish.many else 1, wish.calling is Calling.ALWAYS
    return Manner(constraint, lambda: Reader(speech, functions, is_open=is_open, most_calls=most, only_calls=only))
