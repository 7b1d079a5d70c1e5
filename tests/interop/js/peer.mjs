// js-libp2p as a process: `node peer.mjs DHT-PROTOCOL SEED ADDRESS...` does what it is told in JSON lines on
// standard input (see tests/net/foreign.py). libp2p.mjs beside it is that of v2 or of v3.
import { createHash } from 'node:crypto'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'

// Some of the packages expect Node 22.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((a, b) => { resolve = a; reject = b })
  return { promise, resolve, reject }
}

const libp2p = await import('./libp2p.mjs') // of 2.x or of 3.x
const { CID } = await import('multiformats/cid')
const Digest = await import('multiformats/hashes/digest')

const [ECHO, SUM, HOLD] = ['echo', 'sum', 'hold'].map((name) => `/interop/${name}/1`)
const CHUNK = 65536
const [dht, seed, ...listen] = process.argv.slice(2)
const { handler, read, write, multiaddr, peerIdFromString } = libp2p
const outcomes = []
const messages = []

const node = await libp2p.createLibp2p({
  privateKey: await libp2p.generateKeyPairFromSeed('Ed25519', createHash('sha256').update(seed).digest()),
  addresses: { listen },
  transports: [libp2p.tcp(), libp2p.webSockets()],
  connectionEncrypters: [libp2p.noise()],
  streamMuxers: [libp2p.yamux()],
  connectionGater: { denyDialMultiaddr: () => false },
  services: {
    identify: libp2p.identify(),
    ping: libp2p.ping(),
    pubsub: libp2p.gossipsub({ allowPublishToZeroTopicPeers: true, heartbeatInterval: 500 }),
    dht: libp2p.kadDHT({ protocol: dht, clientMode: false, peerInfoMapper: libp2p.passthroughMapper })
  }
})

const pattern = (size) => Buffer.alloc(size, Buffer.from(Array.from({ length: 251 }, (_, i) => i)))
const sha256 = (data) => createHash('sha256').update(data).digest('hex')
const open = (peer, protocol) => node.dialProtocol(peerIdFromString(peer), protocol)
async function * chunks (data) {
  for (let at = 0; at < data.length; at += CHUNK) yield data.subarray(at, at + CHUNK)
}
async function collect (stream, pause = 0) {
  const parts = []
  for await (const part of read(stream)) {
    parts.push(part)
    if (pause > 0) await sleep(pause * 1000)
  }
  return Buffer.concat(parts)
}

const wide = { maxInboundStreams: 128, maxOutboundStreams: 128 }
await node.handle(ECHO, handler((stream) => write(stream, read(stream)).catch(() => {})), wide)
await node.handle(SUM, handler(async (stream) => {
  const data = await collect(stream)
  await write(stream, [Buffer.from(sha256(data))])
}), wide)
await node.handle(HOLD, handler(async (stream) => {
  try {
    await write(stream, read(stream))
    outcomes.push(stream.status === 'reset' ? 'reset' : 'end')
  } catch (error) {
    outcomes.push(stream.status === 'reset' || error.name === 'StreamResetError' ? 'reset' : error.name)
  }
}), wide)
node.services.pubsub.addEventListener('message', ({ detail }) => {
  messages.push([detail.from.toString(), Buffer.from(detail.data).toString()])
})

const key = (hex) => CID.createV0(Digest.decode(Buffer.from(hex, 'hex')))

const commands = {
  async dial ({ addr }) { await node.dial(multiaddr(addr)) },
  async echo ({ peer, size, pause_s: pause = 0 }) {
    const stream = await node.dialProtocol(peerIdFromString(peer), ECHO, wide)
    const [data] = await Promise.all([collect(stream, pause), write(stream, chunks(pattern(size)))])
    return { received: data.length, sha256: sha256(data) }
  },
  async sum ({ peer, size }) {
    const stream = await open(peer, SUM)
    const [data] = await Promise.all([collect(stream), write(stream, chunks(pattern(size)))])
    return data.toString()
  },
  async reset ({ peer }) {
    const stream = await open(peer, HOLD)
    const { promise, resolve } = Promise.withResolvers()
    write(stream, (async function * () { yield Buffer.from('x'); await promise })()).catch(() => {})
    await read(stream).next()
    stream.abort(new Error('as told'))
    resolve()
  },
  async many ({ peer, n, size }) {
    const wanted = sha256(pattern(size))
    const answers = await Promise.all(Array.from({ length: n }, () => commands.echo({ peer, size })))
    return answers.filter((answer) => answer.sha256 === wanted).length
  },
  async ping ({ peer }) {
    // The connection monitor pings too, and one ping stream is allowed at a time: it must have been closed.
    for (const deadline = Date.now() + 3000; ; await sleep(20)) {
      try {
        return 1 + await node.services.ping.ping(peerIdFromString(peer))
      } catch (error) {
        if (error.name !== 'TooManyOutboundProtocolStreamsError' || Date.now() > deadline) throw error
      }
    }
  },
  async identified ({ peer }) {
    try {
      const found = await node.peerStore.get(peerIdFromString(peer))
      return { protocols: found.protocols, addrs: found.addresses.map((each) => each.multiaddr.toString()) }
    } catch {
      return { protocols: [], addrs: [] }
    }
  },
  async outcomes () { return outcomes },
  async subscribe ({ topic }) {
    node.services.pubsub.topicValidators.set(topic, (_, message) =>
      Buffer.from(message.data).toString().startsWith('bad') ? 'reject' : 'accept')
    node.services.pubsub.subscribe(topic)
  },
  async publish ({ topic, data }) { await node.services.pubsub.publish(topic, Buffer.from(data)) },
  async messages () { return messages },
  async mesh ({ topic }) { return node.services.pubsub.getMeshPeers(topic) },
  async provide ({ key: hex }) {
    for await (const _ of node.services.dht.provide(key(hex))) { /* until done */ }
  },
  async find ({ key: hex }) {
    const found = []
    for await (const event of node.services.dht.findProviders(key(hex), { signal: AbortSignal.timeout(5000) })) {
      for (const each of event.name === 'PROVIDER' || event.name === 'PEER_RESPONSE' ? event.providers : []) {
        found.push({ peer: each.id.toString(), addrs: each.multiaddrs.map((address) => address.toString()) })
      }
    }
    return found.filter((each, i) => found.findIndex((other) => other.peer === each.peer) === i)
  }
}

const say = (value) => process.stdout.write(JSON.stringify(value) + '\n')
say({ ready: { peer_id: node.peerId.toString(), addrs: node.getMultiaddrs().map(String) } })
for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, ...args } = JSON.parse(line)
  commands[name](args).then(
    (result) => say({ id, result: result ?? null }),
    (error) => say({ id, error: `${error.name}: ${error.message} ${error.errors ?? ''}` })
  )
}
process.exit(0)
