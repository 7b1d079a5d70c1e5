// Who a peer is and where, and what a model is. Written from protocols/transport/SPEC.md, models/SPEC.md.
import { createHash, createPrivateKey, createPublicKey, sign as nodeSign, verify as nodeVerify } from 'node:crypto'
import { isIP } from 'node:net'

import { Malformed, base32, base58, join, readVarint, same, unbase58, unhex, utf8, varint, u16 } from './codec.mjs'

export const sha256 = (...parts) => createHash('sha256').update(join(...parts)).digest()

// ---- Ed25519 keys and peer ids

const PRIVATE = unhex('302e020100300506032b657004220420') // PKCS #8 before the 32 bytes of a secret
const PUBLIC = unhex('302a300506032b6570032100') // SubjectPublicKeyInfo before the 32 bytes of a key
const PEER_ID = unhex('002408011220')

export class Key {
  constructor (secret) {
    this.secret = Buffer.from(secret)
    this.private = createPrivateKey({ key: join(PRIVATE, secret), format: 'der', type: 'pkcs8' })
    this.public = createPublicKey(this.private).export({ format: 'der', type: 'spki' }).subarray(PUBLIC.length)
    this.peer = peerOf(this.public)
  }

  sign (message) { return nodeSign(null, message, this.private) }
}

export function holds (publicKey, message, signature) {
  const key = createPublicKey({ key: join(PUBLIC, publicKey), format: 'der', type: 'spki' })
  return nodeVerify(null, message, key, signature)
}

export const publicProtobuf = (publicKey) => join(PEER_ID.subarray(2), publicKey)
export const peerOf = (publicKey) => base58(join(PEER_ID, publicKey))

export function keyOf (peer) {
  const raw = unbase58(peer)
  if (raw.length !== 38 || !same(raw.subarray(0, 6), PEER_ID) || base58(raw) !== peer) {
    throw new Malformed('not the peer id of an Ed25519 key')
  }
  return raw.subarray(6)
}

// ---- multiaddrs

const NAMES = { dns: 0x35, dns4: 0x36, dns6: 0x37 }
const CODES = { ip4: 0x04, ip6: 0x29, ...NAMES, tcp: 0x06, ws: 0x1dd, p2p: 0x1a5 }

export function parseAddress (text) {
  const [empty, ...words] = text.split('/')
  const parts = []
  while (words.length > 0) {
    const name = words.shift()
    if (!(name in CODES)) throw new Malformed(`no such part: ${name}`)
    parts.push(name === 'ws' ? [name] : [name, words.shift() ?? ''])
  }
  const kinds = parts.map(([name]) => name).join('/')
  if (empty !== '' || !/^(ip4|ip6|dns[46]?)\/tcp(\/ws)?(\/p2p)?$/.test(kinds)) throw new Malformed('not dialled')
  const [[family, host], [, port]] = parts
  if (family === 'ip4' && isIP(host) !== 4) throw new Malformed('no IPv4 address')
  if (family === 'ip6' && isIP(host) !== 6) throw new Malformed('no IPv6 address')
  if (!/^\d+$/.test(port) || Number(port) > 65535) throw new Malformed('no port')
  return { parts, host, port: Number(port), ws: kinds.includes('ws'), peer: parts.at(-1)[0] === 'p2p' ? parts.at(-1)[1] : undefined }
}

export function addressBytes (text) {
  return join(...parseAddress(text).parts.map(([name, value]) => {
    const code = varint(CODES[name])
    switch (name) {
      case 'ip4': return join(code, value.split('.').map(Number))
      case 'ip6': return join(code, ipv6(value))
      case 'tcp': return join(code, u16(Number(value)))
      case 'ws': return code
      case 'p2p': return join(code, varint(38), unbase58(value))
      default: return join(code, varint(utf8(value).length), utf8(value))
    }
  }))
}

function ipv6 (text) {
  const [before, after] = text.split('::').map((half) => half.split(':').filter((word) => word !== ''))
  const zeros = Array(8 - before.length - (after?.length ?? 0)).fill('0')
  return join(...[...before, ...zeros, ...(after ?? [])].map((word) => u16(parseInt(word, 16))))
}

export function addressText (data) {
  let text = ''
  for (let at = 0; at < data.length;) {
    const code = readVarint(data, at)
    at = code.at
    const name = Object.keys(CODES).find((each) => CODES[each] === code.value)
    const take = (size) => { at += size; return data.subarray(at - size, at) }
    const sized = () => { const size = readVarint(data, at); at = size.at; return take(size.value) }
    switch (name) {
      case 'ip4': text += `/ip4/${take(4).join('.')}`; break
      case 'ip6': text += `/ip6/${short(take(16))}`; break
      case 'tcp': text += `/tcp/${take(2).readUInt16BE()}`; break
      case 'ws': text += '/ws'; break
      case 'p2p': text += `/p2p/${base58(sized())}`; break
      case undefined: throw new Malformed('a part that is not known')
      default: text += `/${name}/${sized().toString()}`
    }
  }
  return text
}

// RFC 5952, which URLs follow: the longest run of zeros is cut.
const short = (data) => new URL(`http://[${data.toString('hex').match(/.{4}/g).join(':')}]`).hostname.slice(1, -1)

// ---- invites

export function makeInvite (peer, addresses) {
  const body = utf8([peer, ...addresses].join(' '))
  return 'p2pnode1' + join(sha256(body).subarray(0, 4), body).toString('base64url')
}

export function readInvite (text) {
  const word = text.replace(/[\s\u200b\u200c\u200d\u2060\ufeff\u00ad]/g, '')
  if (!word.startsWith('p2pnode1') || word.length > 8 + 2048) throw new Malformed('no invite')
  const raw = Buffer.from(word.slice(8), 'base64url')
  if (!same(raw.subarray(0, 4), sha256(raw.subarray(4)).subarray(0, 4))) throw new Malformed('damaged')
  const [peer, ...addresses] = raw.subarray(4).toString('ascii').split(' ')
  return addresses.map((address) => `${address}/p2p/${peer}`)
}

// ---- models

export function canonical (manifest) {
  const sorted = (value) => Array.isArray(value) ? value.map(sorted) : value !== null && typeof value === 'object'
    ? Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]))
    : value
  return JSON.stringify(sorted(manifest))
}

export const modelId = (manifest) => sha256(utf8('p2pnode/model/1\0'), utf8(canonical(manifest)))
export const modelText = (id) => 'm1' + base32(id)
export const SCRIPTED = sha256(utf8('p2pnode/model/1\0scripted'))
