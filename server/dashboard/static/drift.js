// The share of prompts out of distribution, and how far all prompts have moved, over time.

import { Chart, axis, colour, dots, timeAxis } from "./charts.js";
import { byId, el, empty } from "./dom.js";
import { count, fixed, moment, percent } from "./format.js";

let chart = null;

export function showDrift(shown) {
  chart ??= new Chart(byId("drift"));
  const rows = shown.times.map((at, t) => ({ at, odd: shown.odd[t], drift: shown.drift[t], n: shown.n[t] }));
  const known = rows.filter((row) => row.n > 0);
  if (known.length === 0) {
    chart.none(empty("No scored prompts in this time, or no probe that knows its training prompts."));
    return;
  }
  const last = known.at(-1);
  const highest = Math.max(...known.map((row) => Math.max(row.odd, row.drift ?? 0)));
  const sampled = shown.sampled < shown.decisions ? `, from ${count(shown.sampled)} of ${count(shown.decisions)} decisions` : "";
  chart.set({
    say: `Out of distribution, last ${percent(last.odd)}; drift, last ${fixed(last.drift)}${sampled}`,
    data: [shown.times, shown.odd, shown.drift],
    options: () => ({
      scales: { x: { time: true, range: [shown.times[0], shown.times.at(-1) + shown.bucket_s] }, y: { range: [0, Math.min(1, Math.max(0.1, 1.2 * highest))] } },
      axes: [timeAxis(), axis(undefined, (_, values) => values.map((v) => percent(v, 0)), { size: 52 })],
      cursor: { points: { show: false }, y: false },
      series: [
        {},
        { stroke: colour("arm-1"), width: 2, spanGaps: true, points: dots(2, colour("arm-1")) },
        { stroke: colour("arm-0"), width: 2, spanGaps: true, dash: [6, 4], points: dots(2, colour("arm-0")) },
      ],
    }),
    tip: (_, idx) => {
      const row = rows[idx];
      if (!row || row.n === 0) return null;
      return [el("b", {}, moment(row.at)), el("div", {}, `out of distribution ${percent(row.odd)} of ${count(row.n)}`),
        el("div", {}, row.drift === null ? "too few prompts yet for drift" : `drift ${fixed(row.drift)}`)];
    },
    legend: [
      [el("span", { class: "swatch line arm-1" }), "out of distribution"],
      [el("span", { class: "swatch line arm-0" }), `drift of the last ${count(shown.drift_prompts)} prompts`],
      [el("span", { class: "muted" }, sampled.replace(/^, /, ""))],
    ],
    columns: [
      { title: "From", cell: (row) => moment(row.at) },
      { title: "Out of distribution", number: true, cell: (row) => percent(row.odd) },
      { title: "Drift", number: true, cell: (row) => fixed(row.drift) },
      { title: "Scored prompts", number: true, cell: (row) => count(row.n) },
    ],
    rows: known,
  });
}
