// Rate every reply, then put them in order: one widget after the other on the same cards. Submit leads from the first to the second.
import { el, word } from "./dom.js";
import { rank } from "./rank.js";
import { rate } from "./rate.js";

export function rateThenRank(options) {
  const { cards, onChange } = options;
  const rating = rate(options), ranking = rank(options);
  const steps = new Map(); // card -> what stands in it at each step
  let isRanking = false;
  const back = el("button", { type: "button", class: "quiet", onclick: () => turnTo(false) }, word("rate.back"));
  const later = [...ranking.marks, back, ranking.notice].filter(Boolean); // of the second step alone

  const controlOf = (card) => {
    const step = { rate: rating.controlOf(card), rank: ranking.controlOf(card), given: el("span", { class: "soft" }) };
    steps.set(card.id, step);
    return [step.rate, step.given, step.rank];
  };
  function turnTo(second) {
    isRanking = second;
    show();
    onChange();
  }
  function show() {
    const { ratings } = rating.partial();
    for (const [id, step] of steps) {
      step.rate.hidden = isRanking;
      step.rank.hidden = step.given.hidden = !isRanking;
      step.given.textContent = word("rate.given", { value: ratings[id].overall ?? "–" });
    }
    for (const node of later) node.hidden = !isRanking;
  }
  const isLast = () => isRanking || cards.length === 1; // one card has no order
  const ranks = () => (cards.length === 1 ? { [cards[0].id]: 1 } : ranking.body()?.ranks);
  return {
    get question() { return isRanking ? ranking.question : rating.question; },
    controlOf, extra: null, notice: ranking.notice, marks: [...ranking.marks, back],
    start() { rating.start(); ranking.start(); show(); },
    key: (pressed) => (isRanking ? ranking : rating).key(pressed),
    isLast, isReady: () => Boolean(rating.body() && (!isLast() || ranks())),
    advance() { if (isLast() || !rating.body()) return false; turnTo(true); return true; },
    body: () => (rating.body() && ranks() ? { ...rating.body(), ranks: ranks() } : null),
    partial: () => ({ ...rating.partial(), ...ranking.partial() }),
    restore(body) {
      rating.restore(body);
      ranking.restore(body);
      isRanking = cards.length > 1 && Boolean(rating.body()) && Boolean(body.ranks || body.groups?.length);
      show();
      onChange();
    },
    summary: () => (isRanking ? ranking : rating).summary(),
  };
}
