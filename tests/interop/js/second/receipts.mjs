// What receipts are made of, and the seeds of engine calls. Written from protocols/inference/SPEC.md, sections
// "Receipts" and "Seeds".
import { join, u16, u32, utf8 } from './codec.mjs'
import { abi, hash } from './messages.mjs'

export const CHECKPOINT = 32
export const NO_HASH = Buffer.alloc(32)
const ENDS = ['', 'stop', 'length', 'cancelled', 'tool_calls', 'failed', 'stalled']
const CHANNELS = ['content', 'reasoning', 'call']
const VECTOR = 3
const STARTS = ['', 'credit', 'restart']

export const rootZero = (session, model, salt) => hash(abi(hash(utf8('p2pnode/session/1')), session, model, hash(salt)))
export const nextRoot = (root, seq, tokensIn, tokensOut, tokens, fingerprint) =>
  hash(abi(root, seq, tokensIn, tokensOut, tokens, fingerprint))
export const receiptDigest = (session, epoch, root) => hash(abi(hash(utf8('p2pnode/receipt/1')), session, epoch, root))
export const requestHash = (body) => hash(body)
export const idsHash = (ids) => hash(...ids.map(u32))
export const textsHash = (texts) => idsHash(texts.flatMap((ids) => [ids.length, ...ids]))
export const tokenHash = (leaves) => hash(...leaves)

// What one turn did since the last receipt: both sides keep it from each `tokens` and `vector` as they travel.
export class Leaf {
  constructor (turn, request, first = 0) {
    Object.assign(this, { turn, request, prompt: NO_HASH, first, ids: [], texts: [], starts: [] })
  }

  get moved () { return this.ids.length > 0 || this.texts.length > 0 }

  take ({ index, ids, text = '', channel = 'content', call = 0, name = '', start = '' }) {
    if (text !== '' || name !== '') {
      const [named, said] = [utf8(name), utf8(text)]
      this.texts.push(join([CHANNELS.indexOf(channel)], u32(call), u16(named.length), named, u32(said.length), said))
    }
    if (start !== '') this.starts.push(join(u32(index), [STARTS.indexOf(start)]))
    this.ids.push(...ids)
  }

  takeVector ({ index, data }) { this.texts.push(join([VECTOR], u32(index), hash(data))) }

  // The leaf's hash; what follows belongs to the next one.
  cut (end = '') {
    const { turn, first, request, prompt, ids, texts, starts } = this
    Object.assign(this, { first: first + ids.length, ids: [], texts: [], starts: [] })
    return hash(abi(
      hash(utf8('p2pnode/leaf/1')), turn, first, request, prompt, idsHash(ids), hash(...texts), hash(...starts),
      ENDS.indexOf(end)
    ))
  }
}

// The seed of 32 bits of the engine's call whose first id has this index in the answer.
export function callSeed (seed, start) {
  for (let said = join(utf8('p2pnode/seed/1'), seed, u32(start)); ; said = join(said, [0])) {
    const found = hash(said).readUInt32BE(28)
    if (found !== 0xffffffff) return found
  }
}
