// Rate every reply from 1 to 7, and say yes or no to each statement. Digits go to the card that has the focus, or to the first without a number.
import { el, word } from "./dom.js";
import { lettersOf } from "./cards.js";

export function rate({ cards, project, onChange }) {
  const ratings = new Map(cards.map((card) => [card.id, { overall: null, flags: {} }]));
  const textOf = (flag) => flag.text || word(`flag.${flag.id}`);
  const nameOf = (id, what) => `${what}-${id}`;

  const controlOf = (card) => el("div", { class: "flags" },
    el("fieldset", { class: "scale" }, el("legend", {}, `${lettersOf(card)}: ${word("rate.overall")}`),
      [1, 2, 3, 4, 5, 6, 7].map((value) => point(nameOf(card.id, "overall"), value, () => set(card.id, value)))),
    project.flags.map((flag) => el("fieldset", { class: "flag" }, el("legend", {}, textOf(flag)),
      el("span", { class: "row" }, [true, false].map((value) => el("label", { class: "option" },
        el("input", { type: "radio", name: nameOf(card.id, flag.id), value: String(value), onchange: () => setFlag(card.id, flag.id, value) }), word(value ? "rate.yes" : "rate.no")))))));

  const point = (name, value, onPick) => el("label", { class: "point" }, el("input", { type: "radio", name, value: String(value), onchange: onPick }), String(value));
  const set = (id, overall) => { ratings.get(id).overall = overall; show(); };
  const setFlag = (id, flag, value) => { ratings.get(id).flags[flag] = value; show(); };
  const isRated = (rating) => rating.overall !== null && project.flags.every((flag) => flag.id in rating.flags);
  function show() {
    for (const [id, rating] of ratings) {
      check(nameOf(id, "overall"), rating.overall);
      for (const flag of project.flags) check(nameOf(id, flag.id), rating.flags[flag.id]);
    }
    onChange();
  }
  const check = (name, value) => document.querySelectorAll(`input[name="${CSS.escape(name)}"]`).forEach((input) => { input.checked = input.value === String(value); });
  const focused = () => cards.find((card) => document.activeElement?.closest(".card")?.dataset.card === card.id);

  function setFocusedFlag(value) {
    const card = focused() ?? cards.find((each) => !isRated(ratings.get(each.id)));
    const row = document.activeElement?.closest(".flag");
    const flag = row ? project.flags[[...row.parentNode.querySelectorAll(".flag")].indexOf(row)] : project.flags.find((each) => !(each.id in ratings.get(card?.id)?.flags ?? {}));
    if (!card || !flag) return false;
    setFlag(card.id, flag.id, value);
    focusNextOpen(card);
    return true;
  }
  function focusNextOpen(after) { // the next statement without a yes or no: of this card, then of the others
    for (const card of [after, ...cards]) {
      const open = project.flags.find((each) => !(each.id in ratings.get(card.id).flags));
      if (open) return document.querySelector(`input[name="${CSS.escape(nameOf(card.id, open.id))}"]`)?.focus();
    }
  }
  return {
    question: word("rate.question"), controlOf, extra: null, start: show,
    key({ act, digit }) {
      if (act === "digit" && digit >= 1 && digit <= 7) {
        const card = focused() ?? cards.find((each) => ratings.get(each.id).overall === null);
        if (!card) return false;
        set(card.id, digit);
        const next = cards[cards.indexOf(card) + 1];
        if (!project.flags.length && next) document.querySelector(`#card-${next.slot}`)?.focus();
        return true;
      }
      return act === "yes" || act === "no" ? setFocusedFlag(act === "yes") : false;
    },
    body: () => ([...ratings.values()].every(isRated) ? { ratings: Object.fromEntries(ratings) } : null),
    partial: () => ({ ratings: Object.fromEntries(ratings) }),
    restore(body) {
      for (const [id, rating] of Object.entries(body.ratings ?? {})) if (ratings.has(id)) ratings.set(id, { overall: rating.overall ?? null, flags: { ...rating.flags } });
      show();
    },
    summary: () => cards.filter((card) => ratings.get(card.id).overall).map((card) => `${lettersOf(card)} ${ratings.get(card.id).overall}`).join(" · "),
  };
}
