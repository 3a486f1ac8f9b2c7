"""People: invites, accounts under pseudonyms, sign-in codes, sessions, consent. Only hashes of secrets are stored; no address is."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from polyhead.client.annotate.problems import Forbidden, Invalid, NotThere
from polyhead.client.annotate.projects.projects import find_project
from polyhead.client.annotate.storage.database import Database, Row, new_id, sha256, to_json

CONSENT_DOCUMENT, CONSENT_VERSION = "work", 1  # its text is in the catalogs: consent.text
INVITE_DAYS, SESSION_DAYS, IDLE_HOURS = 14, 7, 12
ROLES = ("annotator", "adjudicator", "admin")
_CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # no I, O, 0, 1: 32 signs, 5 bits each
_CODE_LENGTH = 26
_HOUR_MS = 3_600_000
_COLOURS = (
    "amber", "azure", "coral", "copper", "crimson", "emerald", "golden", "indigo", "ivory", "jade", "lilac", "olive", "pearl", "ruby",
    "russet", "saffron", "scarlet", "silver", "teal", "violet",
)  # fmt: skip
_ANIMALS = (
    "badger", "beaver", "crane", "dolphin", "falcon", "finch", "fox", "gecko", "heron", "ibis", "kestrel", "lark", "lynx", "marten",
    "otter", "owl", "panda", "plover", "puffin", "raven", "robin", "seal", "stork", "swift", "tern", "wren",
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """Who is signed in."""

    id: str
    role: str
    pseudonym: str
    locale: str
    csrf: str  # the token that this session's forms and calls carry
    projects: frozenset[str] = frozenset()  # slugs that the invite named; none: all

    def check_sees(self, slug: str) -> None:
        """NotThere for a project that the invite did not name, as for one that does not exist."""
        if self.projects and slug not in self.projects:
            raise NotThere(f"no such project: {slug[:40]!r}", field="project")


def make_code() -> str:
    """A sign-in code: 130 random bits."""
    return "".join(secrets.choice(_CODE_LETTERS) for _ in range(_CODE_LENGTH))


def plain_code(typed: str) -> str:
    """As it is stored, however it was typed."""
    return "".join(letter for letter in typed.upper() if letter in _CODE_LETTERS)


def shown_code(code: str) -> str:
    """In groups of five."""
    return " ".join(code[start : start + 5] for start in range(0, len(code), 5))


def offer_pseudonyms(db: Database, count: int = 3) -> list[str]:
    """Names that nobody has."""
    found: list[str] = []
    while len(found) < count:
        name = f"{secrets.choice(_COLOURS)}-{secrets.choice(_ANIMALS)}-{secrets.randbelow(90) + 10}"
        if name not in found and db.one("SELECT 1 FROM accounts WHERE pseudonym = ?", name) is None:
            found.append(name)
    return found


def create_account(
    db: Database,
    role: str,
    pseudonym: str,
    *,
    locale: str = "en",
    languages: tuple[str, ...] = ("en",),
    timezone: str = "UTC",
    actor: str = "system",
    projects: Sequence[str] = (),
) -> tuple[str, str]:
    """(account id, sign-in code). The code is shown once and stored nowhere. `projects`: slugs of those that it sees; none: all."""
    account, code = new_id(), make_code()
    row = {
        "id": account, "role": role, "pseudonym": pseudonym, "code_sha256": sha256(code), "state": "active", "locale": locale,
        "timezone": timezone, "languages_json": to_json(list(languages)), "settings_json": "{}", "created_at": db.now(),
    }  # fmt: skip
    with db.transaction():
        db.insert("accounts", {**row, "projects_json": to_json(list(projects))} if projects else row, actor)
    return account, code


def renew_code(db: Database, account_id: str) -> str:
    """Another sign-in code, shown once. The old one and all sessions end."""
    code = make_code()
    with db.transaction():
        db.change("accounts", account_id, {"code_sha256": sha256(code)}, account_id)
        db.execute("DELETE FROM sessions WHERE account_id = ?", account_id)
    return code


def create_invite(db: Database, role: str = "annotator", *, max_uses: int = 1, by: str = "system", projects: Sequence[str] = ()) -> str:
    """The token of a link; it ends after two weeks. Its accounts see the projects with these slugs alone; none: all. NotThere for an
    unknown one, Invalid for an admin's, who sees all."""
    assert role in ROLES, role
    if role == "admin" and projects:
        raise Invalid("an admin sees all projects\nhint: name none", code="ADMIN_PROJECTS", field="projects")
    named = sorted({str(find_project(db, slug).slug) for slug in projects})
    token = secrets.token_urlsafe(32)
    with db.transaction():
        db.execute(
            "INSERT INTO invites (token_sha256, role, projects_json, max_uses, expires_at, created_by, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            sha256(token), role, to_json(named), max_uses, db.now() + INVITE_DAYS * 24 * _HOUR_MS, by, db.now(),
        )  # fmt: skip
        db.event("invites.made", by, {"role": role, "max_uses": max_uses, "projects": named}, {})
    return token


