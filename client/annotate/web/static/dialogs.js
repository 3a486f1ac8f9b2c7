// Questions over the page: why skip, what to report. They close with Escape, and focus goes back to where it was.
import { $, el, fill, kbd, word } from "./dom.js";

const SKIPS = ["cannot_judge", "wrong_language", "broken", "personal_data", "disturbing", "other"];

export function ask(title, ...content) {
  const dialog = $("#dialog");
  dialog.onkeydown = null; // the keys of an earlier question
  fill(dialog, el("h2", { id: "dialog-title" }, title), ...content, el("button", { type: "button", onclick: () => dialog.close() }, word("nav.close"), kbd("Esc")));
  if (!dialog.open) dialog.showModal();
  return dialog;
}

export const isAsking = () => Boolean(document.querySelector("dialog:modal")); // the guidelines may stand open beside the work

export function askSkip(hasText, onSkip) {
  const act = (reason) => { $("#dialog").close(); onSkip(reason); };
  const dialog = ask(word("skip.title"),
    hasText && el("p", { class: "warning" }, word("skip.loses_text")),
    el("div", { class: "choices" }, SKIPS.map((reason, index) => el("button", { type: "button", onclick: () => act(reason) }, kbd(String(index + 1)), word(`skip.${reason}`)))));
  dialog.onkeydown = (event) => {
    const digit = /^(?:Digit|Numpad)([1-6])$/.exec(event.code);
    if (digit) { event.preventDefault(); act(SKIPS[Number(digit[1]) - 1]); }
  };
}

export function askReport(onReport) {
  const text = el("textarea", { id: "report-text", rows: "4", dir: "auto" });
  const dialog = ask(word("report.title"), el("label", { for: "report-text" }, word("report.text")), text,
    el("p", {}, el("button", { type: "button", class: "primary", onclick: () => { dialog.close(); onReport(text.value); } }, word("report.send"))));
  text.focus();
}
