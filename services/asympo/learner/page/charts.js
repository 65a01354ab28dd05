// The curves: one uPlot per chart over one shared history, with a legend of buttons and a keyboard cursor.

import { byId, count, element, isNumber, number, percent, seconds } from "./format.js";

const fromZero = (u, low, high) => (isNumber(low) ? uPlot.rangeNum(low, high || 1e-6, { min: { pad: 0.1, soft: 0, mode: 3 }, max: { pad: 0.12, soft: 0, mode: 3 } }) : [0, 1]);
const share = (u, low, high) => [0, isNumber(high) && high > 0.5 ? 1 : Math.max(0.1, (high || 0) * 1.25)];

const CHARTS = [
  { id: "reward", title: "Mean reward", note: "of all responses of the step", size: "half", range: fromZero, series: [
    { key: "reward_mean", label: "reward", color: "accent", fill: true }] },
  { id: "nll", title: "NLL by sign of the advantage", note: "under the current policy; a rising positive line is the early warning", size: "half", range: fromZero, series: [
    { key: "nll_positive", label: "positive", color: "positive" }, { key: "nll_negative", label: "negative", color: "negative" }] },
  { id: "grad_norm", title: "Gradient norm", note: "before clipping", range: fromZero, series: [
    { key: "grad_norm", label: "norm", color: "accent" }] },
  { id: "entropy", title: "Entropy", note: "nats per trained token", range: fromZero, series: [
    { key: "entropy", label: "entropy", color: "teal" }] },
  { id: "staleness", title: "Staleness", note: "policies published since", range: fromZero, series: [
    { key: "queue_staleness_mean", label: "queue, mean", color: "accent" }, { key: "queue_staleness_max", label: "queue, max", color: "grey", dash: [4, 4] },
    { key: "generation_staleness_mean", label: "generation, mean", color: "teal" }] },
  { id: "throughput", title: "Tokens per second", note: "of both sides", range: fromZero, format: count, series: [
    { key: "tokens_per_second", label: "learner", color: "accent" }, { key: "generator_tokens_per_second", label: "generators", color: "teal" }] },
  { id: "length", title: "Response length", note: "tokens, and the share cut at the limit", range: fromZero, series: [
    { key: "response_tokens_mean", label: "tokens", color: "accent" }, { key: "truncated_ratio", label: "truncated", color: "negative", scale: "share", format: percent, dash: [4, 4] }] },
  { id: "time", title: "Time of a step", note: "seconds", range: fromZero, format: seconds, series: [
    { key: "train_seconds", label: "train", color: "accent" }, { key: "wait_seconds", label: "wait", color: "negative" },
    { key: "publish_seconds", label: "publish", color: "teal" }, { key: "save_seconds", label: "save", color: "grey" }] },
];

/** Keys of a history row that the page keeps; the rest is dropped to save memory on long runs. */
const KEPT_KEYS = CHARTS.flatMap((chart) => chart.series.map((series) => series.key));
const OF_FUNCTION = /^reward\/([^/]+)\/mean$/;
const MAX_FUNCTIONS = 10;
const FUNCTION_COLORS = ["accent", "teal", "positive", "negative", "grey"];

/** One column for each key that is kept, those of the reward functions of this row included, over the columns there are. */
export function columnsFor(row, columns, length) {
  const functions = Object.keys(row).filter((key) => OF_FUNCTION.test(key)).slice(0, MAX_FUNCTIONS);
  const keys = [...KEPT_KEYS, ...functions.flatMap((key) => [key, key.replace(/mean$/, "spread")])];
  for (const key of keys) columns[key] ??= Array(length).fill(null);
  return columns;
}

/** Two charts of the reward functions that the columns are about, none where the run has no functions. */
function functionCharts(columns) {
  const names = Object.keys(columns).flatMap((key) => OF_FUNCTION.exec(key)?.[1] ?? []).slice(0, MAX_FUNCTIONS);
  const series = (part) => names.map((name, index) => ({
    key: `reward/${name}/${part}`, label: name, color: FUNCTION_COLORS[index % FUNCTION_COLORS.length], dash: index < FUNCTION_COLORS.length ? undefined : [4, 4] }));
  return names.length === 0 ? [] : [
    { id: "functions", title: "Reward functions", note: "mean of each, before its weight", size: "half", range: fromZero, series: series("mean") },
    { id: "spreads", title: "Spread inside groups", note: "of each function; at 0 it ranks nothing", size: "half", range: fromZero, series: series("spread") }];
}

