// Numbers with their units and times in the viewer's zone. What is not known is a dash, never a zero.

export const UNKNOWN = "–";

// A number and its unit stay on one line.
const UNIT = "\u00a0";

const whole = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const exact = new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "long" });
const relative = new Intl.RelativeTimeFormat("en-GB", { numeric: "auto" });

/** A whole number: 12,345. */
export function count(value) {
  return value === null || value === undefined ? UNKNOWN : whole.format(value);
}

/** A number between 0 and 1, such as a risk: 0.07. A small one is not shown as none. */
export function fraction(value, digits = 2) {
  if (!isNumber(value)) return value === "NaN" || value === "Infinity" ? String(value) : UNKNOWN;
  const least = 10 ** -digits;
  return value > 0 && value < least ? `< ${least.toFixed(digits)}` : value.toFixed(digits);
}

/** A share in per cent: 12.3 %. */
export function percent(value, digits = 1) {
  return isNumber(value) ? `${(100 * value).toFixed(digits)}${UNIT}%` : UNKNOWN;
}

/** A number of any size with three significant digits, and its unit: 0.0124 nats/token. */
export function number(value, unit = "") {
  if (!isNumber(value)) return UNKNOWN;
  const size = Math.abs(value);
  const text = value === 0 ? "0" : size >= 1e4 || size < 1e-3 ? value.toExponential(2) : Number(value.toPrecision(3)).toString();
  return unit ? `${text}${UNIT}${unit}` : text;
}

/** A number of bytes: 1.4 MB. */
export function bytes(value) {
  if (!isNumber(value)) return UNKNOWN;
  for (const [size, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= size) return `${(value / size).toFixed(1)}${UNIT}${unit}`;
  }
  return `${value}${UNIT}bytes`;
}

/** A length of time: 45 s, 3 min 5 s, 2 h 10 min. */
export function duration(seconds) {
  if (!isNumber(seconds)) return UNKNOWN;
  const left = Math.max(0, Math.round(seconds));
  if (left < 60) return `${left}${UNIT}s`;
  if (left < 3600) return `${Math.floor(left / 60)} min ${left % 60} s`;
  if (left < 86400) return `${Math.floor(left / 3600)} h ${Math.floor((left % 3600) / 60)} min`;
  return `${Math.floor(left / 86400)} d ${Math.floor((left % 86400) / 3600)} h`;
}

/** A moment in the viewer's zone: 21 Nov 2026, 23:40. */
export function time(seconds) {
  return isNumber(seconds) ? moment.format(new Date(seconds * 1000)) : UNKNOWN;
}

/** A moment with seconds and the name of the zone. */
export function exactTime(seconds) {
  return isNumber(seconds) ? exact.format(new Date(seconds * 1000)) : UNKNOWN;
}

/** How long ago, or how soon: 5 minutes ago, in 2 hours. */
export function ago(seconds, now = Date.now() / 1000) {
  if (!isNumber(seconds)) return UNKNOWN;
  const apart = seconds - now;
  for (const [size, unit] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (Math.abs(apart) >= size) return relative.format(Math.round(apart / size), unit);
  }
  return relative.format(Math.round(apart), "second");
}

/** The part of a long id or digest that people tell it by. */
export function shortId(id) {
  return typeof id === "string" && id.length > 18 ? `${id.slice(0, 10)}…${id.slice(-4)}` : (id ?? UNKNOWN);
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}
