"""How what servers take and answer differs from OpenAI's API, where they say that it is theirs."""

from headwater.backends.dialects.base import Dialect as Dialect
from headwater.backends.dialects.base import Translation as Translation
from headwater.backends.dialects.base import UnsupportedRequestError as UnsupportedRequestError
