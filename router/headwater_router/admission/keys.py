"""Who may send requests: API keys from a file, checked as soon as a request's head is here.

`Keys.admit` answers for each head with an `Admitted`, which goes with the request until it has ended, or raises what
the client is to be told. The file is read again whenever it changes. At the start it must be right: a router that
opened to everybody for a typo would be worse than none. Later, a file that turns wrong is refused, and said so, and the
keys stay what they were; so do they where it is gone.
"""

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, NoReturn

import structlog

from headwater.keys import KeysFileError
from headwater.openai.errors import APIError, AuthenticationError, PermissionDeniedError, RateLimitError
from headwater_router.admission.key_file import LONGEST_KEY, Key, read_keys, stamp
from headwater_router.admission.limits import Level, Use

log = structlog.get_logger(__name__)

Headers = Sequence[tuple[bytes, bytes]]
"""Names are in lower case."""

CREDENTIALS: Final = frozenset((b"authorization", b"x-api-key"))
"""Headers that hold a client's key. They go to no engine where keys are checked, or the engine has one of its own."""
KEYLESS_PATHS: Final = frozenset(("/", "/health"))

_LOOK_EVERY: Final = 0.5
"""Seconds between two looks at the file."""
_BUSY_RETRY_AFTER: Final = 1.0
_NOBODY: Final = Key("", digest=bytes(32))


class Failure(StrEnum):
    """Why somebody was not let in."""

    MISSING = "missing"
    """There is no key in the request."""
    UNKNOWN = "unknown"
    DISABLED = "disabled"
    AMBIGUOUS = "ambiguous"
    """Two different ones are."""


class Admitted:
    """A request that was let in. Whoever holds it calls `release` once the request has ended, however it did."""

    __slots__ = ("_held", "_key", "_use", "headers", "name")

    def __init__(self, key: Key, use: Use, headers: dict[str, str] | None = None, *, held: bool = False) -> None:
        self.name = key.name
        """Of its key; empty where none was asked for."""
        self._key = key
        self._use = use
        self._held = held
        self.headers = headers or {}
        """Of its answer, whatever that is, named in lower case: what is left of the key's limits."""

    def may_use(self, model: str) -> bool:
        return self._key.may_use(model)

    def usable(self, models: Iterable[str]) -> list[str]:
        """Those that its client may know of."""
        return [model for model in models if self._key.may_use(model)]

    def require(self, model: str) -> None:
        """Raises PermissionDeniedError for a model that the key may not use, whether there is such a model or not."""
        if self._key.may_use(model):
            return
        self._use.other_models += 1
        raise PermissionDeniedError(
            f"This API key may not use the model `{model}`.", param="model", code="model_not_allowed"
        )

    def cache_salt(self, given: str | None) -> str | None:
        """What the request's `cache_salt` is to be, where the client gave `given`.

        A key with a salt of its own shares no cached prompts with others, whatever its clients send; those can still
        keep their own apart from one another.
        """
        own = self._key.cache_salt
        if own is None or given is None:
            return own or given
        return hashlib.sha256(f"{own} {given}".encode("utf-8", "surrogatepass")).hexdigest()[: len(own)]

    def release(self) -> None:
        """Give the place back; the second time does nothing."""
        if self._held:
            self._held = False
            self._use.running -= 1


ANYONE: Final = Admitted(Key("", prefixes=("",)), Use())
"""Everybody, where no keys are checked."""
_UNASKED: Final = Admitted(_NOBODY, Use())
"""Who needs no key, and gets to no model."""


