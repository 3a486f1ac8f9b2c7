"""Messages of the team to one person. people/messages.py shows them."""

from __future__ import annotations

from collections.abc import Sequence

from polyhead.client.annotate.problems import Clash, Invalid, NotThere
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.replies.candidates import has_leak
from polyhead.client.annotate.storage.database import Database, Row, new_id

MAX_CHARS = 2000
NUM_SHOWN = 50


def send(db: Database, account_id: str, text: str, by: str) -> None:
    """Invalid: no text, too long, or it names a head, which nobody who judges may know. Clash: the person cannot sign in any more."""
    text = text.replace("\r\n", "\n").strip()
    if not text or len(text) > MAX_CHARS or any(0xD800 <= ord(letter) <= 0xDFFF or letter == "\0" for letter in text):
        raise Invalid(f"must have 1 to {MAX_CHARS} characters", code="MESSAGE_TEXT", field="text")
    if has_leak(text, _secret_words(db)):
        raise Invalid("names a head", code="MESSAGE_LEAK", field="text")
    with db.transaction():
        state = db.value("SELECT state FROM accounts WHERE id = ?", account_id)
        if state is None:
            raise NotThere("no such person", field="person")
        if state not in ("active", "paused"):
            raise Clash(f"the account is {state}", code="STATE")
        db.insert("team_messages", {"id": new_id(), "account_id": account_id, "text": text, "created_by": by, "created_at": db.now()}, by)


def newest(db: Database) -> Sequence[Row]:
    """What the team has written, to whom and by whom, the newest first."""
    return db.all(
        "SELECT m.text, m.created_at, m.read_at, p.pseudonym, ifnull(w.pseudonym, m.created_by) AS who FROM team_messages m"
        " JOIN accounts p ON p.id = m.account_id LEFT JOIN accounts w ON w.id = m.created_by"
        f" ORDER BY m.created_at DESC, m.rowid DESC LIMIT {NUM_SHOWN}"
    )


def _secret_words(db: Database) -> set[str]:
    """Heads of all projects, and words that give them away."""
    words = set[str]()
    for row in db.all("SELECT project_id, max(version) AS version FROM project_versions GROUP BY project_id"):
        config = projects.config_of(db, row.project_id, row.version)
        words.update(config.head_names, config.hidden.heads, config.leak_words)
    return words
