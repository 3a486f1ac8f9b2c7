// Keys to acts. By place on the keyboard (event.code), so that layouts do not matter. Silent in text fields, but for Ctrl+Enter and Escape,
// and while an input method composes: its Enter picks a word and must never submit.
// Letters are the person's own (/me); without single keys all but Ctrl+Enter and Escape is silent (WCAG 2.1.4).
const settings = JSON.parse(document.querySelector("main[data-keys]")?.dataset.keys ?? "{}");
const letters = Object.fromEntries(Object.entries(settings.letters ?? {}).filter(([, letter]) => letter).map(([act, letter]) => [`Key${letter}`, act]));
const ACTS = { Enter: "submit", NumpadEnter: "submit", Backspace: "back", ArrowUp: "up", ArrowDown: "down", ...letters };
const TEXT = "textarea, select, [contenteditable], input:not([type=radio]):not([type=checkbox])";

export const letterOf = (act) => settings.letters?.[act] ?? "";
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

export function actOf(event) {
  if (isComposing(event) || event.repeat || event.altKey) return null;
  if (event.target.closest?.(TEXT)) return event.key === "Enter" && (event.ctrlKey || event.metaKey) ? { act: "send" } : null;
  if (event.ctrlKey || event.metaKey) return event.key === "Enter" ? { act: "send" } : null;
  if (settings.are_off) return null;
  const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
  if (digit && !event.shiftKey) return { act: "digit", digit: Number(digit[1]) };
  if (event.key === "?") return { act: "help" };
  if (event.shiftKey) return null;
  const act = ACTS[event.code];
  if (act === "submit" && event.target.closest?.("button, a, summary")) return null; // Enter on a button is that button's own
  return act ? { act } : null;
}
