// The pages that show the node, each of what the sections of its API say. `known` has the last of each.

import { get, signOut, stream } from "./api.js";
import { bars, line } from "./chart.js";
import { badge, bytes, card, facts, failed, h, hint, model, number, peer, percent, price, replace, seconds, short, span, time, usdc } from "./dom.js";
import { table } from "./table.js";

const waiting = () => h("p", { class: "empty", role: "status" }, "Asking the node…");

// A page that is drawn anew whenever one of its sections changes.
function drawn(place, needs, draw) {
  return {
    update(known, changed) {
      if (changed && !needs.includes(changed)) return;
      replace(place, needs.some((each) => known[each]) ? draw(known) : waiting());
    },
  };
}

// ---- overview: in the order that operators ask

export function overview(place) {
  return drawn(place, ["node", "money", "market", "requests"], (known) => [
    known.node && reach(known.node),
    known.money && earned(known.money, known.node),
    known.node && work(known.node),
    known.market && served(known.market),
    known.requests && answered(known.requests),
  ]);
}

function reach(node) {
  if (node.error) return card("Reachable?", failed(node));
  const host = node.host;
  const peers = facts([["Peers", number(node.peers)], host && ["Peer id", h("code", { class: "long" }, host.peer_id)]]);
  const alone = node.alone && h("p", { class: "notice warn" }, "No other node is known. Ask a friend for an invite, and start with --bootstrap INVITE.");
  if (!host) {
    return card("Reachable?", h("p", { class: "verdict" }, badge(node.peers ? "good" : "warn", node.peers ? "Connected as a client" : "Not connected")),
      hint("No host runs on this data dir, so nobody needs to reach it. ", h("code", null, "p2pnode join"), " serves models from here."), alone, peers);
  }
  const found = host.reachable;
  const verdicts = { global: ["good", "From everywhere, as far as addresses tell"], ipv6_only: ["warn", "Over IPv6 only"], this_machine_only: ["warn", "On this machine only, as it was started"] };
  const verdict = verdicts[found.code] || ["bad", "Not from outside of its network"];
  return card("Reachable?",
    h("p", { class: "verdict" }, badge(...verdict)),
    h("p", null, capital(found.detail)), found.remedy && h("p", { class: "notice warn" }, h("strong", null, "What to do: "), found.remedy), alone, peers,
    h("details", null, h("summary", null, "Addresses"), h("ul", { class: "plain" }, host.multiaddrs.map((each) => h("li", null, h("code", { class: "long" }, each))))));
}

function earned(money, node) {
  if (money.error) return card("Earned", failed(money));
  const all = money.earned;
  if (!all) {
    const free = node && node.host;
    return card("Earned", hint(free ? "This host serves free of charge, or nobody has paid it yet. " : "Nothing: no host has been paid from this data dir. ", free && h("code", null, "p2pnode join --suggest-price"), free && " tells what to ask."));
  }
  const today = all.days[all.days.length - 1].units;
  const week = all.weeks[all.weeks.length - 1].units;
  return card("Earned",
    facts([["Today", usdc(today)], ["This week", usdc(week)], ["Settled in all", usdc(all.earned)], ["Not settled yet", usdc(all.owed)]]),
    away(node),
    all.stuck.length > 0 && h("p", { class: "notice warn" }, `Stuck: ${usdc(all.stuck.reduce((sum, each) => sum + each.units, 0))} in ${all.stuck.length} sessions. `, h("a", { href: "#/money" }, "Why")),
    h("p", null, h("a", { href: "#/money" }, "By day, week and model")));
}

function away(node) {
  const why = node && node.host && node.host.chain_away;
  return why && h("p", { class: "notice warn" }, `The chain ${why}`);
}

