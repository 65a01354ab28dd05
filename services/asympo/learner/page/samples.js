// The sample browser: groups on one side, the chosen group's prompt and responses on the other.

import { byId, count, element, isNumber, number, replaceWhenChanged, signed } from "./format.js";

const sign = (value) => (value > 1e-9 ? "positive" : value < -1e-9 ? "negative" : "zero");
const keyOf = (group) => `${group.sequence ?? ""}/${group.group_id}`;
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
const FILTERS = {
  all: () => true,
  signal: (group) => group.responses.some((response) => sign(response.advantage) !== "zero"),
  truncated: (group) => group.responses.some((response) => response.finish_reason === "length"),
};

// What the learner chooses by: parameter of /v1/samples, and where it is typed in.
const ASKED = { eval: "samples-eval", steps: "samples-steps", function: "samples-function", at_least: "samples-min", at_most: "samples-max", prompt: "samples-prompt" };

export class SampleBrowser {
  /** `onChoice`: other groups are wanted; `sameAs`: promises the groups that asked what a group asked. */
  constructor({ onChoice, sameAs }) {
    this.sameAs = sameAs;
    this.others = [];
    this.othersOf = null;
    this.compared = null;
    this.groups = [];
    this.chosen = null;
    this.message = null;
    this.list = byId("group-list");
    this.list.addEventListener("keydown", (event) => this.moveChoice(event));
    byId("samples-filter").addEventListener("change", () => this.draw());
    byId("samples-follow").addEventListener("change", () => this.draw());
    for (const id of Object.values(ASKED)) byId(id).addEventListener("change", () => { this.chosen = null; onChoice(); });
  }

  /** What is asked of the learner, to be put behind a query. */
  query() {
    const given = Object.entries(ASKED).map(([name, id]) => [name, byId(id).value.trim()]).filter(([, value]) => value !== "");
    return given.map(([name, value]) => `&${name}=${encodeURIComponent(value)}`).join("");
  }

  /** `groups` as /v1/samples gives them, in any order. */
  setGroups(groups) {
    this.message = null;
    this.groups = groups.map((group) => ({ ...group, responses: group.responses || [] })).sort((a, b) => (b.sequence ?? 0) - (a.sequence ?? 0));
    this.othersOf = null;
    const known = byId("samples-function");
    const names = new Set(this.groups.flatMap((group) => group.responses.flatMap((one) => Object.keys(one.functions || {}))));
    for (const option of known.options) names.delete(option.value);
    known.append(...[...names].sort().map((name) => element("option", { value: name }, name)));
    this.draw();
  }

  /** Evaluations whose answers can be chosen instead. */
  setEvals(names) {
    const known = byId("samples-eval");
    const missing = names.filter((name) => ![...known.options].some((option) => option.value === name));
    known.append(...missing.map((name) => element("option", { value: name }, `evaluation ${name}`)));
  }

  /** Show why there are none, instead of groups. */
  setMessage(text) {
    this.message = text;
    this.groups = [];
    this.chosen = null;
    this.draw();
  }

  draw() {
    // An answer under way when another source was chosen still brings groups of the one before.
    const isOfSource = (group) => (group.eval ?? "") === byId("samples-eval").value;
    const visible = this.groups.filter(isOfSource).filter(FILTERS[byId("samples-filter").value]);
    if (this.chosen && !isOfSource(this.chosen)) this.chosen = null;
    const follows = byId("samples-follow").checked;
    if (follows || !this.chosen) this.chosen = visible[0] || (follows ? null : this.chosen);
    // A chosen group stays in view after newer ones have pushed it out of the list.
    if (this.chosen && !visible.some((group) => keyOf(group) === keyOf(this.chosen))) visible.push(this.chosen);
    this.visible = visible;
    byId("samples-empty").hidden = visible.length > 0;
    byId("samples-empty").textContent = this.message || (this.groups.length ? "No group matches this choice." : byId("samples-eval").value ? "No answer of this evaluation is kept." : "No group has been trained yet.");
    byId("browser").classList.toggle("is-empty", visible.length === 0);
    byId("browser").dataset.groups = String(visible.length);
    const chosenKey = this.chosen && keyOf(this.chosen);
    replaceWhenChanged(this.list, JSON.stringify([visible.map(keyOf), chosenKey]), () => visible.map((group, index) => this.option(group, index, keyOf(group) === chosenKey)));
    const chosenIndex = visible.findIndex((group) => keyOf(group) === chosenKey);
    if (chosenIndex >= 0) this.list.setAttribute("aria-activedescendant", `group-${chosenIndex}`);
    else this.list.removeAttribute("aria-activedescendant");
    this.drawDetail(chosenKey);
    if (this.chosen?.asks && this.othersOf !== chosenKey) this.findOthers(this.chosen);
  }

