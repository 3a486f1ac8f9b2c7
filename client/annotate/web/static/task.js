// The task page. The server says what is on the table; this file draws it, and carries acts back.
import { call, newId } from "./api.js";
import { Care } from "./care.js";
import { drawCards, drawGrowing, moveFocus } from "./cards.js";
import { composer } from "./composer.js";
import { drawDialogue } from "./dialogue.js";
import { ask, askReport, askSkip, isAsking } from "./dialogs.js";
import { $, el, fill, hasWord, kbd, word } from "./dom.js";
import { Draft } from "./draft.js";
import { drawEvidence } from "./evidence.js";
import { drawExplained } from "./explained.js";
import { actOf, letterOf } from "./keys.js";
import { widgetOf } from "./kinds.js";
import { showMessages } from "./messages.js";
import { flush, put, waiting } from "./outbox.js";
import { follow } from "./stream.js";

const main = $("#task"), { slug, person } = main.dataset;
const nodes = Object.fromEntries(["banner", "question", "rule", "dialogue", "evidence", "status", "work", "bar", "marks", "summary", "today", "connection"].map((id) => [id, $(`#${id}`)]));
const care = new Care({ onLost: () => showBanner(word("lease.late")), onMoved: showMoved, onWarning: askStillThere });
let state = null, draft = null, widget = null, writing = null, extra = null, unfollow = null, timing = {}, lastAnswer = null, isSending = false, isNew = false, isDrawing = false;

// -- getting and showing the state ---------------------------------------------------------------------------------------------------

async function claim() {
  main.setAttribute("aria-busy", "true");
  try {
    const answer = await call("POST", "/api/claim", { project: slug, tab_id: care.tab });
    showMessages($("#messages"), answer.messages);
    if (answer.empty) return showEmpty(answer);
    nodes.today.textContent = word("task.today", { count: answer.today });
    showConnection(true);
    showBanner(answer.banner === "down" ? word("down.banner") : "");
    take(answer.state);
  } catch (error) { showError(error, claim); }
}

function take(next) {
  if (next.assignment.id !== state?.assignment.id) draft = new Draft(next.assignment, askDraft);
  else draft.moved(next.assignment);
  if (next.turns.some((turn) => turn.id === draft.value.sending)) draft.clear(); // the message has arrived, though its answer was lost
  state = next;
  care.watch(state.assignment, state.now);
  draw();
}

function draw() {
  unfollow?.();
  widget = writing = extra = unfollow = null;
  main.setAttribute("aria-busy", "false");
  nodes.bar.hidden = false;
  nodes.summary.textContent = "";
  fill(nodes.marks);
  drawRule();
  if (judges()) widget = widgetOf({ cards: cardsOf(), project: state.project, state, onChange: changed });
  drawSaid();
  const turn = state.turns.at(-1);
  if (state.phase === "over") return void claim();
  if (state.phase === "compose") drawComposer();
  else if (state.phase === "generating") drawWaiting(turn);
  else if (state.phase === "failed") drawFailed(turn);
  else drawJudging(turn);
  $("[data-do=submit]", nodes.bar).hidden = !widget;
  showSubmit();
}

// In a probe the verdict may be given as soon as there is a reply, while there are attempts left, too.
const judges = () => state.phase === "judge" || (state.project.kind === "probe" && state.phase === "compose" && state.turns.length > 0);
const cardsOf = () => (state.view ?? state.turns.at(-1)?.view)?.candidates ?? [];

function drawSaid() {
  fill(nodes.dialogue, drawDialogue(state, { brokenOf: widget?.brokenOf }));
  const { evidence } = state.item;
  fill(nodes.evidence, evidence.length > 0 && el("div", { class: "turn" }, el("span", { class: "who" }, word("evidence.title")), el("div", {}, drawEvidence(evidence))));
}

function drawRule() {
  const { rule } = state.item;
  fill(nodes.rule, rule && el("div", { class: "rule" }, word(state.project.kind === "probe" ? "probe.task" : "rulecheck.rule"), el("p", { dir: "auto" }, rule.text)));
}