function work(node) {
  const host = node.host;
  if (!host || node.error) return null;
  const total = host.served;
  const busy = host.active + host.queued > 0;
  return card("Work",
    h("p", { class: "verdict" }, badge(busy ? "good" : "plain", busy ? `${host.active} of ${host.slots} slots busy, ${host.queued} waiting` : `Idle: ${host.slots} slots free`)),
    recent(host.recent),
    total && facts([["Answers", number(total.turns)], ["Sessions", number(total.sessions)], ["Tokens in", number(total.tokens_in)], ["Tokens out", number(total.tokens_out)], ["Up", span(Date.now() / 1000 - total.since)]]),
    host.idle.reasons.length > 0 && [h("h3", null, busy ? "Why not more" : "Why no work"), h("ul", { class: "reasons" }, host.idle.reasons.map((each) => h("li", null, each)))],
    host.idle.offers.map((each) => facts([
      ["Model", model(each.model)],
      ["Place among strangers", each.place === null ? "left out" : `${each.place} of ${each.of}`],
      ["Others ask less", each.price_percentile === null ? "–" : `${each.price_percentile}%`],
      ["Others' slots busy", `${each.busy} of ${each.slots}`],
      each.could_earn_day ? ["As busy as others, a day", usdc(each.could_earn_day)] : null,
    ])),
    h("p", null, peer(host.peer_id, "How clients see this host")));
}

// How the last turns of this host went.
function recent(turns) {
  if (!turns || !Object.keys(turns.outcomes).length) return null;
  return [
    h("h3", null, "The last answers"),
    table("recent-turns", "How fast the last answers were", [
      { key: "what", title: "Of the last answers" },
      { key: "p50", title: "Half", numeric: true, cell: (row) => row.show(row.p50) },
      { key: "p90", title: "90%", numeric: true, cell: (row) => row.show(row.p90) },
      { key: "p99", title: "99%", numeric: true, cell: (row) => row.show(row.p99) },
    ], [
      { what: "Waited for a slot, at most", show: seconds, ...turns.queue_s },
      { what: "First token, within", show: seconds, ...turns.first_token_s },
      { what: "Tokens/s, at most", show: (value) => number(value, 1), ...turns.tokens_per_s },
    ]),
    outcomes(turns.outcomes),
  ];
}

function served(market) {
  if (market.error) return card("Models", failed(market));
  const not = market.models.filter((each) => each.why_not);
  return card("Models",
    facts([["Hosts seen", number(market.hosts_total)], ["Models", number(market.models.length)], ["Can be asked", number(market.models.length - not.length)]]),
    market.models.length === 0 && hint("No host is seen yet. A host that has just started is found within a minute."),
    h("ul", { class: "reasons" },
      market.models.filter((each) => !each.why_not).slice(0, 6).map((each) => h("li", null, model(each.model), `: ${each.servable} of ${each.hosts} hosts can be asked`)),
      not.map((each) => h("li", null, badge("warn", "not served"), " ", model(each.model), `: ${each.why_not}`))),
    h("p", null, h("a", { href: "#/hosts" }, "All hosts")));
}

function answered(requests) {
  if (requests.error) return card("Requests", failed(requests));
  return card("Requests", figures(requests), h("p", null, h("a", { href: "#/sessions" }, "The last ones"), " · ", h("a", { href: "#/chat" }, "Ask something")));
}

function figures(requests) {
  const all = requests.all;
  const first = requests.first_token_s;
  const speed = requests.tokens_per_s;
  return facts([
    ["Since the start", number(all.requests)],
    ["Failed", number(all.failed)],
    ["Under way", number(requests.under_way)],
    first && ["First token, half within", seconds(first.p50)],
    first && ["First token, 90% within", seconds(first.p90)],
    speed && ["Tokens/s, half above", number(speed.p50, 1)],
    ["From the prefix cache", all.tokens_in ? percent(all.reused / all.tokens_in) : "–"],
    ["Cost", usdc(all.cost)],
  ]);
}

// ---- models

export function models(place, [name]) {
  return drawn(place, ["market"], (known) => {
    const market = known.market;
    if (market.error) return failed(market);
    if (name) return oneModel(name, market);
    return card("Models that hosts offer", table("models", "Models", [
      { key: "model", title: "Model", cell: (row) => model(row.model) },
      { key: "state", title: "Can be asked", value: (row) => row.servable, falls: true, cell: (row) => row.why_not ? badge("bad", "no") : badge("good", `${row.servable} of ${row.hosts}`) },
      { key: "price_out", title: "Price out, USDC/M", numeric: true, value: (row) => row.free ? 0 : row.price_out_min, cell: (row) => prices(row) },
      { key: "n_ctx", title: "Context", numeric: true, falls: true, cell: (row) => number(row.n_ctx) },
      { key: "load", title: "Busy", numeric: true, falls: true, value: (row) => row.active, cell: (row) => `${row.active} of ${row.slots}` },
      { key: "warm", title: "Loaded", numeric: true, falls: true },
      { key: "can", title: "Can", value: (row) => row.can.length, cell: (row) => row.can.join(", ") || "text" },
      { key: "why_not", title: "Why not", wide: true, cell: (row) => row.why_not || "–" },
    ], market.models, { empty: "No host is seen yet: a host that has just started is found within a minute." }));
  });
}

