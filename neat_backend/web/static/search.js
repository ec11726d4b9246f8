// The page of a search: asks again while the worker has not answered, and hands on what is chosen.

import { choose } from "./choose.js";

const AGAIN_MS = 2000;

if (document.getElementById("search-waiting")) setTimeout(() => location.reload(), AGAIN_MS);

document.getElementById("chosen")?.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.currentTarget, said = document.getElementById("chosen-said");
  const tasks = new FormData(form).getAll("task").map(Number);
  if (tasks.length) choose(tasks, form.dataset, said);
  else said.textContent = "Choose at least one image.";
});
