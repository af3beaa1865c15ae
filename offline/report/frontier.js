"use strict";
// The cost-accuracy frontier: drawn from the JSON in #data over the static plot. All text is set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const box = document.getElementById("frontier");
  const spoken = document.getElementById("spoken");
  const GROUPS = { policy: "Policies", variant: "Variants", baseline: "Baselines", control: "Controls", single: "Single arms", oracle: "Oracles" };
  const NEAR = 36; // pixels from the pointer to the point that it means
  const hidden = new Set(data.curves.filter((curve) => curve.variant).map((curve) => curve.name));
  let logarithmic = data.logarithmic === true;
  let here = null; // {curve, i}: the point that is looked at
  let plot = null;

  const spots = (curve) => (curve.points.length ? [...curve.points, curve.chosen] : [curve.chosen]);
  const visible = () => data.curves.filter((curve) => !hidden.has(curve.name));
  const colour = (curve) => `var(--${curve.style.colour})`;

  function element(tag, attributes, parent, text) {
    const svg = parent instanceof SVGElement || tag === "svg";
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  function line(parent, d, curve, attributes = {}) {
    const { dash, width } = curve.style;
    return element("path", { d, style: `stroke: ${colour(curve)}`, "stroke-width": width, "stroke-dasharray": dash.join(" "), ...attributes }, parent);
  }

  const short = (text, most) => (text.length > most ? `${text.slice(0, most - (most >> 1) - 1)}…${text.slice(-(most >> 1))}` : text);

  // Axes

  function extent(values, pad) {
    const low = Math.min(...values), high = Math.max(...values), more = (high - low || 1e-9) * pad;
    return [low - more, high + more];
  }

  function ticks(low, high, count) {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((one) => one * power >= raw);
    const first = Math.ceil(low / step), n = Math.floor(high / step) - first + 1;
    return Array.from({ length: n }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  }

  function powers(low, high) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of [1, 2, 5]) found.push(Number((digit * 10 ** power).toPrecision(3)));
    return found.filter((value) => value >= low && value <= high);
  }

  function scales(curves, width, height) {
    const all = curves.flatMap(spots), f = logarithmic ? Math.log10 : (value) => value;
    const [left, right] = extent(all.map((spot) => f(spot.cost)), 0.05);
    const [bottom, top] = extent(all.flatMap((spot) => [spot.accuracy]), 0.08);
    return {
      x: (cost) => ((f(cost) - left) / (right - left)) * width,
      y: (accuracy) => height - ((accuracy - bottom) / (top - bottom)) * height,
      xTicks: logarithmic ? powers(10 ** left, 10 ** right) : ticks(left, right, width / 90).filter((value) => value >= 0),
      yTicks: ticks(100 * bottom, 100 * top, height / 55),
    };
  }

  // Heights as near to those wanted, which descend the page, as labels can stand.
  function apart(wanted, gap, bottom) {
    const placed = [];
    for (const y of wanted) placed.push(placed.length ? Math.max(y, placed.at(-1) + gap) : y);
    for (let i = placed.length - 1, floor = bottom; i >= 0; i--) floor = (placed[i] = Math.min(placed[i], floor)) - gap;
    return placed;
  }

  // Drawing

  function render() {
    const full = Math.max(box.clientWidth, 260), roomy = full >= 640;
    const margin = { top: 10, right: roomy ? 200 : 12, bottom: 46, left: 44 };
    const height = Math.round(Math.min(480, Math.max(260, full * 0.5))), width = full - margin.left - margin.right;
    const curves = visible();
    box.replaceChildren();
    const svg = element("svg", { viewBox: `0 0 ${full} ${height + margin.top + margin.bottom}`, "aria-hidden": "true" }, box);
    const root = element("g", { transform: `translate(${margin.left} ${margin.top})` }, svg);
    plot = { margin, width, height, full, roomy, groups: new Map(), ...(curves.length ? scales(curves, width, height) : {}) };
    if (curves.length) {
      axes(root);
      for (const curve of curves) draw(root, curve);
      name(curves);
      if (roomy) label(root, curves.filter((curve) => curve.points.length));
      plot.mark = element("circle", { class: "here", r: 7, visibility: "hidden" }, root);
    }
    plot.tip = element("div", { class: "tip" }, box);
    show(here && !hidden.has(here.curve.name) ? here : null);
  }

  function axes(root) {
    const { x, y, width, height } = plot;
    for (const value of plot.xTicks) {
      const tick = element("g", { class: "tick" }, root);
      element("line", { x1: x(value), x2: x(value), y1: 0, y2: height }, tick);
      element("text", { x: x(value), y: height + 18, "text-anchor": "middle" }, tick, String(value));
    }
    for (const value of plot.yTicks) {
      const tick = element("g", { class: "tick" }, root);
      element("line", { x1: 0, x2: width, y1: y(value / 100), y2: y(value / 100) }, tick);
      element("text", { x: -8, y: y(value / 100) + 4, "text-anchor": "end" }, tick, String(value));
    }
    element("text", { class: "axis", x: width / 2, y: height + 40, "text-anchor": "middle" }, root, `cost, ${data.cost_unit}`);
    element("text", { class: "axis", transform: `translate(-32 ${height / 2}) rotate(-90)`, "text-anchor": "middle" }, root, "accuracy, %");
  }

  function draw(root, curve) {
    const { x, y } = plot, at = curve.chosen;
    const group = element("g", { class: "curve" }, root);
    plot.groups.set(curve.name, group);
    if (curve.group === "single") {
      element("rect", { class: "single", x: x(at.cost) - 5, y: y(at.accuracy) - 5, width: 10, height: 10, style: `fill: ${colour(curve)}` }, group);
      return;
    }
    const path = (points, value) => points.map((spot) => `${x(spot.cost).toFixed(1)} ${y(value(spot)).toFixed(1)}`).join("L");
    if (curve.points.length) {
      const upper = path(curve.points, (spot) => spot.high), lower = path([...curve.points].reverse(), (spot) => spot.low);
      plot.groups.set(`band ${curve.name}`, element("path", { class: "band", d: `M${upper}L${lower}Z`, style: `fill: ${colour(curve)}`, visibility: "hidden" }, group));
      line(group, "M" + path(curve.points, (spot) => spot.accuracy), curve);
    }
    line(group, `M${x(at.cost)} ${y(at.low)}V${y(at.high)}`, curve, { "stroke-width": 1.2, "stroke-dasharray": "", "stroke-opacity": 0.7 });
    element("circle", { cx: x(at.cost), cy: y(at.accuracy), r: curve.group === "policy" ? 5.5 : 4.5, style: `fill: ${colour(curve)}` }, group);
  }

  // Beside methods that have no curve: in the corner around the point where least lies under the name.
  function name(curves) {
    const dots = curves.flatMap(spots).map((spot) => [plot.x(spot.cost), plot.y(spot.accuracy)]);
    const names = [], height = 15;
    for (const curve of curves) {
      if (curve.points.length || !(plot.roomy || curve.group === "single")) continue;
      const text = short(curve.short, 24), width = 7 * text.length;
      const px = plot.x(curve.chosen.cost), py = plot.y(curve.chosen.accuracy);
      const under = ({ left, top }) =>
        dots.filter(([x, y]) => x > left && x < left + width && y > top && y < top + height).length +
        50 * names.filter((box) => box.left < left + width && left < box.left + box.width && Math.abs(box.top - top) < height).length +
        100 * (left < 0 || left + width > plot.width) + 0.4 * Math.abs(top + height / 2 - py);
      const corners = [px + 8, px - 8 - width].flatMap((left) => [py + 5, py - 5 - height, py + 5 + height, py - 5 - 2 * height].map((top) => ({ left, top, width })));
      const box = corners.reduce((best, corner) => (under(corner) < under(best) ? corner : best));
      names.push(box);
      const right = box.left < px, at = { x: right ? box.left + width : box.left, y: box.top + 12, "text-anchor": right ? "end" : "start" };
      element("text", { class: "name", style: `fill: ${colour(curve)}`, ...at }, plot.groups.get(curve.name), text);
    }
  }

  // Names in the right margin, in the order in which curves end.
  function label(root, curves) {
    const { x, y, width, height } = plot;
    const end = (curve) => curve.points.at(-1);
    const ends = [...curves].sort((a, b) => end(b).accuracy - end(a).accuracy || b.chosen.accuracy - a.chosen.accuracy);
    const heights = apart(ends.map((curve) => y(end(curve).accuracy)), 17, height);
    ends.forEach((curve, i) => {
      const group = plot.groups.get(curve.name), spot = end(curve);
      line(group, `M${x(spot.cost)} ${y(spot.accuracy)}L${width + 12} ${heights[i]}`, curve, { class: "leader", "stroke-width": 0.7, "stroke-dasharray": "" });
      element("text", { x: width + 16, y: heights[i] + 4, style: `fill: ${colour(curve)}` }, group, short(curve.short, 27));
    });
  }

  // Looking at a point

  function show(next) {
    here = next;
    for (const [name, node] of plot.groups)
      if (name.startsWith("band ")) node.setAttribute("visibility", here && name === `band ${here.curve.name}` ? "visible" : "hidden");
      else node.classList.toggle("dim", here !== null && name !== here.curve.name);
    plot.tip.hidden = here === null;
    plot.mark?.setAttribute("visibility", here ? "visible" : "hidden");
    if (here === null) return;
    const { curve, i } = here, spot = spots(curve)[i];
    const left = plot.x(spot.cost), top = plot.y(spot.accuracy);
    plot.mark.setAttribute("cx", left);
    plot.mark.setAttribute("cy", top);
    plot.tip.replaceChildren();
    element("b", { style: `color: ${colour(curve)}` }, plot.tip, curve.label);
    const rows = [["accuracy, %", spot.accuracy_text], ["cost", `${spot.cost_text} ${data.cost_unit}`], ["saving, %", `${spot.saving_text} against always ${data.best}`]];
    if (spot === curve.chosen && curve.points.length) rows.unshift(["chosen", "on validation problems"]);
    if (curve.points.length || spot.knob_text !== "–") rows.unshift(["knob", spot.knob_text]);
    const list = element("dl", {}, plot.tip);
    for (const [term, text] of rows) {
      element("dt", {}, list, term);
      element("dd", {}, list, text);
    }
    spoken.textContent = `${curve.label}. ${rows.map((row) => row.join(" ")).join("; ")}`;
    const { offsetWidth: w, offsetHeight: h } = plot.tip, px = left + plot.margin.left, py = top + plot.margin.top;
    const beside = px + 14 + w <= plot.full ? px + 14 : Math.max(px - 14 - w, 0);
    plot.tip.style.transform = `translate(${beside}px, ${Math.max(py - h - 12, -8)}px)`;
  }

  function nearest(event) {
    const { left, top } = box.getBoundingClientRect();
    const px = event.clientX - left - plot.margin.left, py = event.clientY - top - plot.margin.top;
    let best = null, least = NEAR;
    for (const curve of visible())
      spots(curve).forEach((spot, i) => {
        const away = Math.hypot(plot.x(spot.cost) - px, plot.y(spot.accuracy) - py) - (spot === curve.chosen ? 3 : 0);
        if (away < least) [best, least] = [{ curve, i }, away];
      });
    return best;
  }

  function walk(event) {
    const curves = visible(), n = curves.length;
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Escape") return show(null);
    if (!(event.key in steps) || n === 0) return;
    event.preventDefault();
    const [across, along] = steps[event.key];
    const chosen = (curve) => ({ curve, i: spots(curve).length - 1 });
    if (here === null) return show(chosen(curves[0]));
    if (across) return show(chosen(curves[(curves.indexOf(here.curve) + across + n) % n]));
    // The chosen point stands last, though its place is amid the others.
    const order = spots(here.curve).map((spot, i) => [spot.cost, i]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((pair) => pair[1]);
    const at = Math.min(Math.max(order.indexOf(here.i) + along, 0), order.length - 1);
    show({ curve: here.curve, i: order[at] });
  }

  // Buttons

  function swatch(button, curve) {
    const svg = element("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" }, button);
    if (curve.group === "single") element("rect", { x: 8, y: 1, width: 10, height: 10, style: `fill: ${colour(curve)}` }, svg);
    else if (!curve.points.length) element("circle", { cx: 13, cy: 6, r: 4.5, style: `fill: ${colour(curve)}` }, svg);
    else line(svg, "M0 6H26", curve, { "stroke-width": Math.max(curve.style.width, 1.6) });
  }

  function legend() {
    for (const [group, title] of Object.entries(GROUPS)) {
      const curves = data.curves.filter((curve) => (curve.variant ? "variant" : curve.group) === group);
      if (!curves.length) continue;
      const row = element("div", { role: "group", "aria-label": title }, document.getElementById("legend"));
      element("span", {}, row, title);
      for (const curve of curves) {
        const button = element("button", { type: "button", "aria-pressed": String(!hidden.has(curve.name)) }, row);
        swatch(button, curve);
        element("span", {}, button, curve.short);
        button.addEventListener("click", () => {
          if (!hidden.delete(curve.name)) hidden.add(curve.name);
          button.setAttribute("aria-pressed", String(!hidden.has(curve.name)));
          render();
        });
        button.addEventListener("pointerenter", () => !hidden.has(curve.name) && show({ curve, i: spots(curve).length - 1 }));
        button.addEventListener("pointerleave", () => show(null));
      }
    }
  }

  function scale() {
    if (data.logarithmic === null) return;
    const row = document.getElementById("scale");
    row.hidden = false;
    const buttons = [["logarithmic cost", true], ["linear cost", false]].map(([text, value]) => {
      const button = element("button", { type: "button" }, row, text);
      const press = () => button.setAttribute("aria-pressed", String(logarithmic === value));
      button.addEventListener("click", () => {
        logarithmic = value;
        buttons.forEach((one) => one());
        render();
      });
      return press;
    });
    buttons.forEach((press) => press());
  }

  function theme() {
    const button = document.getElementById("theme"), root = document.documentElement;
    button.hidden = false;
    button.addEventListener("click", () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
    });
  }

  box.tabIndex = 0;
  box.setAttribute("role", "application");
  box.setAttribute("aria-label", "Cost-accuracy frontier: arrow keys left and right move along a curve, up and down from curve to curve");
  box.addEventListener("pointermove", (event) => show(nearest(event)));
  box.addEventListener("pointerdown", (event) => show(nearest(event)));
  box.addEventListener("pointerleave", () => show(null));
  box.addEventListener("keydown", walk);
  box.addEventListener("blur", () => show(null));
  theme();
  scale();
  legend();
  render();
  let drawn = box.clientWidth;
  new ResizeObserver(() => {
    if (box.clientWidth !== drawn) render();
    drawn = box.clientWidth;
  }).observe(box);
})();
