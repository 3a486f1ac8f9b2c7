// The team's answer beside one's own, after a training item.
import { el, word } from "./dom.js";

export function drawExplained({ is_passed: isPassed, replies, own, expected, why }, onContinue) {
  const told = [["explained.own", own], ["explained.expected", expected], ["explained.why", why]].filter(([, text]) => text);
  const button = el("button", { type: "button", class: "primary", onclick: onContinue }, word("explained.continue"));
  const node = el("div", {},
    el("section", { class: "panel", "aria-label": word(isPassed ? "explained.same" : "explained.differs") }, el("dl", { class: "told" }, told.map(([key, text]) => el("div", {}, el("dt", {}, word(key)), el("dd", { dir: "auto" }, text)))), button),
    el("div", { class: "cards", data: { columns: replies.length > 4 ? 1 : 2 } }, replies.map(({ letter, text }) => el("article", { class: "card" }, el("header", {}, el("h2", {}, word("card.reply", { letter }))), el("p", { class: "text", dir: "auto" }, text)))));
  return { node, focus: () => button.focus() };
}
