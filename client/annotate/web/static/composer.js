// Where a person writes the user's message. Ctrl+Enter sends, or Enter if the person has set it so; an input method's Enter never does.
import { el, kbd, word } from "./dom.js";
import { isComposing } from "./keys.js";

const PRIVATE = /[\w.+-]+@[\w-]+\.\w{2,}|(?:\+?\d[\s-]?){9,}/; // an e-mail address, a long number

export function composer({ state, text, enterSends, onInput, onSend, onFinish }) {
  const { project, turns } = state;
  const isFirst = turns.length === 0;
  const canFinish = project.kind !== "probe" && turns.filter((turn) => turn.answer).length >= project.min_turns;
  let pasted = 0;
  const area = el("textarea", { id: "message", dir: "auto", maxlength: String(project.max_chars), rows: "4", "aria-describedby": "message-help", value: text });
  const count = el("span", { class: "soft", id: "message-count" });
  const hint = el("span", { class: "soft", role: "status" });
  const send = el("button", { type: "button", class: "primary", onclick: () => trySend() }, word("compose.send"), kbd(enterSends ? "Enter" : "Ctrl+Enter"));
  const show = () => {
    count.textContent = word("compose.count", { count: area.value.length, most: project.max_chars });
    count.hidden = area.value.length < project.max_chars * 0.5;
    hint.textContent = PRIVATE.test(area.value) ? word("compose.private") : "";
    send.disabled = area.value.trim().length < project.min_chars;
  };
  const trySend = () => {
    if (send.disabled) return;
    send.disabled = true; // one press, one message
    onSend(area.value, pasted);
  };
  area.addEventListener("input", () => { show(); onInput(area.value); });
  area.addEventListener("paste", (event) => { pasted += event.clipboardData.getData("text").length; });
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || isComposing(event) || event.shiftKey || event.altKey) return;
    if (enterSends || event.ctrlKey || event.metaKey) { event.preventDefault(); event.stopPropagation(); trySend(); }
  });
  show();
  const node = el("div", { class: "composer" },
    el("label", { for: "message", class: "unseen" }, word(isFirst ? "compose.first" : "compose.next")),
    area,
    el("div", { class: "row" }, send,
      canFinish && el("button", { type: "button", onclick: onFinish }, word("compose.finish")),
      el("span", { class: "soft", id: "message-help" }, isFirst ? word("compose.hint") : ""), count, hint));
  return { node, focus: () => area.focus(), enable: show, text: () => area.value };
}
