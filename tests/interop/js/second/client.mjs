// A client's session, free or paid (see payment.mjs), with as many turns at once as the host grants. It has no
// timers. Written from protocols/inference/SPEC.md.
import { randomBytes } from 'node:crypto'

import { Float, Malformed, pack, same, utf8 } from './codec.mjs'
import { quoteMax } from './generic.mjs'
import { Messages, abi, hash } from './messages.mjs'
import { holds, keyOf } from './names.mjs'
import { addressOf, signDigest } from './payment.mjs'
import { CHECKPOINT, Leaf, nextRoot, receiptDigest, requestHash, rootZero, tokenHash } from './receipts.mjs'

const PART = 8192
const UPLOAD_MAX = 32768
const READ_CREDIT = 256
const START_DISTANCE = 32
const VECTOR_CREDIT = 262144 // bytes
const FLOAT_BYTES = 4
const TEXT_OF_PREFIX = 4096
const TEXT_PER_ID = 1024
const HOLDER = randomBytes(16)
const CALLS_MAX = 128
const COUNTED = ['quote', 'tokens', 'vector', 'checkpoint', 'done', 'error']
const TAKEN = ['received', 'progress', 'ping', 'pong', ...COUNTED]
const violation = (why) => { throw new Malformed(why) }

// ---- prompts

const SAMPLING = {
  tokens_max: 512,
  temperature: new Float(0.7),
  top_p: new Float(0.95),
  top_k: 40,
  min_p: new Float(0.05),
  repeat_penalty: new Float(1),
  presence_penalty: new Float(0),
  frequency_penalty: new Float(0),
  logit_bias: [],
  stop: []
}

const messageOf = ({ role, text, content, tool_calls: calls = [], tool_call_id: answers, name = '' }) => ({
  role,
  content: content ?? (text === undefined ? [] : [{ kind: 'text', text, data: Buffer.alloc(0), mime: '' }]),
  tool_calls: calls.map(({ id, name: tool, arguments: given }) => ({ id, name: tool, arguments: given })),
  tool_call_id: answers,
  name
})

// A `PromptBody`, whole: what is not given has its default. Of a message `text` may stand for its `content`.
export const promptOf = ({ messages = [], tools = [], sampling = {}, ...others }) => ({
  messages: messages.map(messageOf),
  embed: [],
  tools: tools.map(({ name, description = '', parameters = '' }) => ({ name, description, parameters })),
  tool_choice: 'auto',
  parallel_tool_calls: true,
  response_format: { kind: 'text', body: '' },
  sampling: Object.fromEntries(Object.entries(SAMPLING).map(([name, usual]) => {
    const value = sampling[name] ?? usual
    return [name, usual instanceof Float && !(value instanceof Float) ? new Float(value) : value]
  })),
  seed: randomBytes(16),
  logprobs: -1,
  cache_key: undefined,
  now: undefined,
  prefix: [],
  text_bytes: undefined,
  ...others
})

// ---- turns

