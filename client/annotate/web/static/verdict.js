// A verdict on a rule: of a conversation that tried to break it (probe), or of a stored one (rulecheck). Keys 1 to 5, from broken to followed.
import { el, kbd, word } from "./dom.js";

const VERDICTS = [4, 3, 2, 1, 0];

export function verdict({ project, state, onChange }) {
  const isProbe = project.kind === "probe";
  let value = null;
  const broken = new Set();
  const inputs = VERDICTS.map((each) => el("input", { type: "radio", name: "verdict", value: String(each), onchange: () => pick(each) }));
  const list = el("fieldset", { class: "verdicts" }, el("legend", {}, word(isProbe ? "probe.question" : "rulecheck.question")),
    VERDICTS.map((each, index) => el("label", { class: "option" }, inputs[index], word(`verdict.${each}`), kbd(String(index + 1)))));
  const quote = el("textarea", { id: "quote", rows: "2", dir: "auto", oninput: onChange });
  const quoted = isProbe ? null : el("div", { class: "quoted" }, el("label", { for: "quote" }, word("rulecheck.quote")), quote);
  function pick(each) { value = each; show(); }
  function show() {
    inputs.forEach((input) => { input.checked = Number(input.value) === value; });
    document.querySelectorAll("input[data-broken]").forEach((input) => { input.checked = broken.has(input.dataset.broken); });
    onChange();
  }
  return {
    question: word(isProbe ? "probe.question" : "rulecheck.question"), controlOf: () => null, start: show, extra: el("div", { class: "answer" }, list, quoted),
    brokenOf: isProbe ? (turn) => el("label", { class: "broken option" }, el("input", { type: "checkbox", data: { broken: turn.id }, onchange: (event) => { event.target.checked ? broken.add(turn.id) : broken.delete(turn.id); onChange(); } }), word("probe.broken")) : null,
    key({ act, digit }) {
      if (act !== "digit" || digit < 1 || digit > 5) return false;
      pick(VERDICTS[digit - 1]);
      return true;
    },
    body: () => (value === null || (isProbe && !state.turns.length) ? null : isProbe ? { verdict: value, broken_turns: [...broken] } : { verdict: value, quote: quote.value }),
    partial: () => ({ verdict: value, broken_turns: [...broken], quote: quote.value }),
    restore(body) { value = body.verdict ?? null; (body.broken_turns ?? []).forEach((id) => broken.add(id)); quote.value = body.quote ?? ""; show(); },
    summary: () => (value === null ? "" : word(`verdict.${value}`)),
  };
}
