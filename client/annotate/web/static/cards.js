// Replies as cards: all at once, in the order of the view, each with its full text. The control of the task's kind stands at the foot.
import { el, word } from "./dom.js";
import { drawEvidence } from "./evidence.js";

export const cardOf = (cards, digit) => cards.find((card) => card.letters.includes("ABCDEFGHI"[digit - 1]));
export const lettersOf = (card) => card.letters.join(word("card.and"));

export function drawCards(cards, { controlOf, onReport, isNew }) {
  const columns = cards.length === 1 || cards.length > 4 ? 1 : 2;
  return el("div", {}, cards.length > 2 && drawLetters(cards), el("div", { class: "cards", data: { columns, ...(isNew ? { new: "" } : {}) } }, cards.map((card) => drawCard(card, controlOf, onReport))));
}

// Where cards stand one below the other: a row of letters that stays in sight, and leads to each.
function drawLetters(cards) {
  const go = (card) => { const heading = document.getElementById(`card-${card.slot}`); heading.focus({ preventScroll: true }); heading.closest(".card").scrollIntoView({ block: "start" }); };
  return el("nav", { class: "letters", "aria-label": word("card.letters"), data: cards.length > 4 ? { many: "" } : {} },
    cards.map((card) => el("button", { type: "button", onclick: () => go(card), "aria-label": word("card.reply", { letter: lettersOf(card) }) }, card.letters.join(" "))));
}

function drawCard(card, controlOf, onReport) {
  const id = `card-${card.slot}`;
  const isShared = card.letters.length > 1;
  return el("article", { class: "card", "aria-labelledby": id, data: { card: card.id } },
    el("header", {},
      el("h2", { id, tabindex: "-1" }, isShared ? word("card.same", { letters: lettersOf(card) }) : word("card.reply", { letter: card.letters[0] })),
      el("button", { type: "button", class: "quiet report", "aria-label": `${word("card.report")}: ${word("card.reply", { letter: lettersOf(card) })}`, onclick: () => onReport(card) }, word("card.report"))),
    el("p", { class: "text", dir: "auto" }, card.text || el("span", { class: "soft" }, word("card.empty"))),
    card.cut && el("p", { class: "cut" }, word("card.cut")),
    drawEvidence(card.evidence),
    el("div", { class: "control" }, controlOf(card)));
}

// Replies while they are written: letters and texts, nothing to choose yet. Returns the cards and what adds to them.
export function drawGrowing(total) {
  const texts = Array.from({ length: total }, () => el("p", { class: "text", dir: "auto" }));
  const node = el("div", { class: "cards", data: { columns: total === 1 || total > 4 ? 1 : 2 }, "aria-busy": "true" }, texts.map((text, slot) =>
    el("article", { class: "card" }, total > 1 && el("header", {}, el("h2", {}, word("card.reply", { letter: "ABCDEFGHI"[slot] }))), text)));
  return { node, add({ from, texts: more }) { more.forEach((text, slot) => { texts[slot].textContent = from ? texts[slot].textContent + text : text; }); } };
}

export function moveFocus(step) {
  const headings = [...document.querySelectorAll(".card h2")];
  const at = headings.findIndex((heading) => heading.closest(".card").contains(document.activeElement));
  headings[Math.min(headings.length - 1, Math.max(0, at < 0 ? (step > 0 ? 0 : headings.length - 1) : at + step))]?.focus();
}