const PALETTE = ["accent", "positive", "negative", "teal", "grey", "grid", "axis", "surface"];
let palette = {};

function readPalette() {
  const style = getComputedStyle(document.documentElement);
  palette = Object.fromEntries(PALETTE.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function smooth(values, weight) {
  let mean = null;
  return values.map((value) => {
    if (!isNumber(value)) return null;
    mean = mean === null ? value : weight * mean + (1 - weight) * value;
    return mean;
  });
}

class Chart {
  constructor(spec, view) {
    this.spec = spec;
    this.view = view;
    this.shown = spec.series.map(() => true);
    this.stepNode = element("span", { class: "chart-step", "aria-hidden": "true" });
    this.plotNode = element("div", { class: "plot" }, this.stepNode);
    this.values = spec.series.map(() => element("span", { class: "legend-value" }, "–"));
    this.node = element("figure", { class: `card chart ${spec.size || "third"}`, "data-chart": spec.id, tabindex: "0" },
      element("figcaption", {}, element("h3", {}, spec.title), element("span", { class: "chart-note" }, spec.note)),
      element("div", { class: "legend" }, ...spec.series.map((series, index) => this.legendButton(series, index))),
      this.plotNode);
    this.node.addEventListener("keydown", (event) => this.moveCursor(event));
  }

  legendButton(series, index) {
    const button = element("button", { type: "button", class: "legend-item", "aria-pressed": "true", title: "Show or hide" },
      element("span", { class: `swatch ${series.color}${series.dash ? " dashed" : ""}`, "aria-hidden": "true" }), element("span", {}, series.label), this.values[index]);
    button.addEventListener("click", () => {
      this.shown[index] = !this.shown[index];
      button.setAttribute("aria-pressed", String(this.shown[index]));
      this.plot.setSeries(2 * index + 1, { show: this.shown[index] });
      this.plot.setSeries(2 * index + 2, { show: this.shown[index] });
    });
    return button;
  }

  mount() {
    const { spec, view } = this;
    const line = (series, isSmoothed) => ({
      label: series.label, scale: series.scale || "y", width: isSmoothed ? 2 : 1.6, dash: series.dash, spanGaps: true,
      stroke: () => palette[series.color] + (!isSmoothed && view.smoothing > 0 ? "59" : ""),
      fill: series.fill && !isSmoothed ? () => palette[series.color] + "1f" : undefined,
      points: { show: isSmoothed ? false : (u) => u.data[0].length < 3, size: 5, fill: () => palette[series.color] },
    });
    const axis = { stroke: () => palette.axis, font: "11px system-ui, sans-serif", ticks: { show: false } };
    const hasShare = spec.series.some((series) => series.scale === "share");
    const ticks = (u, splits) => splits.map((value) => (value === null ? "" : Math.abs(value) >= 10000 ? `${value / 1000}k` : String(Number(value.toPrecision(4)))));
    this.plot = new uPlot({
      width: Math.max(160, this.plotNode.clientWidth), height: 190, legend: { show: false }, padding: [8, hasShare ? 0 : 10, 0, 0],
      scales: { x: { time: false, range: (u, low, high) => (low === null ? [0, 1] : low === high ? [low - 1, high + 1] : [low, high]) }, y: { range: spec.range }, share: { range: share } },
      axes: [
        { ...axis, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000], size: 26, gap: 4, space: 56 },
        { ...axis, grid: { stroke: () => palette.grid, width: 1 }, values: ticks, size: 46, gap: 4, space: 34 },
        ...(hasShare ? [{ ...axis, scale: "share", side: 1, grid: { show: false }, values: (u, splits) => splits.map((value) => (value === null ? "" : `${Math.round(100 * value)}%`)), size: 42, gap: 6, space: 34 }] : []),
      ],
      series: [{}, ...spec.series.flatMap((series) => [line(series, false), line(series, true)])],
      cursor: { y: false, sync: { key: "steps" }, drag: { x: false, y: false, setScale: false }, points: { size: 7, show: true } },
      hooks: { setCursor: [() => this.showValues()], draw: [() => { this.node.dataset.drawn = String(Number(this.node.dataset.drawn || 0) + 1); }] },
    }, [[]].concat(spec.series.flatMap(() => [[], []])), this.plotNode);
    this.observer = new ResizeObserver(() => {
      const width = this.plotNode.clientWidth;
      if (width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: 190 });
    });
    this.observer.observe(this.plotNode);
  }

  remove() {
    this.observer.disconnect();
    this.plot.destroy();
    this.node.remove();
  }

  setData(steps, columns) {
    const lines = this.spec.series.map((series) => columns[series.key]);
    const weight = this.view.smoothing;
    this.plot.setData([steps, ...lines.flatMap((values) => [values, weight > 0 ? smooth(values, weight) : values.map(() => null)])]);
    this.node.dataset.points = String(steps.length);
    this.node.dataset.series = String(lines.filter((values) => values.some(isNumber)).length);
    this.showValues();
  }

  showValues() {
    const [steps, ...lines] = this.plot.data;
    const index = this.plot.cursor.idx;
    const isPointed = index !== null && index !== undefined;
    const at = isPointed ? index : steps.length - 1;
    this.stepNode.textContent = isPointed ? `step ${count(steps[at])}` : "";
    this.spec.series.forEach((series, position) => {
      const format = series.format || this.spec.format || number;
      this.values[position].textContent = format(lines[2 * position]?.[at]);
    });
    const summary = this.spec.series.map((series, position) => `${series.label} ${this.values[position].textContent}`).join(", ");
    this.node.setAttribute("aria-label", steps.length ? `${this.spec.title} at step ${steps[at]}: ${summary}. Arrow keys move along the steps.` : `${this.spec.title}: nothing yet`);
    this.node.classList.toggle("is-empty", steps.length === 0);
  }

  moveCursor(event) {
    const last = this.plot.data[0].length - 1;
    const now = this.plot.cursor.idx ?? last;
    const target = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    if (event.target !== this.node || last < 0 || (target === undefined && event.key !== "Escape")) return;
    event.preventDefault();
    const step = this.plot.data[0][Math.min(last, Math.max(0, target ?? 0))];
    for (const { plot } of this.view.charts) plot.setCursor(event.key === "Escape" ? { left: -10, top: -10 } : { left: plot.valToPos(step, "x"), top: 20 });
  }
}

