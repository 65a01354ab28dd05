// Numbers, times and elements. Text enters the document through textContent only.

const NONE = "–";

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export function number(value, digits = 3) {
  if (!isNumber(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1e9) return value.toExponential(2);
  if (size >= 10000) return Math.round(value).toLocaleString("en-US");
  if (Number.isInteger(value)) return String(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return value.toFixed(size >= 1 ? 2 : digits);
}

export const count = (value) => (isNumber(value) ? Math.round(value).toLocaleString("en-US") : NONE);

export const percent = (value) => (isNumber(value) ? `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)}\u00a0%` : NONE);

export const signed = (value) => (isNumber(value) ? `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(2)}` : NONE);

export function seconds(value) {
  if (!isNumber(value)) return NONE;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 10) return `${value.toFixed(1)} s`;
  return duration(value);
}

export function duration(value) {
  if (!isNumber(value)) return NONE;
  const total = Math.max(0, Math.round(value));
  const [hours, minutes, rest] = [Math.floor(total / 3600), Math.floor((total % 3600) / 60), total % 60];
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  if (minutes > 0) return `${minutes} min ${rest} s`;
  return `${rest} s`;
}

export const ago = (value) => (isNumber(value) ? (value < 1.5 ? "just now" : `${duration(value)} ago`) : NONE);

export const clock = (date) => date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** An element with attributes and children; a string child becomes a text node, never markup. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Put new children in place of the old ones only when `signature` changed, so that focus and selection stay. */
export function replaceWhenChanged(node, signature, build) {
  if (node.asympoSignature === signature) return;
  node.asympoSignature = signature;
  node.replaceChildren(...build());
}

export const byId = (id) => document.getElementById(id);
