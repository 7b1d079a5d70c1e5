// A host of free sessions whose engine counts: its answer is "1 2 3 …", or a call of a tool with these numbers. Two
// turns of a session at once. Written from protocols/adverts/SPEC.md and protocols/inference/SPEC.md.
import { randomBytes } from 'node:crypto'

import { Malformed, join, pack, same, unpack, utf8 } from './codec.mjs'
import { Messages, bindingDigest, profileHash, sheetHash } from './messages.mjs'
import { sha256 } from './names.mjs'
import { addressOf, signDigest } from './payment.mjs'
import {
  CHECKPOINT, Leaf, NO_HASH, idsHash, nextRoot, receiptDigest, requestHash, rootZero, tokenHash
} from './receipts.mjs'

// Made as the id of the scripted engine is: the hash of no manifest.
export const offered = { model: sha256(utf8('p2pnode/model/1\0counting')) }
const TURNS_MAX = 2
const WINDOW = CHECKPOINT * (TURNS_MAX + 1)
const READ_CREDIT = 256
const N_CTX = 4096
const PROMPT_MAX = 8 * N_CTX + 4096
const DAY_S = 86400
const CAPS = 1 + 64 // tools, parallel turns

const PROFILE = { engine: 'counting', build: '1' }

const makeSheet = (key, address) => pack({
  peer: key.peer,
  offers: [{ model: offered.model, name: 'counting', profile: PROFILE, slots: TURNS_MAX, turns_max: TURNS_MAX }],
  addresses: [address]
})

export function makeAdvert (key, wallet, address, now = Math.floor(Date.now() / 1000)) {
  const binding = {
    w: addressOf(wallet), r: addressOf(wallet), c: 0, n: Buffer.alloc(20), s: now, x: now + 7 * DAY_S
  }
  binding.g = signDigest(wallet, bindingDigest(key.peer, binding))
  const sheet = makeSheet(key, address)
  const body = pack({
    p: key.peer,
    i: randomBytes(8),
    s: now * 1000,
    f: now,
    x: now + 90,
    b: binding,
    a: [{ a: address, d: true }],
    o: [{ m: offered.model, c: N_CTX, i: 0, o: 0, f: 0, w: 0, k: CAPS, h: profileHash(PROFILE) }],
    l: { s: TURNS_MAX, a: 0, q: 0 },
    d: false,
    h: sheetHash(sheet),
    v: 1
  })
  return { body, signature: key.sign(join(utf8('p2pnode/advert/1\0'), body)) }
}

// Answers at most 4 questions on a stream.
export async function serveAdverts (stream, key, wallet, address) {
  const messages = new Messages(stream)
  for (let asked = 0; asked < 4; asked++) {
    const question = await messages.hear('get', 'sample', 'get_sheet')
    if (question.t === 'get_sheet') {
      const sheet = makeSheet(key, address)
      messages.say('sheet', { body: same(sheetHash(sheet), question.hash) ? sheet : Buffer.alloc(0) })
      continue
    }
    const ours = question.t === 'sample' ? !question.caps : question.peer === key.peer
    messages.say('adverts', { adverts: ours ? [makeAdvert(key, wallet, address)] : [] })
  }
  stream.finish()
}

// ---- sessions

const pause = () => new Promise((resolve) => setTimeout(resolve, 1))
const violation = (why) => { throw new Malformed(why) }

class Refused extends Error {}

const textOf = ({ content = [] }) => content.map(({ kind = 'text', text = '' }) => {
  if (kind !== 'text') throw new Refused('it reads text only')
  return text
}).join('')

// What the engine says to a prompt, an id each: numbers from 1 on, as content or in a call of a tool.
function * pieces (body, most) {
  const { tools = [], tool_choice: choice = 'auto', prefix = [], messages } = body
  const named = choice.startsWith('name:') ? choice.slice(5) : undefined
  const tool = named === undefined ? tools[0] : tools.find(({ name }) => name === named)
  if (choice === 'none' || tool === undefined || (choice === 'auto' && messages.at(-1).role === 'tool')) {
    for (let id = prefix.length + 1; ; id++) yield { id, text: id > 1 ? ` ${id}` : `${id}` }
  }
  const properties = Object.entries(JSON.parse(tool.parameters || '{}').properties ?? {})
  let id = 0
  yield { id: ++id, name: tool.name, channel: 'call' }
  for (const [place, [key]] of properties.entries()) {
    yield { id: ++id, text: `${place > 0 ? ',' : '{'}${JSON.stringify(key)}:"`, channel: 'call' }
    for (let number = 1; number < most / (2 * properties.length); number++) {
      yield { id: ++id, text: number > 1 ? ` ${number}` : '1', channel: 'call' }
    }
    yield { id: ++id, text: '"', channel: 'call' }
  }
  yield { id: ++id, text: properties.length > 0 ? '}' : '{}', channel: 'call' }
}

