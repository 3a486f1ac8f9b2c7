// Rank K replies: numbers pressed in order, best first; cards never move. A select on each card does the same by hand.
import { cardOf, lettersOf } from "./cards.js";
import { el, kbd, word } from "./dom.js";
import { letterOf } from "./keys.js";

export function rank({ cards, project, onChange }) {
  let groups = []; // best first; each a list of ids that are equally good
  let isTying = false;
  const isWorse = project.polarity === "worse";
  const badges = new Map(), selects = new Map();
  const rankOf = (id) => groups.findIndex((group) => group.includes(id)) + 1;

  const controlOf = (card) => {
    const letter = lettersOf(card);
    const badge = el("span", { class: "rank-badge", "aria-hidden": "true" });
    const select = el("select", { "aria-label": word("rank.of", { letter }), onchange: () => place(card.id, Number(select.value)) },
      el("option", { value: "0" }, word("rank.unset")), cards.map((_, index) => el("option", { value: String(index + 1) }, String(index + 1))));
    badges.set(card.id, badge);
    selects.set(card.id, select);
    return el("div", { class: "pick rank" }, badge, select, el("button", { type: "button", "aria-label": `${word("choose.tie")}: ${letter}`, class: "quiet", onclick: () => join(card.id) }, "="),
      kbd(card.letters.map((each) => "ABCDEFGHI".indexOf(each) + 1).join(" ")));
  };
  const tie = project.tie && el("button", { type: "button", class: "toggle", "aria-pressed": "false", onclick: () => { isTying = !isTying; show(); } }, word("choose.tie"), kbd(letterOf("tie")));
  const clear = el("button", { type: "button", class: "quiet", onclick: () => { groups = []; isTying = false; show(); } }, word("rank.clear"));
  const notice = el("p", { class: "notice soft" }, word(isWorse ? "rank.help_worse" : "rank.help"));

  const without = (id) => groups.map((group) => group.filter((each) => each !== id)).filter((group) => group.length);
  function next(id) {
    if (rankOf(id)) return;
    if (isTying && groups.length) groups.at(-1).push(id);
    else groups.push([id]);
    isTying = false;
    show();
  }
  function place(id, at) { // the numbers in between close up: no gap is left
    groups = without(id);
    if (at > 0) groups.splice(Math.min(at - 1, groups.length), 0, [id]);
    show();
  }
  function join(id) { // with the one before it
    const at = rankOf(id);
    if (!project.tie) return;
    groups = without(id);
    if (!groups.length) groups.push([id]);
    else groups[Math.max(0, Math.min((at || groups.length + 1) - 2, groups.length - 1))].push(id);
    show();
  }
  function back() {
    const last = groups.at(-1);
    if (!last) return;
    last.pop();
    groups = groups.filter((group) => group.length);
    show();
  }
  const order = () => groups.map((group) => group.map((id) => lettersOf(cards.find((card) => card.id === id))).join(" = ")).join(" > ");
  const isDone = () => groups.flat().length === cards.length;
  function show() {
    for (const card of cards) {
      badges.get(card.id).textContent = rankOf(card.id) || "–";
      selects.get(card.id).value = String(rankOf(card.id));
      badges.get(card.id).closest(".card")?.classList.toggle("is-marked", rankOf(card.id) === 1);
    }
    tie?.setAttribute("aria-pressed", String(isTying));
    onChange();
  }
  return {
    question: word(isWorse ? "rank.worse" : "rank.question"), controlOf, extra: null, notice, marks: [tie, clear], start: show,
    key({ act, digit }) {
      if (act === "digit" && cardOf(cards, digit)) next(cardOf(cards, digit).id);
      else if (act === "tie" && tie) { isTying = !isTying; show(); }
      else if (act === "back") back();
      else return false;
      return true;
    },
    body: () => (isDone() ? { ranks: Object.fromEntries(cards.map((card) => [card.id, rankOf(card.id)])), none_good: false } : null),
    partial: () => ({ groups }),
    restore(body) {
      const ranks = body.ranks ?? {};
      groups = body.groups ?? [...new Set(Object.values(ranks))].sort((a, b) => a - b).map((each) => cards.map((card) => card.id).filter((id) => ranks[id] === each)).filter((group) => group.length);
      show();
    },
    summary: order,
  };
}
