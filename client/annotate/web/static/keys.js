// Keys to acts. By place on the keyboard (event.code), so that layouts do not matter. Silent in text fields, but for Ctrl+Enter and Escape,
// and while an input method composes: its Enter picks a word and must never submit.
const ACTS = {
  Enter: "submit", NumpadEnter: "submit", KeyT: "tie", KeyU: "undo", KeyS: "skip", KeyR: "report", KeyG: "guidelines", KeyC: "comment", KeyH: "hide",
  KeyB: "break", KeyJ: "next", KeyK: "previous", KeyY: "yes", KeyN: "no", Backspace: "back", ArrowUp: "up", ArrowDown: "down",
};
const TEXT = "textarea, select, [contenteditable], input:not([type=radio]):not([type=checkbox])";

export const isComposing = (event) => event.isComposing || event.keyCode === 229;

export function actOf(event) {
  if (isComposing(event) || event.repeat || event.altKey) return null;
  if (event.target.closest?.(TEXT)) return event.key === "Enter" && (event.ctrlKey || event.metaKey) ? { act: "send" } : null;
  if (event.ctrlKey || event.metaKey) return event.key === "Enter" ? { act: "send" } : null;
  const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
  if (digit && !event.shiftKey) return { act: "digit", digit: Number(digit[1]) };
  if (event.key === "?") return { act: "help" };
  if (event.shiftKey) return null;
  const act = ACTS[event.code];
  if (act === "submit" && event.target.closest?.("button, a, summary")) return null; // Enter on a button is that button's own
  return act ? { act } : null;
}