function prices(row) {
  if (row.free) return row.price_out_max ? `free to ${usdc(row.price_out_max).slice(0, -5)}` : "free";
  const [low, high] = [usdc(row.price_out_min).slice(0, -5), usdc(row.price_out_max).slice(0, -5)];
  return low === high ? low : `${low} to ${high}`;
}

function oneModel(name, market) {
  const row = market.models.find((each) => each.model === name);
  if (!row) return [card(name, hint("No host offers this model now.")), back("#/models", "All models")];
  return [
    card(name,
      h("p", { class: "verdict" }, row.why_not ? badge("bad", "Nobody can be asked") : badge("good", `${row.servable} of ${row.hosts} hosts can be asked`)),
      row.why_not && h("p", { class: "notice bad" }, capital(row.why_not)),
      facts([["Price out, median", row.price_out ? `${usdc(row.price_out)}/M` : "free"], ["Largest context", number(row.n_ctx)], ["Slots busy", `${row.active} of ${row.slots}`], ["Waiting", number(row.queued)], ["Loaded at", `${row.warm} hosts`], ["Can", row.can.join(", ") || "text"]]),
      h("details", null, h("summary", null, "Model id"), h("code", { class: "long" }, row.model_id))),
    card("Its hosts, in the order in which they would be asked", hostsTable(`hosts-of-${row.model_id}`, market.hosts.filter((each) => each.model === name))),
    back("#/models", "All models"),
  ];
}

// ---- hosts

export function hosts(place, [id]) {
  if (id) return oneHost(place, id);
  return drawn(place, ["market"], (known) => {
    const market = known.market;
    if (market.error) return failed(market);
    return card("Hosts that are seen", hostsTable("hosts", market.hosts, { search: "Search" }));
  });
}

function hostsTable(id, rows, options = {}) {
  return table(id, "Hosts", [
    { key: "peer", title: "Host", cell: (row) => peer(row.peer) },
    { key: "model", title: "Model", cell: (row) => model(row.model) },
    { key: "place", title: "Place", numeric: true, cell: (row) => row.place === null ? badge("warn", "left out") : String(row.place) },
    { key: "price_out", title: "USDC/M", numeric: true, cell: price },
    { key: "ttft", title: "First token", numeric: true, value: (row) => row.reputation.ttft_s, cell: (row) => seconds(row.reputation.ttft_s) },
    { key: "speed", title: "Tokens/s", numeric: true, falls: true, value: (row) => row.reputation.tokens_per_s, cell: (row) => number(row.reputation.tokens_per_s, 1) },
    { key: "load", title: "Busy", numeric: true, falls: true, value: (row) => row.active + row.queued, cell: (row) => `${row.active} of ${row.slots}${row.queued ? `, ${row.queued} waiting` : ""}` },
    { key: "kept", title: "Kept its word", numeric: true, falls: true, value: (row) => row.reputation.low, cell: (row) => reputation(row.reputation) },
    { key: "why", title: "Why", wide: true, cell: (row) => row.why },
  ], rows, { sort: "place", text: (row) => `${row.peer} ${row.model} ${row.why} ${row.wallet}`, empty: "No host is seen yet: a host that has just started is found within a minute.", ...options });
}

function reputation(known) {
  const turns = known.kept + known.broken;
  return turns ? `${percent(known.low)} to ${percent(known.high)}` : "not known";
}

