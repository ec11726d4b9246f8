// The map of the pool: fetches what has changed, moves with pointer, wheel, fingers and keys, names what is looked at.

import { choose } from "./choose.js";
import { Drawing } from "./drawing.js";
import { Points } from "./points.js";

const MOST_ZOOM = 400; // times the whole map
const REACH = 14; // CSS pixels from a point within which it is meant
const DRAGGED = 4; // CSS pixels that make a press a drag
const KEY_ZOOM = 1.5;

const frame = document.getElementById("map-frame");
const map = document.getElementById("map");
const tip = document.getElementById("map-tip");
const picture = document.getElementById("map-picture");
const words = document.getElementById("map-words");
const said = document.getElementById("map-said");
const got = { places: "", marks: "" }; // tags of what is here
const pressed = new Map(); // pointers that are down: where they were last
let points = null;
let drawing = null;
let classes = [];
let view = null;
let selected = -1;
let moved = 0; // how far the press has been dragged
let waiting = false; // for the next frame
let busy = false; // fetching
let byClass = false; // what colours tell
let lassoing = false; // a drag goes round points instead of moving the map
let lasso = []; // places that the pointer has gone round
let chosen = new Set(); // points

// what is shown

async function bytes(url) {
  const answer = await fetch(url, { cache: "no-cache" });
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  return answer.arrayBuffer();
}

async function follow() {
  const data = document.getElementById("map-data").dataset;
  classes = JSON.parse(data.classes || "[]");
  if (busy || !data.places || (data.places === got.places && data.marks === got.marks)) return;
  busy = true;
  try {
    const { places, marks } = data;
    const now = places === got.places ? points : new Points(await bytes(map.dataset.placesUrl));
    // Marks of a map that is newer than the one here are of no use: the next look brings both.
    got.marks = now.read(await bytes(map.dataset.marksUrl)) ? marks : "";
    got.places = places;
    const task = selected >= 0 ? points.ids[selected] : 0;
    if (now !== points) setChosen([...chosen].map((at) => now.ids.indexOf(points.ids[at])).filter((at) => at >= 0));
    points = now;
    frame.hidden = false;
    drawing ??= new Drawing(document.getElementById("map-canvas"));
    drawing.resize();
    view ??= whole();
    show(task ? points.ids.indexOf(task) : -1, false);
  } catch {
    got.marks = ""; // live.js says it when the backend does not answer; the next look tries again
  }
  busy = false;
}

function whole() {
  const [left, top, right, bottom] = points.box;
  const { clientWidth, clientHeight } = map;
  const scale = 0.94 * Math.min(clientWidth / (right - left + 1), clientHeight / (bottom - top + 1));
  return {
    x: (left + right) / 2 - clientWidth / scale / 2, y: (top + bottom) / 2 - clientHeight / scale / 2,
    scale, whole: scale,
  };
}

function redraw() {
  if (waiting || !points) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const began = performance.now();
    drawing.draw(points, view, selected, { byClass, chosen, lasso });
    map.dispatchEvent(new CustomEvent("drawn", { detail: performance.now() - began }));
  });
}

function zoom(by, x = map.clientWidth / 2, y = map.clientHeight / 2) {
  const scale = Math.min(Math.max(view.scale * by, view.whole / 2), view.whole * MOST_ZOOM);
  view.x += x / view.scale - x / scale;
  view.y += y / view.scale - y / scale;
  view.scale = scale;
  place();
  redraw();
}

function pan(dx, dy) {
  view.x -= dx / view.scale;
  view.y -= dy / view.scale;
  place();
  redraw();
}

// Name a point, -1 = none. aloud: for a screen reader too.
function show(at, aloud) {
  selected = at;
  tip.hidden = at < 0;
  map.dataset.task = at < 0 ? "" : points.ids[at];
  if (at >= 0) {
    const url = address(map.dataset.pictureUrl, points.ids[at]);
    if (picture.getAttribute("src") !== url) picture.src = url;
    words.textContent = points.words(at, classes);
    if (aloud) said.textContent = words.textContent;
    place();
  }
  redraw();
}

