// What the charts share: uPlot in the page's colours, as wide as its place, with a tip and a table behind it.

import { armColour, el, fill, table } from "./dom.js";

const HEIGHT = 250;
const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
const dark = window.matchMedia("(prefers-color-scheme: dark)");

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const armStroke = (name) => colour(`arm-${armColour(name)}`);

export function axis(label, values, options = {}) {
  return {
    label, values, font: FONT, labelFont: FONT, labelSize: 20, labelGap: 2, gap: 4,
    stroke: colour("muted"),
    grid: { stroke: colour("line"), width: 1 },
    ticks: { show: false },
    ...options,
  };
}

const DAY_S = 86400;
const two = (number) => String(number).padStart(2, "0");

// Hours, or days where there is one mark a day or fewer.
function times(_, marks, __, ___, step) {
  return marks.map((at) => {
    const date = new Date(at * 1000);
    return step >= DAY_S
      ? date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })
      : `${two(date.getHours())}:${two(date.getMinutes())}`;
  });
}

export const timeAxis = () => axis(undefined, times, { grid: { show: false }, space: 60, size: 30 });

// One chart in one place. `set` draws it anew where the data are; the picture's words and table say the same.
export class Chart {
  constructor(place) {
    this.figure = el("div", { class: "chart", role: "img" });
    this.legend = el("ul", { class: "legend" });
    this.behind = el("details", {}, el("summary", {}, "Show as table"));
    this.tip = el("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.place = place;
    this.plot = null;
    this.drawn = null;
    this.behind.addEventListener("toggle", () => this.words());
    new ResizeObserver(() => this.resize()).observe(place);
    dark.addEventListener("change", () => this.drawn && this.draw());
  }

  // options: () => uPlot's, made anew for each colour scheme; say: words for the whole picture;
  // legend: list items; columns, rows: of the table; tip: (index) => elements or null.
  set(drawn) {
    this.drawn = drawn;
    if (!this.figure.isConnected) fill(this.place, this.figure, this.legend, this.behind);
    this.figure.setAttribute("aria-label", drawn.say);
    fill(this.legend, ...drawn.legend.map((item) => el("li", {}, ...item)));
    this.words();
    this.draw();
  }

  words() {
    if (!this.behind.open || this.drawn === null) return;
    const { columns, rows, say } = this.drawn;
    fill(this.behind, this.behind.firstChild, table(columns, rows, say));
  }

  // Nothing to draw: say so instead.
  none(message) {
    this.plot?.destroy();
    this.plot = this.drawn = null;
    fill(this.place, message);
  }

  draw() {
    const left = this.plot?.cursor.left;
    const top = this.plot?.cursor.top;
    this.plot?.destroy();
    this.tip.hidden = true;
    const { options, data, tip } = this.drawn;
    const made = options();
    this.plot = new uPlot({
      width: this.width(), height: HEIGHT, padding: [10, 18, 0, 0], ...made,
      legend: { show: false },
      cursor: { drag: { x: false, y: false, setScale: false }, ...made.cursor },
      hooks: { ...made.hooks, setCursor: tip ? [(plot) => this.point(plot, tip)] : [] },
    }, data, this.figure);
    this.plot.over.append(this.tip);
    // Whoever points at something keeps pointing at it when figures are renewed.
    if (left >= 0) this.plot.setCursor({ left, top });
  }

  point(plot, tip) {
    const { left, top, idx } = plot.cursor;
    const content = left >= 0 ? tip(plot, idx) : null;
    this.tip.hidden = content === null;
    if (content === null) return;
    fill(this.tip, ...content);
    const width = plot.over.clientWidth;
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${left + 14 + wide > width ? Math.max(0, left - wide - 14) : left + 14}px`;
    this.tip.style.top = `${Math.max(0, Math.min(top - 20, plot.over.clientHeight - this.tip.offsetHeight))}px`;
  }

  width() {
    return Math.max(200, this.place.clientWidth);
  }

  resize() {
    if (this.plot && this.plot.width !== this.width()) this.plot.setSize({ width: this.width(), height: HEIGHT });
  }
}

// Draws points of one series as filled circles with a ring in the surface's colour.
export function dots(radius, stroke, fillWith = stroke) {
  return { show: true, size: 2 * radius, stroke, fill: fillWith, width: 2 };
}

// A vertical line at each value from low to high, behind the points of a series: its intervals.
export function whiskers(plot, xs, lows, highs, stroke) {
  const context = plot.ctx;
  context.save();
  context.strokeStyle = stroke;
  context.globalAlpha = 0.45;
  context.lineWidth = 1.5 * devicePixelRatio;
  context.beginPath();
  xs.forEach((x, i) => {
    if (lows[i] === null || lows[i] === undefined) return;
    const at = plot.valToPos(x, "x", true);
    context.moveTo(at, plot.valToPos(lows[i], "y", true));
    context.lineTo(at, plot.valToPos(highs[i], "y", true));
  });
  context.stroke();
  context.restore();
}