function oneHost(place, id) {
  let asked = false;
  let host = null;
  let problem = "";
  async function ask(known) {
    try { host = await get(`hosts/${encodeURIComponent(id)}`); problem = ""; } catch (error) { problem = error.message; }
    paint(known);
  }
  function paint(known) {
    const own = known.node && known.node.host && known.node.host.peer_id === id;
    replace(place,
      card(own ? "This host" : "Host", h("p", null, h("code", { class: "long" }, id)),
        problem && h("p", { class: "notice bad", role: "alert" }, problem),
        !host && !problem && waiting(),
        host && facts([
          ["Answers now", host.answers_now ? badge("good", "yes") : badge("bad", "no")],
          ["About to leave", host.draining ? "yes" : "no"],
          ["Advert of", time(host.issued_at)],
          ["Good until", time(host.expires_at)],
        ])),
      host && host.offers.map((offer) => card(offer.model,
        h("p", { class: "verdict" }, offer.place === null ? badge("warn", "Left out") : badge("good", `Place ${offer.place} of ${offer.of}`)),
        h("p", null, capital(offer.why)),
        facts([
          ["Model", model(offer.model)],
          ["Price per million tokens", price(offer)],
          offer.session_fee > 0 && ["Fee of a session", usdc(offer.session_fee)],
          ["Engine", offer.engine || "not said"],
          ["Quantisation", offer.quantisation || "not said"],
          ["Context", number(offer.n_ctx)],
          ["State", offer.state === "warm" ? "loaded" : `${offer.state}, ${offer.warm_in_s} s`],
          ["Busy", `${offer.active} of ${offer.slots}, ${offer.queued} waiting`],
          ["Can", offer.can.join(", ") || "text"],
          ["Expected time of an answer", seconds(offer.score)],
          ["Expected cost of an answer", usdc(offer.cost)],
        ]),
        h("h3", null, "Measured here"),
        facts([
          ["First token", seconds(offer.reputation.ttft_s)],
          ["Tokens/s", number(offer.reputation.tokens_per_s, 1)],
          ["Turns kept", number(offer.reputation.kept)],
          ["Turns broken", number(offer.reputation.broken)],
          ["Keeps its word", reputation(offer.reputation)],
          ["Tokens with receipts", number(offer.reputation.receipted)],
          ["Breaches of the protocol", number(offer.reputation.faults)],
          offer.stake > 0 && ["At stake, FAB", number(offer.stake / 1e18, 2)],
        ]),
        h("details", null, h("summary", null, "Addresses and wallet"), h("ul", { class: "plain" }, offer.addresses.map((each) => h("li", null, h("code", { class: "long" }, each))), h("li", null, "Wallet ", h("code", { class: "long" }, offer.wallet)))))),
      back("#/hosts", "All hosts"));
  }
  return {
    update(known, changed) {
      if (!asked || changed === "market") { asked = true; ask(known); }
      if (!changed) paint(known);
    },
  };
}

// ---- sessions and requests

export function sessions(place) {
  return drawn(place, ["sessions", "requests"], (known) => [
    known.requests && (failed(known.requests) || [
      card("Requests of the gateway", figures(known.requests), outcomes(known.requests.outcomes), requestsTable(known.requests)),
      card("What happened to answers", happenings(known.requests.events)),
    ]),
    known.sessions && card("Paid sessions that are live", failed(known.sessions) || table("sessions", "Paid sessions", [
      { key: "session", title: "Session", cell: (row) => h("code", null, short(row.session)) },
      { key: "as", title: "As" },
      { key: "state", title: "State" },
      { key: "peer", title: "With", cell: (row) => row.as === "client" ? peer(row.peer) : short(row.peer) },
      { key: "model", title: "Model", cell: (row) => model(row.model) },
      { key: "deposit", title: "Deposit", numeric: true, falls: true, cell: (row) => usdc(row.deposit) },
      { key: "amount", title: "Signed", numeric: true, falls: true, cell: (row) => usdc(row.amount) },
      { key: "tokens_out", title: "Tokens in, out", numeric: true, falls: true, cell: (row) => `${number(row.tokens_in)}, ${number(row.tokens_out)}` },
      { key: "opened_at", title: "Opened", falls: true, cell: (row) => time(row.opened_at) },
      { key: "left_until", title: "Kept until", cell: (row) => time(row.left_until) },
    ], known.sessions.live, { sort: "opened_at", down: true, empty: "No paid session is live." })),
  ]);
}

const WHOLE = ["ok", "stop", "length", "tool_calls"]; // as the gateway and as a host names an answer that is whole
const STOPPED = ["left", "cancelled"];
const ENDS = { ok: "answered", stop: "ended by itself", length: "reached the limit of tokens", tool_calls: "called tools", left: "stopped by the client", cancelled: "stopped by the client" };

