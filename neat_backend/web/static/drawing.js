// Draws points on a canvas. Many are written as pixels, shaded by how many fall together: 100,000 of them take a few
// milliseconds without a GPU. Few are drawn as shapes, so that known, invalid and next differ by form and colour.

import { FREE, INVALID, KNOWN, NEXT } from "./points.js";

const MOST_SHAPES = 4000; // of one kind; of more, pixels
const SHADES = 32;
const OTHERS = 7; // of the colours of classes: of all classes behind the seventh

export class Drawing {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.resize();
    this.recolour();
  }

  // Follow the size on the page. True if it has changed.
  resize() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.max(Math.round(this.canvas.clientWidth * ratio), 1);
    const height = Math.max(Math.round(this.canvas.clientHeight * ratio), 1);
    if (width === this.canvas.width && height === this.canvas.height && this.image) return false;
    [this.canvas.width, this.canvas.height, this.ratio] = [width, height, ratio];
    this.image = this.context.createImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.counts = new Uint16Array(width * height);
    return true;
  }

  // Follow the page's colours, light or dark.
  recolour() {
    const style = getComputedStyle(this.canvas);
    const named = (name) => style.getPropertyValue(name).trim();
    this.colours = [named("--known"), named("--wrong"), named("--next"), named("--free")];
    this.ofClasses = Array.from({ length: OTHERS + 1 }, (_, at) => named(`--class-${at}`));
    this.text = named("--text");
    this.card = named("--card");
    this.shades = new Uint32Array(SHADES); // of so many unlabelled points on one pixel
    for (let count = 1; count < SHADES; count++) {
      this.shades[count] = packed(this.colours[FREE], Math.min(90 + 30 * Math.log2(count), 255));
    }
  }

  // view: {x, y} the map's place at the canvas's top left, scale in CSS pixels a step. selected: a point, -1 = none.
  // byClass: whether colours tell classes. chosen: points. lasso: places that are being gone round.
  draw(points, view, selected, { byClass = false, chosen = new Set(), lasso = [] } = {}) {
    const scale = view.scale * this.ratio;
    const { width, height } = this.canvas;
    const radius = this.#radius(points, view);
    this.context.clearRect(0, 0, width, height);
    if (byClass) this.#classes(points, view, scale, Math.max(radius, 1.6 * this.ratio));
    else if (points.of[FREE].length > MOST_SHAPES) this.#shade(points, view, scale, radius);
    else this.#shapes(points, FREE, view, scale, radius, 0.6);
    for (const kind of byClass ? [INVALID, NEXT] : [INVALID, KNOWN, NEXT]) {
      this.#shapes(points, kind, view, scale, Math.max(radius, 1.6 * this.ratio) * (kind === NEXT ? 1.5 : 1.25), 1);
    }
    this.#chosen(points, view, scale, chosen);
    this.#lasso(view, scale, lasso);
    if (selected >= 0) {
      const x = (points.x[selected] - view.x) * scale, y = (points.y[selected] - view.y) * scale;
      this.context.lineWidth = 2.5 * this.ratio;
      this.context.strokeStyle = this.text;
      this.context.beginPath();
      this.context.arc(x, y, 9 * this.ratio, 0, 7);
      this.context.stroke();
    }
  }

  // Labelled points filled, unlabelled ones paler, in the colours of their classes; gray without a class.
  #classes(points, view, scale, radius) {
    const { width, height } = this.canvas, { context } = this, { x, y } = points;
    const groups = new Map();
    for (const kind of [FREE, KNOWN]) {
      for (const at of points.of[kind]) {
        const px = (x[at] - view.x) * scale, py = (y[at] - view.y) * scale;
        if (px < -radius || py < -radius || px > width + radius || py > height + radius) continue;
        const place = points.classOf(at), colour = place < 0 ? -1 : Math.min(place, OTHERS), key = 100 * kind + colour;
        if (!groups.has(key)) groups.set(key, { kind, colour, path: new Path2D() });
        const size = kind === KNOWN ? 2.5 * radius : 1.6 * radius;
        groups.get(key).path.rect(px - size / 2, py - size / 2, size, size);
      }
    }
    for (const { kind, colour, path } of [...groups.values()].sort((one, other) => (one.kind === KNOWN) - (other.kind === KNOWN))) {
      context.globalAlpha = kind === KNOWN ? 1 : 0.45;
      context.fillStyle = colour < 0 ? this.colours[FREE] : this.ofClasses[colour];
      context.fill(path);
    }
    context.globalAlpha = 1;
  }

  #chosen(points, view, scale, chosen) {
    const { context } = this, side = 7 * this.ratio;
    context.lineWidth = 1.5 * this.ratio;
    context.strokeStyle = this.text;
    context.beginPath();
    for (const at of chosen) {
      context.rect((points.x[at] - view.x) * scale - side / 2, (points.y[at] - view.y) * scale - side / 2, side, side);
    }
    context.stroke();
  }

  #lasso(view, scale, lasso) {
    const { context } = this;
    context.lineWidth = 2 * this.ratio;
    context.strokeStyle = this.text;
    context.beginPath();
    for (const [x, y] of lasso) context.lineTo((x - view.x) * scale, (y - view.y) * scale);
    context.closePath();
    context.stroke();
  }

  // In pixels: as large as leaves gaps between the visible points.
  #radius(points, view) {
    const zoomed = (view.scale / view.whole) ** 2;
    const area = (this.canvas.width * this.canvas.height) / Math.max(points.n / zoomed, 1);
    return Math.min(Math.max(Math.sqrt(area) / 6, 0.7 * this.ratio), 4 * this.ratio);
  }

  #shade(points, view, scale, radius) {
    const { width, height } = this.canvas, { counts, pixels, shades } = this, { x, y } = points;
    counts.fill(0);
    const stamp = disc(radius, width), edge = Math.ceil(radius);
    const right = width - edge, bottom = height - edge;
    for (const at of points.of[FREE]) {
      const column = ((x[at] - view.x) * scale) | 0, row = ((y[at] - view.y) * scale) | 0;
      if (column < edge || row < edge || column >= right || row >= bottom) continue;
      const where = row * width + column;
      for (let i = 0; i < stamp.length; i++) counts[where + stamp[i]]++;
    }
    for (let i = 0; i < counts.length; i++) pixels[i] = shades[counts[i] < SHADES ? counts[i] : SHADES - 1];
    this.context.putImageData(this.image, 0, 0);
  }

  #shapes(points, kind, view, scale, radius, opacity) {
    const { width, height } = this.canvas, { context } = this, { x, y } = points;
    const many = points.of[kind].length > MOST_SHAPES; // then squares: the form can't be seen among so many
    context.globalAlpha = opacity;
    context.beginPath();
    for (const at of points.of[kind]) {
      const px = (x[at] - view.x) * scale, py = (y[at] - view.y) * scale;
      if (px < -radius || py < -radius || px > width + radius || py > height + radius) continue;
      if (many) context.rect(px - radius / 2, py - radius / 2, radius, radius);
      else if (kind === INVALID) {
        context.moveTo(px - radius, py - radius);
        context.lineTo(px + radius, py + radius);
        context.moveTo(px + radius, py - radius);
        context.lineTo(px - radius, py + radius);
      } else {
        context.moveTo(px + radius, py);
        context.arc(px, py, radius, 0, 7);
      }
    }
    context.strokeStyle = context.fillStyle = this.colours[kind];
    if (many || kind === FREE) context.fill();
    else if (kind === INVALID) {
      context.lineWidth = Math.max(radius * 0.55, 1);
      context.stroke();
    } else {
      if (kind === NEXT) context.fillStyle = this.card;
      else {
        context.strokeStyle = this.card;
        context.lineWidth = Math.max(this.ratio * 0.75, 0.75);
      }
      if (kind === NEXT) context.lineWidth = Math.max(radius * 0.6, 1.5);
      context.fill();
      context.stroke();
    }
    context.globalAlpha = 1;
  }
}

// Steps from a pixel to those around it, itself included.
function disc(radius, width) {
  const steps = [], reach = Math.floor(radius);
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) if (dx * dx + dy * dy <= radius * radius) steps.push(dy * width + dx);
  }
  return Int32Array.from(steps);
}

// "#rrggbb" as a pixel of ImageData in little-endian order.
function packed(colour, alpha) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}
