// Conversations from twelve words. Written from storage/SPEC.md.
import { xchacha20poly1305 } from '@noble/ciphers/chacha.js'
import { HDKey } from '@scure/bip32'
import { entropyToMnemonic, mnemonicToEntropy, mnemonicToSeedSync } from '@scure/bip39'
import { wordlist } from '@scure/bip39/wordlists/english.js'
import { hkdfSync, randomBytes } from 'node:crypto'

import { Malformed, hex, join, pack, same, u64, unhex, unpack, utf8 } from './codec.mjs'
import { blake } from './messages.mjs'
import { Key, holds } from './names.mjs'

// ---- keys

export const wordsOf = (entropy) => entropyToMnemonic(entropy, wordlist)
export const entropyOf = (words) => Buffer.from(mnemonicToEntropy(words, wordlist))
export const walletSecret = (words) =>
  Buffer.from(HDKey.fromMasterSeed(mnemonicToSeedSync(words)).derive("m/44'/60'/0'/0/0").privateKey)

const derive = (secret, info) => Buffer.from(hkdfSync('sha256', secret, utf8('p2pnode/v1'), info, 32))

export class Keys {
  constructor (entropy) { this.root = derive(entropy, utf8('storage-root')) }
  get owner () { return new Key(derive(this.root, utf8('owner'))) }
  get index () { return this.log(Buffer.alloc(16), utf8('index'), utf8('index-reg')) }
  conversation (sid) { return this.log(sid, join(utf8('session-enc'), sid), join(utf8('session-reg'), sid)) }
  log (sid, sealing, entry) { return { sid, sealing: derive(this.root, sealing), entry: new Key(derive(this.root, entry)) } }
}

// ---- sealed objects

const MAGIC = unhex('7032706301')
const KIB = 1024

export function padded (size) {
  let [block, upTo] = [4 * KIB, 80 * KIB]
  for (; size > upTo; upTo *= 2) block *= 2
  return Math.max(1, Math.ceil(size / block)) * block
}

const place = (log, seq, kind) => join(utf8('p2pc1'), log.sid, u64(seq), utf8(kind))

export function seal (log, seq, kind, record, nonce) {
  const length = Buffer.alloc(4)
  length.writeUInt32LE(record.length)
  const overhead = MAGIC.length + nonce.length + 16 + 4
  const zeros = Buffer.alloc(padded(record.length + overhead) - record.length - overhead)
  const cipher = xchacha20poly1305(log.sealing, nonce, place(log, seq, kind))
  return join(MAGIC, nonce, cipher.encrypt(join(length, record, zeros)))
}

export function unseal (log, seq, kind, sealed) {
  if (!same(sealed.subarray(0, 5), MAGIC)) throw new Malformed('not of this version')
  const cipher = xchacha20poly1305(log.sealing, sealed.subarray(5, 29), place(log, seq, kind))
  const plain = Buffer.from(cipher.decrypt(sealed.subarray(29)))
  const length = plain.readUInt32LE()
  if (length > plain.length - 4 || plain.subarray(4 + length).some((byte) => byte !== 0)) throw new Malformed('wrong padding')
  return plain.subarray(4, 4 + length)
}

// ---- entries: 07, ed, key, revision, length, data, signature (protocols/blob/SPEC.md)

export function makeEntry (key, revision, digest) {
  const number = Buffer.alloc(8)
  number.writeBigUInt64LE(BigInt(revision))
  const said = join([7], number, [33], [0x1e], digest)
  return join([7, 0xed], key.public, said.subarray(1), key.sign(said))
}

export function readEntry (entry) {
  const [key, said] = [entry.subarray(2, 34), join([7], entry.subarray(34, -64))]
  if (entry[0] !== 7 || entry[1] !== 0xed || entry[42] !== entry.length - 107) throw new Malformed('no entry')
  if (!holds(key, said, entry.subarray(-64))) throw new Malformed('not signed by its key')
  const data = entry.subarray(43, -64)
  if (data.length !== 33 || data[0] !== 0x1e) throw new Malformed('it points at nothing')
  return { key, revision: Number(entry.readBigUInt64LE(34)), hash: data.subarray(1) }
}

export const link = (revision, hash) => ({ revision, pointer: blake([0x1e], hash) })
// Whether the first of two links replaces the other.
export const wins = (one, other) => one.revision !== other.revision
  ? one.revision > other.revision
  : Buffer.compare(one.pointer, other.pointer) < 0

// ---- the index: which of two records is kept