/** All charts over one history; `view` holds what the reader chose. */
export class Charts {
  constructor() {
    this.view = { smoothing: 0, range: 0 };
    this.charts = CHARTS.map((spec) => new Chart(spec, this.view));
    this.view.charts = this.charts;
    byId("charts").append(...this.charts.map((chart) => chart.node));
    readPalette();
    for (const chart of this.charts) chart.mount();
    this.steps = [];
    this.columns = columnsFor({}, {}, 0);
    this.functions = [];
    for (const name of ["smoothing", "range"]) {
      byId(name).addEventListener("change", (event) => { this.view[name] = Number(event.target.value); this.draw(); });
    }
  }

  setHistory(steps, columns) {
    this.steps = steps;
    this.columns = columns;
    this.chartFunctions();
    this.draw();
  }

  /** The functions are known from the rows alone; a run that was resumed may have others. */
  chartFunctions() {
    const specs = functionCharts(this.columns);
    if (JSON.stringify(specs) === this.drawnFunctions) return;
    this.drawnFunctions = JSON.stringify(specs);
    for (const chart of this.functions) chart.remove();
    this.functions = specs.map((spec) => new Chart(spec, this.view));
    const fixed = this.charts.filter((chart) => CHARTS.includes(chart.spec));
    this.view.charts = this.charts = [...fixed, ...this.functions];
    fixed.find((chart) => chart.spec.id === "nll").node.after(...this.functions.map((chart) => chart.node));
    for (const chart of this.functions) chart.mount();
  }

  draw() {
    const from = this.view.range > 0 ? Math.max(0, this.steps.length - this.view.range) : 0;
    const columns = Object.fromEntries(Object.entries(this.columns).map(([key, values]) => [key, values.slice(from)]));
    for (const chart of this.charts) chart.setData(this.steps.slice(from), columns);
  }

  recolor() {
    readPalette();
    for (const chart of this.charts) chart.plot.redraw();
  }
}
