// Undo from the overview: the answer is taken back, and its task opens with the old answer as draft.
import { call } from "./api.js";

for (const button of document.querySelectorAll("[data-undo]")) {
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const { project } = await call("POST", `/api/answers/${button.dataset.undo}/withdraw`, {});
      location.href = `/p/${project}/task`;
    } catch {
      location.reload();
    }
  });
}