function drawComposer() {
  const attempt = state.project.kind === "probe" ? word("probe.attempt", { number: state.turns.length + 1, total: state.project.max_turns }) : "";
  say(state.turns.length ? word("compose.next") : word("compose.first"), attempt);
  writing = composer({
    state, text: draft.value.text ?? "", enterSends: main.dataset.enter === "send",
    onInput: (text) => draft.set({ text }), onSend: send, onFinish: finish,
  });
  fill(nodes.work, writing.node);
  if (widget) drawAnswer(null);
  writing.focus();
}

function drawWaiting(turn) {
  const isOne = turn.total === 1;
  let growing = null;
  say(waitingFor(turn), "");
  fill(nodes.work, el("div", { class: "cards", data: { columns: turn.total > 4 || isOne ? 1 : 2 }, "aria-hidden": "true" }, Array.from({ length: turn.total }, () => el("div", { class: "skeleton" }))));
  const startedAt = Date.now();
  unfollow = follow(turn.id, {
    onState: (progress) => showProgress(progress, startedAt),
    onUser: ({ text }) => { turn.text = text; drawSaid(); say(waitingFor(turn), null); },
    onDelta: (delta) => { if (!growing) { growing = drawGrowing(turn.total); fill(nodes.work, growing.node); } growing.add(delta); },
    onReady: (view) => { Object.assign(turn, { state: "ready", view }); showReady(turn); },
    onFailed: ({ code }) => { Object.assign(turn, { state: "failed", code }); state.phase = "failed"; draw(); },
  });
}

function waitingFor(turn) {
  if (!turn.text) return word("status.user"); // a model writes what the user says
  return word(turn.total === 1 ? "status.waiting_one" : state.project.reveal === "lockstep" ? "status.waiting_lockstep" : "status.waiting");
}

function showReady(turn) {
  const isProbe = state.project.kind === "probe";
  if (isProbe) turn.next = turn.view.candidates[0].id; // the only reply is what the conversation goes on with
  state.phase = isProbe && state.turns.length < state.project.max_turns ? "compose" : "judge";
  isNew = true;
  draw();
  isNew = false;
}

function showProgress({ state: how, done, total, retry_after_s: seconds }, startedAt) {
  if (how === "down") return say(null, word("down.banner"));
  if (how === "user") return say(null, Date.now() - startedAt > 20000 ? word("status.still") : "");
  if (how === "queued") return say(null, word("status.queued", { seconds: Math.ceil(seconds ?? 1) }));
  const dots = total > 1 && el("span", { class: "dots", "aria-hidden": "true" }, Array.from({ length: total }, (_, index) => el("i", { class: index < done ? "on" : "" })));
  const late = Date.now() - startedAt > 20000 ? ` ${word("status.still")}` : "";
  fill(nodes.status, dots, total > 1 ? word("status.progress", { done, total }) + late : late.trim());
}

function drawFailed(turn) {
  const isFinal = ["HEAD_GONE", "CONTEXT_FULL", "TEXT_REFUSED", "REPLY_REFUSED"].includes(turn.code), isMessage = !turn.text; // a message of the user that a model was to write
  const isTold = hasWord(`error.${turn.code}`) && !(isMessage && turn.code === "MODEL_FAILED"); // that sentence speaks of replies
  const canFinish = isFinal || (isMessage && state.turns.filter((each) => each.answer).length >= state.project.min_turns);
  say(word(isMessage ? "failed.user" : "failed.title"), isTold ? word(`error.${turn.code}`) : "");
  fill(nodes.work, el("div", { class: "row" },
    !isFinal && el("button", { type: "button", class: "primary", onclick: () => act(() => call("POST", `/api/turns/${turn.id}/retry`, {})) }, word("failed.retry")),
    canFinish && el("button", { type: "button", class: isFinal ? "primary" : "", onclick: finish }, word("compose.finish")),
    !isFinal && el("button", { type: "button", onclick: () => skip("technical") }, word("bar.skip"))));
}

function drawJudging(turn) {
  const cards = state.project.kind === "probe" ? [] : cardsOf();
  const total = turn?.total ?? cards.length;
  say(widget.question, total > 1 ? word("status.ready", { total }) : "");
  fill(nodes.work);
  drawAnswer(cards.length && !widget.hidesCards ? drawCards(cards, { controlOf: widget.controlOf, onReport: (card) => report(card.id), isNew }) : null);
  if (isNew) nodes.question.focus({ preventScroll: true });
  widget.focus?.();
}