function endedWords(outcome) {
  return ENDS[outcome] || outcome.replaceAll("_", " ");
}

function outcomes(counts) {
  const names = Object.entries(counts);
  return names.length > 0 && h("p", { class: "tags" }, "Outcomes: ", names.map(([name, count]) => {
    const kind = WHOLE.includes(name) ? "good" : STOPPED.includes(name) ? "plain" : "warn";
    return [badge(kind, `${endedWords(name)}: ${count}`), " "];
  }));
}

function requestsTable(requests) {
  return table("requests", "The last requests", [
    { key: "at", title: "Ended", falls: true, cell: (row) => time(row.at) },
    { key: "face", title: "By" },
    { key: "model", title: "Model", cell: (row) => row.model ? model(row.model) : "–" },
    { key: "host", title: "Host", cell: (row) => peer(row.host) },
    { key: "outcome", title: "Outcome", cell: (row) => badge(row.outcome === "ok" ? "good" : row.outcome === "left" ? "plain" : "bad", endedWords(row.outcome)) },
    { key: "ttft_s", title: "First token", numeric: true, cell: (row) => seconds(row.ttft_s) },
    { key: "total_s", title: "In all", numeric: true, cell: (row) => seconds(row.total_s) },
    { key: "tokens_out", title: "Tokens in, cached, out", numeric: true, falls: true, cell: (row) => `${number(row.tokens_in)}, ${number(row.reused)}, ${number(row.tokens_out)}` },
    { key: "cost", title: "Cost", numeric: true, falls: true, cell: (row) => usdc(row.cost) },
    { key: "key_id", title: "Key", cell: (row) => row.key_id || "none" },
  ], requests.last, { sort: "at", down: true, empty: "Nothing was asked yet." });
}

const HAPPENED = {
  host: "answers",
  "host.failed": "failed",
  "host.slow": "was too slow",
  failover: "goes on with the answer",
  hedge: "is asked, too, for another one is late",
  stranger: "is not one that you trust, and no other was there",
  "session.left": "had a session that was left with it",
  "session.gone": "closed a session before its time",
  "session.elsewhere": "has its session in use elsewhere",
  "session.in_use": "has its session in use by another process",
  "engine.restarted": "started its engine again",
  "answer.cut": "an answer was cut short",
  "deposit.waiting": "waits for a deposit",
};

function happenings(events) {
  if (!events.length) return h("p", { class: "empty" }, "Nothing yet.");
  return h("ol", { class: "log" }, events.slice(0, 50).map((each) => h("li", null, time(each.at), " ", each.peer ? peer(each.peer) : "", " ", HAPPENED[each.event] || each.event, each.reason ? `: ${each.reason}` : "")));
}

// ---- money

export function money(place) {
  return drawn(place, ["money", "requests", "node"], (known) => {
    const found = known.money;
    if (!found) return waiting();
    if (found.error) return failed(found);
    return [
      card("Earned as a host", away(known.node), found.earned ? earnings(found.earned) : hint("No paid session was served from this data dir.")),
      card("Spent as a client", found.spent ? spending(found.spent, found.limits) : [hint("No paid session was bought from this data dir."), limits(found.limits)]),
      card("Keys", keys(found.keys)),
      known.requests && !known.requests.error && card("By key and model, since the gateway started",
        sums("keys", "Key", "key", known.requests.keys), sums("by-model", "Model", "model", known.requests.models)),
      hint(found.chain ? `Paid on ${found.chain}. ` : "No chain is configured: only free hosts are asked. ", h("code", null, "p2pnode funds"), " asks the chain for the rest, and withdraws."),
    ];
  });
}

function earnings(all) {
  return [
    facts([["Settled", usdc(all.earned)], ["Not settled yet", usdc(all.owed)], ["Sessions", number(all.sessions)]]),
    bars("By day, 30 days", all.days.map((each) => ({ name: each.day, value: each.units })), usdc),
    bars("By week, 12 weeks", all.weeks.map((each) => ({ name: each.week, value: each.units })), usdc),
    byModel("earned-models", all.models),
    h("h3", null, "Stuck"),
    table("stuck", "Money that waits", [
      { key: "units", title: "Amount", falls: true, cell: (row) => usdc(row.units) },
      { key: "why", title: "Why", wide: true },
      { key: "until", title: "Until", cell: (row) => time(row.until) },
      { key: "session", title: "Session", cell: (row) => h("code", null, short(row.session)) },
    ], all.stuck, { sort: "units", down: true, empty: "Nothing is stuck." }),
    hint("By the day on which a session was opened; the treasury's tenth is part of each amount."),
  ];
}