// One turn: 'asked' until its quote, 'quoted' until its input is paid, then 'paid', at last 'over'.
class Turn {
  constructor (number, prompt, body, late) {
    Object.assign(this, { number, prompt, late, state: 'asked', quote: undefined, cancelled: false, ended: undefined })
    Object.assign(this, { text: '', reasoning: '', calls: [], starts: [], ids: 0, bytes: 0 })
    this.leaf = new Leaf(number, requestHash(body))
    this.unconfirmed = 0 // bytes of its prompt
    this.vectors = []
    this.vectorBytes = 0
    this.embeds = prompt.embed.length > 0
    this.credit = this.embeds ? VECTOR_CREDIT : READ_CREDIT
    this.upto = this.credit
    this.stops = 0 // how often that was used up
    this.answer = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }))
    this.answer.catch(() => {}) // whoever awaits it is told, whenever that is
  }

  get came () { return this.embeds ? this.vectorBytes : this.ids }
  get billed () { return this.quote === undefined ? 0 : this.quote.tokens_in - (this.quote.reused ?? 0) }

  take (message) {
    const { index, ids, text = '', channel = 'content', call = 0, name = '', start = '', logprobs = [] } = message
    if (this.embeds) violation('tokens of texts to embed')
    if (index !== this.ids) violation('tokens at a wrong index')
    if (ids.length === 0 && text === '' && name === '') violation('tokens of nothing')
    if (this.ids + ids.length > this.prompt.sampling.tokens_max) violation('too many tokens')
    if (this.ids + ids.length > this.upto) violation('tokens past the read credit')
    if (this.ids < this.upto && this.ids + ids.length === this.upto) this.stops++
    const asked = this.prompt.logprobs >= 0
    if (logprobs.length > 0 && (!asked || logprobs.length !== ids.length)) violation('logprobs of other ids')
    if (start !== '') this.begin(start, index)
    this.leaf.take(message)
    this.ids += ids.length
    this.bytes += utf8(text).length + utf8(name).length
    const slack = this.prompt.prefix.length > 0 ? TEXT_OF_PREFIX : 0
    if (this.bytes > slack + TEXT_PER_ID * this.ids) violation('too much text')
    if (channel === 'call') this.takeCall(call, name, text)
    else if (name !== '' || call !== 0) violation('a call on another channel')
    else if (channel === 'reasoning') this.reasoning += text
    else this.text += text
  }

  takeCall (call, name, text) {
    const { tools, tool_choice: choice, parallel_tool_calls: parallel } = this.prompt
    if (choice === 'none' || tools.length === 0) violation('a call without tools')
    if (name !== '' && !tools.some((tool) => tool.name === name)) violation('a tool that was not offered')
    if (call >= (parallel ? CALLS_MAX : 1)) violation('too many calls')
    if (call > this.calls.length) violation('a call out of order')
    if (call === this.calls.length) {
      if (name === '') violation('a call without a name')
      this.calls.push({ name, arguments: '', pieces: 0 })
    } else if (name !== '') { violation('a name after the first piece') }
    this.calls[call].arguments += text
    if (text !== '') this.calls[call].pieces++
  }

  takeVector (message) {
    const { index, data } = message
    if (!this.embeds) violation('a vector of no text')
    if (index !== this.vectors.length || index >= this.prompt.embed.length) violation('a vector of another text')
    if (data.length % FLOAT_BYTES !== 0) violation('a part of a number')
    const numbers = Array.from({ length: data.length / FLOAT_BYTES }, (_, n) => data.readFloatLE(FLOAT_BYTES * n))
    if (index > 0 && numbers.length !== this.vectors[0].length) violation('a vector of another size')
    if (!numbers.every(Number.isFinite)) violation('a number that is none')
    if (this.vectorBytes + data.length > this.upto) violation('a vector past the read credit')
    this.leaf.takeVector(message)
    this.vectors.push(numbers)
    this.vectorBytes += data.length
  }

  begin (cause, index) {
    const before = this.starts.filter((start) => start.cause === cause).at(-1)
    if (before !== undefined && (cause === 'restart' || index - before.index < START_DISTANCE)) violation('too many starts')
    this.starts.push({ cause, index })
  }

  told (reason, code) {
    const { number, text, reasoning, ids, calls, starts, stops, stop = '', quote, vectors } = this
    const { format = '' } = quote ?? {}
    return { turn: number, format, text, reasoning, ids, calls, vectors, starts, stops, stop, reason, code, tokens_in: quote?.tokens_in ?? 0 }
  }
}

// ---- the session

const signedByHost = ({ payment, host }, digest, signature) =>
  payment === undefined ? holds(keyOf(host), digest, signature) : payment.signedReceipt(digest, signature)

export const resumeDigest = (nonce, session, host, client) =>
  hash(abi(hash(utf8('p2pnode/resume/1')), nonce, session, hash(utf8(host)), hash(utf8(client))))

