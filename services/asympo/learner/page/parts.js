// Header, tiles and the state of each part, drawn from /v1/status and the newest history row.

import { ago, byId, count, duration, element, isNumber, number, percent, replaceWhenChanged, seconds } from "./format.js";

const RUN_TONES = { created: "idle", running: "good", draining: "warn", finished: "done", failed: "bad" };
const VERDICTS = {
  proved: ["good", "every layer holds this step's weights, and some differ from those before"],
  unchanged: ["note", "every layer holds this step's weights, which are those of the step before"],
  unproven: ["warn", "nothing speaks against the served weights, but some layers cannot be read back"],
  failed: ["bad", "the served weights are not this step's; the last proven policy was reloaded"],
};
const GENERATOR_TONES = { starting: "warn", waiting_for_policy: "note", paused: "warn", draining: "warn", stopped: "idle" };
const FORGET_GENERATOR_SECONDS = 600;

const badge = (tone, text, title) => element("span", { class: "badge", "data-tone": tone, title }, text);

/** A term and its value; `value` is text or an element. */
const fact = (term, value, title) => element("div", { class: "fact", title }, element("dt", {}, term), element("dd", {}, value));

const facts = (...items) => element("dl", { class: "facts compact" }, ...items);

function partHead(title, state) {
  return element("div", { class: "part-head" }, element("h3", {}, title), state);
}

export function showState(status, isConnected) {
  const state = status.paused && status.state === "running" ? "paused" : status.state || "unknown";
  const pill = byId("state");
  const text = isConnected ? state : "disconnected";
  if (pill.textContent !== text) pill.textContent = text;
  pill.dataset.tone = isConnected ? (state === "paused" ? "warn" : RUN_TONES[state] || "idle") : "bad";
  document.title = `${isConnected ? "" : "⚠ "}${isNumber(status.step) ? `${status.step}${status.total_steps ? `/${status.total_steps}` : ""} · ` : ""}${status.run || "run"} · ASymPO`;
}

export function showRun(status, row, isConnected) {
  byId("run-name").textContent = status.run || "";
  const values = [["Model", status.model], ["Objective", status.objective], ["Policy step", count(status.policy_step)], ["Fence", count(status.fence)]];
  if (status.reason) values.push(["Reason", status.reason]);
  replaceWhenChanged(byId("facts"), JSON.stringify(values), () => values.map(([term, value]) => fact(term, value || "–", value)));
  const total = status.total_steps;
  byId("step").textContent = `Step ${count(status.step)}`;
  byId("step-total").textContent = total ? `of ${count(total)}` : "";
  const ratio = total ? Math.min(1, Math.max(0, (status.step || 0) / total)) : 0;
  byId("progress-fill").style.width = `${100 * ratio}%`;
  byId("progress").hidden = !total;
  byId("progress").setAttribute("aria-valuenow", status.step ?? 0);
  byId("progress").setAttribute("aria-valuemax", total ?? 0);
  const isOver = status.state === "finished" || status.state === "failed";
  const elapsed = row && isNumber(row.wall_seconds) ? `${duration(row.wall_seconds)} so far` : "";
  const left = isNumber(status.eta_seconds) && isConnected && !isOver ? `about ${duration(status.eta_seconds)} left` : "";
  byId("eta").textContent = [total ? `${Math.floor(100 * ratio)}\u00a0%` : "", elapsed, left].filter(Boolean).join(" · ");
}

export function showTiles(status, first, last) {
  const row = last || {};
  const generators = status.generators || [];
  const generated = generators.map((one) => one.tokens_per_second).filter(isNumber);
  const tiles = [
    ["Mean reward", number(row.reward_mean), "", first ? `${number(first.reward_mean)} at step ${first.step}` : "", "accent"],
    ["NLL, positive", number(row.nll_positive), "", "advantage > 0", "positive"],
    ["NLL, negative", number(row.nll_negative), "", isNumber(row.nll_ratio) ? `${number(row.nll_ratio)} × positive` : "advantage < 0", "negative"],
    ["Gradient norm", number(row.grad_norm), "", "before clipping", "accent"],
    ["Learner", count(status.tokens_per_second), "tokens/s", `waits ${percent(status.wait_ratio)}`, "accent"],
    ["Generators", count(generated.length ? generated.reduce((sum, value) => sum + value, 0) : null), "tokens/s", `${generators.length} connected`, "teal"],
    ["Queue staleness", number(status.queue_staleness_mean, 2), "", "policies, mean", "accent"],
    ["Backlog", count(status.backlog), "groups", `of ${count(status.capacity)} slots`, "teal"],
  ];
  replaceWhenChanged(byId("tiles"), JSON.stringify(tiles), () => tiles.map(([name, value, unit, note, color]) => element("div", { class: `card tile ${color}`, "data-tile": name },
    element("div", { class: "tile-name" }, name), element("div", { class: "tile-value" }, value, unit ? element("span", { class: "tile-unit" }, unit) : null), element("div", { class: "tile-note" }, note))));
}

