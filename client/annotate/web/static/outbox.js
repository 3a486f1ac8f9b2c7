// Answers wait in this browser until the server has said that they are stored: a reload, a sign-out or a dead server loses none.
// Each belongs to the person who gave it, and is sent while that person is signed in.
import { call } from "./api.js";

const KEY = "polyhead.outbox";
const read = () => JSON.parse(localStorage.getItem(KEY) ?? "[]");
const write = (entries) => localStorage.setItem(KEY, JSON.stringify(entries));
const remove = (id) => write(read().filter((entry) => entry.answer.submission_id !== id));
const FINAL = new Set([403, 404, 409, 413, 422]); // the server will never take it: asking again changes nothing

export const put = (person, answer) => write([...read(), { person, answer }]);
export const waiting = (person) => read().filter((entry) => entry.person === person);

// Sends all; the result of the newest one. Throws the first error that another try may mend.
export async function flush(person) {
  let last = null;
  for (const { answer } of waiting(person)) {
    try {
      last = await call("POST", "/api/answers", answer);
    } catch (error) {
      if (!FINAL.has(error.status) || error.code === "CSRF") throw error;
      last = { refused: error };
    }
    remove(answer.submission_id);
  }
  return last;
}