function weight (record) {
  const { t, gone, updated, over, voucher, generation, left_until: left } = unpack(record)
  if (t === 'conversation') return [gone ? 1 : 0, updated, 0]
  return [over ? 1 : 0, generation ?? 0, voucher?.amount ?? -1, voucher?.seq ?? 0, left == null ? 0 : 1]
}

export function better (one, other) {
  const [a, b] = [weight(one), weight(other)]
  const place = a.findIndex((value, i) => value !== b[i])
  const first = place < 0 ? Buffer.compare(one, other) > 0 : a[place] > b[place]
  return first ? one : other
}

// ---- compaction: segments as [level, bytes]; the first and the last of those that become one

export function joined (segments) {
  const level = segments.at(-1)?.[0] ?? 7
  let start = segments.length
  while (start > 0 && segments[start - 1][0] === level) start--
  if (level === 7 || segments.length - start < 16) return []
  const groups = []
  let room = 0
  for (const [place, [, size]] of segments.entries()) {
    if (place < start) continue
    if (groups.length === 0 || size > room) { groups.push([place, place]); room = 1 << 20 }
    groups.at(-1)[1] = place
    room -= size
  }
  return groups
}

// ---- reading

// The records of a log. `store` has `entry(key)` and `blob(hash)`.
export async function readLog (store, log, kind) {
  const entry = await store.entry(log.entry.public)
  if (entry == null) return undefined
  const { revision, hash } = readEntry(entry)
  const blob = async (digest) => {
    const data = await store.blob(digest)
    if (!same(blake(data), digest)) throw new Malformed('another blob')
    return data
  }
  const manifest = unpack(unseal(log, revision, 'M', await blob(hash)))
  const records = []
  for (const each of manifest.segments) {
    records.push(...unpack(unseal(log, each.l, kind, await blob(each.h))).records)
  }
  return { manifest, records }
}

// What twelve words bring back: the paid sessions, and the turns of each conversation.
export async function recover (store, entropy) {
  const keys = new Keys(entropy)
  const index = await readLog(store, keys.index, 'I')
  const kept = new Map()
  for (const record of index?.records ?? []) {
    const { t, sid, session } = unpack(record)
    const name = `${t} ${hex(t === 'conversation' ? sid : session)}`
    kept.set(name, kept.has(name) ? better(kept.get(name), record) : record)
  }
  const conversations = []
  const sessions = []
  for (const record of [...kept.values()].map(unpack)) {
    if (record.t === 'session') {
      sessions.push({ session: hex(record.session), amount: record.voucher?.amount ?? 0, over: record.over ?? false })
    } else if (!record.gone) {
      const { manifest, records } = await readLog(store, keys.conversation(record.sid), 'S')
      const turns = Array.from({ length: manifest.turns }, () => '')
      for (const piece of records.map(unpack)) turns[piece.n ?? 0] += piece.x ?? ''
      conversations.push({ sid: hex(record.sid), title: record.title ?? '', turns })
    }
  }
  return { conversations, sessions }
}

// ---- writing

export const segmentOf = (records) => pack({ v: 1, records })

// The first commit of a log: its blobs, then the entry.
async function begin (store, log, kind, records, writer, fields) {
  const segment = seal(log, 0, kind, segmentOf(records), randomBytes(24))
  const manifest = pack({
    v: 1,
    seq: 1,
    next: 1,
    segments: [{ f: 0, l: 0, v: 0, h: await store.put(segment), n: segment.length }],
    writer,
    writers: [{ w: writer, s: 1 }],
    branches: [],
    ...fields
  })
  const digest = await store.put(seal(log, 1, 'M', manifest, randomBytes(24)))
  await store.setEntry(makeEntry(log.entry, 1, digest))
}

// A conversation, and an index that lists it alone. Returns its sid.
export async function write (store, entropy, title, turns, now = Math.floor(Date.now() / 1000)) {
  const keys = new Keys(entropy)
  const [sid, writer] = [randomBytes(16), randomBytes(8)]
  const pieces = turns.map(([role, text], turn) => pack({
    role,
    x: text,
    i: [],
    f: role === 'assistant' ? 'stop' : undefined,
    ti: 0,
    re: 0,
    to: 0,
    c: 0,
    at: now,
    n: turn,
    p: 0,
    q: 1
  }))
  await begin(store, keys.conversation(sid), 'S', pieces, writer, { turns: turns.length, title })
  const listed = pack({ t: 'conversation', sid, title, created: now, updated: now, gone: false })
  await begin(store, keys.index, 'I', [listed], writer, { turns: 0, title: '' })
  return sid
}