export function showLog(status) {
  const { open = 0, leases = 0, capacity = 0, backlog } = status;
  const free = Math.max(0, capacity - open - leases);
  const isFull = capacity > 0 && free === 0;
  replaceWhenChanged(byId("part-log"), JSON.stringify([open, leases, capacity, backlog, status.appended, status.trained, status.dead_letters]), () => {
    const bar = element("div", { class: "capacity", role: "img", "aria-label": `${open} open, ${leases} leased, ${free} free of ${capacity}` });
    for (const [name, size] of [["open", open], ["leased", leases], ["free", free]]) {
      const piece = element("span", { class: `capacity-${name}`, title: `${size} ${name}` });
      piece.style.flexGrow = String(size);
      bar.append(piece);
    }
    return [
      partHead("Rollout log", isFull ? badge("note", "at capacity", "generators wait for the learner; this is the intended pacing") : badge("good", "has free slots")),
      bar,
      element("div", { class: "capacity-legend" }, element("span", { class: "key open" }, `${count(open)} open`), element("span", { class: "key leased" }, `${count(leases)} leased`), element("span", { class: "key free" }, `${count(free)} free`)),
      facts(fact("Backlog", `${count(backlog)} groups`, "appended and not yet trained"), fact("Appended", count(status.appended)), fact("Trained", count(status.trained)),
        fact("Dead letters", status.dead_letters > 0 ? badge("bad", count(status.dead_letters)) : count(status.dead_letters), "records refused with a reason")),
    ];
  });
}

export function showLearner(status, row, isConnected) {
  const state = !isConnected ? badge("bad", "not connected") : status.paused ? badge("warn", "paused") : status.wait_ratio > 0.5 ? badge("note", "waits for groups", "more than half of its time") : badge("good", "connected");
  const lines = [isConnected, status.paused, status.step, status.policy_step, status.fence, status.last_publish_seconds_ago, status.tokens_per_second, status.wait_ratio, row && row.learning_rate];
  replaceWhenChanged(byId("part-learner"), JSON.stringify(lines), () => [
    partHead("Learner", state),
    facts(fact("Step", count(status.step)), fact("Policy published", `step ${count(status.policy_step)}`), fact("Last publish", ago(status.last_publish_seconds_ago)), fact("Tokens/s", count(status.tokens_per_second)),
      fact("Waits for groups", percent(status.wait_ratio)), fact("Learning rate", isNumber(row && row.learning_rate) ? row.learning_rate.toExponential(1) : "–")),
  ]);
}

export function showBroker(status, isConnected) {
  const broker = status.broker;
  const warnings = (broker && broker.warnings) || [];
  const isReachable = Boolean(broker) && broker.is_connected !== false;
  const state = !isConnected ? badge("idle", "unknown") : !isReachable ? badge("bad", "not reachable") : warnings.length ? badge("warn", "connected, with warnings") : badge("good", "connected");
  replaceWhenChanged(byId("part-broker"), JSON.stringify([broker, isConnected]), () => [
    partHead("Broker", state),
    facts(fact("Server", broker ? `${broker.server || "–"} ${broker.version || ""}` : "–"), fact("Warnings", warnings.length ? String(warnings.length) : "none")),
    ...(warnings.length ? [element("ul", { class: "warnings" }, ...warnings.map((text) => element("li", {}, text)))] : []),
  ]);
}

/** What services warn about: an error at once, a warning when it repeats, each as one line with its count. */
export function showWarnings(status) {
  const of = (who, warnings) => (Array.isArray(warnings) ? warnings : []).map((one) => ({ ...one, who }));
  const all = [...of("learner", status.warnings), ...(status.generators || []).flatMap((one) => of(one.holder, one.warnings))];
  const shown = all.filter((one) => one.count > 1 || one.level !== "warning").sort((a, b) => b.count - a.count);
  const node = byId("part-warnings");
  node.hidden = !shown.length;
  const text = (one) => `${one.who}: ${one.text} (${one.count === 1 ? "once" : `${count(one.count)} times`})`;
  replaceWhenChanged(node, JSON.stringify(shown.map(text)), () => [
    partHead("Warnings", badge("warn", `${shown.length} kinds`)),
    element("ul", { class: "warnings" }, ...shown.map((one) => element("li", {}, text(one)))),
  ]);
}

