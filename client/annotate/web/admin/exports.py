"""Files for trainers: what goes in is chosen on a page, counted before it is taken, and noted once it was."""

from __future__ import annotations

import asyncio
import io
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from polyhead.client.annotate.admin import rounds
from polyhead.client.annotate.exports.judgements import EXCLUSIONS
from polyhead.client.annotate.exports.options import SHAPED, Options, Ties, options_of
from polyhead.client.annotate.exports.writing import NAMES, check_format, make, note_export, write_files
from polyhead.client.annotate.people.accounts import Person
from polyhead.client.annotate.problems import Invalid
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.web.access import Site, route
from polyhead.client.annotate.web.admin.page import ADMINS, PROJECT, page, read_beside, whole

EXPORTS_A_MINUTE, COUNTS_A_MINUTE = 3, 20
DEFAULTS: dict[str, Any] = {
    "format": "polyhead-pairs", "round": 0, "since": "", "exclude": ["leak", "gold"], "min_agreement": "", "adjudicated": False,
    "ties": "drop", "keep_unsure": False, "ids": False,
}  # fmt: skip


async def export_page(request: Request, site: Site, person: Person) -> Response:
    return _page(request, site, person, DEFAULTS)


async def export_file(request: Request, site: Site, person: Person) -> Response:
    """Rows, their keys and the card, in one ZIP file; or, with act=count, the page with their numbers."""
    slug, given = request.path_params["slug"], _given(await request.form())
    try:
        check_format(given["format"])
        options = _options(given)
    except Invalid as error:
        return _page(request, site, person, given, 422, wrong=error.detail)
    if given["act"] == "count":
        site.limits.count("count", person.id, COUNTS_A_MINUTE)
        made = await read_beside(site.db, lambda reader: make(reader, slug, given["format"], options))
        return _page(request, site, person, given, made=made)
    site.limits.count("export", person.id, EXPORTS_A_MINUTE)
    packed = await _packed_export(site, slug, given["format"], options, person.id)
    headers = {"content-disposition": f'attachment; filename="{slug}-{given["format"]}.zip"'}
    return Response(packed, media_type="application/zip", headers=headers)


async def _packed_export(site: Site, slug: str, name: str, options: Options, by: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{slug}-{name}.jsonl"
        written = await read_beside(site.db, lambda reader: write_files(reader, slug, name, path, options))
        note_export(site.db, slug, name, options, written, by)
        return await asyncio.to_thread(_packed, Path(folder))


def _packed(folder: Path) -> bytes:
    """Its files as a ZIP archive. Not for the event loop: an export may be large."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(folder.iterdir()):
            archive.write(each, each.name)
    return packed.getvalue()


def _given(form: Any) -> dict[str, Any]:
    """The form as it was filled in, to be shown again."""
    return {
        "act": str(form.get("act", "")), "format": str(form.get("format", "")), "round": whole(form.get("round", "0")),
        "since": str(form.get("since", ""))[:40], "exclude": [str(each) for each in form.getlist("exclude")],
        "min_agreement": str(form.get("min_agreement", ""))[:10], "ties": str(form.get("ties", "drop")),
        **{name: form.get(name) == "1" for name in ("adjudicated", "keep_unsure", "ids")},
    }  # fmt: skip


def _options(given: dict[str, Any]) -> Options:
    """Choices of another format than the one that is asked for say nothing: the page shows them all."""
    asked = {name: given[name] for name in ("ties", "keep_unsure", "ids") if given["format"] in SHAPED[name]}
    return options_of(
        format_name=given["format"], round_number=given["round"], exclude=given["exclude"], since=given["since"],
        min_agreement=_share(given["min_agreement"]), adjudicated=given["adjudicated"], **asked,
    )  # fmt: skip


def _share(text: str) -> float:
    """In per cent on the page."""
    try:
        return float(text or 0) / 100
    except ValueError:
        raise Invalid(f"the least agreement must be a number, 0 to 100: {text!r}", field="min_agreement") from None


def _page(
    request: Request, site: Site, person: Person, given: dict[str, Any], status: int = 200, *, made: Any = None, wrong: str = ""
) -> Response:
    project = projects.find_project(site.db, request.path_params["slug"])
    return page(
        request, site, person, "export", status, project=project, given=given, made=made, wrong=wrong, formats=NAMES, shaped=SHAPED,
        exclusions=list(EXCLUSIONS), ties=list(Ties), rounds=rounds.rounds_of(site.db, project.id),
        exports=rounds.exports_of(site.db, project.slug),
    )  # fmt: skip


ROUTES: list[Route] = [
    route(f"{PROJECT}/export", export_page, ADMINS),
    route(f"{PROJECT}/export", export_file, ADMINS, ("POST",), is_form=True),
]
