"""What the gateway does with a request: what is forwarded, and what the router answers itself."""

import asyncio
import time
from collections.abc import Callable

import structlog

from headwater.backends.base import APIS
from headwater.http.clients import too_many_connections
from headwater.http.connection import ClientConnection
from headwater.http.replies import answer_json
from headwater.http.request import Request
from headwater.http.retelling import Retelling
from headwater.http.shapes import tell
from headwater.openai.errors import (
    APIError,
    BadRequestError,
    InternalServerError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotFoundError,
    ServiceUnavailableError,
)
from headwater.openai.models import ModelList
from headwater_router.admission.keys import ANYONE, Admitted
from headwater_router.dispatch.call import Call
from headwater_router.endpoints.endpoint import Endpoint, ServedModel
from headwater_router.endpoints.fleet import Fleet
from headwater_router.gateway.body import Body, completed, read_body
from headwater_router.gateway.form_body import FormBody, read_form
from headwater_router.gateway.forward import Forwarder
from headwater_router.gateway.front_page import POLICY, front_page
from headwater_router.gateway.head import RequestHead
from headwater_router.gateway.journal import Entry, Journal
from headwater_router.gateway.other_apis import OtherAPIs, asked_in_chat
from headwater_router.gateway.pages import Page
from headwater_router.gateway.paths import FORWARDED, Form, form_of, response_of
from headwater_router.gateway.slo import read_slo
from headwater_router.index import PromptBuilder
from headwater_router.picker.classes import ORDINARY, traits
from headwater_router.picker.weights import conversation

log = structlog.get_logger(__name__)

Local = Callable[[Request, ClientConnection], None]


