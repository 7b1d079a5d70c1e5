// The chat page: conversations live in this page's memory only, and end with it. Which host answers, and that
// another one goes on, is shown as it happens.

import { stream } from "./api.js";
import { h, number, peer, price, replace, usdc } from "./dom.js";

const conversations = []; // {title, turns}; a turn: {role, text, reasoning, calls, notes, usage, failed}
let current = null;
let running = null; // the AbortController of the answer that streams
const settings = { model: "", system: "", max_tokens: "1024", temperature: "0.7", max_price: "", tools: "" };

export function chatPage(place, _parts, known) {
  const list = h("nav", { class: "conversations", "aria-label": "Conversations" });
  const log = h("div", { class: "messages", role: "log", "aria-live": "polite", "aria-label": "Conversation", tabindex: "0" });
  const status = h("p", { class: "hint", role: "status" });
  const input = h("textarea", { id: "prompt", rows: "3", placeholder: "Ask something", "aria-describedby": "prompt-help" });
  const send = h("button", { id: "send", type: "submit", class: "primary" }, "Send");
  const stop = h("button", { id: "stop", type: "button", onclick: () => running && running.abort() }, "Stop");
  const choice = h("select", { id: "model", onchange: (event) => { settings.model = event.target.value; } });
  let offered = "";

  if (!current) begin();
  place.append(
    h("div", { class: "chat-grid" },
      list,
      h("div", { class: "talk" },
        log,
        status,
        h("form", { class: "composer", onsubmit: (event) => { event.preventDefault(); ask(); } },
          h("label", { for: "prompt", class: "hidden" }, "Your message"), input,
          h("p", { id: "prompt-help", class: "hint" }, "Enter sends, Shift and Enter begins a new line."),
          h("div", { class: "row" }, h("label", { for: "model" }, "Model"), choice, send, stop)),
        options())));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
  });
  draw();

  function begin() {
    current = { title: "New conversation", turns: [] };
    conversations.unshift(current);
  }

  function draw() {
    replace(list, h("button", { id: "new", type: "button", onclick: () => { if (!running) { begin(); draw(); input.focus(); } } }, "New conversation"),
      h("ul", null, conversations.map((each, index) => h("li", null, h("button", { id: `conversation-${index}`, type: "button", class: "link", "aria-current": each === current ? "true" : null, onclick: () => { if (!running) { current = each; draw(); } } }, each.title)))));
    replace(log, current.turns.length ? current.turns.map(turnOf) : h("p", { class: "empty" }, "Nothing was said yet. What you write goes to the host that answers, and to nobody else."));
    log.setAttribute("aria-busy", String(running !== null));
    log.scrollTop = log.scrollHeight;
    send.disabled = running !== null;
    stop.disabled = running === null;
  }

  async function ask() {
    const text = input.value.trim();
    if (!text || running) return;
    if (!current.turns.length) current.title = text.slice(0, 40);
    current.turns.push({ role: "user", text });
    input.value = "";
    await answer();
  }

  async function answer() {
    const turn = { role: "assistant", text: "", reasoning: "", calls: [], notes: [] };
    const talk = current;
    let body;
    try { body = bodyOf(talk.turns); } catch (error) { status.textContent = error.message; return; }
    talk.turns.push(turn);
    running = new AbortController();
    status.textContent = "Looking for a host…";
    draw();
    const item = log.lastElementChild;
    const paint = () => { item.replaceChildren(...turnOf(turn).childNodes); log.scrollTop = log.scrollHeight; };
    try {
      await stream("chat", body, running.signal, (name, data) => {
        if (name === "host") {
          turn.notes.push({ at: turn.text.length, ...data });
          status.textContent = data.before ? "Another host goes on…" : "A host answers…";
        } else if (name === "said") said(turn, data);
        else if (name === "end") { turn.usage = data; turn.done = data.calls; }
        else if (name === "failed") turn.failed = data.message;
        paint();
      });
      status.textContent = turn.failed ? "The answer failed." : "The answer is whole.";
    } catch (error) {
      if (running.signal.aborted) { turn.stopped = true; status.textContent = "You stopped the answer."; }
      else { turn.failed = error.message; status.textContent = "The answer failed."; }
    }
    running = null;
    draw();
    if (document.activeElement === document.body) input.focus();
  }

  function turnOf(turn) {
    const who = { user: "You", assistant: "Answer", tool: "Result of a tool" }[turn.role];
    return h("article", { class: `turn ${turn.role}`, "aria-label": who },
      h("h2", null, who),
      turn.reasoning && h("details", { class: "reasoning" }, h("summary", null, "Thoughts"), h("p", { class: "said" }, turn.reasoning)),
      pieces(turn),
      (turn.calls || []).map((call) => h("div", { class: "call" }, h("strong", null, `Calls ${call.name}`), h("pre", null, h("code", null, call.arguments || "…")))),
      turn.done && turn.done.length > 0 && !current.turns.some((each) => each.call === turn.done[0].id) && results(turn),
      turn.failed && h("p", { class: "notice bad", role: "alert" }, turn.failed),
      turn.stopped && h("p", { class: "notice warn" }, "Stopped."),
      turn.usage && h("p", { class: "usage" }, `${number(turn.usage.tokens_in)} tokens in, ${number(turn.usage.reused)} from the cache, ${number(turn.usage.tokens_out)} out, ${turn.usage.cost ? usdc(turn.usage.cost) : "free"}`, turn.usage.finish === "length" ? "; cut at the most tokens" : ""));
  }

  // The text, with a line where a host took it up.
  function pieces(turn) {
    const shown = [];
    let from = 0;
    for (const note of turn.notes || []) {
      if (note.at > from) shown.push(h("p", { class: "said" }, turn.text.slice(from, note.at)));
      from = Math.max(from, note.at);
      shown.push(note.before
        ? h("p", { class: "notice warn failover" }, "Host ", peer(note.before), ` failed${note.why ? ` (${note.why})` : ""}: `, peer(note.host), " goes on from here.")
        : h("p", { class: "by" }, "by ", peer(note.host), `, ${price({ price_in: Number(note.price_in) * 1e6, price_out: Number(note.price_out) * 1e6 })}`));
    }
    if (turn.text.length > from) shown.push(h("p", { class: "said" }, turn.text.slice(from)));
    return shown;
  }

  function results(turn) {
    const fields = turn.done.map((call, index) => h("p", null, h("label", { for: `result-${index}` }, `Result of ${call.name}`), h("textarea", { id: `result-${index}`, rows: "2" })));
    return h("form", { class: "results", onsubmit: (event) => {
      event.preventDefault();
      turn.done.forEach((call, index) => current.turns.push({ role: "tool", call: call.id, text: event.target.querySelector(`#result-${index}`).value }));
      answer();
    } }, fields, h("button", { type: "submit" }, "Send the results"));
  }

  function options() {
    const field = (name, title, element) => h("p", null, h("label", { for: `option-${name}` }, title), Object.assign(element, { id: `option-${name}`, value: settings[name], oninput: (event) => { settings[name] = event.target.value; } }));
    return h("details", { class: "options" }, h("summary", null, "Options"),
      field("system", "Instructions", h("textarea", { rows: "2" })),
      field("max_tokens", "Most tokens", h("input", { type: "number", min: "1", max: "65536" })),
      field("temperature", "Temperature", h("input", { type: "number", min: "0", max: "2", step: "0.1" })),
      field("max_price", "Highest price, USDC per million tokens", h("input", { type: "text", inputmode: "decimal", placeholder: "none" })),
      field("tools", "Tools, as OpenAI's API has them (JSON)", h("textarea", { rows: "3", spellcheck: "false" })));
  }

  return {
    update(now) {
      const market = now.market || known.market;
      if (!market || market.error) return;
      const names = market.models.map((each) => `${each.model}${each.why_not ? " (nobody can be asked)" : ""}`);
      if (names.join() === offered) return;
      offered = names.join();
      const usable = market.models.find((each) => !each.why_not);
      if (!settings.model && usable) settings.model = usable.model;
      replace(choice, market.models.map((each, index) => h("option", { value: each.model, selected: each.model === settings.model }, names[index])));
    },
  };
}

