// A prompt's difficulty for every arm, and the decision, while one types.

import { post } from "./api.js";
import { byId, chips, el, empty, fill, plain, say } from "./dom.js";
import { armTable } from "./decisions.js";
import { percent } from "./format.js";

const WAIT_MS = 250;
let waiting = null;
let asking = null;

export function setUpPlayground() {
  show(null);
  byId("prompt").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(ask, WAIT_MS);
  });
  byId("key-name").addEventListener("change", ask);
}

// Users' keys have arms, policies and knobs of their own: for which of them it is decided is the operator's choice.
export function offerKeys(names) {
  byId("of-key").hidden = names.length === 0;
  const chosen = byId("key-name").value;
  fill(byId("key-name"), el("option", { value: "" }, "without limits"),
    ...names.map((name) => el("option", { value: name }, plain(name, 80))));
  const there = chosen === "" || names.includes(chosen);
  byId("key-name").value = there ? chosen : "";
  if (!there) ask(); // it was revoked
}

async function ask() {
  const text = byId("prompt").value;
  asking?.abort();
  if (text.trim() === "") {
    show(null);
    return;
  }
  asking = new AbortController();
  try {
    const key = byId("key-name").value;
    const path = key === "" ? "route" : `route?key=${encodeURIComponent(key)}`;
    const decision = await post(path, { model: "auto", messages: [{ role: "user", content: text }] }, asking.signal);
    show(decision);
    say(`goes to ${decision.arm}`);
  } catch (error) {
    if (error.name !== "AbortError") fill(byId("decision"), el("p", { class: "bad" }, error.message));
  }
}

function show(decision) {
  const place = byId("decision");
  if (decision === null) {
    fill(place, empty("Each arm's probability of answering it correctly stands here as you type."));
    return;
  }
  const arms = Object.entries(decision.arms).map(([name, arm]) => ({ ...arm, name, chosen: name === decision.arm, by_policy: name === decision.policy_arm }));
  const difficulty = decision.arms[decision.arm].difficulty;
  fill(place,
    el("p", { class: "verdict" }, "Goes to ", el("b", {}, plain(decision.arm, 80)),
      ` by ${plain(decision.policy, 60)}${difficulty === null ? "" : `; difficulty there ${percent(difficulty, 0)}`}`),
    armTable(arms),
    el("p", {}, chips([decision.path, ...decision.flags])),
    decision.activation_percentile === null ? null
      : el("p", { class: "muted" }, `Further from the training prompts than ${decision.activation_percentile.toFixed(1)}% of them.`));
}
