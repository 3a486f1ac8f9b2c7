// The widget of each kind of task: { question, controlOf(card), extra, start(), key(act), body(), restore(body), summary() }.
import { choose } from "./choose.js";

const KINDS = { choose };

export const widgetOf = (options) => KINDS[options.project.kind](options);
