// The last decisions, page by page; one of them in full.

import { get } from "./api.js";
import { armName, bar, byId, chips, el, empty, fill, hasFocus, plain, table } from "./dom.js";
import { clock, count, fixed, milliseconds, moment, percent, thousand, usd } from "./format.js";

const PAGE = 20;
let before = null; // null: the newest
const earlier = []; // where the pages before this one began

export function setUpDecisions() {
  byId("detail-close").addEventListener("click", () => byId("detail").close());
}

// On a later page nothing is renewed, nor while somebody is in the list: rows would move under the reader.
export async function loadDecisions(turned = false) {
  if (!turned && (before !== null || hasFocus(byId("decisions")) || byId("detail").open)) return;
  const query = before === null ? { limit: PAGE } : { limit: PAGE, before };
  show(await get("decisions", query));
}

function show(shown) {
  if (shown.decisions.length === 0) {
    fill(byId("decisions"), empty(shown.why ?? "No decisions yet."));
    return;
  }
  const columns = [
    { title: "When", cell: (row) => el("button", { type: "button", class: "link", title: moment(row.at) }, clock(row.at)) },
    { title: "Arm", cell: (row) => armName(row.arm) },
    { title: "P(correct)", number: true, cell: (row) => percent(row.success_probability, 0) },
    { title: "Cost × 1,000", class: "wide-only", number: true, cell: (row) => thousand(row.cost_usd ?? row.expected_cost_usd) },
    { title: "Path", class: "wide-only", cell: (row) => chips([row.path, ...row.flags]) },
    { title: "Policy", class: "wide-only", cell: (row) => plain(row.policy, 60) },
    { title: "Time", class: "wide-only", number: true, cell: (row) => milliseconds(row.total_ms) },
    { title: "Outcome", cell: outcome },
  ];
  const rows = table(columns, shown.decisions, "The last decisions", (row) => ({ "data-id": row.id }));
  rows.querySelectorAll("tr[data-id]").forEach((row) => row.addEventListener("click", () => open(row.dataset.id)));
  fill(byId("decisions"), rows, pages(shown));
}

function outcome(row) {
  if (row.code !== 200) return el("span", { class: "bad" }, `error ${row.code}`);
  if (row.correct === null) return el("span", { class: "muted" }, "–");
  if (row.correct === 1) return el("span", { class: "good" }, "right");
  return row.correct === 0 ? el("span", { class: "bad" }, "wrong") : fixed(row.correct);
}

function pages(shown) {
  const turn = async (to, name) => {
    before = to;
    try {
      await loadDecisions(true);
    } catch (error) {
      fill(byId("decisions"), el("p", { class: "bad" }, error.message));
    }
    const buttons = [...byId("decisions").querySelectorAll(".pages button:not(:disabled)")];
    (buttons.find((button) => button.textContent === name) ?? buttons[0])?.focus();
  };
  const newer = el("button", { type: "button", disabled: before === null }, "Newer");
  const older = el("button", { type: "button", disabled: shown.next === null, "data-next": shown.next }, "Older");
  newer.addEventListener("click", () => turn(earlier.pop() ?? null, "Newer"));
  older.addEventListener("click", () => {
    earlier.push(before);
    turn(shown.next, "Older");
  });
  return el("div", { class: "pages" }, newer, older, before === null ? null : el("span", { class: "muted" }, "An earlier page: not renewed."));
}

async function open(id) {
  const body = byId("detail-body");
  fill(body, el("p", { class: "muted" }, "…"));
  byId("detail").showModal();
  try {
    detail(body, await get(`decisions/${encodeURIComponent(id)}`));
  } catch (error) {
    fill(body, el("p", { class: "bad" }, error.message));
  }
}

function detail(body, one) {
  const facts = [
    ["When", new Date(one.at * 1000).toLocaleString("en-GB")],
    ["Request", one.request_id], ["Answer", one.response_id], ["Policy", one.policy], ["Path", one.path],
    ["Flags", one.flags.length ? one.flags.join(", ") : "none"], ["Key", one.key],
    ["Status", `${one.code}${one.stream ? ", streamed" : ""}, ${count(one.attempts)} attempt${one.attempts === 1 ? "" : "s"}`],
    ["Tokens", one.input_tokens === null ? null : `${count(one.input_tokens)} in, ${one.output_tokens === null ? "?" : count(one.output_tokens)} out`],
    ["Cost", one.cost_usd === null ? "unknown" : `${usd(one.cost_usd)}, and ${usd(one.probe_usd)} for reading the prompt`],
    ["Time", `${milliseconds(one.total_ms)}, of that ${milliseconds(one.routing_ms)} for the decision`],
    ["Unlike training", one.percentile === null ? null : `further away than ${one.percentile.toFixed(1)}% of known prompts`],
    ["Outcomes", one.outcomes.length ? one.outcomes.map((o) => `${plain(o.source, 60)}: ${fixed(o.correct)}`).join("; ") : "none reported"],
  ].filter(([, value]) => value !== null && value !== undefined);
  fill(body,
    el("p", { class: "why" }, one.why),
    el("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, plain(value, 300))])),
    el("h3", {}, "What was expected of every arm"),
    armTable(one.arms),
    one.prompt === null ? null : el("h3", {}, "Prompt"),
    one.prompt === null ? null : el("pre", { tabindex: "0" }, plain(one.prompt, 10000)));
}

// arms: [{name, chosen, by_policy, allowed, success_probability, expected_cost_usd}]
export function armTable(arms) {
  const columns = [
    { title: "Arm", cell: (arm) => el("span", {}, armName(arm.name), choice(arm)) },
    { title: "P(correct)", number: true, cell: (arm) => el("span", {}, percent(arm.success_probability), bar(arm.success_probability ?? 0, arm.name)) },
    { title: "Cost × 1,000", number: true, cell: (arm) => thousand(arm.expected_cost_usd) },
  ];
  return table(columns, arms, "Every arm's probability and cost", (arm) => ({ class: arm.chosen ? "chosen" : null }));
}

function choice(arm) {
  const words = [arm.chosen ? "chosen" : "", arm.by_policy && !arm.chosen ? "the policy's own choice" : "", arm.allowed ? "" : "not among the choices"];
  const said = words.filter((word) => word !== "").join(", ");
  return said === "" ? null : el("small", {}, said);
}
