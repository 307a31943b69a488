"""Fields of OpenAI's and vLLM's requests that would change the answer, in ways that the engine does not have yet.

They are refused, unless their value asks for nothing: nobody gets another answer than the one that was asked for. A
class with a field of the same name (`tools`, say) is the place to do it.
"""

from typing import Annotated, Any

from pydantic import PlainValidator

from headwater.openai.request import RequestModel
from headwater.validation import found


def only(*harmless: Any) -> PlainValidator:
    """Accepts only `harmless`, which is what an engine does that does not know the field."""

    def check(value: Any) -> Any:
        # Not by `in`: 1 equals True.
        if found(value) in allowed:
            return value
        instead = f"; allowed is {' or '.join(allowed)}, found {found(value)}" if allowed else ""
        raise ValueError(f"is not supported{instead}")

    allowed = [found(each) for each in harmless]
    return PlainValidator(check)


class Unsupported(RequestModel):
    """In chat and text completions."""

    bad_words: Annotated[Any, only([])] = None
    logprob_token_ids: Annotated[Any, only([])] = None
    logits_processors: Annotated[Any, only([])] = None
    prompt_logprobs: Annotated[Any, only()] = None
    repetition_detection: Annotated[Any, only()] = None
    spaces_between_special_tokens: Annotated[Any, only(True)] = None
    use_beam_search: Annotated[Any, only(False)] = None
    vllm_xargs: Annotated[Any, only({})] = None
    watermarking: Annotated[Any, only(False)] = None

    return_token_ids: Annotated[Any, only(False)] = None
    return_token_offsets: Annotated[Any, only(False)] = None
    return_tokens_as_token_ids: Annotated[Any, only(False)] = None
    routed_experts_prompt_start: Annotated[Any, only(0)] = None
    ec_transfer_params: Annotated[Any, only({})] = None
    kv_transfer_params: Annotated[Any, only({})] = None


class UnsupportedInChat(Unsupported):
    audio: Annotated[Any, only()] = None
    chat_template: Annotated[Any, only()] = None
    documents: Annotated[Any, only([])] = None
    echo: Annotated[Any, only(False)] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    functions: Annotated[Any, only([])] = None
    modalities: Annotated[Any, only(["text"])] = None
    moderation: Annotated[Any, only()] = None
    return_prompt_text: Annotated[Any, only(False)] = None
    store: Annotated[Any, only(False)] = None
    verbosity: Annotated[Any, only("medium")] = None
    web_search_options: Annotated[Any, only()] = None
