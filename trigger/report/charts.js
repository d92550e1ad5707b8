"use strict";
// Charts over one shared span of time, on canvas. Times are seconds since the page's begin; nothing is ever built from markup.

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "class") made.className = value;
    else if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  for (const child of children) if (child !== null && child !== undefined) made.append(child);
  return made;
}

// -- time in the fleet's zone ---------------------------------------------------------------------------------------
class Clock {
  constructor(begin, zone) {
    this.begin = begin;
    this.zone = zone;
    this.parts = new Intl.DateTimeFormat("en-GB", {timeZone: zone, hourCycle: "h23", year: "numeric", month: "2-digit",
      day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit"});
    this.offsets = new Map();
  }
  // Seconds that the zone is ahead of UTC. Zones change at whole quarters of an hour.
  offset(t) {
    const key = Math.floor((this.begin + t) / 900);
    if (!this.offsets.has(key)) {
      const p = Object.fromEntries(this.parts.formatToParts(new Date(key * 900000)).map(one => [one.type, +one.value]));
      this.offsets.set(key, Date.UTC(p.year, p.month - 1, p.day, p.hour, p.minute, p.second) / 1000 - key * 900);
    }
    return this.offsets.get(key);
  }
  local(t) { return new Date((this.begin + t + this.offset(t)) * 1000); }
  fromInput(text) {
    const value = Date.parse(text + "Z") / 1000;
    if (!Number.isFinite(value)) return null;
    const guess = value - this.begin;
    return guess - this.offset(guess - this.offset(guess));
  }
  toInput(t) { return this.local(t).toISOString().slice(0, 16); }
  format(t, options) { return new Intl.DateTimeFormat("en-GB", {timeZone: "UTC", hourCycle: "h23", ...options}).format(this.local(t)); }
  full(t) { return this.format(t, {weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit"}); }
  ticks(a, b, most) {
    const steps = [60, 300, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000];
    const step = steps.find(one => (b - a) / one <= most) || 31536000;
    const found = [];
    const local = this.begin + a + this.offset(a);
    for (let at = Math.ceil(local / step) * step - this.begin - this.offset(a); at <= b; at += step) {
      const t = at + this.offset(a) - this.offset(at);
      const midnight = Math.round(this.begin + t + this.offset(t)) % 86400 === 0;
      if (t >= a && t <= b) found.push([t, midnight || step >= 86400 ? this.format(t, {day: "numeric", month: "short"}) : this.format(t, {hour: "2-digit", minute: "2-digit"}), midnight]);
    }
    return found;
  }
}

// -- stepped series: [[t, value], ...] ------------------------------------------------------------------------------
// Index of the last point at or before t, -1 where there is none.
function placeOf(points, t) {
  let low = 0, high = points.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= t) low = middle + 1; else high = middle;
  }
  return low - 1;
}
function valueAt(points, t, index = 1) {
  const place = placeOf(points, t);
  return place < 0 ? null : points[place][index];
}
// Calls with (from, to, values) for each stretch of [a, b] in which no series changes.
function together(series, a, b, call) {
  const places = series.map(points => placeOf(points, a));
  for (let t = a; t < b;) {
    let next = b;
    series.forEach((points, i) => {
      if (places[i] + 1 < points.length) next = Math.min(next, Math.max(points[places[i] + 1][0], t));
    });
    if (next > t) call(t, next, series.map((points, i) => places[i] < 0 ? null : points[places[i]][1]));
    series.forEach((points, i) => { while (places[i] + 1 < points.length && points[places[i] + 1][0] <= next) places[i]++; });
    t = next;
  }
}
function extreme(points, a, b) {
  let top = 0;
  for (let i = Math.max(0, placeOf(points, a)); i < points.length && points[i][0] <= b; i++) {
    for (let k = 1; k < points[i].length; k++) if (points[i][k] > top) top = points[i][k];
  }
  return top;
}

// -- a chart --------------------------------------------------------------------------------------------------------
const LEFT = 44, RIGHT = 10, TOP = 10, BOTTOM = 24;
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

class Chart {
  // ``paint(chart)`` draws; ``top(a, b)`` is the greatest value shown; ``told(t, chart, x, y)`` gives what the tip shows.
  constructor(view, {height, label, paint, top, told, axis = true}) {
    Object.assign(this, {view, height, paint, greatest: top, told, axis, hovered: null, dragged: null});
    this.canvas = element("canvas", {role: "img", "aria-label": label});
    this.host = element("div", {class: "chart"}, this.canvas);
    const at = event => event.clientX - this.canvas.getBoundingClientRect().left;
    this.canvas.addEventListener("pointermove", event => { this.hovered = at(event); this.draw(); this.point(event); });
    this.canvas.addEventListener("pointerleave", () => { this.hovered = null; hideTip(); this.draw(); });
    this.canvas.addEventListener("pointerdown", event => {
      if (event.pointerType !== "touch" && event.button === 0) { this.dragged = at(event); this.canvas.setPointerCapture(event.pointerId); }
      else { this.hovered = at(event); this.draw(); this.point(event); }
    });
    this.canvas.addEventListener("pointerup", event => {
      const from = this.dragged, to = at(event);
      this.dragged = null;
      if (from !== null && Math.abs(to - from) > 6) view.set(this.t(Math.min(from, to)), this.t(Math.max(from, to)));
      else this.draw();
    });
    this.canvas.addEventListener("dblclick", () => view.set(0, view.length));
  }
  x(t) { return LEFT + (this.width - LEFT - RIGHT) * (t - this.view.a) / (this.view.b - this.view.a); }
  t(x) { return Math.min(this.view.b, Math.max(this.view.a, this.view.a + (x - LEFT) / (this.width - LEFT - RIGHT) * (this.view.b - this.view.a))); }
  y(value) { return TOP + (this.height - TOP - BOTTOM) * (1 - value / this.top); }
  point(event) {
    if (this.hovered === null || this.hovered < LEFT || this.hovered > this.width - RIGHT) { hideTip(); return; }
    const told = this.told(this.t(this.hovered), this, this.hovered, event.clientY - this.canvas.getBoundingClientRect().top);
    if (told) showTip(told, event.clientX, event.clientY); else hideTip();
  }
  draw() {
    this.width = this.host.clientWidth || 600;
    const ratio = window.devicePixelRatio || 1, pen = this.pen = this.canvas.getContext("2d");
    if (this.canvas.width !== Math.round(this.width * ratio) || this.canvas.height !== Math.round(this.height * ratio)) {
      this.canvas.width = Math.round(this.width * ratio);
      this.canvas.height = Math.round(this.height * ratio);
      this.canvas.style.height = this.height + "px";
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    const most = Math.max(this.greatest(this.view.a, this.view.b) * 1.04, 1e-9), step = nice(most / 6);
    this.top = step * Math.ceil(most / step);
    this.grid(step);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, this.width - LEFT - RIGHT, this.height);
    pen.clip();
    this.paint(this);
    if (this.dragged !== null && this.hovered !== null) {
      pen.fillStyle = colour("band");
      pen.fillRect(Math.min(this.dragged, this.hovered), 0, Math.abs(this.hovered - this.dragged), this.height - BOTTOM);
    }
    pen.restore();
    if (this.hovered !== null && this.hovered >= LEFT && this.hovered <= this.width - RIGHT) {
      pen.strokeStyle = colour("soft"); pen.lineWidth = 1; pen.setLineDash([3, 3]);
      pen.beginPath(); pen.moveTo(this.hovered, TOP); pen.lineTo(this.hovered, this.height - BOTTOM); pen.stroke(); pen.setLineDash([]);
    }
  }
  grid(step) {
    const pen = this.pen, bottom = this.height - BOTTOM;
    pen.lineWidth = 1; pen.strokeStyle = colour("line"); pen.fillStyle = colour("soft"); pen.textBaseline = "middle";
    for (let i = 0; this.axis && i * step <= this.top + 1e-9; i++) {
      const y = Math.round(this.y(i * step)) + 0.5;
      pen.beginPath(); pen.moveTo(LEFT, y); pen.lineTo(this.width - RIGHT, y); pen.stroke();
      pen.textAlign = "right"; pen.fillText(shortNumber(i * step), LEFT - 8, y);
    }
    pen.textBaseline = "alphabetic"; pen.textAlign = "center";
    let free = -Infinity;
    for (const [t, text, midnight] of this.view.clock.ticks(this.view.a, this.view.b, Math.max(2, (this.width - LEFT) / 78))) {
      const x = Math.round(this.x(t)) + 0.5, half = pen.measureText(text).width / 2;
      if (midnight || !this.axis) { pen.beginPath(); pen.moveTo(x, TOP); pen.lineTo(x, bottom); pen.stroke(); }
      if (x - half < free || x + half > this.width) continue;
      pen.fillText(text, x, this.height - 7);
      free = x + half + 8;
    }
  }
  // A stepped line; null is a gap. With ``most``, where changes are closer than columns, the greatest of each column and
  // pale below it down to the least: a line that moves each minute would fill the chart.
  steps(points, look, {width = 1.6, dash = [], index = 1, most = false} = {}) {
    const pen = this.pen, first = Math.max(0, placeOf(points, this.view.a)), last = placeOf(points, this.view.b);
    if (most && last - first > (this.width - LEFT - RIGHT) / 6) { this.envelope(points, look, first, last, width, index); return; }
    pen.strokeStyle = colour(look); pen.lineWidth = width; pen.setLineDash(dash); pen.beginPath();
    let open = false;
    for (let i = first; i <= last; i++) {
      const value = points[i][index], from = this.x(points[i][0]), to = this.x(i + 1 < points.length ? points[i + 1][0] : this.view.length);
      if (value === null) { open = false; continue; }
      if (open) pen.lineTo(from, this.y(value)); else pen.moveTo(from, this.y(value));
      pen.lineTo(to, this.y(value));
      open = true;
    }
    pen.stroke(); pen.setLineDash([]);
  }
  envelope(points, look, first, last, width, index) {
    const pen = this.pen, columns = 3;
    pen.fillStyle = pen.strokeStyle = colour(look); pen.lineWidth = width; pen.beginPath();
    let open = false, place = first;
    for (let x = LEFT; x < this.width - RIGHT; x += columns) {
      const until = this.view.a + (x + columns - LEFT) / (this.width - LEFT - RIGHT) * (this.view.b - this.view.a);
      let low = Infinity, high = -Infinity;
      for (;;) {
        const value = points[place][index];
        if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
        if (place >= last || points[place + 1][0] >= until) break;
        place++;
      }
      if (high < low) { open = false; continue; }
      pen.globalAlpha = 0.22;
      if (high > low) pen.fillRect(x, this.y(high), columns, this.y(low) - this.y(high));
      pen.globalAlpha = 1;
      if (open) pen.lineTo(x, this.y(high)); else pen.moveTo(x, this.y(high));
      pen.lineTo(x + columns, this.y(high));
      open = true;
    }
    pen.stroke();
  }
  // The area between two stepped values of the same points, in whole pixels, so that no seam shows.
  area(points, low, high, fill) {
    const pen = this.pen, last = placeOf(points, this.view.b);
    pen.fillStyle = colour(fill);
    for (let i = Math.max(0, placeOf(points, this.view.a)); i <= last; i++) {
      const here = points[i], from = Math.round(this.x(here[0]));
      if (here[high] === null || here[high] <= here[low]) continue;
      while (i < last && points[i + 1][low] === here[low] && points[i + 1][high] === here[high]) i++;
      const to = Math.round(this.x(i + 1 < points.length ? points[i + 1][0] : this.view.length)), y = this.y(here[high]);
      pen.fillRect(from, y, Math.max(1, to - from), this.y(here[low]) - y);
    }
  }
  // Buckets: for each column of the page the least and the greatest as a band, the mean as a line. No extreme is lost.
  buckets({width, mean, low = mean, high = mean}, look, band) {
    const pen = this.pen, first = Math.max(0, Math.floor(this.view.a / width)), last = Math.min(mean.length - 1, Math.ceil(this.view.b / width));
    const columns = new Map();
    for (let i = first; i <= last; i++) {
      const x = Math.round(this.x((i + 0.5) * width));
      if (mean[i] === null) { if (!columns.has(x)) columns.set(x, null); continue; }
      const here = columns.get(x);
      if (here) { here[0] = Math.min(here[0], low[i]); here[1] = Math.max(here[1], high[i]); here[2] += mean[i]; here[3]++; }
      else columns.set(x, [low[i], high[i], mean[i], 1]);
    }
    const parts = [[]];
    for (const [x, here] of columns) { if (here) parts[parts.length - 1].push([x, ...here]); else parts.push([]); }
    for (const part of parts) {
      if (part.length === 0) continue;
      pen.fillStyle = colour(band); pen.beginPath();
      part.forEach(([x, , most], i) => i ? pen.lineTo(x, this.y(most)) : pen.moveTo(x, this.y(most)));
      for (let i = part.length - 1; i >= 0; i--) pen.lineTo(part[i][0], this.y(part[i][1]));
      pen.fill();
      pen.strokeStyle = colour(look); pen.lineWidth = 1.6; pen.lineJoin = "round"; pen.beginPath();
      part.forEach(([x, , , sum, count], i) => i ? pen.lineTo(x, this.y(sum / count)) : pen.moveTo(x, this.y(sum / count)));
      if (part.length === 1) pen.lineTo(part[0][0] + 1, this.y(part[0][3] / part[0][4]));
      pen.stroke();
    }
  }
}

function nice(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return Math.max(1e-9, [1, 2, 5, 10].find(one => one * power >= step - 1e-12) * power);
}
function shortNumber(value) {
  return Math.abs(value) >= 10000 ? Math.round(value / 1000) + "k" : String(Math.round(value * 100) / 100);
}

// -- the tip --------------------------------------------------------------------------------------------------------
function showTip(content, x, y) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(content);
  tip.hidden = false;
  const box = tip.getBoundingClientRect(), room = document.documentElement.clientWidth;
  tip.style.left = Math.max(8, x + 16 + box.width > room - 8 ? Math.min(x - box.width - 16, room - box.width - 8) : x + 16) + "px";
  tip.style.top = Math.max(8, y + 16 + box.height > window.innerHeight ? y - box.height - 12 : y + 16) + "px";
}
function hideTip() { document.getElementById("tip").hidden = true; }
