// What other values of lambda, and each arm alone, would have cost and got right; and the slider between them.

import { get } from "./api.js";
import { Chart, armStroke, axis, colour, dots, whiskers } from "./charts.js";
import { armName, byId, el, empty, fill, plain, say } from "./dom.js";
import { count, interval, lambdaText, percent, usd } from "./format.js";

const LOWEST = 0.001;
const HIGHEST = 30;
const WAIT_MS = 60;

let chart = null;
let frontier = null;
let replayed = null;
let period = null;
let asking = null;
let waiting = null;

// The slider's way: 0 is lambda 0, the rest is spread evenly over the logarithm.
const lambdaAt = (place) => (place <= 0 ? 0 : LOWEST * (HIGHEST / LOWEST) ** ((place - 1) / 99));
const placeOf = (lambda) =>
  lambda <= 0 ? 0 : Math.max(1, Math.min(100, 1 + (99 * Math.log(lambda / LOWEST)) / Math.log(HIGHEST / LOWEST)));

export function setUpFrontier() {
  const slider = byId("lambda");
  slider.addEventListener("input", () => {
    showLambda();
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      await replay();
      if (replayed !== null) say(`${usd(1000 * replayed.cost_usd)} per 1,000 answers, ${percent(replayed.accuracy)} expected`);
    }, WAIT_MS);
  });
}

function showLambda() {
  const text = lambdaText(lambdaAt(Number(byId("lambda").value)));
  byId("lambda-value").textContent = text;
  byId("lambda").setAttribute("aria-valuetext", `lambda ${text}`);
}

export function showFrontier(shown, shownPeriod) {
  const first = frontier === null;
  frontier = shown;
  period = shownPeriod;
  chart ??= new Chart(byId("frontier"));
  const slider = byId("lambda");
  slider.disabled = shown.n === 0;
  if (shown.n === 0) {
    chart.none(empty(shown.why ?? "No decisions with probabilities in this time."));
    fill(byId("replay"));
    replayed = null;
    return;
  }
  if (first) slider.value = placeOf(shown.lam ?? 0.4);
  showLambda();
  draw();
  return replay();
}

async function replay() {
  if (frontier === null || frontier.n === 0) return;
  asking?.abort();
  asking = new AbortController();
  try {
    replayed = await get("replay", { period, lambda: lambdaAt(Number(byId("lambda").value)) }, asking.signal);
  } catch (error) {
    if (error.name !== "AbortError") fill(byId("replay"), el("p", { class: "bad" }, error.message));
    return;
  }
  showReplay();
  draw();
}

function showReplay() {
  if (replayed === null) {
    fill(byId("replay"));
    return;
  }
  const { today } = frontier;
  const against = today.cost_usd > 0 ? replayed.cost_usd / today.cost_usd - 1 : null;
  const more = against === null ? "" : ` (${against >= 0 ? "+" : ""}${percent(against, 0)} against today)`;
  const gain = 100 * (replayed.accuracy - today.accuracy);
  const box = (title, value, note) => el("div", {}, el("span", {}, title), el("b", {}, value), el("span", {}, note));
  const mix = Object.entries(replayed.mix).filter(([, share]) => share > 0);
  fill(byId("replay"),
    el("div", { class: "whatif" },
      box("Cost of 1,000 answers", usd(1000 * replayed.cost_usd), more.trim()),
      box("Expected accuracy", percent(replayed.accuracy),
        `${interval(replayed.low, replayed.high)}, ${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(1)} points`),
      box("Decided otherwise", percent(replayed.changed, 0), `of ${count(replayed.n)} decisions`)),
    el("p", { class: "muted" }, mix.map(([name, share]) => `${plain(name, 60)} ${percent(share, 0)}`).join(" · ")));
}

function draw() {
  const { points, today, always } = frontier;
  const places = [
    ...points.map((p) => ({ ...p, what: `lambda ${lambdaText(p.lam)}`, series: 1 })),
    ...always.map((p) => ({ ...p, what: `always ${plain(p.arm, 60)}`, series: 2 })),
    { ...today, what: "as it was", series: 3 },
    ...(replayed !== null ? [{ ...replayed, what: `lambda ${lambdaText(replayed.lam)}, replayed`, series: 4 }] : []),
  ].map((p) => ({ ...p, x: 1000 * p.cost_usd })).sort((a, b) => a.x - b.x);
  const column = (series) => places.map((p) => (p.series === series ? p.accuracy : null));
  const xs = places.map((p) => p.x);
  const ys = places.map((p) => p.accuracy);
  const room = Math.max(0.01, (Math.max(...ys) - Math.min(...ys)) * 0.12);
  chart.set({
    say: `Cost and expected accuracy of ${count(frontier.n)} recent decisions: as it was ${usd(1000 * today.cost_usd)} per 1,000 answers at ${percent(today.accuracy)}`,
    data: [xs, column(1), column(2), column(3), column(4)],
    options: () => ({
      scales: {
        x: { time: false, range: [0, Math.max(...xs) * 1.06 || 1] },
        y: { range: [Math.max(0, Math.min(...ys) - room), Math.min(1.005, Math.max(...ys) + room)] },
      },
      axes: [
        axis("USD per 1,000 answers", (_, values) => values.map(usd), { space: 64, size: 34 }),
        axis(undefined, (_, values) => values.map((v) => percent(v, room < 0.02 ? 1 : 0)), { size: 52 }),
      ],
      cursor: { points: { show: false }, x: false, y: false },
      series: [
        {},
        { spanGaps: true, stroke: colour("accent"), width: 2, points: dots(2.5, colour("accent")) },
        { paths: () => null, points: { show: (plot, series) => mark(plot, series, always) } },
        { paths: () => null, points: { ...dots(6.5, colour("surface"), colour("ink")) } },
        { paths: () => null, points: { ...dots(6.5, colour("accent"), colour("surface")), width: 3 } },
      ],
      hooks: { drawClear: [(plot) => whiskers(plot, [1000 * today.cost_usd], [today.low], [today.high], colour("ink"))] },
    }),
    tip: (plot) => {
      const near = nearest(plot, places);
      return near === null ? null : [el("b", {}, near.what), `${usd(near.x)} per 1,000, ${percent(near.accuracy)}`];
    },
    legend: [
      [el("span", { class: "swatch line accent" }), "by lambda"],
      [el("span", { class: "swatch round ink" }), "as it was"],
      ...always.map((one) => [armName(one.arm), el("span", { class: "muted" }, "alone")]),
    ],
    columns: [
      { title: "Choice", cell: (p) => p.what },
      { title: "USD per 1,000", number: true, cell: (p) => usd(p.x) },
      { title: "Expected accuracy", number: true, cell: (p) => percent(p.accuracy) },
    ],
    rows: places,
  });
}

// Each arm alone in its colour: one series, so each point is drawn by hand.
function mark(plot, series, always) {
  const context = plot.ctx;
  const size = 5 * devicePixelRatio;
  context.save();
  for (const one of always) {
    const x = plot.valToPos(1000 * one.cost_usd, "x", true);
    const y = plot.valToPos(one.accuracy, "y", true);
    context.fillStyle = armStroke(one.arm);
    context.fillRect(x - size, y - size, 2 * size, 2 * size);
  }
  context.restore();
  return false;
}

function nearest(plot, places) {
  const { left, top } = plot.cursor;
  let found = null;
  let distance = 40;
  for (const place of places) {
    const away = Math.hypot(plot.valToPos(place.x, "x") - left, plot.valToPos(place.accuracy, "y") - top);
    if (away < distance) [found, distance] = [place, away];
  }
  return found;
}