class Gateway:
    """Answers each request that clients' connections hand to it."""

    def __init__(
        self,
        forwarder: Forwarder,
        fleet: Fleet,
        prompts: PromptBuilder,
        journal: Journal,
        *,
        keys_are_ours: bool,
        pages: dict[str, Local],
    ) -> None:
        """`keys_are_ours`: clients' keys are for this router. `pages`: what it answers to a GET beside what it always
        does, by path."""
        self.draining = False
        self._forwarder = forwarder
        self._dispatcher = forwarder.dispatcher
        self._fleet = fleet
        self._prompts = prompts
        self._journal = journal
        self._apis = OtherAPIs()
        self._keys_are_ours = keys_are_ours
        self._started_at = int(time.time())
        self.local = {"/": self._front, "/v1/models": self._models, "/health": self._health} | pages

    async def __call__(self, request: Request, client: ClientConnection) -> None:
        entry = Entry(request, client, time.monotonic(), len(request.body), _who(request))
        try:
            await self._answer(request, client, entry)
        except APIError as error:
            entry.error = error.code or error.message
            tell(entry.answering, request.path, error, request.id)
        except asyncio.CancelledError:
            if not client.left:
                raise
        except Exception:
            log.exception("request failed", path=request.path, request_id=request.id.decode("latin-1"))
            entry.error = "internal"
            # An answer that had begun cannot become another one; its connection is cut.
            if not client.answer_began:
                failed = InternalServerError("The router failed on this request; its log says why.")
                tell(client, entry.path, failed, request.id)
        finally:
            request.drop_body()
            self._journal.ended(entry)
            if entry.call is not None:
                entry.call.forget_stays()

    async def _answer(self, request: Request, client: ClientConnection, entry: Entry) -> None:
        if request.error is not None:
            raise request.error
        path = request.path
        form = form_of(path)
        if form is not None:
            await self._forward(request, client, entry, form)
        elif path in self.local or path.startswith("/v1/models/"):
            _check_method(request, b"GET", b"HEAD")
            if (page := self.local.get(path)) is not None:
                page(request, client)
            else:
                self._model(request, client, path.removeprefix("/v1/models/"))
        else:
            raise NotFoundError.at(path, (*FORWARDED, *self.local), "router")

    async def _forward(self, request: Request, client: ClientConnection, entry: Entry, form: Form) -> None:
        """Raises APIError."""
        _check_method(request, *((b"GET", b"POST", b"DELETE") if form is Form.RESPONSE else (b"POST",)))
        if self.draining and client.late:
            raise ServiceUnavailableError("The router is about to end.", code="draining", retry_after=1)
        if client.in_anteroom:
            raise too_many_connections()
        body, only = Body(), None
        who, responses = entry.who, self._forwarder.responses
        names: Body | FormBody | None = None
        match form:
            case Form.JSON:
                names, body, model = self._read(request, who)
                only = responses.maker(body.previous_response, who.name)
            case Form.MULTIPART:
                names, model = self._read_form(request)
            case Form.RESPONSE:
                if self._apis.answers(request, client, who.name):
                    return
                only, model, _ = responses.find(response_of(request.path), who.name)
        who.require(model)
        identity = self._identity(request, model)
        entry.model = model
        if request.path in APIS and only is None:
            exchange = self._apis.exchange(request, body, self._serving(model), who.name)
            if exchange is not None:
                names = body = asked_in_chat(request, exchange)
                entry.answering = Retelling(client, exchange)
        self._dispatcher.check(request.path, request.body, entry.started)
        prompt = self._prompts.build(request.path, body, request.headers, model=identity.base, adapter=identity.adapter)
        if (exact := self._prompts.exact(prompt, request.path, body, adapter=identity.adapter)) is not None:
            await exact
        prompt.slo = read_slo(request.headers, entry.started)
        # Its answer is worth the price only where there is more than one deployment to choose from.
        shared = self._fleet.several(model)
        key, told = (conversation(body, prompt), traits(body)) if shared else (None, ORDINARY)
        entry.call = Call(
            request.path, request.body, model, identity, prompt, key, entry.started, told, only=only,
            request_id=request.id, key_name=who.name,
        )  # fmt: skip
        head = RequestHead(request, names, model, keys_are_ours=self._keys_are_ours)
        del body, names  # What keeps its bytes from here on can forget them.
        await self._forwarder.forward(request, entry.answering, entry.call, head)
        if isinstance(entry.answering, Retelling):
            entry.answering.close()

    def _serving(self, model: str) -> list[Endpoint]:
        return [endpoint for endpoint, _ in self._fleet.serving(model)]

    def _identity(self, request: Request, model: str) -> ServedModel:
        """Raises ModelNotFoundError, which names no model that is not for this client, or ServiceUnavailableError."""
        try:
            return self._dispatcher.identity(model)
        except ModelNotFoundError:
            raise ModelNotFoundError(model, self._may_see(request)) from None

    def _read(self, request: Request, who: Admitted) -> tuple[Body, Body, str]:
        """What is to be known of the body as it is sent, all of it, and its model.

        The model may have been put in, and a salt that its client's key demands."""
        body = read_body(request.body)
        given, given_salt = body.model, body.salt
        model = given or self._only_model(request)
        salt = who.cache_salt(given_salt)
        if salt == given_salt:
            salt = None  # It is there already.
        if given is not None and salt is None:
            return body, body, model
        request.body = completed(request.body, body, model=None if given else model, salt=salt)
        return body.outline(), body, model

    def _read_form(self, request: Request) -> tuple[FormBody, str]:
        """What is to be known of the form as it is sent, and its model, which may have been put in."""
        form = read_form(request.headers, request.body)
        if form.model is not None:
            return form, form.model
        model = self._only_model(request)
        request.body = form.with_model(request.body, model)
        return read_form(request.headers, request.body), model

    def _may_see(self, request: Request) -> list[str]:
        """The models that exist for this client."""
        return _who(request).usable(self._fleet.models)

    def _only_model(self, request: Request) -> str:
        """What a request without `model` means. Raises BadRequestError where that is not one thing."""
        served = self._may_see(request)
        bases = {each.base for name in served if (each := self._fleet.identity(name)) is not None}
        if len(bases) != 1:
            raise BadRequestError(
                f"`model` is required; served here: {', '.join(served) or 'none yet'}.", param="model"
            )
        return bases.pop()

    # What it answers itself

    def _models(self, request: Request, client: ClientConnection) -> None:
        made = self._started_at
        cards = [card for name in self._may_see(request) if (card := self._fleet.card(name, made)) is not None]
        answer_json(client, ModelList(cards))

    def _model(self, request: Request, client: ClientConnection, name: str) -> None:
        _who(request).require(name)
        card = self._fleet.card(name, self._started_at)
        if card is None:
            raise ModelNotFoundError(name, self._may_see(request))
        answer_json(client, card)

    def _front(self, request: Request, client: ClientConnection) -> None:
        models = None if self._keys_are_ours else self._may_see(request)
        host = dict(request.headers).get(b"host", b"HOST").decode("latin-1")
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", POLICY)]
        client.answer(200, headers, front_page(models, host))

    def _health(self, request: Request, client: ClientConnection) -> None:
        answer_json(client, {"status": "ok"})


def _who(request: Request) -> Admitted:
    """What its client's key allows; everything, where no keys are asked for."""
    return request.admitted if isinstance(request.admitted, Admitted) else ANYONE


def page(make: Callable[[], Page]) -> Local:
    """A page of the router's own as an answer to a client."""

    def answer(request: Request, client: ClientConnection) -> None:
        made = make()
        client.answer(made.status, [(b"content-type", made.content_type.encode())], made.body)

    return answer


def _check_method(request: Request, *allowed: bytes) -> None:
    if request.method not in allowed:
        raise MethodNotAllowedError(f"{request.method.decode('latin-1')} is not allowed for {request.path}.")
