// Elements, and how amounts, times and ids are written. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

// An element: attributes by name ("on…" adds a listener), children as nodes or texts; empty ones are left out.
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// The same of an SVG.
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(9)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

// Puts new content into an element, and the focus back to where it was, by id.
export function replace(element, ...children) {
  const active = document.activeElement;
  const id = active && element.contains(active) ? active.id : "";
  const range = id && "selectionStart" in active && [active.selectionStart, active.selectionEnd];
  const scrolled = [...element.querySelectorAll(".scroll")].map((each) => [each.id, each.scrollLeft]);
  element.replaceChildren(...children.flat(9).filter(Boolean));
  for (const [name, left] of scrolled) {
    const again = name && document.getElementById(name);
    if (again) again.scrollLeft = left;
  }
  const again = id && document.getElementById(id);
  if (again) {
    again.focus({ preventScroll: true });
    if (range && range[0] !== null) try { again.setSelectionRange(...range); } catch { /* has none */ }
  }
}

// Token units (a millionth of a USDC) as USDC, without zeros at the end.
export function usdc(units) {
  if (units === null || units === undefined) return "unknown";
  const sign = units < 0 ? "-" : "";
  const whole = Math.floor(Math.abs(units) / 1e6);
  const rest = String(Math.round(Math.abs(units) % 1e6)).padStart(6, "0").replace(/0+$/, "");
  return `${sign}${whole.toLocaleString("en")}${rest ? "." + rest : ""} USDC`;
}

// A pair of prices per million tokens.
export function price(row) {
  if (!row.price_in && !row.price_out) return "free";
  return `${usdc(row.price_in).slice(0, -5)} in, ${usdc(row.price_out).slice(0, -5)} out`;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return Number(value).toLocaleString("en", { maximumFractionDigits: digits });
}

export function percent(share) {
  return share === null || share === undefined ? "–" : `${Math.round(100 * share)}%`;
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (count >= 1024 && at < units.length - 1) { count /= 1024; at += 1; }
  return `${number(count, at ? 1 : 0)} ${units[at]}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 10 ? `${number(value, 2)} s` : span(value);
}

export function span(value) {
  for (const [name, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (value >= length) {
      const rest = Math.floor((value % length) / (length / { d: 24, h: 60, min: 60 }[name]));
      const below = { d: "h", h: "min", min: "s" }[name];
      return `${Math.floor(value / length)} ${name}${rest ? ` ${rest} ${below}` : ""}`;
    }
  }
  return `${Math.round(value)} s`;
}

// An epoch time as this browser writes it, in an element that a machine can read.
export function time(at) {
  if (!at) return "–";
  const date = new Date(at * 1000);
  const today = date.toDateString() === new Date().toDateString();
  const text = today ? date.toLocaleTimeString() : date.toLocaleString();
  return h("time", { datetime: date.toISOString() }, text);
}

// A peer id or session, cut to what tells it apart.
export function short(id) {
  return id && id.length > 16 ? `${id.slice(0, 4)}…${id.slice(-6)}` : id || "–";
}

export function peer(id, words = "") {
  return id ? h("a", { href: `#/hosts/${id}`, title: id }, words || short(id)) : "–";
}

export function model(name) {
  return h("a", { href: `#/models/${encodeURIComponent(name)}` }, name);
}

// A title, its facts, and what to do.
export function card(title, ...children) {
  const id = `card-${title.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), ...children);
}

// Names and values.
export function facts(pairs) {
  const shown = pairs.filter(Boolean);
  return h("dl", { class: "facts" }, shown.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}

// A word about how something is: good, warn or bad, with a sign that needs no colour.
export function badge(kind, text) {
  const sign = { good: "✓", warn: "!", bad: "✕", plain: "" }[kind];
  return h("span", { class: `badge ${kind}` }, sign && h("span", { "aria-hidden": "true" }, `${sign} `), text);
}

export function hint(...children) {
  return h("p", { class: "hint" }, ...children);
}

// What could not be had, and why.
export function failed(section) {
  return section && section.error ? h("p", { class: "notice bad", role: "alert" }, section.error) : null;
}
