// Evidence as cards: title, whose page it is, what it says, and a way to it. Texts are text nodes; only web addresses become links.
import { el, word } from "./dom.js";

export const drawEvidence = (cards) => cards.map(({ title, url, snippet, query }) => {
  const host = hostOf(url);
  return el("div", { class: "evidence", role: "note", "aria-label": word("evidence.title") },
    el("p", {}, el("strong", { dir: "auto" }, title || url || ""), host && ` `, host && el("span", { class: "soft" }, host)),
    snippet && el("p", { dir: "auto" }, snippet),
    query && el("p", { class: "soft" }, `${word("evidence.query")} `, el("span", { dir: "auto" }, query)),
    host && el("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, word("card.source")));
});

function hostOf(url) {
  if (!/^https?:\/\//.test(url ?? "")) return "";
  try { return new URL(url).host; } catch { return ""; }
}
