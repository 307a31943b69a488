"""What pods are asked over HTTP. Anybody may have chosen what runs there, so no answer costs more than it may."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx


class EndlessError(Exception):
    """More came than may."""


@dataclass(frozen=True, slots=True)
class Told:
    status: int
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


async def ask(
    client: httpx.AsyncClient,
    url: str,
    *,
    seconds: float,
    most: int,
    method: str = "GET",
    json: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Told:
    """`seconds`: until all of the answer is there. `most`: bytes that it may have, once unpacked.

    Raises TimeoutError, EndlessError, and httpx.HTTPError.
    """
    body = bytearray()
    async with (
        asyncio.timeout(seconds),
        # The client's own times are for single pieces, and one of them may come now and then for ever.
        client.stream(method, url, json=json, headers=headers, timeout=seconds) as response,
    ):
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > most:
                raise EndlessError
    return Told(response.status_code, bytes(body))
