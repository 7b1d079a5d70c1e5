// A libs5 node as a process: does what it is told in JSON lines on standard input (see tests/net/foreign.py).
import { createHash } from 'node:crypto'
import { createInterface } from 'node:readline'
import { MemoryLevel } from 'memory-level'
import { WebSocketServer } from 'ws'
import CID from '@lumeweb/libs5/lib/cid.js'
import { Multihash } from '@lumeweb/libs5/lib/multihash.js'
import NodeId from '@lumeweb/libs5/lib/nodeId.js'
import KeyPairEd25519 from '@lumeweb/libs5/lib/ed25519.js'
import { S5Node } from '@lumeweb/libs5/lib/node.js'
import { createTransportPeer } from '@lumeweb/libs5/lib/transports/index.js'
import {
  deserializeRegistryEntry, serializeRegistryEntry, signRegistryEntry, verifyRegistryEntry
} from '@lumeweb/libs5/lib/service/registry.js'

const [seed] = process.argv.slice(2)
const hex = (bytes) => Buffer.from(bytes).toString('hex')
const unhex = (text) => Uint8Array.from(Buffer.from(text, 'hex'))
const note = (...words) => console.error(...words)
const logger = { info: note, verbose: note, warn: note, error: note, catched: note }

const keyPair = new KeyPairEd25519(createHash('sha256').update(seed).digest())
const node = new S5Node({ keyPair, db: new MemoryLevel({ valueEncoding: 'buffer' }), logger, p2p: {} })
await node.start()
const { p2p, registry } = node.services
const nodeId = new NodeId(keyPair.publicKey).toBase58()

// libs5 only dials by itself: here it takes whoever dials it, too.
const server = new WebSocketServer({ host: '127.0.0.1', port: 0, path: '/s5/p2p' })
server.on('connection', (socket) => {
  socket.binaryType = 'nodebuffer'
  p2p.onNewPeer(createTransportPeer('ws', { socket, uris: [] }), false).catch(note)
})
await new Promise((resolve) => server.once('listening', resolve))
process.on('unhandledRejection', note)

const told = (entry) => entry === null ? null : hex(serializeRegistryEntry(entry))
const commands = {
  async dial ({ uri }) { p2p.connectToNode([new URL(uri)]).catch(note) },
  async peers () { return [...p2p.peers.keys()] },
  async sign ({ seed, revision, data }) {
    const kp = new KeyPairEd25519(unhex(seed))
    return told(signRegistryEntry({ kp, revision, data: unhex(data) }))
  },
  async verify ({ entry }) { return verifyRegistryEntry(deserializeRegistryEntry(unhex(entry))) },
  async set ({ entry }) { await registry.set(deserializeRegistryEntry(unhex(entry))) },
  async held ({ pk }) { return told(await registry.getFromDB(unhex(pk))) },
  async get ({ pk }) { return told(await registry.get(unhex(pk))) },
  async cid ({ hash, size }) {
    const cid = new CID(0x26, new Multihash(unhex('1f' + hash)), size)
    return { z: cid.toBase58(), u: cid.toBase64Url(), b: cid.toBase32() }
  },
  async read_cid ({ text }) {
    const cid = CID.decode(text)
    return { type: cid.type, hash: hex(cid.hash.hashBytes), size: cid.size }
  }
}

const say = (value) => process.stdout.write(JSON.stringify(value) + '\n')
say({ ready: { peer_id: nodeId, addrs: [`ws://${nodeId}@127.0.0.1:${server.address().port}/s5/p2p`] } })
for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, ...args } = JSON.parse(line)
  commands[name](args).then(
    (result) => say({ id, result: result ?? null }),
    (error) => say({ id, error: String(error?.stack ?? error) })
  )
}
process.exit(0)
