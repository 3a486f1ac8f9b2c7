// Keeps the lease while somebody is there: a heartbeat a minute while the page is visible, active time by input of the last minute.
import { call } from "./api.js";

const MINUTE = 60000;

export class Care {
  constructor({ onLost, onMoved, onWarning }) {
    Object.assign(this, { onLost, onMoved, onWarning, tab: crypto.randomUUID(), activeMs: 0, lastInput: Date.now(), lastTick: Date.now() });
    for (const kind of ["keydown", "pointerdown", "scroll", "pointermove"]) document.addEventListener(kind, () => { this.lastInput = Date.now(); }, { passive: true, capture: true });
    setInterval(() => this.tick(), 5000);
    setInterval(() => this.beat(), MINUTE);
  }

  watch(assignment, now) {
    if (assignment.id !== this.assignment?.id) this.activeMs = 0;
    this.assignment = assignment;
    this.skew = Date.now() - now; // the server's clock counts
  }

  tick() {
    const now = Date.now();
    if (!document.hidden && now - this.lastInput < MINUTE) this.activeMs += Math.min(now - this.lastTick, 10000);
    this.lastTick = now;
    const left = this.assignment ? this.assignment.lease_until + this.skew - now : Infinity;
    if (left <= 0) this.onLost();
    else if (left < 2 * MINUTE && now - this.lastInput >= MINUTE) this.onWarning();
  }

  async beat(takesOver = false) {
    if (!this.assignment || (document.hidden && !takesOver)) return;
    try {
      const { lease_until, now } = await call("POST", `/api/assignments/${this.assignment.id}/heartbeat`, { tab_id: this.tab, active_ms: this.activeMs, takes_over: takesOver });
      this.assignment.lease_until = lease_until;
      this.skew = Date.now() - now;
    } catch (error) {
      if (error.code === "TAB_MOVED") this.onMoved();
    }
  }
}
