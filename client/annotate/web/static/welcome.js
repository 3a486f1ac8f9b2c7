// Copies the sign-in code.
const button = document.querySelector("#copy");
button.addEventListener("click", async () => {
  await navigator.clipboard.writeText(document.querySelector("#code").textContent);
  button.textContent = button.dataset.copied;
});
