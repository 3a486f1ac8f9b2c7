-- The tables of polyhead annotate, schema 5: all task kinds, so that a new kind needs no migration. migrations.py has the way from 1.
-- Times: INTEGER milliseconds since 1970 UTC. Ids: 24 hex digits. *_json: TEXT with CHECK(json_valid).
PRAGMA user_version = 5;
CREATE TABLE events (              -- append-only: what happened; every other table marked (p) is rebuilt from it
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, kind TEXT NOT NULL, actor TEXT NOT NULL,
  project_id TEXT, item_id TEXT, assignment_id TEXT, turn_id TEXT,
  body_json TEXT NOT NULL CHECK (json_valid(body_json)), body_sha256 BLOB NOT NULL) STRICT;
CREATE INDEX events_of_item ON events (item_id, seq);
CREATE TABLE accounts (            -- (p) but for name, contact, code_sha256: those are never in an event
  id TEXT PRIMARY KEY, role TEXT NOT NULL CHECK (role IN ('annotator','adjudicator','admin')),
  pseudonym TEXT NOT NULL UNIQUE, name TEXT, contact TEXT, code_sha256 BLOB UNIQUE,
  state TEXT NOT NULL CHECK (state IN ('active','paused','disabled','withdrawn','erased')),
  locale TEXT NOT NULL, timezone TEXT NOT NULL, languages_json TEXT NOT NULL CHECK (json_valid(languages_json)),
  settings_json TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(settings_json)), created_at INTEGER NOT NULL, ended_at INTEGER,
  projects_json TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(projects_json))) STRICT;  -- slugs of those that are seen; none: all
CREATE TABLE invites (token_sha256 BLOB PRIMARY KEY, role TEXT NOT NULL, projects_json TEXT NOT NULL, max_uses INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0, expires_at INTEGER NOT NULL, created_by TEXT NOT NULL, created_at INTEGER NOT NULL, revoked_at INTEGER) STRICT;
CREATE TABLE sessions (id_sha256 BLOB PRIMARY KEY, account_id TEXT NOT NULL REFERENCES accounts, csrf_sha256 BLOB NOT NULL,
  created_at INTEGER NOT NULL, seen_at INTEGER NOT NULL, expires_at INTEGER NOT NULL) STRICT;
CREATE TABLE consents (account_id TEXT NOT NULL REFERENCES accounts, document TEXT NOT NULL, version INTEGER NOT NULL, text_sha256 BLOB NOT NULL,
  locale TEXT NOT NULL, given_at INTEGER NOT NULL, withdrawn_at INTEGER, PRIMARY KEY (account_id, document, version)) STRICT;
CREATE TABLE projects (id TEXT PRIMARY KEY, slug TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('draft','open','paused','closed')), sensitive INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL) STRICT;
CREATE TABLE project_versions (project_id TEXT NOT NULL REFERENCES projects, version INTEGER NOT NULL, config_json TEXT NOT NULL CHECK (json_valid(config_json)),
  guidelines_json TEXT NOT NULL, sha256 BLOB NOT NULL, created_by TEXT NOT NULL, created_at INTEGER NOT NULL, PRIMARY KEY (project_id, version)) STRICT;
CREATE TABLE rounds (id TEXT PRIMARY KEY, project_id TEXT NOT NULL REFERENCES projects, number INTEGER NOT NULL, name TEXT NOT NULL,
  project_version INTEGER NOT NULL, trunk_id TEXT, precision TEXT, tokenizer_sha256 TEXT, generation INTEGER, heads_json TEXT,
  opened_at INTEGER NOT NULL, closed_at INTEGER,
  close_reason TEXT NOT NULL DEFAULT '' CHECK (close_reason IN ('', 'trunk')), UNIQUE (project_id, number)) STRICT;  -- trunk: it is no longer served
CREATE TABLE imports (id TEXT PRIMARY KEY, round_id TEXT NOT NULL REFERENCES rounds, file_name TEXT NOT NULL, file_sha256 BLOB NOT NULL,
  num_lines INTEGER NOT NULL, num_items INTEGER NOT NULL, num_duplicates INTEGER NOT NULL, created_by TEXT NOT NULL, created_at INTEGER NOT NULL,
  state TEXT NOT NULL DEFAULT 'done' CHECK (state IN ('running', 'done'))) STRICT;  -- running: its items are seen by nobody yet