// Where a session goes on that was left: what the host shows is checked, by our key and by its own.
export function goesOn (known, { epoch, receipt, voucher }, begin) {
  const { session, payment } = known
  const from = { ...begin }
  if (receipt != null) {
    const { previous, checkpoint } = receipt
    const { seq, tokens_in: tokensIn, tokens_out: tokensOut, token_hash: tokens, root } = checkpoint
    const made = nextRoot(previous, seq, tokensIn, tokensOut, tokens, checkpoint.fingerprint_hash)
    const signed = signedByHost(known, receiptDigest(session, receipt.epoch, root), checkpoint.signature)
    if (!same(made, root) || !signed || receipt.epoch > epoch) violation('a receipt that does not hold')
    Object.assign(from, { root, seq, in: tokensIn, out: tokensOut })
  }
  if (payment === undefined) return from
  if (voucher == null) return { ...from, in: 0, out: 0 }
  if (!payment.holds(voucher) || voucher.seq > from.seq) violation('a voucher that does not hold')
  return { ...from, in: voucher.tokens_in, out: voucher.tokens_out }
}

export class Session {
  // `keepS`: for how many seconds it may be left.
  static async open (connection, model, payment, keepS = 0) {
    const messages = await Messages.open(connection, '/p2pnode/inference/1')
    const [salt, secret] = [randomBytes(32), payment?.key ?? randomBytes(32)]
    const { terms, authorisation, validBefore = 0 } = payment ?? {}
    messages.say('open', {
      model,
      salt,
      holder: HOLDER,
      terms,
      authorisation,
      valid_before: validBefore,
      keep_s: keepS,
      resume_key: payment === undefined && keepS > 0 ? addressOf(secret) : undefined
    })
    const accepted = await messages.hear('accept')
    payment?.accepted(accepted)
    const begin = { root: rootZero(accepted.session, model, salt), seq: 0, in: 0, out: 0 }
    return new Session(messages, connection.peer, accepted, begin, { payment, secret })
  }

  // Goes on with a session by what `leave` gave, as another process. `us` is our peer id.
  static async resume (connection, us, { session, begin, payment, secret, receipt, voucher, generation }) {
    const messages = await Messages.open(connection, '/p2pnode/inference/1')
    const holder = randomBytes(16)
    const said = { session, holder, received: 0, turn: 0, turns: [] }
    messages.say('resume', said)
    const { nonce } = await messages.hear('challenge')
    const proof = signDigest(secret, resumeDigest(nonce, session, connection.peer, us))
    messages.say('resume', { ...said, proof, receipt, voucher })
    const accepted = await messages.hear('accept')
    payment?.accepted(accepted)
    if (!same(accepted.session, session) || accepted.generation !== generation + 1) violation('another session')
    const known = { messages, host: connection.peer, session, payment, secret }
    const from = goesOn(known, accepted, begin)
    return new Session(messages, connection.peer, accepted, begin, { ...accepted, payment, secret, from, holder })
  }

  // `begin`: where the chain began; `from`: where it goes on.
  constructor (messages, host, accepted, begin, { payment, secret, from = begin, receipt, voucher, holder = HOLDER }) {
    const { session, nonce, epoch, turns_max: turnsMax = 1, keep_s: keepS = 0, generation = 0 } = accepted
    Object.assign(this, { messages, host, session, nonce, epoch, turnsMax, keepS, generation })
    Object.assign(this, { begin, payment, secret, receipt, voucher, holder, root: from.root, seq: from.seq })
    this.turns = [] // all that were asked; turn n is at n - 1
    this.unpaid = []
    this.finished = 0
    this.out = from.out
    this.receipts = []
    this.billed = from.in // input, as the vouchers pay for it; of a free session as it was quoted
    this.billedBefore = [from.in]
    this.receipted = { in: from.in, out: from.out }
    this.vouchers = []
    this.counted = 0 // messages that count for a resume
    this.order = [] // [turn, ids] of each `tokens`
    this.closed = false
    this.wakes = []
    this.read(messages)
  }

