// Small charts as SVG: a line over time, and bars by day. Each says in words what it shows. Its texts stand beside
// the drawing, which is stretched to the screen: within, they would be as wide or as narrow as that.

import { h, s } from "./dom.js";

const WIDE = 640;
const HIGH = 120;

// points: [{at, value}], at in epoch seconds; text(value) writes a value.
export function line(title, points, text) {
  if (points.length < 2) return h("p", { class: "empty" }, `${title}: the second sample comes within a minute.`);
  const values = points.map((each) => each.value);
  const most = Math.max(...values) || 1;
  const [from, to] = [points[0].at, points[points.length - 1].at];
  const x = (at) => (((at - from) / (to - from || 1)) * WIDE).toFixed(1);
  const y = (value) => ((1 - value / most) * (HIGH - 2) + 1).toFixed(1);
  const path = points.map((each, index) => `${index ? "L" : "M"}${x(each.at)} ${y(each.value)}`).join("");
  const last = values[values.length - 1];
  const said = `${title}: ${text(last)} now, between ${text(Math.min(...values))} and ${text(most)} since ${clock(from)}.`;
  return figure({ title, said, now: text(last), most: text(most), from: clock(from), to: clock(to) },
    s("path", { class: "area", d: `${path}L${x(to)} ${y(0)}L${x(from)} ${y(0)}Z` }),
    s("path", { class: "line", d: path }));
}

// rows: [{name, value}] in order.
export function bars(title, rows, text) {
  const most = Math.max(...rows.map((each) => each.value), 0);
  const wide = WIDE / rows.length;
  const high = (value) => Math.max((value / (most || 1)) * (HIGH - 2), value ? 1 : 0);
  const total = rows.reduce((sum, each) => sum + each.value, 0);
  const last = rows[rows.length - 1];
  const said = `${title}: ${text(total)} in all, ${text(last.value)} on ${last.name}.`;
  return figure({ title, said, now: text(total), most: text(most), from: rows[0].name, to: last.name },
    rows.map((each, index) => s("rect", { class: "bar", x: (index * wide + 1).toFixed(1), y: (HIGH - 1 - high(each.value)).toFixed(1), width: Math.max(1, wide - 2).toFixed(1), height: high(each.value).toFixed(1) }, s("title", null, `${each.name}: ${text(each.value)}`))));
}

function figure({ title, said, now, most, from, to }, ...drawn) {
  return h("figure", { class: "chart" },
    h("figcaption", null, h("span", null, title), h("strong", null, now)),
    h("p", { class: "scale" }, `Highest: ${most}`),
    s("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img", "aria-label": said },
      s("path", { class: "axis", d: `M0 ${HIGH - 1}H${WIDE}M0 1H${WIDE}` }), ...drawn),
    h("p", { class: "scale" }, h("span", null, from), h("span", null, to)));
}

function clock(at) {
  const date = new Date(at * 1000);
  const options = Date.now() / 1000 - at > 86400 ? { month: "short", day: "numeric" } : { hour: "2-digit", minute: "2-digit" };
  return date.toLocaleString("en-GB", options);
}
