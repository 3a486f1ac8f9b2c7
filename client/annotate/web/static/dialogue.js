// The conversation so far: what was said, by whom. Older turns are folded.
import { el, word } from "./dom.js";

const SHOWN = 8; // messages; a turn has two

export function drawDialogue(state, { brokenOf }) {
  const messages = [...state.item.messages.map((message) => ({ who: message.role, text: message.content, isOther: true })), ...saidInTurns(state)];
  const drawn = messages.map((message) => drawMessage(message, brokenOf));
  const numHidden = drawn.length - SHOWN;
  if (numHidden <= 0) return drawn;
  const older = el("details", {}, el("summary", {}, word("task.earlier", { count: Math.ceil(numHidden / 2) })), drawn.slice(0, numHidden));
  return [older, ...drawn.slice(numHidden)];
}

function saidInTurns(state) {
  return state.turns.flatMap((turn) => {
    const said = turn.text ? [{ who: "user", text: turn.text, isOther: !turn.is_own }] : []; // not there yet: a model writes it
    const chosen = turn.view?.candidates.find((card) => card.id === turn.next) ?? sharing(turn);
    const isOpen = state.phase === "judge" && turn === state.turns.at(-1) && state.project.kind !== "probe";
    if (chosen && !isOpen) said.push({ who: "assistant", text: chosen.text, turn });
    return said;
  });
}

// The chosen reply may share its card with another one of the same text.
const sharing = (turn) => (turn.next && turn.view?.candidates.length === 1 ? turn.view.candidates[0] : null);

function drawMessage({ who, text, isOther, turn }, brokenOf) {
  const speaker = word(who === "assistant" ? "task.assistant" : isOther ? "task.user" : "task.you");
  return el("div", { class: `turn ${who}` }, el("span", { class: "who" }, speaker), el("p", { class: "said", dir: "auto" }, text), turn && brokenOf?.(turn));
}