class Keys:
    """`follow` is to run as a task for as long as the keys are to be what the file says."""

    def __init__(self, path: Path) -> None:
        """Raises KeysFileError."""
        self.path = path
        self.refused: str | None = None
        """Why the file as it is now is not in force; None while it is."""
        self.failures: Counter[Failure] = Counter()
        """Requests that were not let in, since the start."""
        self._stamp = stamp(path)
        self._by_digest: dict[bytes, Key] = {}
        self._uses: dict[str, Use] = {}
        self._install(read_keys(path))

    def __iter__(self) -> Iterator[tuple[Key, Use]]:
        """Each key, and what it has used."""
        return ((key, self._uses[key.name]) for key in self._by_digest.values())

    def __len__(self) -> int:
        return len(self._by_digest)

    def admit(self, path: str, headers: Headers, now: float) -> Admitted:
        """Let a request in, and count it. `now`: monotonic seconds.

        Raises AuthenticationError without a key that counts, and RateLimitError above the key's limits.
        """
        if path in KEYLESS_PATHS:
            return _UNASKED
        key = self._authenticate(headers)
        return _enter(key, self._uses[key.name], now)

    async def follow(self) -> None:
        """Read the file again whenever it changes. Until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        """Read the file again, if it has changed since the last look."""
        # Taken before it is read: what changes meanwhile is seen at the next look.
        if (now := stamp(self.path)) == self._stamp:
            return
        self._stamp = now
        try:
            keys = await asyncio.to_thread(read_keys, self.path)
        except KeysFileError as error:
            self.refused = str(error)
            log.error("keys file refused; the last one stays in force", reason=str(error))
            return
        self.refused = None
        self._install(keys)
        log.info("keys read again", file=str(self.path), keys=len(self))

    def _install(self, keys: Sequence[Key]) -> None:
        self._by_digest = {key.digest: key for key in keys}
        # By name: what runs and what was used counts on where limits, or the key itself, have changed.
        self._uses = {key.name: self._uses.get(key.name) or Use() for key in keys}

    def _authenticate(self, headers: Headers) -> Key:
        """Raises AuthenticationError.

        What time this takes tells nothing of any key. The dict compares SHA-256 hashes of what was sent: to get one
        that is a little more like a key's, one would have to find its like, which the hash is there to prevent. The
        comparison that decides takes the same time wherever the two differ.
        """
        secret = self._secret(headers)
        if len(secret) > LONGEST_KEY:
            self._fail(Failure.UNKNOWN)
        digest = hashlib.sha256(secret).digest()
        key = self._by_digest.get(digest, _NOBODY)
        if not hmac.compare_digest(key.digest, digest):
            self._fail(Failure.UNKNOWN)
        if key.disabled:
            self._fail(Failure.DISABLED)
        return key

    def _secret(self, headers: Headers) -> bytes:
        """What the client calls its key; the same in both headers, where it sends both."""
        secret = b""
        for name, value in headers:
            if name not in CREDENTIALS:
                continue
            if name == b"authorization":
                scheme, _, value = value.partition(b" ")
                if scheme.lower() != b"bearer":
                    self._fail(Failure.UNKNOWN)
            value = value.strip()
            if secret and value != secret:
                self._fail(Failure.AMBIGUOUS)
            secret = value
        if not secret:
            self._fail(Failure.MISSING)
        return secret

    def _fail(self, failure: Failure) -> NoReturn:
        self.failures[failure] += 1
        raise AuthenticationError(
            _FAILURES[failure], code="invalid_api_key", headers={"www-authenticate": 'Bearer realm="headwater"'}
        )


_FAILURES: Final = {
    Failure.MISSING: "An API key is needed: send `Authorization: Bearer KEY`, or `x-api-key: KEY`.",
    Failure.UNKNOWN: "The API key is not known here.",
    Failure.DISABLED: "The API key is disabled.",
    Failure.AMBIGUOUS: "The request has two different API keys; send one.",
}


def _enter(key: Key, use: Use, now: float) -> Admitted:
    """Raises RateLimitError."""
    if key.max_concurrent is not None and use.running >= key.max_concurrent:
        use.over_concurrency += 1
        raise _too_many(key, use, now)
    headers = None
    if (limit := key.requests_per_minute) is not None:
        taken = use.bucket.take(limit, now)
        level = use.bucket.level(limit, now)
        if not taken:
            use.over_rate += 1
            raise _too_often(level)
        headers = level.headers()
    use.running += 1
    use.admitted += 1
    return Admitted(key, use, headers, held=True)


def _too_often(level: Level) -> APIError:
    return RateLimitError(
        f"This API key may send {level.limit} requests a minute.",
        code="rate_limit_exceeded",
        retry_after=level.next_in,
        headers=level.headers(),
    )


def _too_many(key: Key, use: Use, now: float) -> APIError:
    limit = key.requests_per_minute
    return RateLimitError(
        f"This API key may have {key.max_concurrent} requests at once.",
        code="rate_limit_exceeded",
        retry_after=_BUSY_RETRY_AFTER,
        headers=use.bucket.level(limit, now).headers() if limit is not None else None,
    )