function drawAnswer(shown) {
  const turn = turnOfAnswer();
  extra = drawExtra();
  nodes.work.append(el("fieldset", { class: "judging" }, el("legend", { class: "unseen" }, widget.question), widget.notice ?? "", shown ?? "", widget.extra ?? ""), extra.node);
  fill(nodes.marks, widget.marks ?? []);
  isDrawing = true; // what is drawn is not what somebody did
  widget.start();
  const kept = draft.value.answer;
  if (kept && (kept.turn_id ?? null) === turn) { widget.restore(kept.body); extra.restore(kept.body); }
  isDrawing = false;
  timing = { shown_at: Date.now() };
}

// Kinds that judge a whole conversation, and stored items, have one answer; the others one a turn.
const turnOfAnswer = () => (state.view || ["probe", "rulecheck", "demonstrate", "edit"].includes(state.project.kind) ? null : (state.turns.at(-1)?.id ?? null));

function drawExtra() {
  const { project } = state;
  const boxes = project.reasons.map((reason) => el("input", { type: "checkbox", value: reason.id, onchange: changed }));
  const chips = project.reasons.map((reason, index) => el("label", { class: "option" }, boxes[index], reason.text || word(`reason.${reason.id}`)));
  const comment = el("textarea", { id: "comment", rows: "2", dir: "auto", oninput: changed });
  const node = el("div", { class: "extra" },
    chips.length ? el("fieldset", {}, el("legend", {}, word("answer.reasons")), el("div", { class: "options" }, chips)) : null,
    project.comment && el("details", { class: "comment" }, el("summary", {}, word("answer.comment"), " ", kbd(letterOf("comment"))), el("label", { for: "comment" }, word("answer.comment")), comment));
  return {
    node, focus() { const details = $("details.comment", node); if (details) { details.open = true; comment.focus(); } },
    value: () => ({ reasons: boxes.filter((box) => box.checked).map((box) => box.value), comment: comment.value }),
    restore(body) { for (const box of boxes) box.checked = (body.reasons ?? []).includes(box.value); comment.value = body.comment ?? ""; if (comment.value) this.focus(); },
  };
}

// -- acts ------------------------------------------------------------------------------------------------------------------------------

function changed() {
  nodes.summary.textContent = widget?.summary() ?? "";
  if (widget?.advance) nodes.question.textContent = widget.question; // each step has its own
  showSubmit();
  if (isDrawing) return;
  timing.first_input_at ??= Date.now();
  const body = widget?.body();
  if (extra) draft.set({ answer: { turn_id: turnOfAnswer(), body: { ...(body ?? widget.partial?.() ?? {}), ...extra.value() } } });
}

function showSubmit() {
  const button = $("[data-do=submit]", nodes.bar);
  const isReady = Boolean(widget?.isReady ? widget.isReady() : widget?.body());
  button.firstChild.textContent = `${word(widget?.isLast?.() === false ? "bar.continue" : "bar.submit")} `;
  button.setAttribute("aria-disabled", String(!isReady));
  button.title = isReady ? "" : word("bar.mark_first");
}

async function send(text, pasted) {
  const id = (draft.value.sending ??= newId()); // the same id again if this is sent twice
  await act(() => call("POST", `/api/assignments/${state.assignment.id}/turns`, { client_turn_id: id, text, pasted_chars: pasted }), () => draft.clear());
  writing?.enable();
}

async function submit() {
  if (widget?.advance?.()) { // the next step of the same answer
    nodes.question.focus({ preventScroll: true });
    return scrollTo({ top: 0 });
  }
  const body = widget?.body();
  if (!body || isSending) return;
  const view = state.view ?? state.turns.at(-1)?.view;
  put(person, {
    submission_id: crypto.randomUUID(), assignment_id: state.assignment.id, turn_id: turnOfAnswer(), view_id: view?.view_id ?? null, kind: state.project.kind,
    body: { ...body, ...extra.value() }, timing: { ...timing, client_submitted_at: Date.now(), active_ms: care.activeMs },
    client: { width: innerWidth, height: innerHeight, input: matchMedia("(pointer: coarse)").matches ? "touch" : "mouse" },
  });
  draft.clear();
  await deliver();
}