function place() {
  if (selected < 0) return;
  const x = (points.x[selected] - view.x) * view.scale, y = (points.y[selected] - view.y) * view.scale;
  const left = x + 16 + tip.offsetWidth > map.clientWidth ? x - 16 - tip.offsetWidth : x + 16;
  const top = Math.min(Math.max(y - tip.offsetHeight / 2, 4), map.clientHeight - tip.offsetHeight - 4);
  tip.style.transform = `translate(${Math.max(left, 4)}px, ${top}px)`;
}

// Bring a point into sight.
function reveal(at) {
  const x = (points.x[at] - view.x) * view.scale, y = (points.y[at] - view.y) * view.scale;
  const margin = 40, { clientWidth, clientHeight } = map;
  if (x < margin || y < margin || x > clientWidth - margin || y > clientHeight - margin) {
    pan(clientWidth / 2 - x, clientHeight / 2 - y);
  }
}

function address(pattern, task) {
  return pattern.replace("/tasks/0", `/tasks/${task}`);
}

function open(at, apart) {
  const url = address(map.dataset.taskUrl, points.ids[at]);
  if (apart) window.open(url);
  else location.href = url;
}

// pointer, wheel, fingers

function under(event) {
  const box = map.getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  return [x, y, points ? points.near(view.x + x / view.scale, view.y + y / view.scale, REACH / view.scale) : -1];
}

map.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  if (!pressed.size) moved = 0;
  pressed.set(event.pointerId, [event.clientX, event.clientY]);
  map.setPointerCapture(event.pointerId);
});

map.addEventListener("pointermove", (event) => {
  const before = pressed.get(event.pointerId);
  if (!points) return;
  if (!before) {
    if (event.pointerType === "mouse") show(under(event)[2], false);
    return;
  }
  const [dx, dy] = [event.clientX - before[0], event.clientY - before[1]];
  moved += Math.hypot(dx, dy);
  if (pressed.size === 2) {
    const [other] = [...pressed].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    const apart = (x, y) => Math.hypot(x - other[0], y - other[1]);
    const box = map.getBoundingClientRect();
    const middle = [(event.clientX + other[0]) / 2 - box.left, (event.clientY + other[1]) / 2 - box.top];
    zoom(apart(event.clientX, event.clientY) / Math.max(apart(...before), 1), ...middle);
    pan(dx / 2, dy / 2);
  } else if (lassoing) {
    lasso.push(placeOf(event));
    redraw();
  } else if (moved > DRAGGED) {
    pan(dx, dy);
  }
  pressed.set(event.pointerId, [event.clientX, event.clientY]);
});

map.addEventListener("pointerup", (event) => {
  if (lasso.length && pressed.has(event.pointerId)) {
    setChosen([...chosen, ...points.inside(lasso)]);
    lasso = [];
    redraw();
  }
  if (!pressed.delete(event.pointerId) || moved > DRAGGED || pressed.size || !points) return;
  const at = under(event)[2];
  // A finger has no hover: its first tap shows, its second opens.
  if (at >= 0 && (event.pointerType === "mouse" || at === selected)) open(at, event.ctrlKey || event.metaKey);
  else show(at, false);
});

map.addEventListener("pointercancel", (event) => {
  pressed.delete(event.pointerId);
  lasso = [];
});
map.addEventListener("pointerleave", (event) => {
  if (event.pointerType === "mouse" && points && !pressed.size && document.activeElement !== map) show(-1, false);
});

map.addEventListener("wheel", (event) => {
  if (!points || !(event.ctrlKey || event.metaKey || document.activeElement === map)) return; // the page scrolls
  event.preventDefault();
  const [x, y] = under(event);
  zoom(Math.exp(-Math.max(Math.min(event.deltaY, 200), -200) / 300), x, y);
}, { passive: false });

