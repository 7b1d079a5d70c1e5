// Bytes: varints, frames, msgpack, protocol buffers, and the alphabets of texts.
// Written from protocols/framing/SPEC.md and protocols/transport/SPEC.md.
export const hex = (data) => Buffer.from(data).toString('hex')
export const unhex = (text) => Buffer.from(text, 'hex')
export const utf8 = (text) => Buffer.from(text, 'utf8')
export const join = (...parts) => Buffer.concat(parts.map((part) => Buffer.from(part)))
export const same = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)) === 0

export class Malformed extends Error {}
const refuse = (why) => { throw new Malformed(why) }

export function u16 (value) { const out = Buffer.alloc(2); out.writeUInt16BE(value); return out }
export function u32 (value) { const out = Buffer.alloc(4); out.writeUInt32BE(value); return out }
export function u64 (value) { const out = Buffer.alloc(8); out.writeBigUInt64BE(BigInt(value)); return out }

// ---- varints and frames

export function varint (value) {
  const out = []
  for (; value >= 128; value = Math.floor(value / 128)) out.push(value % 128 + 128)
  return Buffer.from([...out, value])
}

// The value and what follows it; undefined while it is not whole.
export function readVarint (data, at = 0, bytesMax = 9) {
  let value = 0
  for (let i = 0; at + i < data.length; i++) {
    if (i >= bytesMax) refuse('a varint too long')
    value += (data[at + i] & 127) * 2 ** (7 * i)
    if (data[at + i] < 128) {
      if (i > 0 && data[at + i] === 0) refuse('a varint that is not minimal')
      return { value, at: at + i + 1 }
    }
  }
  if (data.length - at >= bytesMax) refuse('a varint too long')
}

export const FRAME_MAX = 65536

export function frame (payload, max = FRAME_MAX) {
  if (payload.length < 1 || payload.length > max) refuse('a payload out of bounds')
  return join(varint(payload.length), payload)
}

// ---- msgpack: what our messages need of it. Floats are of this class; numbers are integers.

export class Float { constructor (value) { this.value = value } }

export function pack (value) {
  if (value === null) return Buffer.from([0xc0])
  if (value === true || value === false) return Buffer.from([value ? 0xc3 : 0xc2])
  if (value instanceof Float) {
    const out = Buffer.alloc(9, 0xcb)
    out.writeDoubleBE(value.value, 1)
    return out
  }
  if (typeof value === 'number' || typeof value === 'bigint') return packInteger(BigInt(value))
  if (typeof value === 'string') return packed(utf8(value), [0xa0, 31], 0xd9, 0xda, 0xdb)
  if (value instanceof Uint8Array) return packed(value, undefined, 0xc4, 0xc5, 0xc6)
  if (Array.isArray(value)) {
    return join(head(value.length, [0x90, 15], undefined, 0xdc, 0xdd), ...value.map(pack))
  }
  const entries = Object.entries(value).filter(([, each]) => each !== undefined)
  return join(head(entries.length, [0x80, 15], undefined, 0xde, 0xdf), ...entries.flat().map(pack))
}

function packInteger (value) {
  if (value < 0n) return value >= -32n ? Buffer.from([Number(value + 256n)]) : refuse('a negative number')
  if (value < 128n) return Buffer.from([Number(value)])
  if (value < 1n << 8n) return Buffer.from([0xcc, Number(value)])
  if (value < 1n << 16n) return join([0xcd], u16(Number(value)))
  if (value < 1n << 32n) return join([0xce], u32(Number(value)))
  return join([0xcf], u64(value))
}

function head (length, fixed, one, two, four) {
  if (fixed !== undefined && length <= fixed[1]) return Buffer.from([fixed[0] + length])
  if (one !== undefined && length < 1 << 8) return Buffer.from([one, length])
  return length < 1 << 16 ? join([two], u16(length)) : join([four], u32(length))
}

const packed = (data, fixed, one, two, four) => join(head(data.length, fixed, one, two, four), data)

const DEPTH_MAX = 8
const ITEMS_MAX = 16384

