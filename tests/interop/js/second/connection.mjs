// From an address to streams: TCP, multistream-select, Noise, yamux. Written from protocols/transport/SPEC.md.
import {
  createCipheriv, createDecipheriv, createHash, createHmac, createPrivateKey, createPublicKey, diffieHellman, randomBytes
} from 'node:crypto'
import net from 'node:net'

import { Malformed, first, join, protobuf, readProtobuf, readVarint, same, u16, unhex, utf8, varint } from './codec.mjs'
import { holds, keyOf, parseAddress, peerOf, publicProtobuf } from './names.mjs'

// Bytes that come in any cut, read in the lengths that are wanted.
export class Bytes {
  constructor (taken = () => {}) {
    Object.assign(this, { data: Buffer.alloc(0), over: false, failure: undefined, wake: () => {}, taken })
  }

  push (part) { this.data = join(this.data, part); this.wake() }
  end (failure) { this.over = true; this.failure ??= failure; this.wake() }

  async until (found) {
    for (;;) {
      const value = found(this.data)
      if (value !== undefined) return value
      if (this.failure !== undefined) throw this.failure
      if (this.over) throw new Malformed('it ended early')
      await new Promise((resolve) => { this.wake = resolve })
    }
  }

  async exactly (size) {
    await this.until((data) => data.length >= size ? true : undefined)
    const taken = this.data.subarray(0, size)
    this.data = this.data.subarray(size)
    this.taken()
    return taken
  }

  async sized (max) {
    const size = await this.until((data) => readVarint(data))
    if (size.value > max) throw new Malformed('too long')
    await this.exactly(size.at)
    return this.exactly(size.value)
  }

  // What is there, or null at the end.
  async some () {
    await this.until((data) => data.length > 0 || (this.over && this.failure === undefined) ? true : undefined)
    const taken = this.data
    this.data = Buffer.alloc(0)
    this.taken()
    return taken.length > 0 ? taken : null
  }
}

// ---- multistream-select. A channel has `input` (Bytes) and `write`.

const HEADER = '/multistream/1.0.0'
const LINE_MAX = 1024
export const line = (text) => { const data = utf8(text + '\n'); return join(varint(data.length), data) }
const readLine = async (channel) => {
  const data = await channel.input.sized(LINE_MAX)
  if (data.at(-1) !== 0x0a) throw new Malformed('a line without its end')
  return data.subarray(0, -1).toString('utf8')
}

export async function propose (channel, ...protocols) {
  channel.write(join(line(HEADER), line(protocols[0])))
  if (await readLine(channel) !== HEADER) throw new Malformed('no multistream-select')
  for (const [place, protocol] of protocols.entries()) {
    if (place > 0) channel.write(line(protocol))
    const answer = await readLine(channel)
    if (answer === protocol) return protocol
    if (answer !== 'na') throw new Malformed(`an answer out of place: ${answer}`)
  }
  throw new Error(`it speaks none of ${protocols}`)
}

export async function answer (channel, speaks) {
  channel.write(line(HEADER))
  if (await readLine(channel) !== HEADER) throw new Malformed('no multistream-select')
  for (;;) {
    const protocol = await readLine(channel)
    channel.write(line(speaks(protocol) ? protocol : 'na'))
    if (speaks(protocol)) return protocol
  }
}

// ---- Noise_XX_25519_ChaChaPoly_SHA256

const X_PRIVATE = unhex('302e020100300506032b656e04220420')
const X_PUBLIC = unhex('302a300506032b656e032100')
const NAME = utf8('Noise_XX_25519_ChaChaPoly_SHA256')
const TAG = 16
const PLAIN_MAX = 65535 - TAG

export class Pair {
  constructor (secret = randomBytes(32)) {
    this.private = createPrivateKey({ key: join(X_PRIVATE, secret), format: 'der', type: 'pkcs8' })
    this.public = createPublicKey(this.private).export({ format: 'der', type: 'spki' }).subarray(X_PUBLIC.length)
  }

  shared (other) {
    return diffieHellman({
      privateKey: this.private, publicKey: createPublicKey({ key: join(X_PUBLIC, other), format: 'der', type: 'spki' })
    })
  }
}

