// Keeps the page up to date: it is requested again, and the parts marked data-live that differ are swapped.

const EVERY_MS = 2000;
const LONGEST_MS = 30000;
const lost = document.getElementById("lost");
const said = document.getElementById("said");
const SAID_MS = 6000;
let pause = EVERY_MS;
let tag = "";
let silence;

function swap(fresh) {
  document.title = fresh.title;
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (!other || other.innerHTML === part.innerHTML) continue;
    const focused = part.contains(document.activeElement) ? selectorOf(document.activeElement) : "";
    keepPictures(part, other);
    part.replaceChildren(...other.childNodes);
    if (focused) part.querySelector(focused)?.focus();
  }
}

// Pictures that are there already stay the same elements: they are neither fetched nor decoded again.
function keepPictures(part, other) {
  const here = new Map([...part.querySelectorAll("img")].map((one) => [one.getAttribute("src"), one]));
  for (const fresh of other.querySelectorAll("img")) {
    const kept = here.get(fresh.getAttribute("src"));
    if (!kept) continue;
    here.delete(fresh.getAttribute("src"));
    kept.alt = fresh.alt;
    fresh.replaceWith(kept);
  }
}

function selectorOf(element) {
  if (element.id) return `#${CSS.escape(element.id)}`;
  const href = element.getAttribute("href");
  return href ? `a[href="${CSS.escape(href)}"]` : element.tagName.toLowerCase();
}

async function look() {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-cache" });
      if (!answer.ok) throw new Error(answer.statusText);
      const now = answer.headers.get("ETag");
      if (now !== tag) {
        swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
        tag = now;
      }
      document.dispatchEvent(new Event("looked"));
      lost.hidden = true;
      pause = EVERY_MS;
    } catch {
      lost.hidden = false;
      pause = Math.min(pause * 2, LONGEST_MS);
    }
  }
  setTimeout(look, pause);
}

function say(words) {
  said.textContent = words;
  clearTimeout(silence);
  silence = setTimeout(() => { said.textContent = ""; }, SAID_MS);
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-post]");
  if (!button) return;
  button.disabled = true;
  try {
    const answer = await fetch(button.dataset.post, { method: "POST" });
    const body = await answer.json();
    say(answer.ok ? button.dataset.said : body.error);
  } catch {
    say("The backend does not answer.");
  }
  button.disabled = false;
});

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-post-form]");
  if (!form) return;
  event.preventDefault();
  const found = Number(new FormData(form).get("found")) / 100;
  try {
    const answer = await fetch(form.dataset.postForm, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ found }),
    });
    const body = await answer.json();
    say(answer.ok ? form.dataset.said : body.error);
  } catch {
    say("The backend does not answer.");
  }
});

setTimeout(look, EVERY_MS);
