// How many requests each arm took, over time: bars on top of each other.

import { Chart, armStroke, axis, colour, timeAxis } from "./charts.js";
import { armName, byId, el, empty, plain, swatch } from "./dom.js";
import { count, moment, percent } from "./format.js";

let chart = null;

export function showMix(mix) {
  chart ??= new Chart(byId("mix"));
  const totals = mix.times.map((_, t) => mix.requests.reduce((sum, arm) => sum + arm[t], 0));
  const all = totals.reduce((sum, one) => sum + one, 0);
  if (all === 0) {
    chart.none(empty("No requests in this time."));
    return;
  }
  // The lowest bar is the first arm's; each is drawn over the taller one behind it.
  const sums = mix.arms.map((_, a) => mix.times.map((_, t) => mix.requests.slice(0, a + 1).reduce((sum, arm) => sum + arm[t], 0)));
  const order = mix.arms.map((_, a) => a).reverse();
  const each = mix.arms.map((_, a) => mix.requests[a].reduce((sum, one) => sum + one, 0));
  const bars = uPlot.paths.bars({ size: [0.86, 40], align: 1, gap: 0 });
  const last = mix.times.at(-1) + mix.bucket_s;
  chart.set({
    say: `Requests per arm over time: ${mix.arms.map((name, a) => `${plain(name, 80)} ${percent(each[a] / all)}`).join(", ")}`,
    data: [mix.times, ...order.map((a) => sums[a])],
    options: () => ({
      scales: { x: { time: true, range: [mix.times[0], last] }, y: { range: (_, __, high) => [0, Math.max(1, high * 1.08)] } },
      axes: [timeAxis(), axis(undefined, (_, values) => values.map((v) => (Number.isInteger(v) ? count(v) : "")), { size: 54 })],
      cursor: { points: { show: false }, x: false, y: false },
      series: [{}, ...order.map((a) => ({
        paths: bars, points: { show: false }, width: 1, stroke: colour("surface"), fill: armStroke(mix.arms[a]),
      }))],
    }),
    tip: (plot) => {
      const t = Math.floor((plot.posToVal(plot.cursor.left, "x") - mix.times[0]) / mix.bucket_s);
      if (!(totals[t] > 0)) return null;
      return [el("b", {}, moment(mix.times[t])), ...mix.arms.map((name, a) =>
        el("div", {}, swatch(name), `${plain(name, 40)} ${count(mix.requests[a][t])}`))];
    },
    legend: mix.arms.map((name, a) => [armName(name), el("span", { class: "muted" }, percent(each[a] / all, 0))]),
    columns: [
      { title: "From", cell: (row) => row.at },
      ...mix.arms.map((name, a) => ({ title: plain(name, 80), number: true, cell: (row) => count(row.counts[a]) })),
    ],
    rows: mix.times.map((at, t) => ({ at: moment(at), counts: mix.requests.map((arm) => arm[t]) })).filter((_, t) => totals[t] > 0),
  });
}
