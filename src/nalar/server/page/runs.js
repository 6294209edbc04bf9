// The runs page: which run is open, its plots as they grow, its samples side by side, its receipt.

import { ApiError, getJson, keepKey } from "./api.js";
import { byId, drawIcons, el } from "./dom.js";
import { connectFrame, showSidebar, walkByArrows } from "./frame.js";
import { Log } from "./log.js";
import { Plot } from "./plot.js";
import { SamplesView } from "./samples.js";
import { duration, money, number, short, t, translate } from "./words.js";

const LIVE_MS = 2000;
const IDLE_MS = 15000;
const LIST_MS = 10000;
const MIN_POINTS = 2;

// What is plotted, in this order. names: metrics, or what stands before their slash.
const CHARTS = [
  { title: "reward", names: ["reward"] },
  { title: "accuracy", names: ["accuracy"] },
  { title: "heldOut", names: ["held_out_pass_at_1", "right_frac", "kept_frac"] },
  { title: "length", names: ["response_tokens"] },
  { title: "loss", names: ["loss"] },
  { title: "entropy", names: ["entropy"] },
  { title: "costPlot", names: ["usd"], format: money },
  { title: "rate", names: ["tokens_per_s"], unit: "tokens/s" },
];
const KEYS = CHARTS.flatMap((chart) => chart.names);
const NOT_TRAINING = /^(measure|evaluate|held_out|report)/; // a few lines about what it took: the receipt has them
const STATES = { running: "running", finished: "finished", stopped: "stoppedState", waiting: "waitingState" };

let open = null; // {name, part, log, plots, control}
let runs = [];

// ---- the list

async function loadList() {
  try {
    const found = await getJson("/runs/all");
    runs = found.runs;
    drawList(found);
    fail(null);
  } catch (error) {
    fail(error);
    return;
  }
  if (!open && runs.length) openFromAddress();
  else if (!open) showNothing();
}

function showNothing() {
  const section = byId("nothing");
  section.hidden = false;
  section.querySelector("h1").textContent = t("noRuns");
  section.querySelector("p").textContent = t("noRunsHint");
}

function drawList({ unreadable }) {
  byId("run-list").replaceChildren(
    ...runs.map((run) =>
      el(
        "li",
        {},
        el(
          "a",
          { href: `#${run.name}`, class: "run-link", "aria-current": open?.name === run.name ? "page" : null },
          dot(run.state),
          el("span", { class: "run-name" }, run.name),
          el("span", { class: "run-about" }, [run.recipe, t(STATES[run.state]), money(run.usd)].filter(Boolean).join(" · ")),
        ),
      ),
    ),
  );
  const words = byId("unreadable");
  words.hidden = !unreadable.length;
  words.textContent = t("unreadable", { names: unreadable.join(", ") });
}

const dot = (state) => el("i", { class: `state ${state}`, title: t(STATES[state]) });

// ---- one run

function openFromAddress() {
  const [name, part] = location.hash.slice(1).split("/").map(decodeURIComponent);
  const wanted = name || runs[0]?.name;
  if (wanted) show(wanted, part ?? "");
}

