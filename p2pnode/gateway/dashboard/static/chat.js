// The chat page. The node keeps its conversations, sealed, where it has a key for that; those with tools, and all
// where it has none, live in this page's memory and end with it. Which host answers, and that another one goes on,
// is shown as it happens.

import { get, post, stream } from "./api.js";
import { h, hint, number, peer, price, replace, usdc } from "./dom.js";

// {id, title, turns, kept, name}: the node's id for one that it keeps; turns are null until they are asked for;
// the name tells hosts which cache to use. A turn: {role, text, reasoning, calls, notes, usage, failed, cut}
const conversations = [];
let current = null;
let notKept = null; // why the node keeps none; "" where it does, null until that is known
let running = null; // the AbortController of the answer that streams
const settings = { model: "", system: "", max_tokens: "1024", temperature: "0.7", max_price: "", tools: "" };

export function chatPage(place, _parts, known) {
  const side = h("nav", { class: "conversations", "aria-label": "Conversations" });
  const log = h("div", { class: "messages", role: "log", "aria-live": "polite", "aria-label": "Conversation", tabindex: "0" });
  const status = h("p", { class: "hint", role: "status" });
  const input = h("textarea", { id: "prompt", rows: "3", placeholder: "Ask something", "aria-describedby": "prompt-help" });
  const send = h("button", { id: "send", type: "submit", class: "primary" }, "Send");
  const stop = h("button", { id: "stop", type: "button", onclick: () => running && running.abort() }, "Stop");
  const choice = h("select", { id: "model", onchange: (event) => { settings.model = event.target.value; } });
  let offered = "";

  if (!current) begin();
  const listed = list();
  place.append(
    h("div", { class: "chat-grid" },
      side,
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
    current = { id: "", title: "New conversation", turns: [], kept: null, name: crypto.getRandomValues(new Uint32Array(4)).join("-") };
    conversations.unshift(current);
  }

  function startOver() {
    if (!running) { begin(); draw(); input.focus(); }
  }

  // Adds what the node keeps to what this page knows.
  async function list() {
    try {
      const found = await get("conversations");
      notKept = found.why_not;
      for (const row of found.conversations) {
        const known = conversations.find((each) => each.id === row.id);
        if (known) known.title = row.title || known.title;
        else conversations.push({ id: row.id, title: row.title || "Without a title", turns: null, kept: true, name: row.id });
      }
      // One that was deleted in another window, or in a terminal, is gone here as well.
      const ids = new Set(found.conversations.map((each) => each.id));
      for (const each of conversations.filter((one) => one.id && one.turns === null && !ids.has(one.id))) conversations.splice(conversations.indexOf(each), 1);
    } catch (error) { notKept = error.message; }
    drawSide();
  }

  async function open(talk) {
    if (running) return;
    current = talk;
    draw();
    if (talk.turns !== null) return;
    status.textContent = "Reading the conversation…";
    try {
      const found = await get(`conversations/${talk.id}`);
      talk.turns = found.turns.map(keptTurn);
      const last = talk.turns[talk.turns.length - 1];
      if (last && last.role === "user") talk.turns.push({ role: "assistant", text: "", cut: true });
      status.textContent = found.losses.length ? `Not all of it could be read: ${found.losses[0]}` : "";
    } catch (error) { status.textContent = error.message; }
    draw();
  }

  async function forget() {
    if (running || !confirm("Delete this conversation here and on all nodes that keep it?")) return;
    const talk = current;
    status.textContent = "Deleting…";
    try {
      await post(`conversations/${talk.id}/forget`, {});
      conversations.splice(conversations.indexOf(talk), 1);
      status.textContent = "The conversation is deleted.";
      begin();
    } catch (error) { status.textContent = error.message; }
    draw();
  }

  function drawSide() {
    replace(side, h("button", { id: "new", type: "button", onclick: startOver }, "New conversation"),
      h("ul", null, conversations.map((each, index) => h("li", null, h("button", { id: `conversation-${index}`, type: "button", class: "link", "aria-current": each === current ? "true" : null, onclick: () => open(each) }, each.title)))),
      notKept && hint("Conversations end with this page. ", notKept),
      notKept === "" && current.kept === false && hint("This one is not kept: it has tools."),
      current.id && [hint("Kept, sealed. In a terminal: ", h("code", null, `p2pnode sessions resume ${current.id.slice(0, 12)}`)),
        h("button", { id: "forget", type: "button", class: "small", onclick: forget }, "Delete this conversation")]);
  }

  function draw() {
    drawSide();
    if (current.turns === null) replace(log, h("p", { class: "empty" }, "Reading…"));
    else replace(log, current.turns.length ? current.turns.map(turnOf) : h("p", { class: "empty" }, "Nothing was said yet. What you write goes to the host that answers, and to nobody else."));
    log.setAttribute("aria-busy", String(running !== null));
    log.scrollTop = log.scrollHeight;
    send.disabled = running !== null;
    stop.disabled = running === null;
  }

  async function ask() {
    const text = input.value.trim();
    if (!text || running || current.turns === null) return;
    const talk = current;
    input.value = "";
    await listed; // before it is known whether the node keeps conversations, this one would not be kept
    if (running || current !== talk) { input.value = text; return; }
    if (!current.turns.length) current.title = text.slice(0, 40);
    if (current.kept === null) current.kept = notKept === "" && !settings.tools.trim();
    current.turns.push({ role: "user", text });
    await answer();
  }

  // The answer to what was said last or, where one was cut short, the rest of it.
  async function answer(cut) {
    const turn = cut || { role: "assistant", text: "" };
    Object.assign(turn, { reasoning: "", calls: [], notes: turn.notes || [], failed: "", cut: false, full: false });
    const talk = current;
    let body;
    try { body = bodyOf(talk, Boolean(cut)); } catch (error) { status.textContent = error.message; return; }
    if (!cut) talk.turns.push(turn);
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
        else if (name === "failed") { turn.failed = data.message; turn.cut = true; turn.full = data.code === "context_length_exceeded"; }
        else if (name === "kept") { talk.id = data.id; talk.trouble = data.why_not; }
        paint();
      });
      status.textContent = talk.trouble ? `It could not be kept: ${talk.trouble}` : turn.failed ? "The answer failed." : "The answer is whole.";
    } catch (error) {
      if (running.signal.aborted) { turn.cut = true; status.textContent = "You stopped the answer."; }
      else { turn.failed = error.message; turn.cut = true; status.textContent = "The answer failed."; }
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
      !running && (turn.full || (turn.usage && turn.usage.context_full)) && fullNotice(turn),
      turn.cut && !turn.full && !running && h("p", { class: "notice warn" }, "This answer is not whole. ",
        current.id && turn === current.turns[current.turns.length - 1] && h("button", { id: "go-on", type: "button", onclick: () => { if (!running) answer(turn); } }, "Go on")),
      turn.usage && h("p", { class: "usage" }, `${number(turn.usage.tokens_in)} tokens in, ${number(turn.usage.reused)} from the cache, ${number(turn.usage.tokens_out)} out, ${turn.usage.cost ? usdc(turn.usage.cost) : "free"}`, ending(turn.usage)));
  }

  // To ask for the rest would bring nothing: no host of the model has room for another token.
  function fullNotice(turn) {
    return h("p", { class: "notice warn full" }, turn.failed
      ? "Ask something shorter, begin a new conversation, or choose a model with a longer context. "
      : "The context is full, so the answer can't go on. Begin a new conversation, or choose a model with a longer context. ",
    turn === current.turns[current.turns.length - 1] && h("button", { type: "button", class: "start-over", onclick: startOver }, "Begin a new conversation"));
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
        : h("p", { class: "by" }, "by ", peer(note.host), note.price_in === undefined ? null : `, ${price({ price_in: Number(note.price_in) * 1e6, price_out: Number(note.price_out) * 1e6 })}`));
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

