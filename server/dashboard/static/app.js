// The page: which period, when to ask again, who may see it.

import { KeyNeeded, forgetKey, get, hasKey, saveKey } from "./api.js";
import { loadDecisions, setUpDecisions } from "./decisions.js";
import { byId, el, fill, plain, say, setArms } from "./dom.js";
import { showDrift } from "./drift.js";
import { showEstimates } from "./estimates.js";
import { setUpFrontier, showFrontier } from "./frontier.js";
import { showMix } from "./mix.js";
import { offerKeys, setUpPlayground } from "./playground.js";
import { showReliability } from "./reliability.js";
import { showReplicas } from "./replicas.js";
import { showSummary } from "./summary.js";

const EVERY_MS = { "1h": 5000, "24h": 10000, "7d": 30000, "30d": 60000 };
const NAMES = { "1h": "the last hour", "24h": "the last 24 hours", "7d": "the last 7 days", "30d": "the last 30 days" };

let timer = null;
let loading = null;

const period = () => document.querySelector("input[name=period]:checked").value;

async function load() {
  clearTimeout(timer);
  const turn = (loading = {});
  const query = { period: period() };
  const stale = () => turn !== loading;
  try {
    const summary = await get("summary", query);
    if (stale()) return;
    setArms(summary.pool);
    showSummary(summary);
    offerKeys(summary.keys);
    notice(summary);
    const parts = [get("replicas").then((shown) => stale() || showReplicas(shown))];
    if (summary.ledger) {
      parts.push(
        get("mix", query).then((shown) => stale() || showMix(shown)),
        get("frontier", query).then((shown) => {
          if (stale()) return undefined;
          showEstimates(shown);
          return showFrontier(shown, query.period);
        }),
        get("reliability", query).then((shown) => stale() || showReliability(shown)),
        get("drift", query).then((shown) => stale() || showDrift(shown)),
        loadDecisions(),
      );
    }
    // One part that fails keeps none of the others from being shown.
    const failed = (await Promise.allSettled(parts)).find((part) => part.status === "rejected");
    if (failed) throw failed.reason;
    if (!stale()) fault(null);
  } catch (error) {
    if (stale()) return;
    if (error instanceof KeyNeeded) return askForKey(error);
    fault(error);
  } finally {
    if (!stale()) document.body.dataset.loaded = query.period; // for whoever waits for the figures
  }
  again();
}

function again() {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(load, EVERY_MS[period()]);
}

function notice(summary) {
  const place = byId("notice");
  place.hidden = summary.ledger;
  for (const part of document.querySelectorAll("[data-of-ledger]")) part.hidden = !summary.ledger;
  byId("periods").hidden = !summary.ledger;
  if (summary.ledger || place.firstChild) return;
  fill(place,
    el("div", {}, "These figures are what the gateway has counted since it started. To see them over time, with decisions, "
      + "outcomes and replays, let it keep a ledger: add this line to its configuration and start it again."),
    el("pre", {}, "ledger: {}"));
}

function fault(error) {
  const place = byId("fault");
  place.hidden = error === null;
  const text = error === null ? "" : `Not all of this is up to date: ${plain(error.message, 500)}`;
  if (place.textContent !== text) place.textContent = text;
}

function askForKey(error) {
  byId("key-error").textContent = hasKey() ? plain(error.message, 300) : "";
  forgetKey();
  byId("main").hidden = true;
  byId("periods").hidden = true;
  byId("key").hidden = false;
  byId("key-input").focus();
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  saveKey(byId("key-input").value);
  byId("key-input").value = "";
  byId("key").hidden = true;
  byId("main").hidden = false;
  load();
});

byId("periods").addEventListener("change", () => {
  say(`Showing ${NAMES[period()]}`);
  load();
});

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : load()));

setUpFrontier();
setUpPlayground();
setUpDecisions();
load();
