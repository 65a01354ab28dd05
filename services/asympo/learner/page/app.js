// Asks the learner for its state once a second and hands the answers to the views.

import { Charts, columnsFor } from "./charts.js";
import { EvalCharts } from "./evals.js";
import { ago, byId, clock, isNumber } from "./format.js";
import { showBroker, showGenerators, showLearner, showLog, showRun, showState, showTiles, showWarnings } from "./parts.js";
import { SampleBrowser } from "./samples.js";

const POLL_MS = 1000;
const HIDDEN_POLL_MS = 10000;
const MAX_RETRY_MS = 5000;
const TIMEOUT_MS = 5000;
const SAMPLES_MS = 3000;
const MAX_SAMPLES = 32;
const MAX_SAME = 64;
const THEMES = ["auto", "light", "dark"];

class HttpError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** No answer in time, or no connection at all. */
class NoAnswer extends Error {}

async function getJson(path) {
  let reply;
  try {
    reply = await fetch(path, { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store", headers: { Accept: "application/json" } });
  } catch (error) {
    throw new NoAnswer(error.name === "TimeoutError" ? `no answer in ${TIMEOUT_MS / 1000} s` : error.message, { cause: error });
  }
  if (reply.ok) return reply.json();
  const text = await reply.text();
  let detail = text;
  try {
    const body = JSON.parse(text);
    detail = typeof body.detail === "string" ? body.detail : typeof body.error === "string" ? body.error : text;
  } catch {
    // Not JSON: the text itself is the message.
  }
  throw new HttpError(reply.status, detail.trim() || `HTTP ${reply.status}`);
}

class History {
  constructor() {
    this.clear();
  }

  clear() {
    this.steps = [];
    this.columns = columnsFor({}, {}, 0);
    this.first = null;
    this.last = null;
  }

  append(rows, generatorTokensPerSecond) {
    for (const row of rows) {
      if (!isNumber(row.step) || (this.last && row.step <= this.last.step)) continue;
      columnsFor(row, this.columns, this.steps.length);
      this.steps.push(row.step);
      for (const key of Object.keys(this.columns)) this.columns[key].push(isNumber(row[key]) ? row[key] : null);
      this.first ??= row;
      this.last = row;
    }
    // The learner's rows may lack the generators' rate; what was seen when the newest row came stands in for it.
    const rates = this.columns.generator_tokens_per_second;
    if (rows.length === 1 && rates.length && rates.at(-1) === null) rates[rates.length - 1] = generatorTokensPerSecond;
  }
}

class Page {
  constructor() {
    this.history = new History();
    this.charts = new Charts();
    this.evals = new EvalCharts();
    this.samples = new SampleBrowser({
      onChoice: () => { this.samplesAt = 0; this.poll(); },
      sameAs: async (group) => (await getJson(`/v1/samples?asks=${encodeURIComponent(group.asks)}&eval=${encodeURIComponent(group.eval ?? "")}&limit=${MAX_SAME}`)).groups,
    });
    this.status = null;
    this.owner = null;
    this.lostAt = null;
    this.failures = 0;
    this.samplesAt = 0;
    this.evalsAt = 0;
    this.timer = 0;
    this.isPolling = false;
    byId("retry").addEventListener("click", () => { this.samplesAt = 0; this.poll(); });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.poll(); });
    setInterval(() => this.showAge(), 1000);
  }

  async poll() {
    if (this.isPolling) return;
    this.isPolling = true;
    clearTimeout(this.timer);
    try {
      const status = await getJson("/v1/status");
      await this.updateHistory(status);
      await this.updateSamples();
      await this.updateEvals();
      this.connected(status);
    } catch (error) {
      this.disconnected(error);
    } finally {
      this.isPolling = false;
    }
    const wait = this.failures ? Math.min(MAX_RETRY_MS, POLL_MS * this.failures) : document.hidden ? HIDDEN_POLL_MS : POLL_MS;
    this.timer = setTimeout(() => this.poll(), wait);
  }

  /** Fetch the rows that are new; all of them when a learner took over and may have gone back to its last commit. */
  async updateHistory(status) {
    const owner = `${status.run}/${status.fence}`;
    const isNew = this.owner !== owner || (this.history.last && status.step < this.history.last.step);
    if (isNew || this.history.last === null) {
      const { rows } = await getJson("/v1/history");
      this.history.clear();
      this.history.append(rows, null);
      this.owner = owner;
    }
    const rates = (status.generators || []).map((one) => one.tokens_per_second).filter(isNumber);
    const generated = rates.length ? rates.reduce((sum, value) => sum + value, 0) : null;
    while (this.history.last && this.history.last.step < status.step) {
      const before = this.history.last.step;
      const { rows } = await getJson(`/v1/history?after=${before}`);
      this.history.append(rows, generated);
      if (this.history.last.step === before) break;
    }
  }

  async updateSamples() {
    if (performance.now() - this.samplesAt < SAMPLES_MS && this.samplesAt > 0) return;
    this.samplesAt = performance.now();
    try {
      const { groups } = await getJson(`/v1/samples?limit=${MAX_SAMPLES}${this.samples.query()}`);
      this.samples.setGroups(groups);
    } catch (error) {
      if (!(error instanceof HttpError) || error.status >= 500) throw error;
      this.samples.setMessage(error.message);
    }
  }

  async updateEvals() {
    if (performance.now() - this.evalsAt < SAMPLES_MS && this.evalsAt > 0) return;
    this.evalsAt = performance.now();
    const { evals } = await getJson("/v1/evals");
    this.evals.setResults(evals);
    this.samples.setEvals([...new Set(evals.map((one) => one.eval))]);
  }

  connected(status) {
    if (this.lostAt !== null) {
      byId("announce").textContent = "The learner answers again.";
      this.lostAt = null;
    }
    this.failures = 0;
    this.status = status;
    this.answeredAt = new Date();
    byId("notice").hidden = true;
    document.body.dataset.connection = "connected";
    this.show(true);
    const { steps, columns } = this.history;
    const drawn = `${this.owner}/${steps.length}/${steps.at(-1)}`;
    if (drawn !== this.drawn) this.charts.setHistory(steps, columns);
    this.drawn = drawn;
    this.showAge();
  }

  disconnected(error) {
    this.failures += 1;
    this.error = error;
    if (this.lostAt === null) this.lostAt = new Date();
    if (!(error instanceof NoAnswer || error instanceof HttpError)) console.error(error);
    // One slow answer is no outage: a busy learner may hold its interpreter for a moment.
    if (this.failures < 2 && this.status && error.cause?.name === "TimeoutError") return;
    document.body.dataset.connection = "disconnected";
    if (this.status) this.show(false);
    else byId("state").textContent = "disconnected";
    byId("state").dataset.tone = "bad";
    this.showNotice();
    // Said once: the notice itself counts seconds, which nobody wants to hear.
    const title = byId("notice-title").textContent;
    if (byId("announce").textContent !== title) byId("announce").textContent = title;
  }

  showNotice() {
    const isOver = this.status && (this.status.state === "finished" || this.status.state === "failed");
    const answered = this.error instanceof HttpError ? ` It says: ${this.error.message}.` : this.error instanceof NoAnswer ? "" : ` Its answer could not be read: ${this.error.message}.`;
    const since = `${clock(this.lostAt)} (${ago((Date.now() - this.lostAt) / 1000)})`;
    const last = this.status ? "What you see is the last known state; the page goes on by itself when the learner is back." : "Nothing has been received yet; the page goes on by itself when the learner answers.";
    byId("notice").dataset.tone = isOver ? "done" : "bad";
    byId("notice-title").textContent = isOver ? `The run has ${this.status.state} and its learner has stopped.` : answered ? "The learner cannot say how it is." : "The learner does not answer.";
    byId("notice-text").textContent = isOver ? "These are its last numbers." : `Since ${since}.${answered} ${last}`;
    byId("notice").hidden = false;
  }

  show(isConnected) {
    const { status, history } = this;
    showState(status, isConnected);
    showRun(status, history.last, isConnected);
    showTiles(status, history.first, history.last);
    showLog(status);
    showLearner(status, history.last, isConnected);
    showBroker(status, isConnected);
    showGenerators(status, isConnected);
    showWarnings(status);
  }

  showAge() {
    byId("updated").textContent = this.answeredAt ? `Last answer ${ago((Date.now() - this.answeredAt) / 1000)}` : "";
    if (document.body.dataset.connection === "disconnected") this.showNotice();
  }
}

function setUpTheme(onChange) {
  const root = document.documentElement;
  const button = byId("theme");
  const show = () => {
    const theme = root.dataset.theme || "auto";
    button.textContent = { auto: "◐", light: "☀", dark: "☾" }[theme];
    button.setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system" : theme}`);
    button.title = button.getAttribute("aria-label");
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme || "auto") + 1) % THEMES.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("asympo-theme", next);
    } catch {
      // Storage may be switched off; the choice then lasts until the page is closed.
    }
    show();
    onChange();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
  show();
}

const page = new Page();
setUpTheme(() => page.charts.recolor());
page.poll();
