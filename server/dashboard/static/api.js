// Requests to the gateway that served this page, with the admin key where one is asked for.

const BASE = new URL("../data/", import.meta.url);
const KEY = "pika-admin-key";

export class KeyNeeded extends Error {}

export const saveKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key === null ? {} : { authorization: `Bearer ${key}` };
}

async function answer(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body !== null) return body;
  const message = body?.error?.message ?? `the gateway answered ${response.status}`;
  throw response.status === 401 ? new KeyNeeded(message) : new Error(message);
}

async function send(url, options) {
  try {
    return await fetch(url, { ...options, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the gateway does not answer; trying again");
  }
}

export async function get(path, query = {}, signal = undefined) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  return answer(await send(url, { headers: headers(), signal }));
}

export async function post(path, body, signal) {
  const all = { ...headers(), "content-type": "application/json" };
  return answer(await send(new URL(path, BASE), { method: "POST", headers: all, body: JSON.stringify(body), signal }));
}
