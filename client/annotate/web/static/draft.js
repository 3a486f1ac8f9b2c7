// What is not submitted yet: kept in this browser at once, and on the server two seconds later.
import { call } from "./api.js";

export class Draft {
  constructor(assignment, onConflict) {
    this.onConflict = onConflict;
    this.key = `polyhead.draft.${assignment.id}`;
    this.path = `/api/assignments/${assignment.id}/draft`;
    this.rev = assignment.draft_rev;
    const own = JSON.parse(localStorage.getItem(this.key) ?? "null");
    this.value = own && own.rev >= assignment.draft_rev ? own.value : (assignment.draft ?? {});
  }

  set(changes) {
    this.value = { ...this.value, ...changes };
    localStorage.setItem(this.key, JSON.stringify({ rev: this.rev, value: this.value }));
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), 2000);
  }

  async save() {
    try {
      ({ rev: this.rev } = await call("PUT", this.path, { rev: this.rev, draft: this.value }));
    } catch (error) {
      if (error.code === "DRAFT_CONFLICT") this.onConflict(); // anything else: it is kept in this browser, and the next change tries again
    }
  }

  moved(assignment) { // the server has counted a revision of its own: an answer was stored or taken back
    this.rev = assignment.draft_rev;
  }

  clear() {
    clearTimeout(this.timer);
    this.value = {};
    localStorage.removeItem(this.key);
  }
}