async function deliver() {
  isSending = true;
  try {
    const result = await flush(person);
    showConnection(true);
    if (!result) return;
    if (result.refused) return showError(result.refused, claim);
    lastAnswer = result.answer_id;
    say(null, word("status.saved"));
    if (result.explained) return showExplained(result.explained);
    if (result.next === "turn") take(result.state); else await claim();
    say(null, word("status.saved"));
    if (state?.phase !== "compose") nodes.question.focus({ preventScroll: false });
    scrollTo({ top: 0 });
  } catch (error) { showError(error, deliver); } finally { isSending = false; }
}

// After a training item: the rest waits until the person has read it.
function showExplained(explained) {
  state = null;
  nodes.bar.hidden = true;
  say(word(explained.is_passed ? "explained.same" : "explained.differs"), word("status.saved"));
  const { node, focus } = drawExplained(explained, claim);
  fill(nodes.work, node);
  focus();
  scrollTo({ top: 0 });
}

async function act(request, done = () => {}) {
  try {
    const answer = await request();
    done();
    if (answer.state) take(answer.state); else await claim();
  } catch (error) { showError(error, claim); }
}

const finish = () => act(() => call("POST", `/api/assignments/${state.assignment.id}/finish`, {}), () => draft.clear());
const skip = (reason) => act(() => call("POST", `/api/assignments/${state.assignment.id}/skip`, { reason }), () => draft.clear());
const report = (candidate) => askReport((text) => call("POST", "/api/reports", { assignment_id: state.assignment.id, candidate_id: candidate, text }).then(() => say(null, word("status.reported"))).catch(showError));

async function undo() {
  const answer = lastAnswer ?? state?.turns.findLast((turn) => turn.answer)?.answer.id;
  if (!answer) return;
  lastAnswer = null;
  localStorage.removeItem(draft?.key ?? "");
  await act(() => call("POST", `/api/answers/${answer}/withdraw`, {}).then((result) => { state = null; return result; }));
  say(null, word("status.taken_back"));
}

async function takeBreak() {
  if (state) await call("POST", `/api/assignments/${state.assignment.id}/release`, {}).catch(() => {});
  unfollow?.();
  nodes.bar.hidden = true;
  say(word("break.title"), "");
  for (const node of [nodes.rule, nodes.dialogue, nodes.evidence]) fill(node);
  fill(nodes.work, el("p", { class: "lead" }, word("break.text")), el("button", { type: "button", class: "primary", onclick: claim }, word("break.resume")));
  state = null;
}

// -- words around the work -------------------------------------------------------------------------------------------------------------

function say(question, status) {
  if (question !== null) nodes.question.textContent = question;
  if (status !== null) fill(nodes.status, status);
}

function showBanner(text, ...more) {
  nodes.banner.hidden = !text;
  fill(nodes.banner, text, ...more);
}

function showConnection(isOn) {
  nodes.connection.dataset.is = isOn ? "on" : "off";
  nodes.connection.textContent = isOn ? word("task.connected") : word("offline.waiting", { count: waiting(person).length });
  if (isOn && nodes.banner.textContent === word("offline.banner")) showBanner("");
}

function showError(error, again = claim) {
  main.setAttribute("aria-busy", "false");
  if (!error.messageKey) throw error;
  if (error.code === "OFFLINE" || error.status >= 500) {
    showConnection(false);
    showBanner(word(error.code === "OFFLINE" ? "offline.banner" : error.messageKey));
    setTimeout(again, 5000);
  } else if (error.code === "SIGN_IN") {
    ask(word("error.SIGN_IN"), el("p", {}, word("signin.again")), el("p", {}, el("a", { class: "button primary", href: "/login", target: "_blank" }, word("login.title"))));
    setTimeout(again, 5000);
  } else if (error.code === "CSRF") location.reload(); // signed in anew: the work is kept, the token is another one
  else if (["ALREADY_ANSWERED", "OTHER_BODY", "VOIDED", "UNDO_OVER", "NO_MORE_TURNS", "TURN_OPEN", "SCRIPTED", "BREAK_DUE"].includes(error.code)) {
    showBanner(word(error.messageKey), el("button", { type: "button", onclick: () => { showBanner(""); state = null; claim(); } }, word("again.continue")));
  } else showBanner(word(error.messageKey));
}