function spending(all, most) {
  return [
    facts([["Spent", usdc(all.spent)], ["Locked in deposits", usdc(all.locked)], ["Signed of that", usdc(all.signed)], ["Sessions", number(all.sessions)]]),
    bars("By day, 30 days", all.days.map((each) => ({ name: each.day, value: each.units })), usdc),
    byModel("spent-models", all.models),
    limits(most),
  ];
}

function limits(most) {
  return [h("h3", null, "Limits"), facts([["Session", usdc(most.session)], ["Day", usdc(most.day)], ["Host", usdc(most.host)]])];
}

function byModel(id, rows) {
  return table(id, "By model", [
    { key: "model", title: "Model", cell: (row) => model(row.model) },
    { key: "units", title: "Amount", numeric: true, falls: true, cell: (row) => usdc(row.units) },
    { key: "sessions", title: "Sessions", numeric: true, falls: true },
  ], rows, { sort: "units", down: true });
}

function keys(rows) {
  return [
    table("key-budgets", "Keys and their budgets", [
      { key: "name", title: "Key" },
      { key: "state", title: "State", cell: (row) => badge(row.state === "valid" ? "good" : "warn", row.state) },
      { key: "spent", title: "Spent, of", numeric: true, falls: true, cell: (row) => `${usdc(row.spent)} of ${most(row.budget)}` },
      { key: "spent_day", title: "In 24 hours, of", numeric: true, falls: true, cell: (row) => `${usdc(row.spent_day)} of ${most(row.per_day)}` },
      { key: "claimed", title: "Under way", numeric: true, falls: true, cell: (row) => usdc(row.claimed) },
      { key: "expires_at", title: "Ends", cell: (row) => time(row.expires_at) },
    ], rows, { empty: "There is no key yet." }),
    hint(h("code", null, "p2pnode keys new NAME"), " makes one for an app or a person."),
  ];
}

function most(units) {
  return units === null ? "no limit" : usdc(units);
}

function sums(id, title, key, rows) {
  return table(id, `By ${title.toLowerCase()}`, [
    { key, title },
    { key: "requests", title: "Requests", numeric: true, falls: true },
    { key: "failed", title: "Failed", numeric: true, falls: true },
    { key: "tokens_in", title: "Tokens in", numeric: true, falls: true, cell: (row) => number(row.tokens_in) },
    { key: "reused", title: "Cached", numeric: true, falls: true, cell: (row) => number(row.reused) },
    { key: "tokens_out", title: "Tokens out", numeric: true, falls: true, cell: (row) => number(row.tokens_out) },
    { key: "cost", title: "Cost", numeric: true, falls: true, cell: (row) => usdc(row.cost) },
  ], rows, { sort: "requests", down: true, empty: "Nothing was asked yet." });
}

// ---- the network over time

export function network(place) {
  let long = false;
  const page = drawn(place, ["network"], (known) => {
    const found = known.network;
    if (found.error) return failed(found);
    const samples = long ? found.half_hours : found.minutes;
    const of = (key) => samples.map((each) => ({ at: each.at, value: each[key] }));
    const names = [...new Set(samples.flatMap((each) => Object.keys(each.hosts_of)))];
    const choose = (value, words) => h("button", { id: `range-${value}`, type: "button", "aria-pressed": String(long === value), onclick: () => { long = value; page.update(known); } }, words);
    return [
      h("p", { class: "choice", role: "group", "aria-label": "How long" }, choose(false, "Three hours"), choose(true, "A week")),
      card("What this node has seen", hint("A sample a minute, of all adverts that are good then. It is kept in memory, and begins anew with the gateway."),
        line("Hosts", of("hosts"), (value) => number(value, 1)),
        line("Models", of("models"), (value) => number(value, 1)),
        line("Slots of all hosts", of("slots"), (value) => number(value, 1)),
        line("Slots busy", of("active"), (value) => number(value, 1)),
        line("Price out, median of those who ask", of("price_out"), (value) => `${usdc(value)}/M`)),
      names.length > 0 && card("Hosts by model", names.map((name) => line(name, samples.map((each) => ({ at: each.at, value: each.hosts_of[name] || 0 })), (value) => number(value, 1)))),
    ];
  });
  return page;
}

