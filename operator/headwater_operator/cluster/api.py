"""The API server, as the operator speaks to it: raw objects, server-side apply under one field manager."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from kubernetes_asyncio.client import ApiClient, ApiException
from kubernetes_asyncio.config import ConfigException, load_config

from headwater.kubernetes import FIELD_MANAGER
from headwater_operator.cluster.kinds import Kind, Object, kind_of, name_of, namespace_of
from headwater_operator.metrics import OperatorMetrics

_TIMEOUT = 20.0
"""Seconds for one call."""
_PAGE = 100
"""Objects in one answer: to read a thousand at once would hold up everything else."""
_NEVER: Final = (
    "failed to create typed patch object",
    "field not declared in schema",
    "failed to create manager for existing fields",
    "quantities must match the regular expression",
    "unable to parse quantity",
    "request is too large",
)
"""Words of a 500 that is about what was sent: the API server does not always say so by its status."""
_UNSAFE: Final = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


class ApiError(Exception):
    """The API server said no, or did not answer (`status` 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        """Kubernetes's own word: NotFound, Conflict, Invalid, Forbidden, ..."""

    @property
    def permanent(self) -> bool:
        """Whether the same call would be refused again. What is gone, the watch tells in a moment."""
        about_it = self.status == 500 and any(words in str(self) for words in _NEVER)
        return about_it or self.status in (400, 403, 405, 413, 422)


class Cluster:
    """Use as an asynchronous context manager, which reads the pod's service account or KUBECONFIG."""

    def __init__(self, metrics: OperatorMetrics) -> None:
        self._metrics = metrics
        self._client: ApiClient

    async def __aenter__(self) -> "Cluster":
        """Raises ApiError where there is no cluster to speak to."""
        try:
            await load_config()
        except ConfigException as error:
            raise ApiError(0, "NoConfiguration", f"neither a service account nor a kubeconfig: {error}") from None
        self._client = ApiClient()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        try:
            return await self._call("GET", "get", kind, kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, kind: Kind, namespace: str | None, selector: str = "", fields: str = ""
    ) -> tuple[list[Object], int]:
        """All objects with these labels and fields, and the version of the cluster that this is true of.

        `namespace` None: everywhere.
        """
        items: list[Object] = []
        query = {"limit": str(_PAGE), "labelSelector": selector, "fieldSelector": fields}
        while True:
            page = await self._call("GET", "list", kind, kind.path(namespace), query=query)
            # Items of a list do not say what they are.
            items += [{"apiVersion": kind.api_version, "kind": kind.name} | item for item in page["items"]]
            query["continue"] = page["metadata"].get("continue") or ""
            if not query["continue"]:
                return items, int(page["metadata"]["resourceVersion"])

    async def apply(self, manifest: Object, *, manager: str = FIELD_MANAGER, subresource: str | None = None) -> Object:
        """Server-side apply: what the manifest names is ours from then on, and the rest is not touched."""
        return await self._apply("apply", manifest, subresource, {"fieldManager": manager})

    async def try_out(self, manifest: Object) -> None:
        """Have the API server check what it would be given by `apply`, and do nothing. Raises ApiError."""
        await self._apply("try", manifest, None, {"fieldManager": FIELD_MANAGER, "dryRun": "All"})

    async def _apply(self, verb: str, manifest: Object, subresource: str | None, query: dict[str, str]) -> Object:
        kind = kind_of(manifest)
        return await self._call(
            "PATCH",
            verb,
            kind,
            kind.path(namespace_of(manifest), name_of(manifest), subresource),
            body=as_yaml(manifest),
            # With a parameter, or the client would write the body itself, as JSON in ASCII.
            content_type="application/apply-patch+yaml; charset=utf-8",
            query={"force": "true", **query},
        )

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: Object, subresource: str | None = None
    ) -> Object:
        """A merge patch: for fields that are not in what we apply."""
        path = kind.path(namespace, name, subresource)
        query = {"fieldManager": FIELD_MANAGER}
        return await self._call(
            "PATCH", "patch", kind, path, body=patch, content_type="application/merge-patch+json", query=query
        )

    async def create(self, manifest: Object) -> Object:
        kind = kind_of(manifest)
        return await self._call("POST", "create", kind, kind.path(namespace_of(manifest)), body=manifest)

    async def replace(self, manifest: Object) -> Object:
        """Fails with Conflict where somebody else has written since `manifest` was read."""
        kind = kind_of(manifest)
        path = kind.path(namespace_of(manifest), name_of(manifest))
        return await self._call("PUT", "update", kind, path, body=manifest)

    async def delete(self, manifest: Object, *, grace: int | None = None) -> None:
        """This very object, not one that has got its name since; its dependents go as well. Gone already is fine.

        `grace`: seconds, instead of the object's own.
        """
        kind = kind_of(manifest)
        body: Object = {"propagationPolicy": "Background", "preconditions": {"uid": manifest["metadata"]["uid"]}}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            await self._call("DELETE", "delete", kind, kind.path(namespace_of(manifest), name_of(manifest)), body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def _call(
        self,
        method: str,
        verb: str,
        kind: Kind,
        path: str,
        *,
        body: Object | bytes | None = None,
        content_type: str = "application/json",
        query: Mapping[str, str] = {},
    ) -> Object:
        self._metrics.api_requests.labels(verb, kind.plural).inc()
        try:
            response = await self._client.call_api(
                path,
                method,
                query_params=[(name, value) for name, value in query.items() if value],
                header_params={"Content-Type": content_type, "Accept": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            )
            text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(
                0, "Unreachable", f"the API server cannot be reached: {error or type(error).__name__}"
            ) from None
        except ApiException as error:
            raise ApiError(error.status or 0, str(error.reason), str(error)) from None
        content = _decode(text)
        if response.status >= 300:
            message = str(content.get("message") or text[:300].decode(errors="replace"))
            raise ApiError(response.status, str(content.get("reason") or response.reason), message)
        return content


def as_yaml(body: Object) -> bytes:
    """JSON that means the same to those who read it as YAML, as the API server does with what is applied.

    A character beyond U+FFFF is written as it is: the pair of escapes that JSON has for it is none in YAML. What YAML
    takes for the end of a line, or does not take as it is, is escaped; half of a pair, which is no character, is
    replaced.
    """
    text = json.dumps(body, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: _escaped(ord(found[0])), text).encode()


def _escaped(character: int) -> str:
    return f"\\u{0xFFFD if 0xD800 <= character <= 0xDFFF else character:04x}"


def _decode(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