CREATE TABLE items (id TEXT PRIMARY KEY, round_id TEXT NOT NULL REFERENCES rounds, import_id TEXT REFERENCES imports, external_id TEXT,
  source TEXT NOT NULL CHECK (source IN ('import','annotator','replay')), origin_turn_id TEXT, author_id TEXT, lang TEXT NOT NULL,
  content_json TEXT NOT NULL CHECK (json_valid(content_json)), content_sha256 BLOB NOT NULL, overlap INTEGER NOT NULL CHECK (overlap >= 1),
  priority INTEGER NOT NULL DEFAULT 0, gold_json TEXT, gold_kind TEXT CHECK (gold_kind IN ('gold','attention','training')),
  state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open','retired')), created_at INTEGER NOT NULL, UNIQUE (round_id, content_sha256)) STRICT;
CREATE TABLE qualifications (account_id TEXT NOT NULL REFERENCES accounts, project_id TEXT NOT NULL REFERENCES projects,
  state TEXT NOT NULL CHECK (state IN ('training','qualified','paused','opted_out')), reason TEXT NOT NULL DEFAULT '', changed_at INTEGER NOT NULL,
  was_paused INTEGER NOT NULL DEFAULT 0 CHECK (was_paused IN (0, 1)), PRIMARY KEY (account_id, project_id)) STRICT;
CREATE TABLE assignments (         -- (p)
  id TEXT PRIMARY KEY, item_id TEXT NOT NULL REFERENCES items, account_id TEXT NOT NULL REFERENCES accounts,
  state TEXT NOT NULL CHECK (state IN ('leased','submitted','skipped','expired','released','voided')),
  leased_at INTEGER NOT NULL, lease_until INTEGER NOT NULL, ended_at INTEGER, reason TEXT NOT NULL DEFAULT '', late INTEGER NOT NULL DEFAULT 0,
  draft_json TEXT, draft_rev INTEGER NOT NULL DEFAULT 0, active_ms INTEGER NOT NULL DEFAULT 0,
  UNIQUE (item_id, account_id)) STRICT;
CREATE INDEX assignments_live ON assignments (account_id, state);
CREATE TABLE dialogues (id TEXT PRIMARY KEY, assignment_id TEXT NOT NULL UNIQUE REFERENCES assignments, rule_json TEXT, rule_set TEXT,
  trunk_id TEXT, tokenizer_sha256 TEXT, started_at INTEGER NOT NULL, ended_at INTEGER, end_reason TEXT NOT NULL DEFAULT '') STRICT;
CREATE TABLE turns (id TEXT PRIMARY KEY, dialogue_id TEXT NOT NULL REFERENCES dialogues, number INTEGER NOT NULL, attempt INTEGER NOT NULL DEFAULT 1,
  parent_candidate_id TEXT, user_text TEXT NOT NULL, user_source TEXT NOT NULL CHECK (user_source IN ('annotator','item','model')), pasted_chars INTEGER NOT NULL DEFAULT 0,
  messages_json TEXT NOT NULL, form_json TEXT NOT NULL, arms_json TEXT NOT NULL, request_id TEXT NOT NULL, context_rebuilt INTEGER NOT NULL DEFAULT 0,
  state TEXT NOT NULL CHECK (state IN ('generating','ready','failed','abandoned')), error_code TEXT NOT NULL DEFAULT '',
  started_at INTEGER NOT NULL, ended_at INTEGER, UNIQUE (dialogue_id, number, attempt)) STRICT;
CREATE TABLE candidates (          -- insert-only: what made a reply, enough to draw it again
  id TEXT PRIMARY KEY, turn_id TEXT REFERENCES turns, item_id TEXT REFERENCES items, origin TEXT NOT NULL CHECK (origin IN ('live','import','human','edit')),
  text TEXT NOT NULL, text_sha256 BLOB NOT NULL, head TEXT NOT NULL, head_name TEXT NOT NULL, head_version INTEGER, digest TEXT, spans_json TEXT,
  generation INTEGER, trunk_id TEXT, precision TEXT, tokenizer_sha256 TEXT, request_id TEXT, prompt_index INTEGER, arm_index INTEGER, sample_index INTEGER,
  prompt_token_ids BLOB, token_ids BLOB, logprobs BLOB, sampling_logprobs BLOB, sampling_json TEXT, sample_seed TEXT,
  finish_reason TEXT, is_terminated INTEGER, stop TEXT, is_valid INTEGER, invalid_json TEXT, format TEXT, evidence_json TEXT,
  scores_json TEXT, reward_json TEXT, ood_json TEXT, num_cached_tokens INTEGER, has_identity_leak INTEGER NOT NULL DEFAULT 0,
  replaces_id TEXT, account_id TEXT, client_version TEXT, created_at INTEGER NOT NULL) STRICT;
CREATE TABLE views (id TEXT PRIMARY KEY, assignment_id TEXT NOT NULL REFERENCES assignments, turn_id TEXT REFERENCES turns, reveal TEXT NOT NULL, created_at INTEGER NOT NULL) STRICT;
CREATE TABLE view_slots (view_id TEXT NOT NULL REFERENCES views, slot INTEGER NOT NULL, candidate_id TEXT NOT NULL REFERENCES candidates, alias_of INTEGER,
  PRIMARY KEY (view_id, slot), UNIQUE (view_id, candidate_id)) STRICT;
CREATE TABLE answers (             -- insert-only but for state
  id TEXT PRIMARY KEY, submission_id TEXT NOT NULL UNIQUE, assignment_id TEXT NOT NULL REFERENCES assignments, turn_id TEXT REFERENCES turns, view_id TEXT REFERENCES views,
  kind TEXT NOT NULL, body_json TEXT NOT NULL CHECK (json_valid(body_json)), body_sha256 BLOB NOT NULL, polarity TEXT NOT NULL CHECK (polarity IN ('better','worse')),
  project_version INTEGER NOT NULL, locale TEXT NOT NULL, catalog_sha256 BLOB NOT NULL, client_json TEXT NOT NULL,
  shown_at INTEGER, first_input_at INTEGER, client_submitted_at INTEGER, received_at INTEGER NOT NULL, active_ms INTEGER NOT NULL,
  state TEXT NOT NULL DEFAULT 'current' CHECK (state IN ('current','withdrawn','voided')), state_reason TEXT NOT NULL DEFAULT '',
  late INTEGER NOT NULL DEFAULT 0 CHECK (late IN (0, 1))) STRICT;  -- given when its lease was over, or in place of one that was
CREATE UNIQUE INDEX one_current_answer ON answers (assignment_id, ifnull(turn_id, '')) WHERE state = 'current';
CREATE TABLE gold_results (answer_id TEXT PRIMARY KEY REFERENCES answers, is_passed INTEGER NOT NULL, score REAL NOT NULL, at INTEGER NOT NULL) STRICT;
CREATE TABLE reports (id TEXT PRIMARY KEY, account_id TEXT NOT NULL, item_id TEXT, candidate_id TEXT, reason TEXT NOT NULL, text TEXT NOT NULL, state TEXT NOT NULL, created_at INTEGER NOT NULL) STRICT;
CREATE TABLE team_messages (id TEXT PRIMARY KEY, account_id TEXT NOT NULL REFERENCES accounts, text TEXT NOT NULL, created_by TEXT NOT NULL,
  created_at INTEGER NOT NULL, read_at INTEGER) STRICT;  -- of the team to one person, who sees it until it is marked as read
CREATE TABLE adjudications (id TEXT PRIMARY KEY, item_id TEXT NOT NULL REFERENCES items, account_id TEXT NOT NULL, body_json TEXT NOT NULL, first_body_json TEXT NOT NULL, created_at INTEGER NOT NULL) STRICT;
CREATE TABLE exports (id TEXT PRIMARY KEY, format TEXT NOT NULL, filters_json TEXT NOT NULL, up_to_seq INTEGER NOT NULL, num_rows INTEGER NOT NULL, left_out_json TEXT NOT NULL, sha256 BLOB NOT NULL, created_by TEXT NOT NULL, created_at INTEGER NOT NULL) STRICT;
CREATE TABLE erasures (account_id TEXT NOT NULL, mode TEXT NOT NULL CHECK (mode IN ('identity','all')), state TEXT NOT NULL CHECK (state IN ('running','done')), at INTEGER NOT NULL, by TEXT NOT NULL) STRICT;
CREATE TRIGGER events_kept BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_fixed BEFORE UPDATE ON events WHEN NOT EXISTS (SELECT 1 FROM erasures WHERE state = 'running') BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER candidates_fixed BEFORE UPDATE ON candidates WHEN NOT EXISTS (SELECT 1 FROM erasures WHERE state = 'running') BEGIN SELECT RAISE(ABORT, 'candidates are insert-only'); END;
CREATE TRIGGER answers_fixed BEFORE UPDATE OF body_json, submission_id, assignment_id, turn_id, view_id ON answers WHEN NOT EXISTS (SELECT 1 FROM erasures WHERE state = 'running') BEGIN SELECT RAISE(ABORT, 'answers are insert-only'); END;
-- Look-ups of every request; an older file gets them when it is opened.
CREATE INDEX IF NOT EXISTS candidates_of_item ON candidates (item_id);
CREATE INDEX IF NOT EXISTS candidates_of_version ON candidates (head_name, head_version, digest);
CREATE INDEX IF NOT EXISTS candidates_of_turn ON candidates (turn_id);
CREATE INDEX IF NOT EXISTS candidates_of_people ON candidates (item_id) WHERE origin IN ('human', 'edit');
CREATE INDEX IF NOT EXISTS views_of_assignment ON views (assignment_id);
CREATE INDEX IF NOT EXISTS views_of_turn ON views (turn_id);
CREATE INDEX IF NOT EXISTS answers_of_assignment ON answers (assignment_id);
CREATE INDEX IF NOT EXISTS items_of_turn ON items (origin_turn_id);
CREATE INDEX IF NOT EXISTS events_of_kind ON events (kind, seq);
CREATE INDEX IF NOT EXISTS items_of_import ON items (import_id);
CREATE INDEX IF NOT EXISTS team_messages_of_account ON team_messages (account_id, read_at);
CREATE INDEX IF NOT EXISTS candidates_that_leak ON candidates (id) WHERE has_identity_leak = 1;