/** Generators that were seen and are gone stay listed for a while: a lost one is what a reader looks for. */
const seenGenerators = new Map();

export function showGenerators(status, isConnected) {
  const now = Date.now() / 1000;
  if (isConnected) for (const one of status.generators || []) seenGenerators.set(one.holder, { one, seen: now });
  const present = new Set((status.generators || []).map((one) => one.holder));
  for (const [holder, entry] of seenGenerators) if (!present.has(holder) && now - entry.seen > FORGET_GENERATOR_SECONDS) seenGenerators.delete(holder);
  const rows = [...seenGenerators.values()].sort((a, b) => String(a.one.holder).localeCompare(String(b.one.holder), undefined, { numeric: true }));
  const lost = rows.filter(({ one }) => !present.has(one.holder)).length;
  const node = byId("part-generators");
  node.dataset.connected = String(isConnected ? present.size : 0);
  const state = !isConnected ? badge("idle", "unknown") : lost ? badge("bad", `${lost} lost`) : present.size ? badge("good", `${present.size} connected`) : badge("warn", "none connected");
  const signature = JSON.stringify([isConnected, rows.map(({ one, seen }) => [one, present.has(one.holder) ? ageOf(one, now) : Math.round(now - seen)])]);
  replaceWhenChanged(node, signature, () => [
    partHead("Generators", state),
    rows.length
      ? element("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": "Table of generators" }, element("table", {},
        element("thead", {}, element("tr", {}, ...["Generator", "State", "Policy", "Last reload", "Verdict", "Groups in flight", "Tokens/s", "Responses"].map((name) => element("th", { scope: "col" }, name)))),
        element("tbody", {}, ...rows.map((entry) => generatorRow(entry, present.has(entry.one.holder), isConnected, status.policy_step, now)))))
      : element("p", { class: "empty" }, "No generator has connected to this run. Start one with: asympo generator"),
  ]);
}

const ageOf = (one, now) => (one.last_reload && isNumber(one.last_reload.at_seconds) ? Math.round(now - one.last_reload.at_seconds) : null);

function generatorRow({ one, seen }, isPresent, isConnected, newestPolicy, now) {
  const reload = one.last_reload;
  const [tone, meaning] = VERDICTS[reload && reload.verdict] || ["idle", ""];
  const behind = isNumber(newestPolicy) && isNumber(one.policy_step) ? newestPolicy - one.policy_step : 0;
  const state = !isConnected ? badge("idle", "unknown") : isPresent ? badge(GENERATOR_TONES[one.state] || "good", String(one.state || "connected").replaceAll("_", " "), one.not_ready_reason) : badge("bad", `lost ${duration(now - seen)} ago`);
  const cell = (label, ...children) => element("td", { "data-label": label }, element("span", {}, ...children));
  const quantity = (label, value) => element("td", { "data-label": label, class: "num" }, count(value));
  const muted = (text) => element("span", { class: "muted" }, text);
  return element("tr", { "data-generator": one.holder, "data-present": String(isPresent) },
    element("th", { scope: "row" }, one.holder), cell("State", state, isPresent && one.waiting_for ? muted(` ${String(one.waiting_for).replaceAll("_", " ")}`) : null),
    cell("Policy", `step ${count(one.policy_step)}`, behind > 0 ? muted(` (${behind} behind)`) : null),
    cell("Last reload", one.can_reload === false ? "keeps its weights" : reload ? `${seconds(reload.seconds)}, ${ago(ageOf(one, now))}` : "none yet", reload && isNumber(reload.in_flight) ? muted(` · ${count(reload.in_flight)} in flight`) : null),
    cell("Verdict", reload ? badge(tone, reload.verdict || "unknown", meaning) : "–", reload && isNumber(reload.step) ? muted(` step ${count(reload.step)}`) : null),
    quantity("Groups in flight", one.groups_in_flight), quantity("Tokens/s", one.tokens_per_second), quantity("Responses", one.responses_total));
}