function showEmpty({ empty: why, until, now, can_skip: canSkip }) {
  main.setAttribute("aria-busy", "false");
  state = null;
  nodes.bar.hidden = true;
  const isBreak = why === "break";
  say(word(isBreak ? "break.title" : why === "warned" ? "warned.title" : "done.title"), "");
  for (const node of [nodes.rule, nodes.dialogue, nodes.evidence]) fill(node);
  const again = el("button", { type: "button", class: "primary", disabled: isBreak && until > now, onclick: claim }, word("break.resume"));
  if (isBreak) setTimeout(() => { again.disabled = false; }, Math.max(0, until - now));
  fill(nodes.work, el("p", { class: "lead" }, word(`done.${why}`, { minutes: Math.ceil(Math.max(0, (until ?? 0) - now) / 60000) })), el("div", { class: "row" },
    isBreak && again, isBreak && canSkip && el("button", { type: "button", onclick: skipBreak }, word("break.skip")),
    why === "warned" && el("a", { class: "button primary", href: `/p/${slug}/examples` }, word("warned.look")), el("a", { class: isBreak || why === "warned" ? "button" : "button primary", href: "/" }, word("nav.home"))));
}

async function skipBreak() {
  try { await call("POST", "/api/breaks", { project: slug }); await claim(); } catch (error) { showError(error, claim); }
}

// Where there is room the guidelines stand beside the work, and stay open; elsewhere they lie over it.
function toggleGuide() {
  const guide = $("#guide"), isOpen = guide.open;
  if (isOpen) guide.close();
  else if (isWide()) showBeside();
  else guide.showModal();
}

const isWide = () => matchMedia("(min-width: 80rem)").matches;

function showBeside() {
  const { activeElement } = document;
  $("#guide").show(); // takes the focus
  activeElement.focus({ preventScroll: true });
  localStorage.setItem("polyhead.guide", "open");
}

// The draft was changed in another browser: which one goes on is the person's choice.
function askDraft() {
  if (isAsking()) return;
  const choose = (act) => async () => { $("#dialog").close(); await act(); };
  ask(word("error.DRAFT_CONFLICT"), el("div", { class: "choices" },
    el("button", { type: "button", class: "primary", onclick: choose(() => { draft.clear(); state = null; return claim(); }) }, word("draft.use_newer")),
    el("button", { type: "button", onclick: choose(async () => { const { state: now } = await call("GET", `/api/state?project=${slug}`); if (now) draft.moved(now.assignment); await draft.save(); }) }, word("draft.keep_mine"))));
}

function showMoved() {
  showBanner(word("tab.banner"), el("button", { type: "button", onclick: async () => { await care.beat(true); showBanner(""); state = null; claim(); } }, word("tab.here")));
}

function askStillThere() {
  if (!isAsking()) ask(word("again.title"), el("p", {}, word("again.text")), el("button", { type: "button", class: "primary", onclick: () => { $("#dialog").close(); care.beat(); } }, word("again.continue")));
}

// -- keys, buttons, and coming back ----------------------------------------------------------------------------------------------------

const ACTS = {
  submit, send: () => submit(), undo, skip: () => askSkip(Boolean(writing?.text() || extra?.value().comment), skip), report: () => report(null),
  guidelines: toggleGuide, help: () => $("#help").showModal(), comment: () => extra?.focus(), break: takeBreak,
  hide: () => document.body.classList.toggle("hides-text"), next: () => moveFocus(1), previous: () => moveFocus(-1),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !isAsking()) $("#guide").close();
  const key = isAsking() ? null : actOf(event);
  if (!key || (!state && !["help", "guidelines"].includes(key.act))) return;
  if (widget?.key(key) || run(key.act)) event.preventDefault();
});
document.addEventListener("click", (event) => { const button = event.target.closest("[data-do]"); if (button) run(button.dataset.do); });
addEventListener("pageshow", (event) => { if (event.persisted) { state = null; claim(); } });
addEventListener("online", () => deliver());

function run(name) {
  if (!ACTS[name]) return false;
  ACTS[name]();
  return true;
}

$("#guide").addEventListener("close", () => localStorage.setItem("polyhead.guide", ""));
if (localStorage.getItem("polyhead.guide") && isWide()) showBeside();
if (waiting(person).length) await deliver();
if (!state) await claim();
