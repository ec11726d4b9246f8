// The map's points: read from the backend's bytes (see /api/docs), and found again by place.

const CELLS = 128; // along each side of the index
const SIDE = 65536; // places along each side of the map
const FIRST_OF_BATCH = -10, FIRST_PREDICTED = -20000;

export const KNOWN = 0, INVALID = 1, NEXT = 2, FREE = 3;

export class Points {
  // bytes of /map: uint32 n, uint32 check, uint32 [n] ids, uint16 [n, 2] places
  constructor(bytes) {
    const [n, check] = new Uint32Array(bytes, 0, 2);
    this.n = n;
    this.check = check;
    this.ids = new Uint32Array(bytes, 8, n);
    const places = new Uint16Array(bytes, 8 + 4 * n, 2 * n);
    this.x = new Float32Array(n);
    this.y = new Float32Array(n);
    this.box = n ? [Infinity, Infinity, -Infinity, -Infinity] : [0, 0, SIDE, SIDE];
    for (let at = 0; at < n; at++) {
      const x = (this.x[at] = places[2 * at]), y = (this.y[at] = SIDE - 1 - places[2 * at + 1]);
      if (x < this.box[0]) this.box[0] = x;
      if (y < this.box[1]) this.box[1] = y;
      if (x > this.box[2]) this.box[2] = x;
      if (y > this.box[3]) this.box[3] = y;
    }
    this.mark(new Int16Array(n).fill(-3));
    this.#index();
  }

  // bytes of /map/marks; false = they belong to another map
  read(bytes) {
    const [n, check] = new Uint32Array(bytes, 0, 2);
    if (n !== this.n || check !== this.check) return false;
    this.mark(new Int16Array(bytes, 8, n));
    return true;
  }

  mark(codes) {
    this.codes = codes;
    this.of = [[], [], [], []]; // points of each kind
    this.batch = [];
    for (let at = 0; at < this.n; at++) {
      this.of[this.kind(at)].push(at);
      if (this.kind(at) === NEXT) this.batch[FIRST_OF_BATCH - codes[at]] = at;
    }
    this.batch = this.batch.filter((at) => at !== undefined);
  }

  kind(at) {
    const code = this.codes[at];
    return code >= 0 ? KNOWN : code === -1 ? INVALID : code <= FIRST_OF_BATCH && code > FIRST_PREDICTED ? NEXT : FREE;
  }

  // The place of the class that a point is labelled or predicted as; -1 = none.
  classOf(at) {
    const code = this.codes[at];
    return code >= 0 ? code : code <= FIRST_PREDICTED ? FIRST_PREDICTED - code : -1;
  }

  // The points within a polygon, [[x, y], …]: those from which a ray crosses its sides an odd number of times.
  inside(polygon) {
    const found = [];
    for (let at = 0; at < this.n; at++) {
      const x = this.x[at], y = this.y[at];
      let odd = false;
      for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
        const [ax, ay] = polygon[i], [bx, by] = polygon[j];
        if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
      }
      if (odd) found.push(at);
    }
    return found;
  }

  words(at, classes) {
    const code = this.codes[at], kind = this.kind(at);
    const state = kind === KNOWN ? `labelled ${classes[code] ?? "?"}` : kind === INVALID ? "labelled invalid"
      : kind === NEXT ? `number ${FIRST_OF_BATCH - code + 1} of the next batch`
      : this.classOf(at) >= 0 ? `unlabelled, probably ${classes[this.classOf(at)] ?? "?"}` : "unlabelled";
    return `Task ${this.ids[at]}, ${state}`;
  }

  // The point nearest to a place within `reach`, -1 = none; one that means something before an unlabelled one.
  near(x, y, reach) {
    let best = -1, least = reach * reach;
    const cell = (value) => Math.min(Math.max(Math.floor((value / SIDE) * CELLS), 0), CELLS - 1);
    for (let row = cell(y - reach); row <= cell(y + reach); row++) {
      for (let column = cell(x - reach); column <= cell(x + reach); column++) {
        const where = row * CELLS + column;
        for (let i = this.starts[where]; i < this.starts[where + 1]; i++) {
          const at = this.sorted[i];
          let away = (this.x[at] - x) ** 2 + (this.y[at] - y) ** 2;
          if (away <= reach * reach && this.kind(at) !== FREE) away /= 4;
          if (away <= least) [best, least] = [at, away];
        }
      }
    }
    return best;
  }

  // The next point from `from` towards (dx, dy), one of which is 0: near, and not far off that line.
  towards(from, dx, dy) {
    let best = -1, least = Infinity;
    for (let at = 0; at < this.n; at++) {
      const x = this.x[at] - this.x[from], y = this.y[at] - this.y[from];
      const along = x * dx + y * dy, across = Math.abs(x * dy) + Math.abs(y * dx);
      if (along <= 0 || across > along) continue;
      const cost = along + 2 * across;
      if (cost < least) [best, least] = [at, cost];
    }
    return best;
  }

  #index() {
    const cells = new Uint16Array(this.n);
    this.starts = new Uint32Array(CELLS * CELLS + 1);
    for (let at = 0; at < this.n; at++) {
      const column = Math.floor((this.x[at] / SIDE) * CELLS), row = Math.floor((this.y[at] / SIDE) * CELLS);
      cells[at] = row * CELLS + column;
      this.starts[cells[at] + 1]++;
    }
    for (let cell = 0; cell < CELLS * CELLS; cell++) this.starts[cell + 1] += this.starts[cell];
    const next = this.starts.slice();
    this.sorted = new Uint32Array(this.n);
    for (let at = 0; at < this.n; at++) this.sorted[next[cells[at]]++] = at;
  }
}