class Cipher {
  constructor (key) { this.key = key; this.count = 0n }

  nonce () { const out = Buffer.alloc(12); out.writeBigUInt64LE(this.count++, 4); return out }

  seal (plain, bound = Buffer.alloc(0)) {
    const cipher = createCipheriv('chacha20-poly1305', this.key, this.nonce(), { authTagLength: TAG })
    cipher.setAAD(bound, { plaintextLength: plain.length })
    return join(cipher.update(plain), cipher.final(), cipher.getAuthTag())
  }

  open (sealed, bound = Buffer.alloc(0)) {
    if (sealed.length < TAG) throw new Malformed('too short for a tag')
    const cipher = createDecipheriv('chacha20-poly1305', this.key, this.nonce(), { authTagLength: TAG })
    cipher.setAAD(bound, { plaintextLength: sealed.length - TAG })
    cipher.setAuthTag(sealed.subarray(-TAG))
    return join(cipher.update(sealed.subarray(0, -TAG)), cipher.final())
  }
}

// One side of a handshake; `write` and `read` in turns, three messages in all.
export class Handshake {
  constructor (dialler, fixed = new Pair(), drawn = new Pair()) {
    Object.assign(this, { dialler, s: fixed, e: drawn })
    this.hash = NAME // of 32 bytes, so it is taken as it is
    this.chain = NAME
    this.cipher = undefined
    this.mix(Buffer.alloc(0)) // the prologue
    this.turn = 0
  }

  mix (data) { this.hash = createHash('sha256').update(join(this.hash, data)).digest() }

  mixKey (input) {
    const [chain, key] = hkdf(this.chain, input)
    this.chain = chain
    this.cipher = new Cipher(key)
  }

  tokens () { return [['e'], ['e', 'ee', 's', 'es'], ['s', 'se']][this.turn++] }

  dh (token) {
    // The first letter is the dialler's key, the second the listener's.
    const [ours, theirs] = this.dialler ? token : [...token].reverse()
    this.mixKey(this[ours].shared(theirs === 'e' ? this.re : this.rs))
  }

  write (payload) {
    const out = []
    for (const token of this.tokens()) {
      if (token === 'e') { out.push(this.e.public); this.mix(this.e.public) } else if (token === 's') {
        out.push(this.encrypt(this.s.public))
      } else { this.dh(token) }
    }
    out.push(this.encrypt(payload))
    return join(...out)
  }

  read (message) {
    let at = 0
    const take = (size) => { at += size; return message.subarray(at - size, at) }
    for (const token of this.tokens()) {
      if (token === 'e') { this.re = take(32); this.mix(this.re) } else if (token === 's') {
        this.rs = this.decrypt(take(32 + TAG))
      } else { this.dh(token) }
    }
    return this.decrypt(message.subarray(at))
  }

  encrypt (plain) {
    const out = this.cipher === undefined ? plain : this.cipher.seal(plain, this.hash)
    this.mix(out)
    return out
  }

  decrypt (sealed) {
    const out = this.cipher === undefined ? sealed : this.cipher.open(sealed, this.hash)
    this.mix(sealed)
    return out
  }

  // What encrypts, and what decrypts, from now on.
  split () {
    const [one, two] = hkdf(this.chain, Buffer.alloc(0)).map((key) => new Cipher(key))
    return this.dialler ? [one, two] : [two, one]
  }
}

function hkdf (salt, input) {
  const mac = (key, data) => createHmac('sha256', key).update(data).digest()
  const secret = mac(salt, input)
  const one = mac(secret, Buffer.from([1]))
  return [one, mac(secret, join(one, [2]))]
}

const SIGNED = utf8('noise-libp2p-static-key:')

export const payloadOf = (key, fixed) =>
  protobuf([1, publicProtobuf(key.public)], [2, key.sign(join(SIGNED, fixed.public))])

