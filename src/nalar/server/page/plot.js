// A plot of lines that grow: faint as logged, strong as a running mean, with values under the pointer.

import { el, svg } from "./dom.js";
import { short, t } from "./words.js";

const HEIGHT = 190;
const PAD = { left: 52, right: 14, top: 12, bottom: 24 };
const MAX_POINTS = 700; // drawn of each line; more are averaged
const COLOURS = 7;

export class Plot {
  #series = [];
  #format;
  #chart = svg("svg", { class: "plot-chart", height: HEIGHT, tabindex: "0", role: "img" });
  #hover = svg("g", { class: "plot-hover" });
  #tip = el("div", { class: "plot-tip", hidden: true });
  #legend = el("ul", { class: "plot-legend" });
  #last = el("span", { class: "plot-last" });
  #at = null; // the step under the pointer
  #title;

  /** format: how a value is written. */
  constructor(title, subtitle, format = short) {
    this.#title = title;
    this.#format = format;
    const head = el("figcaption", {}, el("h3", {}, title), el("span", { class: "plot-sub" }, subtitle), this.#last);
    this.element = el("figure", { class: "plot" }, head, el("div", { class: "plot-box" }, this.#chart, this.#tip), this.#legend);
    this.#chart.addEventListener("pointermove", (event) => this.#point(event));
    this.#chart.addEventListener("pointerleave", () => this.#show(null));
    this.#chart.addEventListener("keydown", (event) => this.#step(event));
    this.#chart.addEventListener("blur", () => this.#show(null));
    new ResizeObserver(() => this.#draw()).observe(this.#chart);
  }

  /** series: [{name, points: [[step, value|null], …]}], in the order of their colours. */
  show(series) {
    this.#series = series.map(({ name, points }) => ({ name, points, smooth: runningMean(points) }));
    const lasts = this.#series.map((one) => `${one.name ? `${one.name} ` : ""}${this.#format(lastOf(one.smooth))}`);
    this.#last.textContent = this.#series.length === 1 ? lasts[0] : "";
    this.#chart.setAttribute("aria-label", `${this.#title}: ${lasts.join(", ")}`);
    this.#legend.replaceChildren(
      ...(this.#series.length > 1 ? this.#series.map((one, i) => el("li", {}, el("i", { class: `swatch c${i % COLOURS}` }), one.name, " ", el("b", {}, this.#format(lastOf(one.smooth))))) : []),
    );
    this.#draw();
  }

  #draw() {
    const width = this.#chart.clientWidth;
    if (!width || !this.#series.length) return;
    this.#chart.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.scale = scaleOf(this.#series, width);
    const parts = [this.#axes(width)];
    this.#series.forEach((one, i) => {
      const isShort = one.points.length < 8;
      if (!isShort) parts.push(svg("path", { class: `raw c${i % COLOURS}`, d: this.#path(one.points) }));
      parts.push(svg("path", { class: `line c${i % COLOURS}`, d: this.#path(isShort ? one.points : one.smooth) }));
      if (isShort) parts.push(...this.#dots(one.points, i));
    });
    this.#chart.replaceChildren(...parts, this.#hover);
    this.#show(this.#at);
  }

  #path(points) {
    let path = "";
    let isDown = false;
    for (const [step, value] of averaged(points)) {
      if (value === null) isDown = false;
      else {
        path += `${isDown ? "L" : "M"}${this.scale.x(step).toFixed(1)} ${this.scale.y(value).toFixed(1)}`;
        isDown = true;
      }
    }
    return path;
  }

  #dots(points, i) {
    return points
      .filter(([, value]) => value !== null)
      .map(([step, value]) => svg("circle", { class: `dot c${i % COLOURS}`, cx: this.scale.x(step), cy: this.scale.y(value), r: 3 }));
  }

  #axes(width) {
    const group = svg("g", { class: "axes" });
    for (const value of this.scale.yTicks) {
      const y = this.scale.y(value);
      group.append(svg("line", { x1: PAD.left, x2: width - PAD.right, y1: y, y2: y }), svg("text", { x: PAD.left - 8, y: y + 4, "text-anchor": "end" }, short(value)));
    }
    const ticks = this.scale.xTicks;
    ticks.forEach((step, i) => {
      const isLast = i === ticks.length - 1 && this.scale.x(step) > width - PAD.right - 20;
      group.append(svg("text", { x: this.scale.x(step), y: HEIGHT - 5, "text-anchor": isLast ? "end" : "middle" }, short(step)));
    });
    return group;
  }

  #point(event) {
    const x = event.clientX - this.#chart.getBoundingClientRect().left;
    const steps = this.#steps();
    if (!this.scale || !steps.length) return;
    this.#show(steps.reduce((best, step) => (Math.abs(this.scale.x(step) - x) < Math.abs(this.scale.x(best) - x) ? step : best)));
  }

  #step(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const steps = this.#steps();
    const at = this.#at === null ? steps.length - (by > 0 ? 1 : 0) : steps.indexOf(this.#at);
    this.#show(steps[Math.min(Math.max(at + by, 0), steps.length - 1)] ?? null);
  }

  #steps() {
    return [...new Set(this.#series.flatMap((one) => one.points.map(([step]) => step)))].sort((a, b) => a - b);
  }

  #show(step) {
    this.#at = step;
    this.#tip.hidden = step === null || !this.scale;
    if (this.#tip.hidden) return this.#hover.replaceChildren();
    const x = this.scale.x(step);
    const marks = [svg("line", { x1: x, x2: x, y1: PAD.top, y2: HEIGHT - PAD.bottom })];
    const rows = [el("div", { class: "tip-step" }, `${t("overSteps")} ${short(step)}`)];
    this.#series.forEach((one, i) => {
      const value = one.points.find(([at]) => at === step)?.[1];
      if (value === undefined || value === null) return;
      marks.push(svg("circle", { class: `dot c${i % COLOURS}`, cx: x, cy: this.scale.y(value), r: 3.5 }));
      rows.push(el("div", {}, el("i", { class: `swatch c${i % COLOURS}` }), `${one.name ? `${one.name} ` : ""}`, el("b", {}, this.#format(value))));
    });
    this.#hover.replaceChildren(...marks);
    this.#tip.replaceChildren(...rows);
    const isRight = x > this.#chart.clientWidth / 2;
    this.#tip.style.left = isRight ? "auto" : `${x + 12}px`;
    this.#tip.style.right = isRight ? `${this.#chart.clientWidth - x + 12}px` : "auto";
    return undefined;
  }
}

function lastOf(points) {
  return points.findLast(([, value]) => value !== null)?.[1] ?? null;
}

/** Over a twentieth of the points, as `nalar runs plot` has it. */
function runningMean(points) {
  const width = Math.max(1, Math.round(points.length / 20));
  const kept = [];
  let sum = 0;
  return points.map(([step, value]) => {
    if (value === null) return [step, null];
    kept.push(value);
    sum += value;
    if (kept.length > width) sum -= kept[kept.length - 1 - width];
    return [step, sum / Math.min(kept.length, width)];
  });
}

/** Neighbours averaged until there are few enough to draw. */
function averaged(points) {
  const each = Math.ceil(points.length / MAX_POINTS);
  if (each <= 1) return points;
  const few = [];
  for (let i = 0; i < points.length; i += each) {
    const group = points.slice(i, i + each).filter(([, value]) => value !== null);
    few.push(group.length ? [points[i][0], group.reduce((sum, [, value]) => sum + value, 0) / group.length] : [points[i][0], null]);
  }
  return few;
}

function scaleOf(series, width) {
  const [x0, x1] = reach(series.flatMap((one) => one.points.map(([step]) => step)));
  const values = series.flatMap((one) => (one.points.length < 8 ? one.points : clipped(one))).map(([, value]) => value);
  let [y0, y1] = reach(values.filter((value) => value !== null));
  const yTicks = ticksOf(y0, y1, 4);
  y0 = Math.min(y0, yTicks[0]);
  y1 = Math.max(y1, yTicks.at(-1));
  const across = width - PAD.left - PAD.right;
  const down = HEIGHT - PAD.top - PAD.bottom;
  const y = (value) => PAD.top + down * (1 - (value - y0) / (y1 - y0 || 1));
  return {
    x: (step) => PAD.left + (across * (step - x0)) / (x1 - x0 || 1),
    y: (value) => Math.min(Math.max(y(value), -20), HEIGHT + 20),
    xTicks: ticksOf(x0, x1, Math.max(2, Math.floor(across / 90))).filter((step) => step >= x0 && step <= x1),
    yTicks,
  };
}

/** Without the lone spikes that would press the line flat: values between the 1st and the 99th hundredth, and the mean. */
function clipped(one) {
  const sorted = one.points.map(([, value]) => value).filter((value) => value !== null).sort((a, b) => a - b);
  const low = sorted[Math.floor(sorted.length * 0.01)];
  const high = sorted[Math.ceil(sorted.length * 0.99) - 1];
  return [...one.smooth, [0, low ?? null], [0, high ?? null]];
}

function reach(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low === Infinity) return [0, 1];
  return low === high ? [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1] : [low, high];
}

/** Round numbers around and between two values. */
function ticksOf(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) * power;
  const ticks = [];
  for (let i = Math.floor(low / step + 1e-9); i <= Math.ceil(high / step - 1e-9); i++) ticks.push(i * step);
  return ticks;
}
