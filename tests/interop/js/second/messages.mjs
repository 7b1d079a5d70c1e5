// Messages on streams, and what they are signed with: protocols/framing, adverts, blob. Each stream is read message
// by message; sessions of inference are in client.mjs and host.mjs.
import { secp256k1 } from '@noble/curves/secp256k1.js'
import { blake3 } from '@noble/hashes/blake3.js'
import { keccak_256 as keccak } from '@noble/hashes/sha3.js'

import { Malformed, frame, hex, join, pack, same, unhex, unpack, utf8 } from './codec.mjs'
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