function check ({ messages = [], tools = [], tool_choice: choice = 'auto', prefix = [], response_format: format }) {
  if (messages.length === 0) throw new Refused('it answers messages')
  if ((format?.kind ?? 'text') !== 'text') throw new Refused('it keeps to no format')
  if (tools.length > 0 && prefix.length > 0) throw new Refused('it goes on with no call')
  if (choice === 'required' && tools.length === 0) throw new Refused('no tool to call')
  if (choice.startsWith('name:') && !tools.some(({ name }) => `name:${name}` === choice)) throw new Refused('no such tool')
  for (const { name, parameters = '' } of tools) {
    const properties = Object.values(JSON.parse(parameters || '{}').properties ?? {})
    if (properties.some(({ type }) => type !== 'string')) throw new Refused(`${name}: it fills in strings only`)
  }
}

// 'reading' until its prompt is whole, then 'serving', at last 'over'.
class Turn {
  constructor (number, total) {
    Object.assign(this, { number, total, state: 'reading', parts: [], bytes: 0, sent: 0, upto: READ_CREDIT, cancelled: false })
  }

  read ({ part, total, last, body }) {
    this.bytes += body.length
    if (part !== this.parts.length || total !== this.total || body.length === 0) violation('a part out of place')
    if (this.bytes > total || last !== (this.bytes === total)) violation('another length than said')
    this.parts.push(body)
  }

  // Counts the prompt, and has the engine begin.
  begin () {
    const bytes = join(...this.parts)
    const body = unpack(bytes)
    check(body)
    const { messages, prefix = [], sampling } = body
    const ids = [...utf8(messages.map(textOf).join('')), ...prefix]
    this.tokensIn = ids.length
    this.promptHash = idsHash(ids)
    this.leaf = new Leaf(this.number, requestHash(bytes))
    this.leaf.prompt = this.promptHash
    this.most = Math.min(sampling?.tokens_max ?? 512, N_CTX - ids.length)
    this.pieces = pieces(body, this.most)
    this.next = this.pieces.next()
    this.state = 'serving'
  }

  // Why it ends before its next token; undefined while it goes on.
  get end () {
    if (this.cancelled) return 'cancelled'
    if (this.next.done) return 'tool_calls'
    return this.sent >= this.most ? 'length' : undefined
  }
}

// Of each session the turn of each id, as they were sent.
export const orders = []

export async function serveSession (stream, key) {
  await new Session(new Messages(stream), key).run()
  stream.finish()
}

class Session {
  constructor (messages, key) {
    Object.assign(this, { messages, key, turns: [], place: 0, out: 0, acked: 0, billed: 0, receipts: 0, receipted: 0 })
    Object.assign(this, { over: false, halfClosed: false, wake: () => {}, order: [] })
  }

  get underWay () { return this.turns.filter(({ state }) => state !== 'over') }

  async run () {
    const open = await this.messages.hear('open', 'resume')
    if (open.t === 'resume') return this.messages.say('refuse', { code: 'bad_request', detail: 'free sessions end here' })
    if (open.terms != null) return this.messages.say('refuse', { code: 'payment_required', detail: 'free only' })
    if (!same(open.model, offered.model)) return this.messages.say('refuse', { code: 'model_not_available', detail: '' })
    this.session = randomBytes(32)
    this.epoch = Date.now()
    this.root = rootZero(this.session, open.model, open.salt)
    orders.push(this.order)
    this.messages.say('accept', {
      session: this.session,
      nonce: randomBytes(32),
      epoch: this.epoch,
      n_ctx: N_CTX,
      window: WINDOW,
      session_fee: 0,
      turns_max: TURNS_MAX,
      keep_s: 0,
      settle_above: 0,
      generation: 0
    })
    await Promise.all([this.read(), this.serve()])
  }

  async read () {
    try {
      while (!this.over) {
        this.take(await this.messages.hear())
        this.wake()
      }
    } catch (error) {
      if (error instanceof Malformed && this.messages.stream.input.over) { this.halfClosed = true; return }
      this.over = true
      if (error instanceof Malformed) this.messages.say('error', { code: 'bad_request', detail: error.message })
      throw error
    } finally { this.wake() }
  }