  get underWay () { return this.turns.filter(({ state }) => state !== 'over') }
  get cost () { return this.payment?.amount(this.billed, this.out) ?? 0 }

  changed () { return new Promise((resolve) => this.wakes.push(resolve)) }
  wake () { for (const each of this.wakes.splice(0)) each() }

  // The answer of a turn. `late`: its application reads on when the credit is used up and no other turn is under way.
  async ask (prompt, { late = false } = {}) {
    const body = pack(prompt)
    // Its number is drawn where nothing is awaited before its first part is sent.
    while (this.underWay.length >= this.turnsMax || !this.mayUpload(body.subarray(0, PART))) await this.orFailure()
    const turn = new Turn(this.turns.length + 1, prompt, body, late)
    this.turns.push(turn)
    await this.upload(turn, body)
    return turn.answer
  }

  async orFailure () {
    if (this.failure !== undefined) throw this.failure
    await this.changed()
    if (this.failure !== undefined) throw this.failure
  }

  mayUpload (part) {
    return this.turns.reduce((sum, { unconfirmed }) => sum + unconfirmed, 0) + part.length <= UPLOAD_MAX
  }

  async upload (turn, body) {
    for (let at = 0, part = 0; at < body.length; at += PART, part++) {
      const rest = body.subarray(at, at + PART)
      while (!this.mayUpload(rest) && turn.state !== 'over') await this.orFailure()
      if (turn.state === 'over') return
      turn.unconfirmed += rest.length
      turn.sent = at + rest.length
      this.messages.say('prompt', {
        turn: turn.number, part, last: turn.sent === body.length, total: body.length, body: rest
      })
    }
  }

  cancel (turn) {
    turn.cancelled = true
    this.messages.say('cancel', { turn: turn.number })
  }

  close () {
    this.closed = true
    this.messages.say('close', {})
    this.messages.stream.finish()
  }

  // Leaves it with the host: what a later resume needs. No turn is under way.
  async leave (seconds) {
    const asked = Math.floor(Date.now() / 1000) + seconds
    this.messages.say('leave', { until: asked })
    this.leaving = true
    while (this.leftUntil === undefined) await this.orFailure()
    if (this.leftUntil > asked) violation('left for longer than was asked')
    const { session, begin, payment, secret, receipt, voucher, generation } = this
    return { until: this.leftUntil, session, begin, payment, secret, receipt, voucher, generation }
  }

  left ({ until, generation }) {
    if (generation !== this.generation) violation('another generation')
    this.leftUntil = until
    this.closed = true
    this.messages.stream.finish()
  }

  fail (error) {
    if (this.closed) return
    if (error instanceof Malformed) this.messages.say('error', { code: 'bad_request', detail: error.message })
    this.messages.stream.finish()
    this.failure = error
    for (const { reject } of this.underWay) reject(error)
    this.wake()
  }

  // Takes the session, paid and with turns under way, from a stream that it loses to a new one. `us` is our peer id.
  async move (connection, us) {
    const before = this.messages
    this.messages = undefined
    before.stream.reset()
    const messages = await Messages.open(connection, '/p2pnode/inference/1')
    messages.say('resume', {
      session: this.session,
      holder: this.holder,
      received: this.counted,
      turn: this.turns.length,
      turns: this.underWay.map(({ number }) => number),
      proof: signDigest(this.secret, resumeDigest(this.nonce, this.session, this.host, us))
    })
    const accepted = await messages.hear('accept')
    this.payment.accepted(accepted)
    if (accepted.epoch !== this.epoch) violation('another epoch')
    this.nonce = accepted.nonce
    this.messages = messages
    const taken = this.vouchers.findIndex(({ signature }) => same(signature, accepted.voucher?.signature ?? []))
    for (const voucher of this.vouchers.slice(taken + 1)) messages.say('voucher', voucher)
    for (const { number, upto, credit, cancelled } of this.underWay) {
      if (upto > credit) messages.say('credit', { turn: number, upto })
      if (cancelled) messages.say('cancel', { turn: number })
    }
    this.read(messages)
  }