async function show(name, part) {
  open?.control.abort();
  const mine = { name, part, plots: new Map(), log: new Log(name, part, KEYS), control: new AbortController() };
  open = mine;
  byId("nothing").hidden = true;
  document.title = `${name} · Nalar`;
  for (const link of document.querySelectorAll(".run-link")) {
    if (link.getAttribute("href") === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    const whole = await getJson(detailsOf(name, ""), mine.control.signal);
    const details = part ? await getJson(detailsOf(name, part), mine.control.signal) : whole;
    if (open !== mine) return;
    drawRun(mine, whole, details);
    await follow(mine, whole);
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  }
}

const detailsOf = (name, part) => `/runs/${encodeURIComponent(name)}/details?part=${encodeURIComponent(part)}`;

function drawRun(mine, whole, details) {
  mine.grid = el("div", { class: "plots" });
  mine.empty = el("p", { class: "hint", hidden: true }, t("noPlots"));
  mine.badge = el("span", { class: "badge" });
  const facts = [details.recipe && `${t("recipe")} ${details.recipe}`, `${t("begun")} ${new Date(details.created).toLocaleString(document.documentElement.lang)}`, details.machine];
  const samples = new SamplesView(mine.name, mine.part, details.samples);
  const stage = whole.parts.find((one) => one.name === mine.part);
  const parts = [
    el("header", { class: "run-head" }, el("h1", {}, mine.name, stage ? el("span", {}, ` / ${stage.title}`) : null), mine.badge),
    el("p", { class: "facts" }, facts.filter(Boolean).join(" · ")),
    el("pre", { class: "command", tabindex: "0" }, details.command),
    whole.parts.length ? strip(mine, whole) : null,
    results(details.results),
    mine.empty,
    mine.grid,
    mine.part && !details.samples.length ? null : section(t("samples"), samples.element),
    section(t("receipt"), receipt(details)),
  ];
  byId("run").replaceChildren(...parts.filter(Boolean));
  byId("run").querySelector("[aria-current=step]")?.scrollIntoView({ block: "nearest", inline: "center" });
  badge(mine, details.state);
}

function section(title, ...content) {
  return el("section", { class: "block" }, el("h2", {}, title), ...content);
}

function badge(mine, state) {
  mine.badge.className = `badge ${state}`;
  mine.badge.replaceChildren(dot(state), t(STATES[state]));
}

/** The stages of a pipeline, in their order; each opens. */
function strip(mine, whole) {
  const link = (part, title, state, about) =>
    el("li", {}, el("a", { href: `#${mine.name}${part && `/${part}`}`, class: `stage ${state}`, "aria-current": mine.part === part ? "step" : null }, dot(state), el("span", {}, title), el("small", {}, about)));
  const parts = whole.parts.map((part) => link(part.name, part.title, part.state, part.state === "waiting" ? t("waitingState") : `${duration(part.wall_s)} · ${money(part.usd)}`));
  return el("nav", { class: "strip", "aria-label": t("stages") }, el("ol", {}, link("", t("wholeRun"), whole.state, money(whole.usd)), ...parts));
}

/** Pass at 1 of each model that was measured, by task. */
function results(measured) {
  if (!measured.length) return null;
  const tasks = [...new Set(measured.flatMap((one) => Object.keys(one.tasks)))];
  const cell = (one, task) => {
    const found = one.tasks[task];
    if (!found) return el("td", {}, "–");
    const bar = el("i", { class: "bar" });
    bar.style.width = `${Math.round(found.mean * 100)}%`;
    return el("td", { title: found.ci95 ? `95%: ${percent(found.ci95[0])} – ${percent(found.ci95[1])}` : null }, el("span", { class: "bar-box" }, bar), percent(found.mean));
  };
  const rows = measured.map((one) => el("tr", {}, el("th", { scope: "row" }, one.title || t(one.name)), ...tasks.map((task) => cell(one, task))));
  const head = el("tr", {}, el("td", {}), ...tasks.map((task) => el("th", { scope: "col" }, task)));
  return section(t("passAt1"), el("div", { class: "table-box" }, el("table", { class: "results" }, el("thead", {}, head), el("tbody", {}, ...rows))));
}

const percent = (share) => `${number(share * 100, 1, 1)}%`;

// ---- plots

/** Reads on for as long as the run is open. */
async function follow(mine, whole) {
  const { signal } = mine.control;
  while (open === mine) {
    try {
      if (await mine.log.read(signal)) drawPlots(mine);
      mine.empty.hidden = mine.plots.size > 0 || whole.parts.length > 0;
      badge(mine, mine.log.state);
      fail(null);
    } catch (error) {
      if (error.name === "AbortError") return;
      fail(error);
      if (error.status === 401) return;
    }
    await new Promise((resolve) => setTimeout(resolve, mine.log.state === "running" && !document.hidden ? LIVE_MS : IDLE_MS));
  }
}

function drawPlots(mine) {
  const stages = [...mine.log.stages].filter(([stage]) => !NOT_TRAINING.test(stage));
  for (const [stage, series] of stages) {
    for (const chart of CHARTS) {
      const lines = [...series]
        .filter(([name, points]) => points.length >= MIN_POINTS && !name.includes(",") && chart.names.some((key) => name === key || name.startsWith(`${key}/`)))
        .map(([name, points]) => ({ name: name.includes("/") ? name.slice(name.indexOf("/") + 1) : name, points }));
      if (!lines.length) continue;
      if (lines.length === 1) lines[0].name = "";
      const key = `${stage} ${chart.title}`;
      if (!mine.plots.has(key)) {
        const subtitle = [stages.length === 1 ? "" : stage, chart.unit ?? ""].filter(Boolean).join(" · ");
        const plot = new Plot(t(chart.title), subtitle, chart.format ?? short);
        mine.plots.set(key, plot);
        mine.grid.append(plot.element);
      }
      mine.plots.get(key).show(lines);
    }
  }
}

// ---- the receipt

function receipt(details) {
  const rows = details.receipts;
  const total = (key) => (rows.some((row) => row[key] === null) ? null : rows.reduce((sum, row) => sum + row[key], 0));
  const cells = (row) => [number(row.tokens), short(row.flops), duration(row.wall_s), row.energy_wh === null ? "–" : `${short(row.energy_wh)} Wh`, money(row.usd)];
  const line = (name, row) => el("tr", {}, el("th", { scope: "row" }, name), ...cells(row).map((text) => el("td", {}, text)));
  const head = el("tr", {}, el("th", { scope: "col" }, t("stage")), ...["tokensHead", "flops", "time", "energy", "cost"].map((key) => el("th", { scope: "col" }, t(key))));
  const all = Object.fromEntries(["tokens", "flops", "wall_s", "energy_wh", "usd"].map((key) => [key, total(key)]));
  return el("div", { class: "table-box" }, el("table", { class: "receipt" }, el("thead", {}, head), el("tbody", {}, ...rows.map((row) => line(row.name, row))), el("tfoot", {}, line(t("total"), all))));
}

// ---- what goes wrong, and buttons

function fail(error) {
  const isKey = error?.status === 401;
  byId("key-bar").hidden = !isKey;
  byId("problem").hidden = !error || isKey;
  if (error) byId(isKey ? "key-words" : "problem").textContent = error instanceof ApiError ? error.words() : String(error);
}

function connect() {
  connectFrame();
  walkByArrows(byId("run-list"), ".run-link");
  window.addEventListener("hashchange", () => {
    showSidebar(false);
    openFromAddress();
  });
  document.addEventListener("nalar:language", () => {
    loadList();
    if (open) show(open.name, open.part);
  });
  byId("key-bar").addEventListener("submit", async (event) => {
    event.preventDefault();
    keepKey(byId("key").value.trim());
    open?.control.abort();
    open = null;
    await loadList();
  });
}

translate();
drawIcons();
connect();
loadList();
setInterval(() => document.hidden || !byId("key-bar").hidden || loadList(), LIST_MS);