// How an answer ended that a limit cut. Of one that was kept it is not known which limit it was.
function ending({ finish, context_full: full }) {
  if (finish !== "length") return "";
  return full ? "; the context is full" : full === undefined ? "; it reached its limit of tokens" : "; it reached the most tokens that were asked for";
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

// A turn as the node keeps it, as this page has it.
function keptTurn(kept) {
  const turn = { role: kept.role, text: "", notes: [], cut: kept.role === "assistant" && (kept.finish === null || !kept.whole) };
  let before = "";
  for (const part of kept.parts) {
    if (part.host) {
      turn.notes.push({ at: turn.text.length, host: part.host, before });
      before = part.host;
    }
    turn.text += part.text;
  }
  if (kept.role === "assistant" && !turn.cut) turn.usage = kept;
  return turn;
}

// The request, as OpenAI's API has it. Of a conversation that the node keeps, only what is new.
function bodyOf(talk, goOn) {
  const questions = talk.turns.filter((each) => each.role === "user");
  const turns = talk.kept ? questions.slice(-1) : talk.turns;
  const messages = settings.system.trim() && !talk.id ? [{ role: "system", content: settings.system }] : [];
  for (const turn of turns) {
    if (turn.role === "tool") messages.push({ role: "tool", tool_call_id: turn.call, content: turn.text });
    else if (turn.role === "user") messages.push({ role: "user", content: turn.text });
    else if (turn.text || (turn.done && turn.done.length)) {
      const calls = (turn.done || []).map((each) => ({ id: each.id, type: "function", function: { name: each.name, arguments: each.arguments } }));
      messages.push({ role: "assistant", content: turn.text || null, ...(calls.length ? { tool_calls: calls } : {}) });
    }
  }
  const body = { messages, max_tokens: Number(settings.max_tokens) || 1024, prompt_cache_key: talk.name };
  if (talk.kept) body.keep = { id: talk.id, go_on: goOn };
  if (settings.model) body.model = settings.model;
  if (settings.temperature !== "") body.temperature = Number(settings.temperature);
  if (settings.max_price.trim()) body.p2pnode = { max_price: settings.max_price.trim() };
  if (settings.tools.trim()) {
    try { body.tools = JSON.parse(settings.tools); } catch (error) { throw new Error(`The tools are no JSON: ${error.message}`); }
  }
  return body;
}