// ---- the node: storage, checks, log

export function node(place) {
  const checks = h("div", { id: "checks" });
  const rest = h("div", null);
  let level = "all";
  place.append(card("Checks",
    hint("What ", h("code", null, "p2pnode doctor"), " finds here."),
    h("p", null, h("button", { type: "button", onclick: (event) => examine(event.target, checks) }, "Run the checks")), checks), rest);
  const page = drawn(rest, ["node", "storage", "log"], (known) => [
    known.node && !known.node.error && card("Node", facts([
      ["Data dir", h("code", { class: "long" }, known.node.data_dir)],
      ["Peers", number(known.node.peers)],
      ["Conversations that keep their host", number(known.node.gateway.conversations)],
      known.node.host && ["Process", String(known.node.host.pid)],
    ])),
    known.storage && card("Storage", failed(known.storage) || (known.storage.store ? storage(known.storage.store) : hint("Nothing is stored here yet."))),
    known.log && card("Log", failed(known.log) || [
      h("p", { class: "search" }, h("label", { for: "level" }, "Level"),
        h("select", { id: "level", onchange: (event) => { level = event.target.value; page.update(known); } }, ["all", "warning", "error"].map((each) => h("option", { value: each, selected: each === level }, each)))),
      lines(known.log.lines.filter((each) => level === "all" || each.level === level || (level === "warning" && each.level === "error"))),
    ]),
    card("This browser", h("p", null, h("button", { id: "sign-out", type: "button", onclick: async () => { await signOut(); location.reload(); } }, "Sign out all browsers")),
      hint("All links and sessions end; ", h("code", null, "p2pnode dashboard"), " prints a new link.")),
  ]);
  return page;
}

function storage(store) {
  const share = store.charged / store.bytes_max;
  return [
    h("p", null, h("meter", { min: 0, max: 1, value: share, high: 0.9, "aria-label": "Share of the store that is used" }), ` ${bytes(store.charged)} of ${bytes(store.bytes_max)}`),
    facts([["Blobs", number(store.blobs)], ["Bytes", bytes(store.bytes)], ["Leases", number(store.leases)], ["Registry entries", number(store.keys)], ["Most for one owner", bytes(store.owner_bytes_max)]]),
  ];
}

function lines(entries) {
  if (!entries.length) return h("p", { class: "empty" }, "Nothing was logged at this level.");
  return h("ol", { class: "log" }, entries.slice(0, 200).map((each) => {
    const { event, level, timestamp, ...fields } = each;
    const kind = level === "error" ? "bad" : level === "warning" ? "warn" : "plain";
    const rest = Object.entries(fields).map(([name, value]) => `${name}=${value}`).join("  ");
    return h("li", null, h("time", { datetime: timestamp }, (timestamp || "").slice(0, 19).replace("T", " ")), " ", badge(kind, level), " ", h("strong", null, event), rest && h("code", { class: "long" }, " ", rest));
  }));
}

async function examine(button, place) {
  button.disabled = true;
  place.replaceChildren(h("p", { class: "empty", role: "status" }, "Checking: this takes some seconds…"));
  const found = [];
  try {
    await stream("checks", undefined, undefined, (name, finding) => {
      if (name === "finding") found.push(finding);
      const done = name === "end" && !found.length && hint("The gateway was started without checks: run ", h("code", null, "p2pnode doctor"), ".");
      replace(place, done, h("ul", { class: "reasons" }, found.map((each) => h("li", null,
        badge({ ok: "good", warning: "warn", problem: "bad" }[each.verdict], each.check), ` ${each.detail}`, each.remedy && h("div", { class: "notice warn" }, h("strong", null, "What to do: "), each.remedy)))));
    });
  } catch (error) {
    place.replaceChildren(h("p", { class: "notice bad", role: "alert" }, error.message));
  }
  button.disabled = false;
}

function back(to, words) {
  return h("p", null, h("a", { href: to }, `← ${words}`));
}

function capital(text) {
  return text ? text[0].toUpperCase() + text.slice(1) : "";
}
