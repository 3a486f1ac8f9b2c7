// Write a reply, or mend one: the editor, and below it what is added and removed, word by word.
import { el, fill, word } from "./dom.js";

export function editor({ cards, project, onChange }) {
  const original = project.kind === "edit" ? cards[0] : null;
  const area = el("textarea", { id: "editor", class: "editor", rows: "12", dir: "auto", maxlength: String(project.max_chars), value: original?.text ?? "", oninput: () => show() });
  const changes = el("p", { class: "prose", dir: "auto" });
  function show() {
    if (original) fill(changes, differences(original.text, area.value).map(({ kind, text }) => (kind === "same" ? text : el(kind, {}, el("span", { class: "unseen" }, word(kind === "ins" ? "edit.added" : "edit.removed")), text))));
    onChange();
  }
  const isDone = () => area.value.trim().length >= project.min_chars && (!original || area.value !== original.text);
  return {
    question: word(original ? "edit.question" : "demonstrate.question"), hidesCards: true, controlOf: () => null, start: show,
    extra: el("div", { class: "composer" }, el("label", { for: "editor", class: "unseen" }, word(original ? "edit.question" : "demonstrate.question")), area,
      original && el("section", {}, el("h2", {}, word("edit.changes")), changes)),
    focus: () => area.focus(), key: () => false,
    body: () => (isDone() ? (original ? { text: area.value, candidate: original.id } : { text: area.value }) : null),
    partial: () => ({ text: area.value }),
    restore(body) { if (body.text !== undefined) area.value = body.text; show(); },
    summary: () => "",
  };
}

// The longest common run of words (Hunt and McIlroy's table); texts of thousands of words are shown as one change.
export function differences(before, after) {
  const split = (text) => text.match(/\s+|[^\s]+/g) ?? [];
  const a = split(before), b = split(after);
  if (a.length * b.length > 4e6) return [{ kind: "del", text: before }, { kind: "ins", text: after }];
  const table = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) table[i][j] = a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  const found = [];
  const add = (kind, text) => { if (found.at(-1)?.kind === kind) found.at(-1).text += text; else found.push({ kind, text }); };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { add("same", a[i]); i++; j++; }
    else if (i < a.length && (j >= b.length || table[i + 1][j] >= table[i][j + 1])) add("del", a[i++]);
    else add("ins", b[j++]);
  }
  return found;
}
