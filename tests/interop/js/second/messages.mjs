// Messages on streams: protocols/framing, adverts, inference, blob. Each stream is read message by message.
import { secp256k1 } from '@noble/curves/secp256k1.js'
import { blake3 } from '@noble/hashes/blake3.js'
import { keccak_256 as keccak } from '@noble/hashes/sha3.js'

import { Float, Malformed, frame, hex, join, pack, same, u32, unhex, unpack, utf8 } from './codec.mjs'
import { propose } from './connection.mjs'
import { holds, keyOf } from './names.mjs'

export class Messages {
  constructor (stream, max) { Object.assign(this, { stream, max }) }

  static async open (connection, protocol, max = 65536) {
    const stream = connection.open()
    await propose(stream, protocol)
    return new Messages(stream, max)
  }

  say (type, fields) { this.stream.write(frame(pack({ t: type, ...fields }), this.max)) }

  async hear (...types) {
    const message = unpack(await this.stream.input.sized(this.max))
    if (typeof message.t !== 'string') throw new Malformed('a message without a name')
    if (types.length > 0 && !types.includes(message.t)) throw new Error(`${message.t}: ${message.code} ${message.detail}`)
    return message
  }
}

export const blake = (...parts) => Buffer.from(blake3(join(...parts)))

// ---- Keccak-256, abi.encode of static types, EIP-712

export const hash = (...parts) => Buffer.from(keccak(join(...parts)))
const word = (value) => typeof value === 'number' || typeof value === 'bigint'
  ? unhex(value.toString(16).padStart(64, '0'))
  : join(Buffer.alloc(32 - value.length), value)
export const abi = (...values) => join(...values.map(word))

const typed = (domain, struct) => hash(unhex('1901'), domain, struct)
const bindingDomain = hash(abi(
  hash(utf8('EIP712Domain(string name,string version)')), hash(utf8('p2pnode')), hash(utf8('1'))
))
const HOST_BINDING = 'HostBinding(string peerId,address receiptKey,uint256 chainId,' +
  'address nodeRegistry,uint256 seq,uint256 expiresAt)'

export const bindingDigest = (peer, binding) => typed(bindingDomain, hash(abi(
  hash(utf8(HOST_BINDING)), hash(utf8(peer)), binding.r, binding.c, binding.n, binding.s, binding.x
)))

// The 20-byte address that signed a digest: r, s, v.
export function signer (digest, signature) {
  if (![27, 28].includes(signature[64])) throw new Malformed('no recovery id')
  const found = secp256k1.Signature.fromBytes(signature.subarray(0, 64), 'compact')
  if (found.hasHighS()) throw new Malformed('a high s')
  const key = found.addRecoveryBit(signature[64] - 27).recoverPublicKey(digest)
  return hash(key.toBytes(false).subarray(1)).subarray(12)
}

// ---- adverts

export function readAdvert (signed) {
  const advert = unpack(signed.body)
  if (!holds(keyOf(advert.p), join(utf8('p2pnode/advert/1\0'), signed.body), signed.signature)) {
    throw new Malformed('not signed by its peer')
  }
  if (!same(signer(bindingDigest(advert.p, advert.b), advert.b.g), advert.b.w)) {
    throw new Malformed('not bound by its wallet')
  }
  return advert
}

export const sheetHash = (body) => hash(utf8('p2pnode/sheet/1\0'), body)
export const profileHash = (profile) => hash(utf8('p2pnode/profile/1\0'), pack(profile)).subarray(0, 8)

export function readSheet (body, advert) {
  if (!same(sheetHash(body), advert.h)) throw new Malformed('not the sheet that the advert names')
  const sheet = unpack(body)
  if (sheet.peer !== advert.p) throw new Malformed('the sheet of another host')
  return sheet
}

export async function askSheet (connection, advert) {
  const messages = await Messages.open(connection, '/p2pnode/adverts/1')
  messages.say('get_sheet', { hash: advert.h })
  const { body } = await messages.hear('sheet')
  messages.stream.finish()
  return readSheet(body, advert)
}

export async function askAdvert (connection, peer = connection.peer) {
  const messages = await Messages.open(connection, '/p2pnode/adverts/1')
  messages.say('get', { peer })
  const { adverts } = await messages.hear('adverts')
  messages.stream.finish()
  return adverts.map(readAdvert)
}

// ---- a session of one turn, free or paid (see payment.mjs)

export const requestHash = (body) => hash(body)
export const tokenHash = (ids, request = Buffer.alloc(0)) => hash(request, ...ids.map(u32))
export const rootZero = (session, model, salt) => hash(abi(hash(utf8('p2pnode/session/1')), session, model, hash(salt)))
export const nextRoot = (root, seq, tokensIn, tokensOut, tokens, fingerprint) =>
  hash(abi(root, seq, tokensIn, tokensOut, tokens, fingerprint))
export const receiptDigest = (session, epoch, root) => hash(abi(hash(utf8('p2pnode/receipt/1')), session, epoch, root))

