// Compare two replies on 8 or 9 points: 1 is the left one's end.
import { el, word } from "./dom.js";
import { scale } from "./choose.js";

export function compare({ cards, project, onChange }) {
  const isSame = cards.length === 1; // both have one text: there is nothing to compare
  const points = { hh8: 8, stiennon9: 9 }[project.strength];
  let position = null;
  const row = isSame ? null : scale(project, (value) => { position = value; show(); });
  function show() {
    for (const input of row?.querySelectorAll("input") ?? []) input.checked = Number(input.value) === position;
    document.querySelectorAll(".card").forEach((card, index) => card.classList.toggle("is-marked", position !== null && (index === 0 ? position < (points + 1) / 2 : position > (points + 1) / 2)));
    onChange();
  }
  const move = (to) => { position = Math.min(points, Math.max(1, to)); show(); };
  return {
    question: word(project.polarity === "worse" ? "compare.worse" : "compare.question"), controlOf: () => null, start: show,
    notice: isSame ? el("p", { class: "notice" }, word("compare.same")) : null, extra: el("div", { class: "answer" }, row),
    key({ act, digit }) {
      if (isSame || document.activeElement?.name === "position" && act !== "digit") return false; // arrows on the row are the row's own
      if (act === "digit" && digit >= 1 && digit <= points) move(digit);
      else return false;
      return true;
    },
    body: () => (isSame || position !== null ? { scale: project.strength, position } : null),
    restore(body) { position = body.position ?? null; show(); },
    summary: () => (position === null ? "" : `\u2066${position} / ${points}\u2069`), // isolated: from right to left it would read "8 / 7"
  };
}