export function peerIn (payload, fixed) {
  const fields = readProtobuf(payload)
  const [identity, signature] = [first(fields, 1), first(fields, 2)]
  if (identity?.length !== 36 || !same(identity.subarray(0, 4), unhex('08011220'))) throw new Malformed('no Ed25519 key')
  if (!holds(identity.subarray(4), join(SIGNED, fixed), signature)) throw new Malformed('not its static key')
  return peerOf(identity.subarray(4))
}

export const noiseFrame = (message) => join(u16(message.length), message)
const readNoise = async (raw) => raw.input.exactly((await raw.input.exactly(2)).readUInt16BE())

// A channel over a channel, and the peer at the other end.
async function secure (raw, key, fixed, dialler, wanted) {
  const handshake = new Handshake(dialler, fixed)
  const say = () => raw.write(noiseFrame(handshake.write(handshake.turn > 0 ? payloadOf(key, fixed) : Buffer.alloc(0))))
  if (!dialler) handshake.read(await readNoise(raw))
  say()
  const peer = peerIn(handshake.read(await readNoise(raw)), handshake.rs)
  if (wanted !== undefined && peer !== wanted) throw new Malformed(`another peer answers: ${peer}`)
  if (dialler) say()
  const [seal, open] = handshake.split()
  const input = new Bytes()
  const pump = async () => {
    for (;;) input.push(open.open(await readNoise(raw)))
  }
  pump().catch((error) => { input.end(error); raw.close() })
  const write = (data) => {
    for (let at = 0; at < data.length; at += PLAIN_MAX) raw.write(noiseFrame(seal.seal(data.subarray(at, at + PLAIN_MAX))))
  }
  return { channel: { input, write, close: raw.close }, peer }
}

// ---- yamux

const [DATA, CREDIT, PING, GO_AWAY] = [0, 1, 2, 3]
const [SYN, ACK, FIN, RST] = [1, 2, 4, 8]
const WINDOW = 262144
const BODY_MAX = 32768
const STREAMS_MAX = 64
const CREDIT_MAX = 0xffffffff

export function yamuxFrame (type, flags, stream, length) {
  const out = Buffer.alloc(12)
  out.writeUInt8(type, 1)
  out.writeUInt16BE(flags, 2)
  out.writeUInt32BE(stream, 4)
  out.writeUInt32BE(length, 8)
  return out
}

export class Stream {
  constructor (connection, number) {
    Object.assign(this, { connection, number, credit: WINDOW, window: WINDOW, sent: false })
    this.input = new Bytes(() => this.granted())
    this.waiting = []
    this.peer = connection.peer
  }

  // Queued until there is credit; `finish` comes after it.
  write (data) { this.waiting.push(Buffer.from(data)); this.flush() }
  finish () { this.waiting.push(null); this.flush() }

  flush () {
    while (this.waiting.length > 0 && !this.sent) {
      const next = this.waiting[0]
      if (next === null) {
        this.sent = true
        this.connection.say(CREDIT, FIN, this.number, 0)
        this.waiting.shift()
      } else if (next.length === 0) {
        this.waiting.shift()
      } else {
        const size = Math.min(next.length, this.credit, BODY_MAX)
        if (size === 0) return
        this.credit -= size
        this.connection.say(DATA, 0, this.number, size, next.subarray(0, size))
        this.waiting[0] = next.subarray(size)
      }
    }
    this.forget()
  }

  reset () {
    this.connection.say(CREDIT, RST, this.number, 0)
    this.lost('reset here')
  }

  lost (why) {
    this.sent = true
    this.input.end(new Error(`the stream is lost: ${why}`))
    this.connection.streams.delete(this.number)
  }

  took (flags) {
    if (flags & RST) this.lost('reset by the peer')
    else if (flags & FIN) { this.input.end(); this.forget() }
  }

  forget () { if (this.sent && this.input.over) this.connection.streams.delete(this.number) }

  // Credit for what was read, given back when half of the window was.
  granted () {
    const room = WINDOW - this.window - this.input.data.length
    if (this.input.over || room < WINDOW / 2) return
    this.window += room
    this.connection.say(CREDIT, 0, this.number, room)
  }
}

class Breach extends Error {}

