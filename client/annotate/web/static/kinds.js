// The widget of each kind of task: { question, controlOf(card), extra, start(), key(act), body(), restore(body), summary() }; where marks that are
// not yet an answer are to be kept, partial() has them. Of several steps: isLast(), isReady() for Submit, advance() to the next one.
import { choose } from "./choose.js";
import { compare } from "./compare.js";
import { editor } from "./editor.js";
import { rank } from "./rank.js";
import { rate } from "./rate.js";
import { rateThenRank } from "./rateRank.js";
import { verdict } from "./verdict.js";

const KINDS = { choose, rank, compare, rate, probe: verdict, rulecheck: verdict, demonstrate: editor, edit: editor };

export const widgetOf = (options) => (options.project.then_rank ? rateThenRank : KINDS[options.project.kind])(options);
