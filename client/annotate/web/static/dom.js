// Nodes and words. Texts are always text nodes: nothing here can make markup of what somebody wrote.
const words = JSON.parse(document.querySelector("meta[name=words]")?.content ?? "{}");

export const word = (key, values = {}) => (words[key] ?? words["error.BROKEN"] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
export const hasWord = (key) => key in words;

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const kbd = (key) => (key ? el("kbd", { "aria-hidden": "true" }, key) : null);
export const $ = (selector, root = document) => root.querySelector(selector);
export const fill = (node, ...children) => { node.replaceChildren(...children.flat().filter(Boolean)); return node; };
