// Outcomes against the success probabilities given before, in bins.

import { Chart, armStroke, axis, colour, dots, whiskers } from "./charts.js";
import { armName, byId, el, empty, plain } from "./dom.js";
import { count, fixed, interval, percent } from "./format.js";

let chart = null;

export function showReliability(shown) {
  chart ??= new Chart(byId("reliability"));
  const arms = shown.arms.filter((arm) => arm.bins.length > 0);
  if (arms.length === 0) {
    chart.none(empty("No outcomes with a probability in this time. Tell the gateway which answers were right: ",
      el("code", {}, "POST /v1/outcomes"), "."));
    return;
  }
  const points = arms.flatMap((arm, a) => arm.bins.map((bin) => ({ predicted: bin.predicted, observed: bin.observed.accuracy, low: bin.observed.low, high: bin.observed.high, n: bin.observed.n, a }))).sort((x, y) => x.predicted - y.predicted);
  const xs = points.map((point) => point.predicted);
  const percents = (_, values) => values.map((v) => percent(v, 0));
  chart.set({
    say: `Observed against predicted: ${arms.map((arm) => `${plain(arm.arm, 60)} calibration error ${fixed(arm.error, 3)}`).join(", ")}`,
    data: [xs, ...arms.map((_, a) => points.map((point) => (point.a === a ? point.observed : null)))],
    options: () => ({
      scales: { x: { time: false, range: [0, 1] }, y: { range: [0, 1.03] } },
      axes: [
        axis("success probability", percents, { space: 50, size: 34 }),
        axis(undefined, percents, { size: 48 }),
      ],
      cursor: { points: { show: false }, x: false, y: false },
      series: [{}, ...arms.map((arm) => ({
        spanGaps: true, stroke: armStroke(arm.arm), width: 2, points: dots(3, armStroke(arm.arm)),
      }))],
      hooks: {
        drawClear: [(plot) => {
          diagonal(plot);
          points.forEach((point) => whiskers(plot, [point.predicted], [point.low], [point.high], armStroke(arms[point.a].arm)));
        }],
      },
    }),
    tip: (plot) => {
      const { left, top } = plot.cursor;
      const away = (point) => Math.hypot(plot.valToPos(point.predicted, "x") - left, plot.valToPos(point.observed, "y") - top);
      const near = points.reduce((best, point) => (away(point) < away(best) ? point : best));
      if (away(near) > 40) return null;
      return [el("b", {}, plain(arms[near.a].arm, 60)),
        `${percent(near.predicted)} predicted, ${percent(near.observed)} observed (${interval(near.low, near.high)}, ${count(near.n)} outcomes)`];
    },
    legend: arms.map((arm) => [armName(arm.arm),
      el("span", { class: "muted" }, `error ${fixed(arm.error, 3)}, Brier ${fixed(arm.brier, 3)}, ${count(arm.n)} outcomes`)]),
    columns: [
      { title: "Arm", cell: (point) => plain(arms[point.a].arm, 80) },
      { title: "Predicted", number: true, cell: (point) => percent(point.predicted) },
      { title: "Observed", number: true, cell: (point) => percent(point.observed) },
      { title: "95% interval", number: true, cell: (point) => interval(point.low, point.high) },
      { title: "Outcomes", number: true, cell: (point) => count(point.n) },
    ],
    rows: points,
  });
}

function diagonal(plot) {
  const context = plot.ctx;
  context.save();
  context.strokeStyle = colour("muted");
  context.setLineDash([5 * devicePixelRatio, 5 * devicePixelRatio]);
  context.lineWidth = devicePixelRatio;
  context.beginPath();
  context.moveTo(plot.valToPos(0, "x", true), plot.valToPos(0, "y", true));
  context.lineTo(plot.valToPos(1, "x", true), plot.valToPos(1, "y", true));
  context.stroke();
  context.restore();
}
