"""A second look at what people disagree about; open to adjudicators, too."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from polyhead.client.annotate.admin import adjudication, rounds
from polyhead.client.annotate.people.accounts import Person
from polyhead.client.annotate.problems import Invalid
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import Kind, Polarity, ProjectConfig
from polyhead.client.annotate.web.access import Site, route
from polyhead.client.annotate.web.admin.page import PROJECT, REVIEWERS, page, read_beside


async def disputes_page(request: Request, site: Site, person: Person) -> Response:
    """What people disagree about."""
    project = projects.find_project(site.db, request.path_params["slug"])
    found = await read_beside(site.db, lambda reader: adjudication.disputed(reader, project.slug))
    return page(request, site, person, "disputes", project=project, disputed=found)


async def review_home(request: Request, site: Site, person: Person) -> Response:
    """Where an adjudicator begins: the projects."""
    lines = [line for line in rounds.overview(site.db, None, person.locale) if not person.projects or line.project.slug in person.projects]
    return page(request, site, person, "review", lines=lines)


async def case_page(request: Request, site: Site, person: Person) -> Response:
    """Before the first answer without the others' answers, afterwards with them."""
    return _case(request, site, person, _seen_case(request, site, person))


async def decide(request: Request, site: Site, person: Person) -> Response:
    item_id, form = request.path_params["item_id"], await request.form()
    case = _seen_case(request, site, person)
    config = case.project.config
    body: dict[str, Any] = adjudication.body_of_form(config.kind, form, case.replies, config)
    body["comment"] = str(form.get("comment", ""))
    is_first = form.get("first") == "1"
    try:
        adjudication.adjudicate(site.db, case, person.id, body, is_first=is_first)
    except Invalid:
        return _case(request, site, person, case, 422, wrong=True)
    return RedirectResponse(f"/admin/items/{item_id}" if is_first else f"/admin/p/{case.project.row.slug}/disputes", 303)


def _seen_case(request: Request, site: Site, person: Person) -> adjudication.Case:
    """Of a project that this person sees."""
    case = adjudication.case(site.db, request.path_params["item_id"], person.id)
    person.check_sees(case.project.row.slug)
    return case


def _case(request: Request, site: Site, person: Person, case: adjudication.Case, status: int = 200, *, wrong: bool = False) -> Response:
    config: ProjectConfig = case.project.config
    body, kind = case.own.json("body") if case.own else {}, config.kind.value
    is_worse, is_ranked = config.answer.polarity is Polarity.WORSE, config.kind is Kind.RANK or config.answer.then_rank
    question = f"{kind}.{'worse' if is_worse and config.kind is not Kind.RATE else 'question'}" if config.kind.shows_candidates else ""
    return page(
        request, site, person, "case", status, case=case, config=config, kind=kind, project=case.project.row, body=body,
        wrong=wrong, most=config.answer.strength.num_points, letters="ABCDEFGHI", question=question, is_ranked=is_ranked,
        worse="_worse" if is_worse else "",
    )  # fmt: skip


ROUTES: list[Route] = [
    route("/admin/review", review_home, REVIEWERS),
    route("/admin/items/{item_id}", case_page, REVIEWERS),
    route("/admin/items/{item_id}", decide, REVIEWERS, ("POST",), is_form=True),
    route(f"{PROJECT}/disputes", disputes_page, REVIEWERS),
]