  drawDetail(chosenKey) {
    const others = this.chosen ? this.others.filter((group) => group.asks === this.chosen.asks && keyOf(group) !== chosenKey) : [];
    const compared = others.find((group) => keyOf(group) === this.compared);
    const signature = JSON.stringify([chosenKey, others.map(keyOf), compared && this.compared]);
    replaceWhenChanged(byId("group-detail"), signature, () => (this.chosen ? detail(this.chosen, compared, this.comparison(others)) : []));
  }

  /** Which other group with this prompt stands beside the chosen one; null where there is none. */
  comparison(others) {
    if (others.length === 0) return null;
    const select = element("select", { id: "samples-compare" }, element("option", { value: "" }, "nothing"),
      ...others.map((group) => element("option", { value: keyOf(group), selected: keyOf(group) === this.compared }, `${ofStep(group)}, reward ${number(mean(group.responses.map((one) => one.reward)), 2)}`)));
    select.addEventListener("change", () => {
      this.compared = select.value || null;
      byId("samples-follow").checked = false;
      this.draw();
    });
    return element("label", { class: "compare" }, "Compare with", select);
  }

  async findOthers(group) {
    this.othersOf = keyOf(group);
    try {
      this.others = (await this.sameAs(group)).map((one) => ({ ...one, responses: one.responses || [] }));
    } catch {
      // The next answer with samples asks again.
      return;
    }
    if (this.chosen) this.drawDetail(keyOf(this.chosen));
  }

  option(group, index, isChosen) {
    const node = element("div", { class: "group-option", role: "option", id: `group-${index}`, "aria-selected": String(isChosen) },
      element("span", { class: "group-prompt" }, lastLine(group.prompt)),
      element("span", { class: "group-meta" }, element("span", {}, isNumber(group.step) ? ofStep(group) : ""), dots(group.responses), element("span", { class: "num" }, number(mean(group.responses.map((one) => one.reward)), 2))));
    node.addEventListener("click", () => this.choose(index));
    return node;
  }

  choose(index) {
    this.chosen = this.visible[index];
    byId("samples-follow").checked = false;
    this.draw();
    byId(`group-${index}`)?.scrollIntoView({ block: "nearest" });
  }

  moveChoice(event) {
    const last = this.visible.length - 1;
    const now = this.visible.findIndex((group) => this.chosen && keyOf(group) === keyOf(this.chosen));
    const target = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: last }[event.key];
    if (target === undefined || last < 0) return;
    event.preventDefault();
    this.choose(Math.min(last, Math.max(0, target)));
  }
}

/** A chat template ends a prompt with markers; what a person asked is the last line that has words. */
function lastLine(prompt) {
  const lines = String(prompt ?? "").replace(/<\|[^|]*\|>(assistant)?/g, "\n").split("\n").map((line) => line.trim()).filter(Boolean);
  return lines.at(-1) || "(empty prompt)";
}

function dots(responses) {
  return element("span", { class: "dots", "aria-hidden": "true" }, ...responses.slice(0, 16).map((one) => element("i", { class: sign(one.advantage) })));
}

const ofStep = (group) => (isNumber(group.step) ? `${group.eval ? "policy" : "step"} ${count(group.step)}` : `group ${group.group_id}`);

