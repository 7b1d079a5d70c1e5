// Identify, gossip and the DHT, as much of them as a small peer needs. Written from protocols/identify/SPEC.md,
// protocols/gossipsub/SPEC.md and protocols/kademlia/SPEC.md.
import { every, first, hex, join, protobuf, readProtobuf, u64, unbase58, unhex, utf8, varint } from './codec.mjs'
import { propose } from './connection.mjs'
import { addressBytes, addressText, holds, keyOf, peerOf, publicProtobuf, sha256 } from './names.mjs'

const GOSSIP = ['/meshsub/1.2.0', '/meshsub/1.1.0']
const RPC_MAX = 262144
const SIGNED = utf8('libp2p-pubsub:')
export const sized = (data) => join(varint(data.length), data)

// ---- identify

export const identityOf = (key, addresses, protocols) => protobuf(
  [1, publicProtobuf(key.public)], ...addresses.map((each) => [2, addressBytes(each)]),
  ...protocols.map((each) => [3, utf8(each)])
)

const known = (raw) => { try { return [addressText(raw)] } catch { return [] } }

export function readIdentity (raw) {
  const fields = readProtobuf(raw)
  return { addrs: every(fields, 2).flatMap(known), protocols: every(fields, 3).map(String) }
}

// ---- gossip

export function makeMessage (key, seqno, topic, data) {
  const said = [[1, unbase58(key.peer)], [2, data], [3, u64(seqno)], [4, utf8(topic)]]
  return protobuf(...said, [5, key.sign(join(SIGNED, protobuf(...said)))])
}

export function readMessage (raw) {
  const fields = readProtobuf(raw)
  const [from, data, seqno, topic, signature] = [1, 2, 3, 4, 5].map((number) => first(fields, number))
  const said = protobuf([1, from], [2, data], [3, seqno], [4, topic])
  const author = peerOf(from.subarray(6))
  return {
    author, data, topic: topic?.toString(), id: hex(join(from, seqno)), signed: join(SIGNED, said),
    holds: signature !== undefined && signature.length === 64 && holds(keyOf(author), join(SIGNED, said), signature)
  }
}

export const subscribeRpc = (topic, on) => protobuf([1, protobuf([1, on ? 1 : 0], [2, utf8(topic)])])
export const graftRpc = (topic) => protobuf([3, protobuf([3, protobuf([1, utf8(topic)])])])
export const publishRpc = (message) => protobuf([2, message])

// Every neighbour on the topic is in the mesh of a node as small as this one.
export class Gossip {
  constructor (key) {
    Object.assign(this, { key, topics: new Set(), out: new Map(), theirs: new Map(), seen: new Set(), heard: [] })
    this.seqno = BigInt(Date.now()) * 1000n
  }

  async connected (connection) {
    const stream = connection.open()
    await propose(stream, ...GOSSIP)
    this.out.set(connection.peer, stream)
    for (const topic of this.topics) this.tell(connection.peer, subscribeRpc(topic, true))
    this.graft(connection.peer)
  }

  tell (peer, rpc) { this.out.get(peer)?.write(sized(rpc)) }

  graft (peer) {
    for (const topic of this.theirs.get(peer) ?? []) {
      if (this.topics.has(topic)) this.tell(peer, graftRpc(topic))
    }
  }

  subscribe (topic) {
    this.topics.add(topic)
    for (const peer of this.out.keys()) {
      this.tell(peer, subscribeRpc(topic, true))
      this.graft(peer)
    }
  }

  publish (topic, data) {
    const message = makeMessage(this.key, ++this.seqno, topic, data)
    this.seen.add(readMessage(message).id)
    this.forward(topic, message)
  }

  forward (topic, message, ...without) {
    for (const [peer, topics] of this.theirs) {
      if (topics.has(topic) && !without.includes(peer)) this.tell(peer, publishRpc(message))
    }
  }

  async serve (stream) {
    const topics = new Set()
    this.theirs.set(stream.peer, topics)
    for (;;) {
      const rpc = readProtobuf(await stream.input.sized(RPC_MAX))
      for (const each of every(rpc, 1).map(readProtobuf)) {
        const topic = first(each, 2).toString()
        topics[first(each, 1) === 1 ? 'add' : 'delete'](topic)
      }
      if (every(rpc, 1).length > 0) this.graft(stream.peer)
      for (const raw of every(rpc, 2)) {
        const message = readMessage(raw)
        if (!message.holds || this.seen.has(message.id) || !this.topics.has(message.topic)) continue
        this.seen.add(message.id)
        this.heard.push([message.author, message.data.toString()])
        this.forward(message.topic, raw, message.author, stream.peer)
      }
    }
  }
}

// ---- the DHT

const [ADD_PROVIDER, GET_PROVIDERS, PING] = [2, 3, 5]
const ANSWER_MAX = 262144

const peerMessage = ({ peer, addresses, connected }) =>
  protobuf([1, unbase58(peer)], ...addresses.map((each) => [2, addressBytes(each)]), [3, connected ? 1 : 0])

function readPeer (raw) {
  const fields = readProtobuf(raw)
  return { peer: peerOf(first(fields, 1).subarray(6)), addresses: every(fields, 2).flatMap(known) }
}

export const recordKey = (key) => join(unhex('1220'), key.length === 32 ? key : sha256(key))
export const place = (key) => sha256(key)
export const distance = (one, other) => Buffer.from(place(one).map((byte, i) => byte ^ place(other)[i]))

// Asks and tells all peers that it is connected with; keeps what they tell.
export class Dht {
  constructor (name, self) { Object.assign(this, { name, self, records: new Map(), peers: new Map() }) }

  connected (connection) { this.peers.set(connection.peer, connection) }

  async ask (connection, ...fields) {
    const stream = connection.open()
    await propose(stream, this.name)
    stream.write(sized(protobuf(...fields)))
    stream.finish()
    return stream
  }

  async provide (key) {
    for (const connection of this.peers.values()) {
      await this.ask(connection, [1, ADD_PROVIDER], [2, recordKey(key)], [9, peerMessage(this.self())])
    }
  }

  async find (key) {
    const found = new Map()
    for (const connection of this.peers.values()) {
      const stream = await this.ask(connection, [1, GET_PROVIDERS], [2, recordKey(key)])
      const fields = readProtobuf(await stream.input.sized(ANSWER_MAX))
      for (const each of every(fields, 9).map(readPeer)) found.set(each.peer, each)
    }
    return [...found.values()]
  }

  async serve (stream) {
    for (;;) {
      const fields = readProtobuf(await stream.input.sized(16384))
      const [type, key] = [first(fields, 1) ?? 0, first(fields, 2) ?? Buffer.alloc(0)]
      const name = hex(key)
      if (type === ADD_PROVIDER) {
        const held = this.records.get(name) ?? new Map()
        for (const raw of every(fields, 9)) {
          if (readPeer(raw).peer === stream.peer) held.set(stream.peer, raw)
        }
        this.records.set(name, held)
        continue
      }
      const providers = type === GET_PROVIDERS ? [...(this.records.get(name)?.values() ?? [])] : []
      const answer = type === PING ? [[1, PING]] : [[1, type], [2, key], ...providers.map((raw) => [9, raw])]
      stream.write(sized(protobuf(...answer)))
    }
  }
}