  async has (ids) { while (this.out < ids) await this.orFailure() }

  read (messages) {
    this.run(messages).catch((error) => { if (this.messages === messages) this.fail(error) })
  }

  async run (messages) {
    for (;;) {
      const message = await messages.hear()
      if (this.messages !== messages) return
      if (COUNTED.includes(message.t)) this.counted++
      const expected = this.leaving ? ['left', 'ping', 'pong', 'error'] : TAKEN
      if (!expected.includes(message.t)) violation(`${message.t} out of place`)
      this[message.t](message)
      this.wake()
    }
  }

  turnOf ({ turn: number }, ...states) {
    const turn = this.turns[number - 1]
    if (turn === undefined || !states.includes(turn.state)) violation(`a turn that is ${turn?.state}`)
    return turn
  }

  ping ({ nonce }) { this.messages.say('pong', { nonce }) }
  pong () {}

  received (message) {
    const turn = this.turnOf(message, 'asked', 'quoted', 'paid', 'over')
    if (message.bytes > turn.sent || message.bytes <= turn.sent - turn.unconfirmed) violation('a wrong count of bytes')
    turn.unconfirmed = turn.sent - message.bytes
  }

  progress (message) { this.turnOf(message, 'asked', 'quoted', 'paid') }

  quote (message) {
    const turn = this.turnOf(message, 'asked')
    if (turn.unconfirmed > 0) violation('a quote before the prompt was read')
    if (message.tokens_in > quoteMax(turn.prompt)) violation('a quote above what the prompt allows')
    if ((message.reused ?? 0) > message.tokens_in) violation('more reused than there is')
    turn.quote = message
    turn.leaf.prompt = message.prompt_hash
    if (this.payment === undefined) this.bill(turn)
    else if (turn.billed === 0) turn.state = 'paid'
    else { turn.state = 'quoted'; this.unpaid.push(turn); this.payInputs() }
  }

  bill (turn) {
    this.billed += turn.billed
    this.billedBefore.push(this.billed)
    turn.state = 'paid'
  }

  // At most one input is paid whose first token has not come; two, once the host has finished a turn.
  payInputs () {
    this.unpaid = this.unpaid.filter(({ cancelled, state }) => !cancelled && state === 'quoted')
    const atRisk = () => this.underWay.filter(({ state, billed, came }) => state === 'paid' && billed > 0 && came === 0)
    while (this.unpaid.length > 0 && atRisk().length < (this.finished > 0 ? 2 : 1)) {
      const turn = this.unpaid.shift()
      if (!this.payment.covers(this.billed + turn.billed, this.out)) { this.cancel(turn); continue }
      this.bill(turn)
      this.pay(turn.number)
    }
  }

  pay (turn) {
    this.voucher = this.payment.voucher(this.seq, this.billed, this.receipted.out, this.root, turn)
    this.vouchers.push(this.voucher)
    this.messages.say('voucher', this.voucher)
  }

  tokens (message) {
    const turn = this.turnOf(message, 'paid')
    if (turn.ended !== undefined) violation('tokens after the end')
    turn.take(message)
    this.out += message.ids.length
    if (this.out - this.receipted.out > CHECKPOINT) violation('too many tokens without a receipt')
    if (this.payment?.covers(this.billed, this.out) === false) violation('tokens beyond the deposit')
    this.order.push([turn.number, message.ids.length])
    this.giveCredit(turn)
    this.payInputs()
  }

  vector (message) {
    const turn = this.turnOf(message, 'paid')
    if (turn.ended !== undefined) violation('a vector after the end')
    turn.takeVector(message)
    this.giveCredit(turn)
    this.payInputs()
  }

  giveCredit (turn) {
    if (turn.late && (turn.came < turn.upto || this.underWay.length > 1)) return
    const upto = turn.came + turn.credit
    if (turn.state !== 'paid' || upto - turn.upto < turn.credit / 2) return
    turn.upto = upto
    this.messages.say('credit', { turn: turn.number, upto })
  }