def find_invite(db: Database, token: str) -> Row:
    """NotThere for one that is unknown, used up, revoked, or too old: the page says the same of all."""
    found = db.one(
        "SELECT * FROM invites WHERE token_sha256 = ? AND uses < max_uses AND expires_at > ? AND revoked_at IS NULL",
        sha256(token),
        db.now(),
    )
    if found is None:
        raise NotThere("no usable invite", code="INVITE_GONE")
    return found


def accept_invite(
    db: Database, token: str, pseudonym: str, locale: str, languages: tuple[str, ...], timezone: str = "UTC"
) -> tuple[str, str]:
    """(account id, sign-in code): spends one use."""
    with db.transaction():
        invite = find_invite(db, token)
        if db.one("SELECT 1 FROM accounts WHERE pseudonym = ?", pseudonym) or not 3 <= len(pseudonym) <= 40 or not pseudonym.isprintable():
            raise Invalid("the name is taken, or not 3 to 40 characters long", code="PSEUDONYM", field="pseudonym")
        db.execute("UPDATE invites SET uses = uses + 1 WHERE token_sha256 = ?", invite.token_sha256)
        return create_account(
            db, invite.role, pseudonym, locale=locale, languages=languages, timezone=timezone, actor="invite",
            projects=invite.json("projects"),
        )  # fmt: skip


def account_of_code(db: Database, typed: str) -> Row:
    """Forbidden without saying why: codes are not to be guessed."""
    found = db.one("SELECT * FROM accounts WHERE code_sha256 = ?", sha256(plain_code(typed)))
    if found is None or found.state not in ("active", "paused"):
        raise Forbidden("no account has this code", code="WRONG_CODE", field="code")
    return found


def state_of(db: Database, account_id: str) -> str:
    """active; paused: may sign in and gets no tasks; disabled, withdrawn, erased: neither."""
    return str(db.value("SELECT state FROM accounts WHERE id = ?", account_id))


def make_token() -> str:
    """A cookie's value: 256 random bits."""
    return secrets.token_urlsafe(32)


def open_session(db: Database, account_id: str) -> str:
    """The cookie's value."""
    token, now = make_token(), db.now()
    with db.transaction():
        db.execute(
            "INSERT INTO sessions (id_sha256, account_id, csrf_sha256, created_at, seen_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
            sha256(token), account_id, sha256(csrf_token(token)), now, now, now + SESSION_DAYS * 24 * _HOUR_MS,
        )  # fmt: skip
        db.execute("DELETE FROM sessions WHERE expires_at < ?", now)
    return token


def person_of_session(db: Database, token: str) -> Person | None:
    """Who this cookie belongs to, if it still counts."""
    if not token:
        return None
    now = db.now()
    found = db.one(
        "SELECT a.id, a.role, a.pseudonym, a.locale, a.projects_json, s.seen_at FROM sessions s JOIN accounts a ON a.id = s.account_id"
        " WHERE s.id_sha256 = ? AND s.expires_at > ? AND s.seen_at > ? AND a.state IN ('active', 'paused')",
        sha256(token), now, now - IDLE_HOURS * _HOUR_MS,
    )  # fmt: skip
    if found is None:
        return None
    if now - found.seen_at > 60_000:  # once a minute is often enough
        db.execute("UPDATE sessions SET seen_at = ? WHERE id_sha256 = ?", now, sha256(token))
    return Person(found.id, found.role, found.pseudonym, found.locale, csrf_token(token), frozenset(found.json("projects")))


def close_session(db: Database, token: str) -> None:
    db.execute("DELETE FROM sessions WHERE id_sha256 = ?", sha256(token))


def csrf_token(secret: str) -> str:
    """Bound to a cookie: whoever cannot read the cookie cannot make it."""
    return hmac.new(secret.encode(), b"polyhead csrf", hashlib.sha256).hexdigest()


def has_consented(db: Database, account_id: str) -> bool:
    query = "SELECT 1 FROM consents WHERE account_id = ? AND document = ? AND version = ? AND withdrawn_at IS NULL"
    return db.one(query, account_id, CONSENT_DOCUMENT, CONSENT_VERSION) is not None


def give_consent(db: Database, account_id: str, text: str, locale: str) -> None:
    """To this text, in this language."""
    row = {
        "account_id": account_id,
        "document": CONSENT_DOCUMENT,
        "version": CONSENT_VERSION,
        "text_sha256": sha256(text),
        "locale": locale,
    }
    with db.transaction():
        if not has_consented(db, account_id):
            db.put("consents", {**row, "given_at": db.now(), "withdrawn_at": None}, ("account_id", "document", "version"), account_id)
