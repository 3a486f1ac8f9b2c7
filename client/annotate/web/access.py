"""Who may call what. Every route is made here, with its roles; one that names none is open to nobody.

A handler gets the site and the person; problems that it raises become answers here, in the form that the route speaks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from polyhead.client import Status, TrunkInfo
from polyhead.client.annotate.keeping.versions import Keeper
from polyhead.client.annotate.people import accounts, messages
from polyhead.client.annotate.people.accounts import Person, csrf_token
from polyhead.client.annotate.problems import Forbidden, Invalid, Problem, SignIn
from polyhead.client.annotate.replies.drawing import Model
from polyhead.client.annotate.replies.scoring import Scorer
from polyhead.client.annotate.replies.turns import Turns
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web import settings
from polyhead.client.annotate.web.catalogs import NAMES, Catalog, catalog, preferred
from polyhead.client.annotate.web.security import MAX_BODY, SAFE_METHODS, Limits, check_csrf, check_origin, limited

PEOPLE = frozenset({"annotator", "admin"})  # who may work
SIGNED_IN = PEOPLE | {"adjudicator"}
ANYONE = SIGNED_IN | {""}  # "": nobody is signed in

log = logging.getLogger(__name__)


@dataclass
class Site:
    """What all handlers share."""

    db: Database
    model: Model
    turns: Turns
    scorer: Scorer
    keeper: Keeper
    is_https: bool = False
    is_behind_proxy: bool = False
    served: Status | None = None  # what the model server has said last; admins alone see it
    trunk: TrunkInfo | None = None
    backup_dir: Path | None = None
    limits: Limits = field(default_factory=Limits)
    tabs: dict[str, str] = field(default_factory=dict)  # assignment -> the tab that works on it
    rule_sets: dict[str, str] = field(default_factory=dict)  # slug -> the rule set that the server was asked for
    templates: Environment = field(
        default_factory=lambda: Environment(
            loader=PackageLoader("polyhead.client.annotate.web", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
    )

    def __post_init__(self) -> None:
        self.templates.filters["moment"] = moment
        self.templates.filters["second"] = second
        self.templates.filters["host"] = host

    @property
    def cookie(self) -> str:
        """A browser takes the prefix from secure connections alone, and sends such a cookie to this host alone."""
        return "__Host-polyhead" if self.is_https else "polyhead"

    def token(self, request: Request) -> str:
        return request.cookies.get(self.cookie, "")

    def set_cookie(self, response: Response, token: str) -> None:
        response.set_cookie(
            self.cookie, token, max_age=accounts.SESSION_DAYS * 86_400, path="/", secure=self.is_https, httponly=True, samesite="lax"
        )

    def page(
        self, request: Request, template: str, person: Person | None, status: int = 200, *, token: str = "", **values: Any
    ) -> Response:
        """HTML. A visitor who is not signed in gets a cookie, too: forms are bound to it. `token`: of a new session."""
        token = token or self.token(request) or accounts.make_token()
        words = catalog(locale_of(request, person))
        text = self.db.value("SELECT settings_json FROM accounts WHERE id = ?", person.id) if person else "{}"
        own = json.loads(text or "{}")
        known = {
            "t": words,
            "person": person,
            "csrf": csrf_token(token),
            "languages": NAMES,
            "settings": own,
            "keys": settings.keys(own),
            "messages": messages.unread(self.db, person.id) if person else [],
            **values,
        }
        response = Response(self.templates.get_template(template).render(known), status, media_type="text/html")
        if token != self.token(request):
            self.set_cookie(response, token)
        return response


def moment(at: int | None) -> str:
    """A time in UTC; nothing for none."""
    return "" if at is None else f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M}"


def second(at: int) -> str:
    """The same to the second."""
    return f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def host(url: str) -> str:
    """Of an address, the part that says whose it is; "" of one that is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


Handler = Callable[[Request, Site, Any], Awaitable[Response]]


class GuardedRoute(Route):
    """A route that says who may take it."""

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], allow: frozenset[str], **more: Any) -> None:
        super().__init__(path, endpoint, **more)
        self.allow = allow


def route(
    path: str, handler: Handler, allow: frozenset[str], methods: tuple[str, ...] = ("GET",), *, is_form: bool = False,
    max_body: int = MAX_BODY,
) -> GuardedRoute:  # fmt: skip
    """One route, who may take it, and how long its body may be. Paths below /api answer in JSON."""
    is_api = "/api/" in path

    async def run(request: Request) -> Response:
        site: Site = request.app.state.site
        person: Person | None = None
        request = Request(request.scope, limited(request.receive, max_body))
        try:
            person = accounts.person_of_session(site.db, site.token(request))
            await _check(request, site, person, allow, is_form=is_form)
            return await handler(request, site, person)
        except Problem as problem:
            return _answer(request, site, person, problem, is_api=is_api)
        except Exception:
            log.exception("%s %s failed", request.method, path)
            return _answer(request, site, person, Broken(), is_api=is_api)
        finally:
            await request.close()  # files that came with a form

    return GuardedRoute(path, run, allow, methods=list(methods), name=f"{handler.__module__}.{handler.__name__}")


class Broken(Problem):
    """A mistake of ours: the log has it, the page says nothing of it."""

    status, code = 500, "BROKEN"


async def json_body(request: Request) -> dict[str, Any]:
    """The request's JSON object. Invalid for anything else."""
    try:
        body = json.loads(await request.body())
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()  # half a character, and numbers that JSON lacks, fail here
    except UnicodeEncodeError:
        raise Invalid("the body holds characters that are no text", code="TEXT_CHARACTERS") from None
    except (ValueError, RecursionError):
        raise Invalid("the body is not JSON") from None
    if not isinstance(body, dict):
        raise Invalid("the body is not an object")
    return body


def locale_of(request: Request, person: Person | None) -> str:
    asked = request.query_params.get("lang", "")
    if asked in NAMES and person is None:
        return asked
    return person.locale if person else preferred(request.headers.get("accept-language", ""))


def words_of(request: Request, person: Person | None) -> Catalog:
    return catalog(locale_of(request, person))


async def _check(request: Request, site: Site, person: Person | None, allow: frozenset[str], *, is_form: bool) -> None:
    """The body is read last: of somebody who may not send it nothing is kept."""
    if request.method not in SAFE_METHODS:
        check_origin(request, is_https=site.is_https)
    role = person.role if person else ""
    if role not in allow:
        raise SignIn("nobody is signed in") if person is None else Forbidden(f"not open to the role {role}")
    if person is not None and "slug" in request.path_params:
        person.check_sees(request.path_params["slug"])
    if request.method not in SAFE_METHODS:
        expected = csrf_token(site.token(request)) if site.token(request) else ""
        presented = (await request.form()).get("csrf") if is_form else request.headers.get("x-csrf-token")
        check_csrf(presented, expected or "none")


def _answer(request: Request, site: Site, person: Person | None, problem: Problem, *, is_api: bool) -> Response:
    headers = {"retry-after": str(int(problem.retry_after_s + 1))} if problem.retry_after_s else {}
    key = f"error.{problem.name}"
    words = words_of(request, person)
    if is_api:
        body = {"code": problem.name, "message_key": key if words.has(key) else "error.BROKEN", "field": problem.field}
        return JSONResponse({**body, "retry_after_s": problem.retry_after_s}, problem.status, headers)
    if isinstance(problem, SignIn):
        return RedirectResponse("/login", 303)
    text = words(key) if words.has(key) else words("error.BROKEN")
    response = site.page(request, "message.html", person, problem.status, text=text)
    response.headers.update(headers)
    return response