// One msgpack value of a stranger: maps become objects, `bin` buffers, large integers bigints.
export function unpack (data) {
  let at = 0
  let items = 0
  const take = (length) => {
    if (length > data.length - at) refuse('a length beyond the payload')
    at += length
    return data.subarray(at - length, at)
  }
  const number = (bytes) => Number(unsigned(bytes))
  const unsigned = (bytes) => BigInt('0x' + hex(take(bytes)))
  const exact = (value) => value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value
  const text = (length) => new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(take(length))
  const list = (length, depth) => {
    if (length > data.length - at) refuse('a length beyond the payload')
    if (length > 0 && depth > DEPTH_MAX) refuse('too deep')
    return Array.from({ length }, () => value(depth + 1))
  }
  const map = (length, depth) => {
    if (2 * length > data.length - at) refuse('a length beyond the payload')
    if (length > 0 && depth > DEPTH_MAX) refuse('too deep')
    const found = {}
    for (let i = 0; i < length; i++) {
      const key = value(depth + 1)
      if (typeof key !== 'string' && !(key instanceof Uint8Array)) refuse('a key that is no string')
      const held = value(depth + 1)
      if (typeof key === 'string') found[key] = held
    }
    return found
  }
  function value (depth) {
    if (++items > ITEMS_MAX) refuse('too many values')
    const kind = take(1)[0]
    if (kind < 0x80) return kind
    if (kind < 0x90) return map(kind & 15, depth)
    if (kind < 0xa0) return list(kind & 15, depth)
    if (kind < 0xc0) return text(kind & 31)
    if (kind >= 0xe0) return kind - 256
    switch (kind) {
      case 0xc0: return null
      case 0xc2: return false
      case 0xc3: return true
      case 0xc4: return take(number(1))
      case 0xc5: return take(number(2))
      case 0xc6: return take(number(4))
      case 0xca: return new Float(take(4).readFloatBE())
      case 0xcb: return new Float(take(8).readDoubleBE())
      case 0xcc: return number(1)
      case 0xcd: return number(2)
      case 0xce: return number(4)
      case 0xcf: return exact(unsigned(8))
      case 0xd0: return take(1).readInt8()
      case 0xd1: return take(2).readInt16BE()
      case 0xd2: return take(4).readInt32BE()
      case 0xd3: return exact(take(8).readBigInt64BE())
      case 0xd9: return text(number(1))
      case 0xda: return text(number(2))
      case 0xdb: return text(number(4))
      case 0xdc: return list(number(2), depth)
      case 0xdd: return list(number(4), depth)
      case 0xde: return map(number(2), depth)
      case 0xdf: return map(number(4), depth)
      default: return refuse('a type of msgpack that is not used')
    }
  }
  const found = value(1)
  if (at !== data.length) refuse('bytes after the value')
  return found
}

// ---- protocol buffers: a list of [number, value], where a value is a number or bytes

export function protobuf (...fields) {
  return join(...fields.filter(([, value]) => value !== undefined).map(([number, value]) =>
    value instanceof Uint8Array
      ? join(varint(number * 8 + 2), varint(value.length), value)
      : join(varint(number * 8), varint(Number(value)))))
}

export function readProtobuf (data) {
  const found = []
  for (let at = 0; at < data.length;) {
    const key = readVarint(data, at, 10) ?? refuse('cut short')
    const number = Math.floor(key.value / 8)
    if (key.value % 8 === 0) {
      const read = readVarint(data, key.at, 10) ?? refuse('cut short')
      found.push([number, read.value])
      at = read.at
    } else if (key.value % 8 === 2) {
      const size = readVarint(data, key.at, 10) ?? refuse('cut short')
      if (size.value > data.length - size.at) refuse('cut short')
      at = size.at + size.value
      found.push([number, data.subarray(size.at, at)])
    } else {
      refuse('a kind of field that is not used')
    }
  }
  return found
}

export const first = (fields, number) => fields.find(([each]) => each === number)?.[1]
export const every = (fields, number) => fields.filter(([each]) => each === number).map(([, value]) => value)

// ---- alphabets

const BASE58 = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'

export function base58 (data) {
  let value = data.length > 0 ? BigInt('0x' + hex(data)) : 0n
  let text = ''
  for (; value > 0n; value /= 58n) text = BASE58[Number(value % 58n)] + text
  for (const byte of data) {
    if (byte !== 0) break
    text = '1' + text
  }
  return text
}

export function unbase58 (text) {
  let value = 0n
  for (const each of text) {
    const digit = BASE58.indexOf(each)
    if (digit < 0) refuse('not base58')
    value = value * 58n + BigInt(digit)
  }
  const digits = value > 0n ? value.toString(16) : ''
  const zeros = text.length - text.replace(/^1+/, '').length
  return join(Buffer.alloc(zeros), unhex(digits.length % 2 ? '0' + digits : digits))
}

const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567'

export function base32 (data) {
  const bits = [...data].map((byte) => byte.toString(2).padStart(8, '0')).join('')
  return bits.match(/.{1,5}/g).map((five) => BASE32[parseInt(five.padEnd(5, '0'), 2)]).join('')
}
