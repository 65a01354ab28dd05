// Curves of what evaluators measured: one chart for each evaluation, over the steps of the policies.

import { byId, element, number } from "./format.js";

const COLORS = ["accent", "positive", "teal", "grey", "negative"];

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Columns for the plot: steps, mean, its interval, then each pass@k. A policy measured twice counts once. */
function columnsOf(results) {
  const byStep = new Map(results.map((one) => [one.policy_step ?? 0, one]));
  const rows = [...byStep.entries()].sort((one, other) => one[0] - other[0]).map(([step, one]) => ({ step, ...one }));
  const last = rows.at(-1);
  const ks = Object.keys(last.pass_at).map(Number).filter((k) => k > 1 || last.samples > 1).sort((a, b) => a - b);
  const labels = [`mean@${last.samples}`, ...ks.map((k) => `pass@${k}`)];
  const lines = [rows.map((row) => row.mean[0]), ...ks.map((k) => rows.map((row) => row.pass_at[k]?.[0] ?? null))];
  return { steps: rows.map((row) => row.step), labels, lines, low: rows.map((row) => row.mean[1]), high: rows.map((row) => row.mean[2]), last };
}

class EvalChart {
  constructor(name) {
    this.plotNode = element("div", { class: "plot" });
    this.legend = element("div", { class: "legend" });
    this.note = element("span", { class: "chart-note" });
    this.node = element("figure", { class: "card chart third", "data-eval": name, tabindex: "0" },
      element("figcaption", {}, element("h3", {}, name), this.note), this.legend, this.plotNode);
  }

  draw(results) {
    const { steps, labels, lines, low, high, last } = columnsOf(results);
    this.legend.replaceChildren(...labels.map((label, index) => element("span", { class: "legend-item" },
      element("span", { class: `swatch ${COLORS[index % COLORS.length]}`, "aria-hidden": "true" }), element("span", {}, label),
      element("span", { class: "legend-value" }, number(lines[index].at(-1))))));
    this.note.textContent = `${last.prompts} prompts, policy ${last.policy_step ?? "–"}${last.unscored ? `, ${last.unscored} not scored` : ""}`;
    this.node.setAttribute("aria-label", `${this.node.dataset.eval} at policy ${last.policy_step}: ${labels.map((label, index) => `${label} ${number(lines[index].at(-1))}`).join(", ")}`);
    this.node.dataset.points = String(steps.length);
    this.plot?.destroy();
    const axis = { stroke: () => color("axis"), font: "11px system-ui, sans-serif", ticks: { show: false } };
    const edge = { stroke: "transparent", points: { show: false } };
    this.plot = new uPlot({
      width: Math.max(160, this.plotNode.clientWidth), height: 190, legend: { show: false }, padding: [8, 10, 0, 0],
      scales: { x: { time: false, range: (u, from, to) => (from === to ? [from - 1, to + 1] : [from, to]) } },
      axes: [{ ...axis, grid: { show: false }, size: 26, gap: 4 }, { ...axis, grid: { stroke: () => color("grid"), width: 1 }, size: 46, gap: 4 }],
      bands: [{ series: [2, 1], fill: () => `${color("accent")}26` }],
      series: [{}, edge, edge, ...lines.map((_, index) => ({ stroke: () => color(COLORS[index % COLORS.length]), width: 2, spanGaps: true, points: { show: steps.length < 40, size: 5 } }))],
      cursor: { y: false, drag: { x: false, y: false, setScale: false } },
    }, [steps, low, high, ...lines], this.plotNode);
  }
}

/** All evaluations that have a result. */
export class EvalCharts {
  constructor() {
    this.charts = new Map();
    this.drawn = "";
  }

  setResults(results) {
    const drawn = `${results.length}/${results.at(-1)?.at_seconds}`;
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    byId("evals").hidden = byId("evals-link").hidden = results.length === 0;
    for (const name of new Set(results.map((one) => one.eval))) {
      if (!this.charts.has(name)) {
        this.charts.set(name, new EvalChart(name));
        byId("eval-charts").append(this.charts.get(name).node);
      }
      this.charts.get(name).draw(results.filter((one) => one.eval === name));
    }
  }
}