function said(turn, { channel, text, call, name, id }) {
  if (channel === "content") turn.text += text;
  else if (channel === "reasoning") turn.reasoning += text;
  else {
    const found = (turn.calls[call] = turn.calls[call] || { name: "", arguments: "" });
    if (name) Object.assign(found, { name, id });
    found.arguments += text;
  }
}

// The request, as OpenAI's API has it.
function bodyOf(turns) {
  const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const turn of turns) {
    if (turn.role === "tool") messages.push({ role: "tool", tool_call_id: turn.call, content: turn.text });
    else if (turn.role === "user") messages.push({ role: "user", content: turn.text });
    else if (turn.text || (turn.done && turn.done.length)) {
      const calls = (turn.done || []).map((each) => ({ id: each.id, type: "function", function: { name: each.name, arguments: each.arguments } }));
      messages.push({ role: "assistant", content: turn.text || null, ...(calls.length ? { tool_calls: calls } : {}) });
    }
  }
  const body = { messages, max_tokens: Number(settings.max_tokens) || 1024 };
  if (settings.model) body.model = settings.model;
  if (settings.temperature !== "") body.temperature = Number(settings.temperature);
  if (settings.max_price.trim()) body.p2pnode = { max_price: settings.max_price.trim() };
  if (settings.tools.trim()) {
    try { body.tools = JSON.parse(settings.tools); } catch (error) { throw new Error(`The tools are no JSON: ${error.message}`); }
  }
  return body;
}
