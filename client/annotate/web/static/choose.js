// Choose the best of K: one reply, several equal ones, or none of them and then the least bad.
import { el, kbd, word } from "./dom.js";
import { letterOf } from "./keys.js";
import { cardOf, lettersOf } from "./cards.js";

export function choose({ cards, project, onChange }) {
  const marks = { choice: null, tied: new Set(), none: false, leastBad: null, strength: null };
  let isTying = false;
  const isWorse = project.polarity === "worse";
  const asksLeastBad = () => marks.none && project.after_none === "least_bad";
  const labels = new Map(), boxes = new Map();

  const controlOf = (card) => {
    const box = el("input", { type: "radio", name: "choice", value: card.id, "aria-describedby": `card-${card.slot}`, onchange: () => pick(card) });
    const label = el("span", {});
    boxes.set(card.id, box);
    labels.set(card.id, label);
    return el("label", { class: "pick" }, box, label, kbd(String(card.slot + 1)));
  };
  const tie = project.tie && cards.length > 1 && el("button", { type: "button", class: "toggle", "aria-pressed": "false", onclick: () => toggleTie() }, word("choose.tie"), kbd(letterOf("tie")));
  const none = project.none && el("button", { type: "button", class: "toggle", "aria-pressed": "false", onclick: () => toggleNone() }, word("choose.none"), kbd("0"));
  const notice = el("p", { class: "notice", role: "status" });
  const strength = project.strength && cards.length === 2 ? scale(project, (value) => { marks.strength = value; show(); }) : null;
  const extra = el("div", { class: "answer" }, strength);

  function pick(card) {
    if (marks.none) {
      if (asksLeastBad()) marks.leastBad = card.id;
      else { marks.none = false; marks.choice = card.id; }
    } else if (isTying && marks.choice && marks.choice !== card.id) {
      if (!marks.tied.delete(card.id)) marks.tied.add(card.id);
    } else {
      marks.choice = card.id;
      marks.tied.clear();
    }
    show();
  }
  function toggleTie() {
    marks.none = false;
    marks.leastBad = null;
    isTying = !isTying;
    if (!isTying) marks.tied.clear();
    else if (cards.length === 2) {
      marks.choice ??= cards[0].id;
      marks.tied = new Set(cards.map((card) => card.id).filter((id) => id !== marks.choice));
    }
    show();
  }
  function toggleNone() {
    marks.none = !marks.none;
    Object.assign(marks, { choice: null, tied: new Set(), leastBad: null });
    isTying = false;
    show();
  }
  function textFor(id) {
    if (asksLeastBad()) return word("choose.this_least");
    if (isTying && marks.choice && id !== marks.choice) return word("choose.this_tie");
    return word(isWorse ? "choose.this_worse" : "choose.this");
  }
  function show() {
    for (const card of cards) {
      const isMarked = marks.choice === card.id || marks.tied.has(card.id) || marks.leastBad === card.id;
      boxes.get(card.id).checked = isMarked;
      boxes.get(card.id).type = isTying ? "checkbox" : "radio";
      boxes.get(card.id).checked = isMarked;
      labels.get(card.id).textContent = textFor(card.id);
      boxes.get(card.id).closest(".card")?.classList.toggle("is-marked", isMarked);
    }
    tie?.setAttribute("aria-pressed", String(isTying));
    none?.setAttribute("aria-pressed", String(marks.none));
    notice.textContent = asksLeastBad() ? word("choose.least_bad") : isTying && cards.length > 2 ? word(isWorse ? "choose.tie_help_worse" : "choose.tie_help") : "";
    if (strength) {
      strength.hidden = marks.none || isTying || !marks.choice;
      for (const input of strength.querySelectorAll("input")) input.checked = Number(input.value) === marks.strength;
    }
    onChange();
  }
  const isDone = () => (marks.none ? !asksLeastBad() || marks.leastBad !== null : marks.choice !== null);
  return {
    question: word(isWorse ? "choose.worse" : "choose.question"), controlOf, extra, notice, marks: [tie, none], start: show,
    key({ act, digit }) {
      if (act === "digit" && digit === 0 && none) toggleNone();
      else if (act === "digit" && cardOf(cards, digit)) pick(cardOf(cards, digit));
      else if (act === "tie" && tie) toggleTie();
      else return false;
      return true;
    },
    body: () => (isDone() ? { choice: marks.choice, tied: [...marks.tied], none_good: marks.none, least_bad: marks.leastBad, strength: strength && !strength.hidden ? marks.strength : null } : null),
    restore(body) {
      Object.assign(marks, { choice: body.choice ?? null, tied: new Set((body.tied ?? []).filter((id) => boxes.has(id))), none: Boolean(body.none_good), leastBad: body.least_bad ?? null, strength: body.strength ?? null });
      isTying = marks.tied.size > 0;
      show();
    },
    summary() {
      const name = (id) => lettersOf(cards.find((card) => card.id === id));
      if (marks.none) return marks.leastBad ? `${word("choose.this_least")}: ${name(marks.leastBad)}` : "";
      return marks.choice ? [marks.choice, ...marks.tied].map(name).join(" = ") : "";
    },
  };
}

// A row of points with words at its ends; also the whole of `compare`.
export function scale(project, onPick) {
  const isWorse = project.polarity === "worse";
  const points = { hh8: 8, stiennon9: 9 }[project.strength];
  const inputs = Array.from({ length: points }, (_, index) => index + 1).map((value) =>
    el("label", { class: "point" }, el("input", { type: "radio", name: "position", value: String(value), onchange: () => onPick(value) }), String(value)));
  return el("fieldset", { class: "scale" }, el("legend", {}, word(isWorse ? "choose.strength_worse" : "choose.strength")),
    el("span", { class: "end" }, word(isWorse ? "compare.left_worse" : "compare.left")), inputs,
    el("span", { class: "end" }, word(isWorse ? "compare.right_worse" : "compare.right")));
}
