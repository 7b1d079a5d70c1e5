// The node's API: signing in with a link, single answers, and streams of events.
// The page's secret is kept for this address and port alone; the cookie beside it is out of any script's reach.

const SECRET = "p2pnode.dashboard.secret";
const HEADER = "x-p2pnode-dashboard";
const ROOT = "/dashboard/api/";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Whether the part of an address behind its # is a link's token.
export function isToken(hash) {
  return /^#[0-9a-f]+\.[0-9a-f]+\.[0-9a-f]+$/.test(hash);
}

// Uses the token of a link, which stands behind the # of the address, and takes it out of there.
export async function signIn() {
  if (!isToken(location.hash)) return;
  const token = location.hash.slice(1);
  history.replaceState(null, "", "/dashboard/#/");
  const answer = await ask("sign-in", { token }, "sign-in");
  localStorage.setItem(SECRET, answer.secret);
}

export function isSignedIn() {
  return localStorage.getItem(SECRET) !== null;
}

export async function signOut() {
  await post("sign-out", {});
  localStorage.removeItem(SECRET);
}

export function get(path) {
  return ask(path);
}

export function post(path, body) {
  return ask(path, body);
}

async function ask(path, body, secret) {
  const answer = await send(path, body, secret);
  return answer.json();
}

async function send(path, body, secret, signal) {
  const headers = { [HEADER]: secret || localStorage.getItem(SECRET) || "" };
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(ROOT + path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    credentials: "same-origin",
    cache: "no-store",
    signal,
  });
  if (answer.ok) return answer;
  let message = `the node answered ${answer.status}`;
  try { message = (await answer.json()).error.message; } catch { /* it said no more */ }
  if (answer.status === 401) localStorage.removeItem(SECRET);
  throw new ApiError(answer.status, message);
}

// Calls told(event, data) for each event, until the stream or the signal ends.
export async function stream(path, body, signal, told) {
  const answer = await send(path, body, undefined, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const frames = text.split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      let name = "message";
      let data = "";
      for (const line of frame.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (data) told(name, JSON.parse(data));
    }
  }
}
