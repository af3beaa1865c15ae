// The tiles, and what the same requests would have cost with one arm alone.

import { armName, bar, byId, el, empty, fill, plain, table } from "./dom.js";
import { count, interval, percent, thousand, usd } from "./format.js";

const tile = (title, figure, second, ...notes) =>
  el("div", { class: "tile" }, el("dt", {}, title),
    el("dd", { class: "figure" }, figure, second === null ? null : el("span", { class: "second" }, second)),
    ...notes.filter((note) => note !== null).map((note) => el("dd", { class: "note" }, note)));

function saved(summary) {
  const best = summary.arms.find((arm) => arm.name === summary.best);
  if (!best || best.always_usd === null) return tile("Saved", "–", null, "Nothing answered in this time yet.");
  const title = best.saved_usd < 0 ? "Saved (routing cost more)" : "Saved";
  return tile(title, usd(best.saved_usd), best.saved_share === null ? null : percent(best.saved_share, 0),
    `against always ${plain(best.name, 60)}, the ${summary.ledger ? "most accurate by the probabilities" : "dearest arm"}`);
}

function accuracy(summary) {
  const { expected, observed, best_expected: best } = summary;
  const alone = best === null ? null : `always ${plain(summary.best, 60)}: ${percent(best)} expected`;
  const seen = observed.n === 0
    ? "observed: no outcomes yet (POST /v1/outcomes)"
    : `observed ${percent(observed.accuracy)} (${interval(observed.low, observed.high)}, ${count(observed.n)} outcomes)`;
  if (expected.accuracy === null) return tile("Expected accuracy", "–", null, seen);
  return tile("Expected accuracy", percent(expected.accuracy), interval(expected.low, expected.high), seen, alone);
}

export function showSummary(summary) {
  const knobs = Object.entries(summary.policy.knobs).map(([name, value]) => `${name} ${typeof value === "number" ? Number(value.toPrecision(3)) : value}`);
  byId("policy").textContent = plain(
    [`${summary.policy.name}${knobs.length ? ` (${knobs.join(", ")})` : ""}`, `${summary.pool.length} arms`].join(" · "), 300);
  const errors = summary.errors === 0 ? "no errors" : `${count(summary.errors)} errors`;
  fill(byId("tiles"),
    saved(summary),
    accuracy(summary),
    tile("Requests", count(summary.requests), null, errors,
      summary.pinned ? `${count(summary.pinned)} of them pinned to an arm by clients` : null),
    tile("Spent", usd(summary.spent_usd), null, `of that ${usd(summary.probe_usd)} for reading prompts (the probe)`));
  showArms(summary);
  showWays(summary);
}

function showArms(summary) {
  if (summary.requests === 0) {
    fill(byId("arms"), empty("No requests in this time."));
    return;
  }
  const routed = Math.max(1, summary.arms.reduce((sum, arm) => sum + arm.requests, 0));
  const columns = [
    { title: "Arm", cell: (arm) => armName(arm.name) },
    { title: "Share", number: true,
      cell: (arm) => el("span", {}, percent(arm.requests / routed, 0), bar(arm.requests / routed, arm.name)) },
    { title: "Always", number: true, cell: (arm) => usd(arm.always_usd) },
    { title: "Saved", number: true, cell: (arm) =>
      arm.saved_usd === null ? "–" : el("span", { class: arm.saved_usd >= 0 ? "good" : "bad" },
        usd(arm.saved_usd), arm.saved_share > 0 ? el("small", {}, percent(arm.saved_share, 0)) : null) },
  ];
  fill(byId("arms"), table(columns, summary.arms, "Cost against each arm alone"));
}

// A candidate policy beside the configured one, audits, pins: each with its own cost and accuracy.
function showWays(summary) {
  const columns = [
    { title: "Policy", cell: (way) => plain(way.policy === "none" ? "–" : way.policy, 60) },
    { title: "Path", cell: (way) => plain(way.path, 60) },
    { title: "Requests", number: true, cell: (way) => el("span", {}, count(way.requests), way.errors ? el("small", {}, `${count(way.errors)} errors`) : null) },
    { title: "Cost × 1,000", number: true, cell: (way) => thousand(way.cost_usd) },
    { title: "Expected", class: "wide-only", number: true, cell: (way) => accurate(way.expected) },
    { title: "Observed", number: true, cell: (way) => accurate(way.observed) },
  ];
  fill(byId("ways"), summary.ways.length ? table(columns, summary.ways, "Requests by policy and path") : empty("No requests in this time."));
}

function accurate({ accuracy, low, high }) {
  return accuracy === null ? "–" : el("span", {}, percent(accuracy), el("small", {}, interval(low, high)));
}
