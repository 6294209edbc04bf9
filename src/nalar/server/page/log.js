// A run's metrics, read piece by piece: each reading asks only for what was logged since the last.

import { getJson } from "./api.js";

export class Log {
  #address;
  #next = 0;
  stages = new Map(); // by stage: Map of name → [[step, value], …]
  state = "";

  /** keys: names of metrics, or what stands before their slash. */
  constructor(run, part, keys) {
    this.#address = `/runs/${encodeURIComponent(run)}/metrics?part=${encodeURIComponent(part)}&keys=${encodeURIComponent(keys.join(","))}`;
  }

  /** Reads on to the end. Returns whether anything came. */
  async read(signal) {
    let hasNews = false;
    for (;;) {
      const piece = await getJson(`${this.#address}&since=${this.#next}`, signal);
      if (piece.reset) this.stages.clear(); // the run went back to a checkpoint, and its log with it
      for (const line of piece.lines) this.#add(line);
      hasNews ||= piece.lines.length > 0 || piece.reset;
      this.#next = piece.next;
      this.state = piece.state;
      if (!piece.more) return hasNews;
    }
  }

  /** Where a resume went back, only what was logged after it counts. */
  #add({ stage, step, values }) {
    if (!this.stages.has(stage)) this.stages.set(stage, new Map());
    const series = this.stages.get(stage);
    for (const points of series.values()) {
      while (points.length && points.at(-1)[0] > step) points.pop();
    }
    for (const [name, value] of Object.entries(values)) {
      if (!series.has(name)) series.set(name, []);
      const points = series.get(name);
      if (points.at(-1)?.[0] === step) points.pop();
      points.push([step, typeof value === "number" ? value : null]);
    }
  }
}
