// A table that can be sorted and searched by mouse, finger and keyboard. On a narrow screen a row is a card.

import { h, replace } from "./dom.js";

const state = new Map(); // how each table is sorted and searched, by its id

// columns: {key, title, value(row) -> what is sorted by, cell(row) -> what is shown, numeric}
export function table(id, caption, columns, rows, options = {}) {
  const kept = state.get(id) || { key: options.sort || columns[0].key, down: options.down || false, text: "" };
  state.set(id, kept);
  const place = h("div", null);
  const again = () => replace(place, body());
  replace(place, body());
  return place;

  function body() {
    const column = columns.find((each) => each.key === kept.key) || columns[0];
    const wanted = kept.text.trim().toLowerCase();
    const found = rows.filter((row) => !wanted || (options.text ? options.text(row) : JSON.stringify(row)).toLowerCase().includes(wanted));
    found.sort((one, other) => compare(value(column, one), value(column, other)) * (kept.down ? -1 : 1));
    const most = options.most || 200;
    return [
      options.search && h("p", { class: "search" },
        h("label", { for: `${id}-search` }, options.search),
        h("input", { id: `${id}-search`, type: "search", value: kept.text, autocomplete: "off",
          oninput: (event) => { kept.text = event.target.value; again(); } }),
        h("span", { role: "status", class: "count" }, `${found.length} of ${rows.length}`)),
      rows.length > 0 && h("p", { class: "search narrow-only" },
        h("label", { for: `${id}-sort` }, "Sort by"),
        h("select", { id: `${id}-sort`, onchange: (event) => { kept.key = event.target.value; again(); } },
          columns.map((each) => h("option", { value: each.key, selected: each.key === kept.key }, each.title))),
        h("button", { id: `${id}-turn`, type: "button", class: "small", onclick: () => { kept.down = !kept.down; again(); } }, kept.down ? "falling" : "rising")),
      rows.length === 0
        ? h("p", { class: "empty" }, options.empty || "Nothing yet.")
        : h("div", { class: "scroll", id: `${id}-scroll`, tabindex: "0", role: "region", "aria-label": caption },
          h("table", { class: "cards" },
            h("caption", { class: "hidden" }, caption),
            h("thead", null, h("tr", null, columns.map(head))),
            h("tbody", null, found.slice(0, most).map((row) => h("tr", { class: options.mark && options.mark(row) ? "marked" : null }, columns.map((each, index) => cell(each, row, index))))))),
      found.length > most && h("p", { class: "hint" }, `The first ${most} are shown: search for others.`),
    ];
  }

  function head(each) {
    const sorted = each.key === kept.key;
    return h("th", { scope: "col", class: each.numeric ? "numeric" : null, "aria-sort": sorted ? (kept.down ? "descending" : "ascending") : null },
      h("button", { id: `${id}-by-${each.key}`, type: "button", class: "sort", onclick: () => {
        kept.down = sorted ? !kept.down : Boolean(each.falls);
        kept.key = each.key;
        again();
      } }, each.title, h("span", { "aria-hidden": "true", class: "arrow" }, sorted ? (kept.down ? " ▾" : " ▴") : "")));
  }
}

function cell(column, row, index) {
  const content = column.cell ? column.cell(row) : String(row[column.key] ?? "–");
  const attributes = { class: column.numeric ? "numeric" : column.wide ? "wide" : null, "data-title": column.title };
  if (index === 0) return h("th", { ...attributes, scope: "row" }, content);
  return h("td", attributes, content);
}

function value(column, row) {
  return column.value ? column.value(row) : row[column.key];
}

function compare(one, other) {
  const absent = (each) => each === null || each === undefined || each === "";
  if (absent(one) || absent(other)) return absent(one) - absent(other);
  return typeof one === "string" ? one.localeCompare(String(other)) : one - other;
}
