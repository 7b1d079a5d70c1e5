// A host of free sessions whose engine counts: its answer is "1 2 3 …". Written from protocols/adverts/SPEC.md
// and protocols/inference/SPEC.md.
import { randomBytes } from 'node:crypto'

import { Malformed, join, pack, same, unpack, utf8 } from './codec.mjs'
import {
  Messages, bindingDigest, nextRoot, profileHash, receiptDigest, requestHash, rootZero, sheetHash, tokenHash
} from './messages.mjs'
import { SCRIPTED } from './names.mjs'
import { addressOf, signDigest } from './payment.mjs'

const CHECKPOINT = 32
const WINDOW = 64
const N_CTX = 4096
const DAY_S = 86400
const NO_FINGERPRINT = Buffer.alloc(32)
const OF_THE_PEER = ['open', 'prompt', 'ack', 'cancel', 'close', 'ping', 'pong', 'error']

const PROFILE = { engine: 'counting', build: '1' }

const makeSheet = (key, address) => pack({
  peer: key.peer, offers: [{ model: SCRIPTED, name: 'counting', profile: PROFILE, slots: 1 }], addresses: [address]
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
    o: [{ m: SCRIPTED, c: N_CTX, i: 0, o: 0, f: 0, w: true, k: 0, h: profileHash(PROFILE) }],
    l: { s: 1, a: 0, q: 0 },
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

export async function serveSession (stream, key) {
  await new Session(new Messages(stream), key).run()
  stream.finish()
}

class Session {
  constructor (messages, key) {
    Object.assign(this, { messages, key, turn: 0, out: 0, acked: 0, billed: 0, receipts: 0, cancelled: 0 })
  }

  async hear () {
    const message = await this.messages.hear()
    if (!OF_THE_PEER.includes(message.t)) throw new Malformed(`${message.t}: not a client's`)
    if (message.t === 'ping') this.messages.say('pong', { nonce: message.nonce })
    if (message.t === 'ack') this.acked = Math.max(this.acked, message.seq)
    if (message.t === 'cancel') this.cancelled = message.turn
    return message
  }

  async run () {
    const open = await this.messages.hear('open')
    if (open.terms != null) return this.messages.say('refuse', { code: 'payment_required', detail: 'free only' })
    if (!same(open.model, SCRIPTED)) return this.messages.say('refuse', { code: 'model_not_available', detail: '' })
    this.session = randomBytes(32)
    this.epoch = Date.now()
    this.root = rootZero(this.session, open.model, open.salt)
    this.messages.say('accept', {
      session: this.session, nonce: randomBytes(32), epoch: this.epoch, n_ctx: N_CTX, window: WINDOW, session_fee: 0
    })
    for (let parts = []; ;) {
      const message = await this.hear()
      if (message.t === 'close' || message.t === 'error') return
      if (message.t !== 'prompt') continue
      if (message.part !== parts.length || message.turn !== this.turn + 1) throw new Malformed('a part out of place')
      parts.push(message.body)
      if (!message.last) continue
      await this.answer(++this.turn, join(...parts))
      parts = []
    }
  }

  async answer (turn, body) {
    const prompt = unpack(body)
    const tokensIn = prompt.messages.flatMap(({ content }) => content).reduce((sum, { text }) => sum + utf8(text).length, 0)
    this.messages.say('quote', { turn, tokens_in: tokensIn, reused: 0 })
    this.billed += tokensIn
    const most = Math.min(prompt.sampling?.tokens_max ?? 512, N_CTX - tokensIn)
    let request = requestHash(body)
    let ids = []
    let given = 0
    const receipt = () => {
      const tokens = tokenHash(ids, request)
      const seq = ++this.receipts
      this.root = nextRoot(this.root, seq, this.billed, this.out, tokens, NO_FINGERPRINT)
      this.messages.say('checkpoint', {
        seq,
        tokens_in: this.billed,
        tokens_out: this.out,
        token_hash: tokens,
        fingerprint_hash: NO_FINGERPRINT,
        root: this.root,
        signature: this.key.sign(receiptDigest(this.session, this.epoch, this.root))
      })
      ;[request, ids] = [undefined, []]
    }
    while (given < most && this.cancelled !== turn) {
      while (this.out - this.acked >= WINDOW && this.cancelled !== turn) await this.hear()
      const id = given + 1
      this.messages.say('tokens', { seq: this.out, ids: [id], text: given > 0 ? ` ${id}` : `${id}` })
      ids.push(id)
      this.out++
      given++
      if (ids.length === CHECKPOINT) receipt()
    }
    if (ids.length > 0 || request !== undefined) receipt()
    const reason = this.cancelled === turn ? 'cancelled' : 'length'
    this.messages.say('done', { turn, reason, tokens_in: tokensIn, reused: 0, tokens_out: given, cost: 0 })
  }
}
