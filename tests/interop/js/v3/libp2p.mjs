// js-libp2p 3.x, under the names that peer.mjs uses. Streams dispatch events, and are sent to.
import { WebSocket } from 'ws'

export { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
export { gossipsub } from '@libp2p/gossipsub'
export { identify } from '@libp2p/identify'
export { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
export { noise } from '@libp2p/noise'
export { peerIdFromString } from '@libp2p/peer-id'
export { ping } from '@libp2p/ping'
export { tcp } from '@libp2p/tcp'
export { webSockets } from '@libp2p/websockets'
export { yamux } from '@libp2p/yamux'
export { multiaddr } from '@multiformats/multiaddr'
export { createLibp2p } from 'libp2p'

// Node 20 has no WebSocket. Of ws, what comes together with the end of its handshake would be told before
// anybody listens.
globalThis.WebSocket ??= class extends WebSocket {
  constructor (url, protocols) { super(url, protocols, { allowSynchronousEvents: false }) }
}

// What `node.handle` takes, from a function of the stream.
export const handler = (run) => (stream) => run(stream)

// What the other side sends until it has finished. Throws when it resets the stream.
export async function * read (stream) {
  const parts = []
  let over = stream.readableEnded
  let failure
  let wake = () => {}
  stream.addEventListener('message', ({ data }) => { parts.push(data.subarray()); wake() })
  stream.addEventListener('end', () => { over = true; wake() })
  stream.addEventListener('close', ({ error }) => { over = true; failure = error; wake() })
  while (true) {
    if (parts.length > 0) {
      yield parts.shift()
    } else if (over) {
      if (failure !== undefined) throw failure
      return
    } else {
      await new Promise((resolve) => { wake = resolve })
    }
  }
}

// Sends all parts, then finishes.
export async function write (stream, parts) {
  for await (const part of parts) {
    if (!stream.send(part)) await stream.onDrain()
  }
  await stream.close()
}
