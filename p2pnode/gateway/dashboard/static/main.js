// Which page is shown, and the node's events that keep it fresh.

import { ApiError, isSignedIn, isToken, signIn, stream } from "./api.js";
import { chatPage } from "./chat.js";
import { h, replace } from "./dom.js";
import * as pages from "./pages.js";

// name in the address: [title, sections of the node that it shows, how it is drawn, whether it stands above]
const PAGES = {
  "": ["Overview", ["node", "money", "market", "requests"], pages.overview],
  chat: ["Chat", ["market"], chatPage],
  models: ["Models", ["market", "requests"], pages.models],
  hosts: ["Hosts", ["market"], pages.hosts],
  sessions: ["Sessions", ["sessions", "requests"], pages.sessions],
  money: ["Money", ["money", "requests"], pages.money],
  network: ["Network", ["network"], pages.network],
  node: ["Node", ["node", "storage", "log"], pages.node],
};

const content = document.getElementById("content");
const live = document.getElementById("live");
const known = {}; // the last state of each section
let shown = null; // the page that is shown: {name, parts, update}
let watching = null; // ends the stream of the page that was shown before

function route() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  return PAGES[name] ? { name, parts: rest } : { name: "", parts: [] };
}

function show() {
  const { name, parts } = route();
  const [title, sections, page] = PAGES[name];
  document.title = `${parts[0] ? `${parts[0].slice(-12)} – ` : ""}${title} – p2pnode`;
  replace(document.getElementById("nav"), h("ul", null, Object.entries(PAGES).map(([each, [text]]) =>
    h("li", null, h("a", { id: `nav-${each || "overview"}`, href: `#/${each}`, "aria-current": each === name ? "page" : null }, text)))));
  if (shown && shown.leave) shown.leave();
  const place = h("div", { class: `page ${name || "overview"}` });
  content.replaceChildren(h("h1", null, title), place);
  shown = page(place, parts, known) || {};
  if (shown.update) shown.update(known);
  watch(sections);
}

async function watch(sections) {
  if (watching) watching.abort();
  const mine = (watching = new AbortController());
  for (let waits = 1; !mine.signal.aborted; waits = Math.min(30, waits * 2)) {
    try {
      await stream(`events?sections=${sections.join(",")}`, undefined, mine.signal, (name, data) => {
        known[name] = data;
        waits = 1;
        say("live", "good");
        if (!mine.signal.aborted && shown.update) shown.update(known, name);
      });
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error instanceof ApiError && error.status === 401) return askForLink(error.message);
    }
    if (mine.signal.aborted) return;
    say("the node does not answer: trying again", "bad");
    await new Promise((resolve) => setTimeout(resolve, waits * 1000));
  }
}

function say(text, kind) {
  if (live.textContent !== text) live.textContent = text;
  live.className = `live ${kind}`;
}

function askForLink(why) {
  if (watching) watching.abort();
  document.getElementById("nav").replaceChildren();
  say("", "");
  content.replaceChildren(
    h("h1", null, "Sign in"),
    h("section", { class: "card" },
      h("p", { role: "alert" }, why || "This browser is not signed in yet."),
      h("p", null, "On the machine that runs the node, run"),
      h("pre", null, h("code", null, "p2pnode dashboard")),
      h("p", null, "and open the link that it prints. Each link works once; the browser then stays signed in for 30 days.")));
}

async function begin() {
  try {
    await signIn();
  } catch (error) {
    if (!isSignedIn()) return askForLink(error.message);
  }
  if (!isSignedIn()) return askForLink();
  addEventListener("hashchange", () => {
    if (isToken(location.hash)) return location.reload();
    show();
    content.focus({ preventScroll: true });
    scrollTo(0, 0);
  });
  show();
}

begin();
