// Follows the drawing of one turn. The browser itself reconnects; the stream is closed as soon as the turn is over.
export function follow(turnId, { onState, onUser, onDelta, onReady, onFailed }) {
  const source = new EventSource(`/api/turns/${turnId}/events`);
  const finished = (act) => (event) => { source.close(); act(JSON.parse(event.data)); };
  source.addEventListener("state", (event) => onState(JSON.parse(event.data)));
  source.addEventListener("user", (event) => onUser(JSON.parse(event.data)));
  source.addEventListener("delta", (event) => onDelta(JSON.parse(event.data)));
  source.addEventListener("ready", finished(onReady));
  source.addEventListener("failed", finished(onFailed));
  return () => source.close();
}