function detail(group, compared, comparison) {
  const hasSignal = group.responses.some((one) => sign(one.advantage) !== "zero");
  return [
    element("div", { class: "detail-head" }, element("h3", {}, group.eval ? `Evaluation ${group.eval}` : `Group ${group.group_id}`),
      element("span", { class: "muted" }, group.eval ? ofStep(group) : [isNumber(group.step) ? `trained at step ${count(group.step)}` : "", isNumber(group.sequence) ? `sequence ${count(group.sequence)}` : ""].filter(Boolean).join(" · ")),
      group.eval || hasSignal ? null : element("span", { class: "badge", "data-tone": "idle", title: "all rewards are equal, so no gradient" }, "no signal"), comparison),
    element("h4", {}, "Prompt"), textBlock(group.prompt, "prompt"),
    ...(compared ? [element("div", { class: "sides" }, ...[group, compared].sort((a, b) => (a.sequence ?? 0) - (b.sequence ?? 0)).map((one) => element("section", {}, ...answers(one, `${ofStep(one)}: `))))] : answers(group, "")),
    ...columns(group.columns),
  ];
}

/** What a group answered. */
function answers(group, title) {
  const largest = Math.max(...group.responses.map((one) => Math.abs(one.advantage) || 0), 1e-9);
  return [
    element("h4", {}, `${title}${group.responses.length} response${group.responses.length === 1 ? "" : "s"}`),
    element("ol", { class: "responses" }, ...group.responses.map((one, index) => response(one, index, largest))),
    ...unscored(group.unscored || []),
  ];
}

/** Responses without a reward, which are not trained, and why. */
function unscored(responses) {
  if (responses.length === 0) return [];
  return [
    element("h4", {}, `${responses.length} without a reward`),
    element("ol", { class: "responses unscored" }, ...responses.map((one) => element("li", { class: "response zero" },
      element("div", { class: "response-head" }, element("span", { class: "badge", "data-tone": "warn" }, "not scored"), element("span", {}, one.reason)),
      textBlock(one.text, "response-text")))),
  ];
}

/** What else the row of the data holds. */
function columns(text) {
  if (!text) return [];
  let values;
  try {
    values = Object.entries(JSON.parse(text));
  } catch {
    values = [["cut off", text]];
  }
  return [
    element("h4", {}, "Row"),
    element("dl", { class: "row-columns" }, ...values.flatMap(([name, value]) => [element("dt", { class: "muted" }, name), element("dd", {}, typeof value === "string" ? value : JSON.stringify(value))])),
  ];
}

/** What the reward functions said of a response: values, or notes. */
function said(values, show) {
  const entries = Object.entries(values || {});
  if (entries.length === 0) return null;
  return element("div", { class: "response-functions" }, ...entries.map(([name, value]) => element("span", {}, element("span", { class: "muted" }, name), ` ${show(value)}`)));
}

function response(one, index, largest) {
  const advantage = element("span", { class: `advantage ${sign(one.advantage)}`, title: "advantage: reward minus the group's mean" }, signed(one.advantage));
  advantage.style.setProperty("--strength", `${Math.round(18 + 52 * Math.min(1, Math.abs(one.advantage || 0) / largest))}%`);
  return element("li", { class: `response ${sign(one.advantage)}`, "data-advantage": sign(one.advantage) },
    element("div", { class: "response-head" }, element("span", { class: "muted" }, `#${index + 1}`), isNumber(one.advantage) ? advantage : null, element("span", {}, `reward ${number(one.reward, 2)}`),
      element("span", { class: "response-end" }, element("span", { class: "muted" }, `${count(one.num_tokens)} tokens${one.num_segments > 1 ? ` in ${count(one.num_segments)} segments` : ""}`), one.finish_reason === undefined ? null : element("span", { class: "badge", "data-tone": one.finish_reason === "stop" ? "idle" : "warn" }, one.finish_reason || "unknown"))),
    said(one.functions, (value) => number(value, 3)),
    said(one.notes, String),
    textBlock(one.text, "response-text"));
}

function textBlock(text, name) {
  const isEmpty = !text || !String(text).trim();
  return element("pre", { class: `text ${name}${isEmpty ? " is-empty" : ""}`, tabindex: String(text ?? "").length > 400 ? "0" : null }, isEmpty ? "(no visible text)" : String(text));
}