const PART = 60000
const violation = (why) => { throw new Malformed(why) }

export const promptBody = (messages, sampling) => pack({
  messages,
  sampling: {
    tokens_max: 512, temperature: new Float(0.7), top_p: new Float(0.95), top_k: 40, min_p: new Float(0.05),
    repeat_penalty: new Float(1), stop: [], ...sampling
  },
  seed: crypto.getRandomValues(new Uint8Array(16)),
  prefix: []
})

// The text of an answer, its ids, its cost, and how many receipts were checked.
export async function ask (connection, model, salt, body, payment) {
  const messages = await Messages.open(connection, '/p2pnode/inference/1')
  const { terms, authorisation, validBefore } = payment ?? { validBefore: 0 }
  messages.say('open', { model, salt, terms, authorisation, valid_before: validBefore })
  const accepted = await messages.hear('accept')
  payment?.accepted(accepted)
  const { session, epoch } = accepted
  const signed = (digest, signature) => payment === undefined
    ? holds(keyOf(connection.peer), digest, signature)
    : same(signer(digest, signature), terms.receipt_key)
  for (let at = 0, part = 0; at < body.length; at += PART, part++) {
    const rest = body.subarray(at, at + PART)
    messages.say('prompt', { turn: 1, part, last: at + rest.length === body.length, total: body.length, body: rest })
  }
  let root = rootZero(session, model, salt)
  const told = { text: '', ids: [], receipts: 0, reason: '', cost: 0 }
  let [billed, receipted] = [undefined, 0]
  while (told.reason === '') {
    const message = await messages.hear('quote', 'progress', 'tokens', 'checkpoint', 'done', 'ping')
    switch (message.t) {
      case 'ping': messages.say('pong', { nonce: message.nonce }); break
      case 'quote':
        billed = message.tokens_in - (message.reused ?? 0)
        if (payment !== undefined) messages.say('voucher', payment.voucher(0, billed, 0, root))
        break
      case 'tokens':
        if (billed === undefined || message.seq !== told.ids.length) violation('tokens out of place')
        told.ids.push(...message.ids)
        told.text += message.text ?? ''
        break
      case 'checkpoint': {
        const tokens = tokenHash(told.ids.slice(receipted), told.receipts === 0 ? requestHash(body) : undefined)
        if (message.seq !== told.receipts + 1 || message.tokens_in !== billed) violation('a wrong count')
        if (message.tokens_out !== told.ids.length || !same(message.token_hash, tokens)) violation('wrong tokens')
        root = nextRoot(root, message.seq, billed, told.ids.length, tokens, message.fingerprint_hash)
        if (!same(root, message.root)) violation('a wrong root')
        if (!signed(receiptDigest(session, epoch, root), message.signature)) violation('not signed')
        receipted = told.ids.length
        told.receipts++
        if (payment === undefined) messages.say('ack', { seq: receipted })
        else messages.say('voucher', payment.voucher(told.receipts, billed, receipted, root))
        break
      }
      case 'done':
        if (message.tokens_out !== told.ids.length || receipted !== told.ids.length) violation('a wrong end')
        told.cost = message.cost ?? 0
        if (told.cost !== (payment?.amount(billed, receipted) ?? 0)) violation('a wrong bill')
        told.reason = message.reason
    }
  }
  messages.say('close', {})
  messages.stream.finish()
  return told
}

// ---- blobs and entries

const LEASE_S = 31 * 86400

export async function openStore (connection) {
  const messages = await Messages.open(connection, '/p2pnode/blob/1', 1 << 20)
  let id = 0
  return {
    async entry (key) {
      messages.say('get_entry', { id: ++id, key })
      return (await messages.hear('entry')).entry
    },
    async blob (digest) {
      messages.say('get', { id: ++id, hash: digest, offset: 0 })
      const { size } = await messages.hear('blob')
      const parts = []
      for (let last = false; !last;) {
        const message = await messages.hear('data')
        parts.push(message.data)
        last = message.last ?? false
      }
      const data = join(...parts)
      if (data.length !== size) throw new Malformed(`a blob of ${data.length} bytes, not ${size}`)
      return data
    },
    // Whose writes follow. `us` is our peer id.
    claim (owner, us) {
      const said = blake(utf8('p2pnode/blob-owner/1\0'), utf8(us), utf8('\0'), utf8(connection.peer))
      messages.say('claim', { owner: owner.public, signature: owner.sign(said) })
    },
    async put (data) {
      const digest = blake(data)
      messages.say('put', { id: ++id, hash: digest, size: data.length, lease_s: LEASE_S, data })
      await messages.hear('done')
      return digest
    },
    async setEntry (entry) {
      messages.say('set_entry', { id: ++id, entry })
      await messages.hear('done')
    },
    close () { messages.stream.finish() }
  }
}

export const shown = (value) => JSON.parse(JSON.stringify(value, (_, each) =>
  each?.type === 'Buffer' ? hex(Buffer.from(each.data)) : typeof each === 'bigint' ? each.toString() : each))
