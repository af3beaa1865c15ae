// How often each arm alone would be right: by the probabilities, and by outcomes without believing them.

import { armName, byId, el, fill, table } from "./dom.js";
import { interval, percent } from "./format.js";

export function showEstimates(frontier) {
  if (frontier.n === 0) {
    fill(byId("estimates"));
    return;
  }
  const columns = [
    { title: "Arm alone", cell: (one) => armName(one.arm) },
    { title: "Expected", number: true, cell: (one) => percent(one.accuracy) },
    { title: "By outcomes", number: true, cell: estimate },
  ];
  fill(byId("estimates"),
    table(columns, frontier.always, "How often each arm alone would be right"),
    frontier.always.some((one) => one.outcomes === null)
      ? el("p", { class: "about" }, "Outcomes tell of an arm alone where chance sent it some requests (", el("code", {}, "audit: {share: 0.01}"),
        ") and enough of them were reported.")
      : el("p", { class: "about" }, "By inverse propensity: unbiased, whatever the probabilities say."));
}

function estimate(one) {
  if (one.outcomes === null) return "–";
  const { value, low, high } = one.outcomes;
  return el("span", {}, percent(value), el("small", {}, interval(low, high)));
}
