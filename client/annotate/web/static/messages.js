// What the team has written to this person: above the work, between two items, until it is marked as read.
import { call } from "./api.js";
import { $, el, fill, word } from "./dom.js";

export function showMessages(place, messages) {
  const shown = [...place.children].map((each) => each.dataset.id).join();
  if (shown !== messages.map((each) => each.id).join()) fill(place, messages.map((each) => draw(each))); // said once, not with each item
}

function draw({ id, text }) {
  const button = el("button", { type: "button", onclick: async () => {
    button.disabled = true;
    try { await call("POST", `/api/messages/${id}/read`, {}); node.remove(); $("#question").focus({ preventScroll: true }); } catch { button.disabled = false; }
  } }, word("message.read"));
  const node = el("article", { class: "panel message", data: { id }, "aria-label": word("message.title") },
    el("p", { class: "soft" }, word("message.title")), el("p", { class: "prose", dir: "auto" }, text), button);
  return node;
}
