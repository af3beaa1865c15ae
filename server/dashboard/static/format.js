// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value) => whole.format(value);

// Amounts from millionths of a dollar up: three significant digits below a dollar.
export function usd(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "$0";
  const sign = value < 0 ? "−" : "";
  if (size >= 100) return `${sign}$${whole.format(size)}`;
  if (size >= 1) return `${sign}$${size.toFixed(2)}`;
  const digits = Math.min(12, 2 - Math.floor(Math.log10(size)));
  return `${sign}$${size.toFixed(digits)}`;
}

export const percent = (value, digits = 1) =>
  value === null || value === undefined ? "–" : `${(value * 100).toFixed(digits).replace("-", "−")}%`;

export const interval = (low, high) =>
  low === null || low === undefined ? "" : `${(low * 100).toFixed(1)}–${(high * 100).toFixed(1)}%`;

export const fixed = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));

// Of one answer: so little that a thousand are easier to read.
export const thousand = (value) => (value === null || value === undefined ? "–" : usd(1000 * value));

export const lambdaText = (value) => (value >= 10 ? value.toFixed(0) : value.toPrecision(2));

export const clock = (at) =>
  new Date(at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const moment = (at) =>
  new Date(at * 1000).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const milliseconds = (value) =>
  value === null || value === undefined ? "–" : value < 100 ? `${value.toFixed(1)} ms` : value < 10000 ? `${value.toFixed(0)} ms` : `${(value / 1000).toFixed(1)} s`;
