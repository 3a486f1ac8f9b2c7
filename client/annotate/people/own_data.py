"""All that is stored of one person, as a file for that person. What tells heads apart is not the person's data, and not in it."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

from polyhead.client.annotate.storage.database import Database

_QUERIES = {
    "account": "SELECT pseudonym, role, state, locale, timezone, languages_json, settings_json, projects_json, created_at"
    " FROM accounts WHERE id = ?",
    "consents": "SELECT document, version, locale, given_at, withdrawn_at FROM consents WHERE account_id = ?",
    "answers": "SELECT n.kind, n.body_json, n.state, n.locale, n.client_json, n.shown_at, n.first_input_at, n.received_at, n.active_ms"
    " FROM answers n JOIN assignments a ON a.id = n.assignment_id WHERE a.account_id = ? ORDER BY n.received_at",
    "messages": "SELECT t.number, t.user_text, t.pasted_chars, t.started_at FROM turns t JOIN dialogues d ON d.id = t.dialogue_id"
    " JOIN assignments a ON a.id = d.assignment_id WHERE a.account_id = ? AND t.user_source = 'annotator' ORDER BY t.started_at",
    "texts": "SELECT origin, text, created_at FROM candidates WHERE account_id = ? ORDER BY created_at",
    "reports": "SELECT reason, text, created_at FROM reports WHERE account_id = ? ORDER BY created_at",
    "team_messages": "SELECT text, created_at, read_at FROM team_messages WHERE account_id = ? ORDER BY created_at",
    "work": "SELECT state, leased_at, ended_at, reason, late, active_ms FROM assignments WHERE account_id = ? ORDER BY leased_at",
}


def own_data(db: Database, account_id: str) -> bytes:
    """A ZIP file with a JSON file a kind of data; times in milliseconds since 1970."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, query in _QUERIES.items():
            rows = [_plain(row.columns) for row in db.all(query, account_id)]
            archive.writestr(f"{name}.json", json.dumps(rows, ensure_ascii=False, indent=1))
    return packed.getvalue()


def _plain(columns: Any) -> dict[str, Any]:
    """JSON columns as what they hold."""
    return {
        name.removesuffix("_json"): json.loads(value) if name.endswith("_json") and value is not None else value
        for name, value in columns.items()
    }