  checkpoint (message) {
    const { seq, tokens_in: tokensIn, tokens_out: tokensOut, fingerprint_hash: fingerprint, ended = [] } = message
    const ends = new Map(ended.map(({ turn, reason }) => [turn, reason]))
    for (const { turn } of ended) {
      if (this.turnOf({ turn }, 'paid').ended !== undefined) violation('a second end')
    }
    if (ended.some(({ turn }, place) => place > 0 && turn <= ended[place - 1].turn)) violation('ends out of order')
    const moved = this.underWay.filter(({ leaf, number }) => leaf.moved || ends.has(number))
    if (moved.length === 0) violation('a receipt for nothing')
    if (seq !== this.seq + 1 || tokensOut !== this.out) violation('a wrong count')
    if (this.payment === undefined
      ? tokensIn !== this.billed
      : tokensIn < this.receipted.in || !this.billedBefore.includes(tokensIn)) violation('a wrong count of input')
    const tokens = tokenHash(moved.map(({ leaf, number }) => leaf.cut(ends.get(number))))
    if (!same(tokens, message.token_hash)) violation('other tokens')
    const root = nextRoot(this.root, seq, tokensIn, tokensOut, tokens, fingerprint)
    if (!same(root, message.root)) violation('a wrong root')
    const digest = receiptDigest(this.session, this.epoch, root)
    if (!signedByHost(this, digest, message.signature)) violation('not signed')
    for (const [number, reason] of ends) this.turns[number - 1].ended = reason
    const { t, ...said } = message
    this.receipt = { epoch: this.epoch, previous: this.root, checkpoint: said }
    this.root = root
    this.seq = seq
    this.receipted = { in: tokensIn, out: tokensOut }
    this.receipts.push({ turns: moved.map(({ number }) => number), ended: [...ends.keys()] })
    if (this.payment === undefined) this.messages.say('ack', { seq: tokensOut })
    else this.pay(0)
  }

  done (message) {
    const turn = this.turnOf(message, 'asked', 'quoted', 'paid')
    const paid = turn.state === 'paid'
    const needed = paid && (turn.billed > 0 || turn.bytes > 0 || turn.came > 0)
    const whole = message.reason === 'stop' && turn.vectors.length === turn.prompt.embed.length
    if (turn.embeds && message.reason !== 'cancelled' && !whole) violation('not a vector for each text')
    if (turn.ended === undefined ? needed : turn.ended !== message.reason) violation('another end than receipted')
    if (message.tokens_out !== turn.ids) violation('a wrong end')
    const { stop = '' } = message
    const stops = !turn.embeds && message.reason === 'stop' && turn.prompt.sampling.stop.includes(stop)
    if (stop !== '' && !stops) violation('a stop string that was not asked for')
    turn.stop = stop
    if (message.tokens_in !== (paid ? turn.quote.tokens_in : 0)) violation('a wrong end')
    if (message.reused !== (paid ? turn.quote.reused ?? 0 : 0)) violation('a wrong end')
    this.end(turn, message.reason)
  }

  error (message) {
    const { turn: number, code, detail = '' } = message
    if (number == null) throw new Error(`the host ended the session: ${code} ${detail}`)
    const turn = this.turnOf(message, 'asked', 'quoted', 'paid')
    const wanted = code === 'stalled' ? 'stalled' : 'failed'
    const delivered = turn.came > 0 || turn.bytes > 0
    if (turn.ended === undefined ? delivered : turn.ended !== wanted) violation('another end than receipted')
    this.end(turn, 'error', code)
  }

  end (turn, reason, code) {
    turn.state = 'over'
    turn.unconfirmed = 0
    this.finished += reason !== 'error' && turn.billed > 0 && turn.came > 0 ? 1 : 0
    turn.resolve(turn.told(reason, code))
    for (const each of this.underWay) this.giveCredit(each)
    if (this.payment !== undefined) this.payInputs()
  }
}
