// Elements made of text: nothing that comes from outside is ever read as markup.

const MAX_TEXT = 2000;

export const byId = (id) => document.getElementById(id);

// Control and format characters (bidirectional overrides among them) are shown, not obeyed.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

export function plain(value, limit = MAX_TEXT) {
  const text = String(value);
  const cut = text.length > limit ? `${text.slice(0, limit)} … (${text.length} characters)` : text;
  return cut.replace(UNSEEN, (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

// el("td", {class: "number"}, "text", otherElement)
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children) {
    if (child !== null && child !== undefined) element.append(child instanceof Node ? child : plain(child));
  }
  return element;
}

// What stands there already is left alone, with whoever has it in focus.
export function fill(parent, ...children) {
  const now = children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : new Text(plain(child))));
  const before = [...parent.childNodes];
  if (before.length === now.length && now.every((child, i) => child.isEqualNode(before[i]))) return;
  parent.replaceChildren(...now);
}

// To screen readers, of what somebody has just done; figures that renew themselves are not read out.
export function say(text) {
  byId("announce").textContent = plain(text, 300);
}

export const hasFocus = (parent) => document.activeElement !== document.body && parent.contains(document.activeElement);

// columns: [{title, number, cell: (row) => text or element}]; the first column heads its row.
export function table(columns, rows, caption, rowAttributes = () => ({})) {
  const side = (column) => (column.class ?? "") + (column.number ? " number" : "") || null;
  const head = el("tr", {}, ...columns.map((column) => el("th", { scope: "col", class: side(column) }, column.title)));
  const body = rows.map((row) =>
    el("tr", rowAttributes(row), ...columns.map((column, i) =>
      el(i ? "td" : "th", { scope: i ? null : "row", class: side(column) }, column.cell(row)))));
  return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, head), el("tbody", {}, ...body)));
}

export const empty = (...words) => el("p", { class: "empty" }, ...words);

const COLOURS = 8;
let armOrder = [];

// The pool's arms, in its order, have their colours for good; arms of earlier pools follow.
export function setArms(names) {
  armOrder = [...names, ...armOrder.filter((name) => !names.includes(name))];
}

export function armColour(name) {
  if (!armOrder.includes(name)) armOrder.push(name);
  return armOrder.indexOf(name) % COLOURS;
}

export const swatch = (name, shape = "") =>
  el("span", { class: `swatch ${shape} arm-${armColour(name)}`, "aria-hidden": "true" });

export const armName = (name) => el("span", { class: "name" }, swatch(name), el("span", {}, plain(name, 80)));

// Width in percent by CSSOM: the page's policy forbids style attributes.
export function bar(share, name) {
  const inner = el("i", { class: `arm-${armColour(name)}` });
  inner.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return el("span", { class: "bar", "aria-hidden": "true" }, inner);
}

export const chips = (words) => el("span", {}, ...words.map((word) => el("span", { class: "chip" }, plain(word, 60))));