  take (message) {
    const turn = this.turns[message.turn - 1]
    switch (message.t) {
      case 'close': case 'error': this.over = true; break
      case 'ping': this.messages.say('pong', { nonce: message.nonce }); break
      case 'pong': break
      case 'ack':
        if (message.seq > this.out) violation('more acknowledged than was sent')
        this.acked = Math.max(this.acked, message.seq)
        break
      case 'credit':
        if (turn === undefined || message.upto > turn.sent + READ_CREDIT) violation('credit too far ahead')
        turn.upto = Math.max(turn.upto, message.upto)
        break
      case 'cancel': if (turn !== undefined) this.cancel(turn); break
      case 'prompt': this.takePart(message, turn); break
      default: violation(`${message.t} out of place`)
    }
  }

  takePart (message, known) {
    let turn = known
    if (turn === undefined) {
      if (message.turn !== this.turns.length + 1 || message.part !== 0) violation('a turn out of place')
      if (this.underWay.length >= TURNS_MAX) violation('too many turns')
      if (message.total > PROMPT_MAX) violation('too long a prompt')
      turn = new Turn(message.turn, message.total)
      this.turns.push(turn)
    } else if (turn.state === 'serving') { violation('a part after the last') }
    if (turn.state === 'over') return
    turn.read(message)
    this.messages.say('received', { turn: turn.number, bytes: turn.bytes })
    if (message.last) this.begin(turn)
  }

  begin (turn) {
    try {
      turn.begin()
    } catch (error) {
      turn.state = 'over'
      const detail = error.message.slice(0, 200)
      this.messages.say('error', { code: 'bad_request', detail, turn: turn.number })
      return
    }
    this.billed += turn.tokensIn
    // A format, since there may be calls; nobody else has the vocabulary of this engine.
    this.messages.say('quote', {
      turn: turn.number,
      tokens_in: turn.tokensIn,
      prompt_hash: turn.promptHash,
      reused: 0,
      format: 'hermes/1',
      reasons: false,
      thinking: false
    })
  }

  cancel (turn) {
    if (turn.state === 'serving') turn.cancelled = true
    if (turn.state === 'reading') this.done(turn, 'cancelled', 0)
  }

  // The turns in turn, an id each, as far as both credits reach.
  async serve () {
    while (!this.over) {
      const turn = this.ready()
      if (turn !== undefined) { this.step(turn); await pause() } else if (this.halfClosed) {
        if (this.underWay.length > 0) this.messages.say('error', { code: 'stalled', detail: 'nothing more can come' })
        return
      } else { await new Promise((resolve) => { this.wake = resolve }) }
    }
  }

  ready () {
    const serving = this.turns.filter(({ state }) => state === 'serving')
    const able = serving.filter(({ end, sent, upto }) => end !== undefined || (sent < upto && this.out - this.acked < WINDOW))
    return able.find(({ number }) => number > this.place) ?? able[0]
  }

  step (turn) {
    this.place = turn.number
    const { end } = turn
    if (end !== undefined) {
      this.checkpoint([{ turn: turn.number, reason: end }])
      this.done(turn, end, turn.tokensIn)
      return
    }
    const { id, text = '', channel = 'content', name = '' } = turn.next.value
    turn.next = turn.pieces.next()
    const message = {
      turn: turn.number, index: turn.sent, ids: [id], text, channel, call: 0, name, start: '', logprobs: []
    }
    this.messages.say('tokens', message)
    turn.leaf.take(message)
    turn.sent++
    this.out++
    this.order.push(turn.number)
    if (this.out - this.receipted === CHECKPOINT) this.checkpoint([])
  }

  checkpoint (ended) {
    const ends = new Map(ended.map(({ turn, reason }) => [turn, reason]))
    const moved = this.turns.filter(({ state, leaf, number }) => state === 'serving' && (leaf.moved || ends.has(number)))
    const tokens = tokenHash(moved.map(({ leaf, number }) => leaf.cut(ends.get(number))))
    const seq = ++this.receipts
    this.receipted = this.out
    this.root = nextRoot(this.root, seq, this.billed, this.out, tokens, NO_HASH)
    this.messages.say('checkpoint', {
      seq,
      tokens_in: this.billed,
      tokens_out: this.out,
      token_hash: tokens,
      fingerprint_hash: NO_HASH,
      root: this.root,
      signature: this.key.sign(receiptDigest(this.session, this.epoch, this.root)),
      ended
    })
  }

  done (turn, reason, tokensIn) {
    turn.state = 'over'
    this.messages.say('done', { turn: turn.number, reason, tokens_in: tokensIn, reused: 0, tokens_out: turn.sent })
  }
}
