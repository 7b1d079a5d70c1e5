// js-libp2p 2.x, under the names that peer.mjs uses. Streams are a source and a sink.
export { gossipsub } from '@chainsafe/libp2p-gossipsub'
export { noise } from '@chainsafe/libp2p-noise'
export { yamux } from '@chainsafe/libp2p-yamux'
export { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
export { identify } from '@libp2p/identify'
export { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
export { peerIdFromString } from '@libp2p/peer-id'
export { ping } from '@libp2p/ping'
export { tcp } from '@libp2p/tcp'
export { webSockets } from '@libp2p/websockets'
export { multiaddr } from '@multiformats/multiaddr'
export { createLibp2p } from 'libp2p'

// What `node.handle` takes, from a function of the stream.
export const handler = (run) => ({ stream }) => run(stream)

// What the other side sends until it has finished. Throws when it resets the stream.
export async function * read (stream) {
  for await (const part of stream.source) yield part.subarray()
}

// Sends all parts, then finishes.
export const write = (stream, parts) => stream.sink(parts)