export class Yamux {
  constructor (channel, peer, dialler, opened) {
    Object.assign(this, { channel, peer, dialler, opened, next: dialler ? 1 : 2, streams: new Map(), pongs: new Map() })
    this.over = this.run().catch((error) => {
      if (error instanceof Breach) this.say(GO_AWAY, 0, 0, 1)
      return error
    }).then((error) => {
      for (const stream of [...this.streams.values()]) stream.lost(String(error))
      channel.close()
    })
  }

  say (type, flags, stream, length, body = Buffer.alloc(0)) {
    this.channel.write(join(yamuxFrame(type, flags, stream, length), body))
  }

  open () {
    const stream = new Stream(this, this.next)
    this.next += 2
    this.streams.set(stream.number, stream)
    this.say(CREDIT, SYN, stream.number, 0)
    return stream
  }

  close () { this.say(GO_AWAY, 0, 0, 0); this.channel.close() }

  theirs () { return [...this.streams.keys()].filter((number) => (number % 2 === 1) !== this.dialler).length }

  async run () {
    for (;;) {
      const header = await this.channel.input.exactly(12)
      const [version, type, flags] = [header[0], header[1], header.readUInt16BE(2)]
      const [number, length] = [header.readUInt32BE(4), header.readUInt32BE(8)]
      if (version !== 0 || type > GO_AWAY) throw new Breach('an unknown frame')
      if (type === GO_AWAY) return 'go away'
      if (type === PING) {
        if (flags & SYN) this.say(PING, ACK, 0, length)
        continue
      }
      const stream = flags & SYN ? this.take(number) : this.streams.get(number)
      if (type === CREDIT) {
        if (stream !== undefined && stream.credit + length > CREDIT_MAX) throw new Breach('credit beyond 32 bits')
        if (stream !== undefined) { stream.credit += length; stream.flush() }
      } else {
        if (length > (stream?.window ?? WINDOW)) throw new Breach('data beyond the window')
        if (stream !== undefined) stream.window -= length
        const body = await this.channel.input.exactly(length)
        stream?.input.push(body)
      }
      stream?.took(flags)
    }
  }

  take (number) {
    const ours = (number % 2 === 1) === this.dialler
    if (number === 0 || ours || this.streams.has(number)) throw new Breach('a stream out of place')
    if (this.theirs() >= STREAMS_MAX) {
      this.say(CREDIT, RST, number, 0)
      return undefined
    }
    const stream = new Stream(this, number)
    this.streams.set(number, stream)
    this.say(CREDIT, ACK, number, 0)
    this.opened(stream)
    return stream
  }
}

// ---- both ends of a socket

async function upgrade (socket, key, fixed, wanted, opened) {
  const input = new Bytes()
  socket.on('data', (data) => input.push(data))
  socket.on('error', () => {})
  socket.on('close', () => input.end(new Error('the connection was lost')))
  const raw = { input, write: (data) => { if (!socket.destroyed) socket.write(data) }, close: () => socket.end() }
  const dialler = wanted !== undefined
  const agree = (channel, protocol) => dialler ? propose(channel, protocol) : answer(channel, (each) => each === protocol)
  await agree(raw, '/noise')
  const { channel, peer } = await secure(raw, key, fixed, dialler, wanted)
  await agree(channel, '/yamux/1.0.0')
  return new Yamux(channel, peer, dialler, opened)
}

// A connection to a whole address. `opened` gets the streams that the peer opens.
export async function dial (address, key, fixed, opened) {
  const { host, port, peer } = parseAddress(address)
  keyOf(peer)
  const socket = net.connect({ host, port, noDelay: true })
  await new Promise((resolve, reject) => { socket.once('connect', resolve); socket.once('error', reject) })
  return upgrade(socket, key, fixed, peer, opened)
}

// Listens on a free port of loopback; `connected` gets each connection that is open.
export async function listen (key, fixed, opened, connected) {
  const server = net.createServer({ noDelay: true }, (socket) => {
    upgrade(socket, key, fixed, undefined, opened).then(connected).catch(() => socket.destroy())
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  return `/ip4/127.0.0.1/tcp/${server.address().port}`
}
