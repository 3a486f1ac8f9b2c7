// Calls of the JSON routes. An error has the server's code; a line that is down has the code OFFLINE.
export class CallError extends Error {
  constructor(status, body) {
    super(body.code);
    Object.assign(this, { status, code: body.code, messageKey: body.message_key, field: body.field, retryAfterS: body.retry_after_s });
  }
}

const csrf = document.querySelector("meta[name=csrf]").content;

export async function call(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: { "content-type": "application/json", "x-csrf-token": csrf },
      body: body === undefined ? undefined : JSON.stringify(body),
      keepalive: method !== "GET" && JSON.stringify(body ?? {}).length < 60000,
    });
  } catch {
    throw new CallError(0, { code: "OFFLINE", message_key: "offline.banner" });
  }
  const content = await answer.json().catch(() => ({ code: "BROKEN", message_key: "error.BROKEN" }));
  if (!answer.ok) throw new CallError(answer.status, content);
  return content;
}

export const newId = () => [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
