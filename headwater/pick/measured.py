"""What was measured of a running deployment, as `headwater bench --json` prints it: more than a roofline knows."""

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headwater.validation import field_path, finding


class MeasuredError(ValueError):
    """No measurement that says how fast a deployment is. One sentence."""


class Measured(BaseModel):
    """Of one replica under load; the names are those of the file, which holds more."""

    model_config = ConfigDict(frozen=True)

    model: str
    concurrency: int = Field(ge=1)
    """Requests at a time."""
    prompt_tokens: float = Field(ge=1)
    """Of a request, as a mean."""
    output_tokens: float = Field(ge=1)
    """Of an answer, as a mean."""
    cached_share: float = Field(ge=0, le=1)
    """Of the prompt tokens, those that the server had already."""
    output_tokens_per_s: float = Field(gt=0)
    ttft_p50: float = Field(gt=0)
    """Milliseconds, as the next one."""
    tpot_p50: float = Field(gt=0)


def read_measured(text: str) -> Measured:
    """Raises MeasuredError."""
    try:
        return Measured.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = field_path(list(detail["loc"]))
        where = f"{field}: " if field else ""
        raise MeasuredError(f"is nothing that `headwater bench --json` prints: {where}{finding(detail)}") from None