// keys and buttons

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function step(direction) {
  if (selected < 0) return points.batch[0] ?? points.near(...points.box.slice(0, 2), Infinity);
  return points.towards(selected, ...direction);
}

function inBatch(by) {
  const { batch } = points, at = batch.indexOf(selected);
  return batch.length ? batch[at < 0 ? 0 : (at + by + batch.length) % batch.length] : -1;
}

map.addEventListener("keydown", (event) => {
  if (!points || event.ctrlKey || event.metaKey || event.altKey) return;
  let at = -1;
  if (event.key in ARROWS) at = step(ARROWS[event.key]);
  else if (event.key === "n" || event.key === "N") at = inBatch(1);
  else if (event.key === "p" || event.key === "P") at = inBatch(-1);
  else if (event.key === "Enter" && selected >= 0) open(selected, false);
  else if (event.key === "Escape") show(-1, false);
  else if ((event.key === "s" || event.key === "S") && selected >= 0) toggle(selected);
  else if (event.key === "0") all();
  else if (event.key === "+" || event.key === "=") zoom(KEY_ZOOM, ...centre());
  else if (event.key === "-") zoom(1 / KEY_ZOOM, ...centre());
  else return;
  event.preventDefault();
  if (at >= 0) {
    show(at, true);
    reveal(at);
  }
});

// what is chosen

function placeOf(event) {
  const box = map.getBoundingClientRect();
  return [view.x + (event.clientX - box.left) / view.scale, view.y + (event.clientY - box.top) / view.scale];
}

function setChosen(places) {
  chosen = new Set(places);
  panel.hidden = !chosen.size;
  count.textContent = `${chosen.size.toLocaleString("en")} image${chosen.size === 1 ? "" : "s"} chosen`;
  redraw();
}

function toggle(at) {
  setChosen(chosen.has(at) ? [...chosen].filter((one) => one !== at) : [...chosen, at]);
}

function chooseInView() {
  const { x, y, scale } = view, right = x + map.clientWidth / scale, bottom = y + map.clientHeight / scale;
  setChosen([...chosen, ...points.inside([[x, y], [right, y], [right, bottom], [x, bottom]])]);
}

const panel = document.getElementById("map-chosen");
const count = document.getElementById("map-count");
const chosenSaid = document.getElementById("map-chosen-said");
const lassoButton = document.getElementById("map-lasso");
lassoButton.addEventListener("click", () => {
  lassoing = !lassoing;
  lassoButton.setAttribute("aria-pressed", lassoing);
  map.classList.toggle("lasso", lassoing);
});
document.getElementById("map-view").addEventListener("click", () => points && chooseInView());
document.getElementById("map-clear").addEventListener("click", () => {
  setChosen([]);
  chosenSaid.textContent = "";
});
document.getElementById("map-label").addEventListener("click", () => {
  choose([...chosen].map((at) => points.ids[at]), panel.dataset, chosenSaid);
});
document.getElementById("map-colours").addEventListener("change", (event) => {
  byClass = event.target.value === "classes";
  document.getElementById("map-classes").hidden = !byClass;
  redraw();
});

function centre() {
  if (selected < 0) return [];
  return [(points.x[selected] - view.x) * view.scale, (points.y[selected] - view.y) * view.scale];
}

function all() {
  view = whole();
  place();
  redraw();
}

document.getElementById("map-in").addEventListener("click", () => points && zoom(KEY_ZOOM));
document.getElementById("map-out").addEventListener("click", () => points && zoom(1 / KEY_ZOOM));
document.getElementById("map-all").addEventListener("click", () => points && all());
picture.addEventListener("error", () => (picture.hidden = true));
picture.addEventListener("load", () => (picture.hidden = false));

new ResizeObserver(() => {
  if (!points || !drawing.resize()) return;
  const fitted = view.scale === view.whole;
  const now = whole();
  if (fitted) view = now;
  else view.whole = now.whole;
  place();
  redraw();
}).observe(map);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawing?.recolour();
  redraw();
});
document.addEventListener("looked", follow);
follow();
