// The servers behind the arms, and the engine that scores prompts.

import { byId, el, empty, fill, plain, table } from "./dom.js";
import { count, percent } from "./format.js";

export function showReplicas(shown) {
  const rows = shown.models.flatMap((model) => model.replicas.map((replica) => ({ ...replica, model: model.name })));
  const problems = shown.problems.map((problem) => el("p", { class: "bad" }, `${plain(problem.part, 80)}: ${plain(problem.message, 300)}`));
  const columns = [
    { title: "Model", cell: (row) => plain(row.model, 80) },
    { title: "Replica", cell: (row) => plain(row.name, 80) },
    { title: "Health", cell: health },
    { title: "Requests", number: true, cell: (row) => count(row.in_flight) + (row.waiting > 0 ? ` (+${count(row.waiting)} waiting)` : "") },
  ];
  if (rows.some((row) => row.cache_use > 0)) {
    columns.push({ title: "Cache", number: true, cell: (row) => percent(row.cache_use, 0) });
  }
  fill(byId("replicas"), ...problems,
    rows.length ? table(columns, rows, "Replicas and their health") : empty("No replicas."),
    el("p", { class: "muted" }, engine(shown)));
}

function health(row) {
  const words = row.healthy ? (row.breaker_open ? "left alone" : "well") : "down";
  const up = row.healthy && !row.breaker_open;
  return el("span", {}, el("span", { class: up ? "dot up" : "dot", "aria-hidden": "true" }), words);
}

function engine(shown) {
  if (shown.engine === null) return "No arm has a probe: nothing is scored.";
  return shown.engine ? "The engine that scores prompts is ready." : "The engine that scores prompts is not ready.";
}
