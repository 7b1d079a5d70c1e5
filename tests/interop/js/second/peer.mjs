// A peer written from the SPECs alone, as a process: `node peer.mjs DHT-PROTOCOL SEED` does what it is told in
// JSON lines on standard input (see tests/net/foreign.py). It has no libp2p in it.
import { createHash, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'

import { Session, promptOf } from './client.mjs'
import { hex, unhex, utf8 } from './codec.mjs'
import { Pair, answer, dial, listen, propose } from './connection.mjs'
import { offered, orders, serveAdverts, serveSession } from './host.mjs'
import { askAdvert, askSheet, openStore, shown } from './messages.mjs'
import { Key, modelText, readInvite } from './names.mjs'
import { Payment, addressOf, tokenDomain } from './payment.mjs'
import { Keys, entropyOf, recover, write } from './storage.mjs'
import { Dht, Gossip, identityOf, readIdentity, sized } from './topics.mjs'

const [dhtName, seed] = process.argv.slice(2)
const [IDENTIFY, PING] = ['/ipfs/id/1.0.0', '/ipfs/ping/1.0.0']
const MESHSUB = ['/meshsub/1.2.0', '/meshsub/1.1.0']
const PING_BYTES = 32

const key = new Key(createHash('sha256').update(seed).digest())
const fixed = new Pair()
const wallet = createHash('sha256').update(`wallet of ${seed}`).digest()
const gossip = new Gossip(key)
const dht = new Dht(dhtName, () => ({ peer: key.peer, addresses: [address], connected: true }))
const connections = new Map()
const failures = []

const served = {
  [IDENTIFY]: async (stream) => {
    stream.write(sized(identityOf(key, [address], Object.keys(served))))
    stream.finish()
  },
  [PING]: async (stream) => {
    for (;;) stream.write(await stream.input.exactly(PING_BYTES))
  },
  [MESHSUB[0]]: (stream) => gossip.serve(stream),
  [MESHSUB[1]]: (stream) => gossip.serve(stream),
  [dhtName]: (stream) => dht.serve(stream),
  '/p2pnode/adverts/1': (stream) => serveAdverts(stream, key, wallet, address),
  '/p2pnode/inference/1': (stream) => serveSession(stream, key)
}

// Who ended before all was said only ended; anything else is told to the test.
const guarded = (run) => run.catch((error) => { if (!/ended early|is lost/.test(error.message)) failures.push(error.stack) })

const opened = (stream) => guarded((async () => {
  const channel = { input: stream.input, write: (data) => stream.write(data) }
  await served[await answer(channel, (protocol) => protocol in served)](stream)
})())

function connected (connection) {
  connections.set(connection.peer, connection)
  connection.over.then(() => connections.delete(connection.peer))
  guarded(identify(connection).then(({ protocols }) => {
    if (protocols.includes(dhtName)) dht.connected(connection)
    if (MESHSUB.some((each) => protocols.includes(each))) return gossip.connected(connection)
  }))
}

async function identify (connection) {
  const stream = connection.open()
  await propose(stream, IDENTIFY)
  return readIdentity(await stream.input.sized(8192))
}

const address = await listen(key, fixed, opened, connected)

let session
let left

async function payTo (connection, model, chain, deposit) {
  const [advert] = await askAdvert(connection)
  const market = { name: 'JobMarketplace', version: '1', chain_id: chain.id, contract: chain.market }
  const token = await tokenDomain(chain.url, chain.id, chain.token)
  return new Payment({ payer: wallet, advert, model, deposit, market, token })
}

const commands = {
  async dial ({ addr }) { connected(await dial(addr, key, fixed, opened)) },
  async join ({ invite }) { connected(await dial(readInvite(invite)[0], key, fixed, opened)) },
  async identified ({ peer }) { return identify(connections.get(peer)) },
  async ping ({ peer }) {
    const stream = connections.get(peer).open()
    await propose(stream, PING)
    for (let i = 0; i < 3; i++) {
      const data = randomBytes(PING_BYTES)
      stream.write(data)
      if (!data.equals(await stream.input.exactly(PING_BYTES))) throw new Error('another answer')
    }
    stream.finish()
    return 3
  },
  async advert ({ peer }) { return shown(await askAdvert(connections.get(peer))) },
  async sheet ({ peer }) {
    const [advert] = await askAdvert(connections.get(peer))
    return shown(await askSheet(connections.get(peer), advert))
  },
  async payer () { return `0x${hex(addressOf(wallet))}` },
  // A session, paid where there is a `chain`.
  async open ({ peer, model, chain, deposit, keep_s: keepS }) {
    const connection = connections.get(peer)
    const payment = chain === undefined ? undefined : await payTo(connection, unhex(model), chain, deposit)
    session = await Session.open(connection, unhex(model), payment, keepS)
    return { session: hex(session.session), turns_max: session.turnsMax, keep_s: session.keepS }
  },
  async leave ({ seconds }) {
    left = await session.leave(seconds)
    return { until: left.until, generation: left.generation }
  },
  async resume ({ peer }) {
    session = await Session.resume(connections.get(peer), key.peer, left)
    return { session: hex(session.session), turns_max: session.turnsMax, generation: session.generation }
  },
  // Turns, all asked at once: their answers, and the session so far. `lose_at`: of how many ids in the session the
  // stream is lost, and the session goes on on another one.
  async turns ({ turns, lose_at: loseAt }) {
    const asked = Promise.all(turns.map(({ late, ...said }) => session.ask(promptOf(said), { late })))
    if (loseAt !== undefined) {
      await session.has(loseAt)
      await session.move(connections.get(session.host), key.peer)
    }
    const answers = await asked
    const { receipts, vouchers: { length: vouchers }, order, cost } = session
    return { answers, receipts, vouchers, order, cost }
  },
  async close () { session.close() },
  async model () { return modelText(offered.model) },
  // Counts as another model from now on.
  async serve ({ model }) { offered.model = unhex(model) },
  async served () { return orders },
  async store ({ peer, words, title, turns }) {
    const store = await openStore(connections.get(peer))
    const entropy = entropyOf(words)
    store.claim(new Keys(entropy).owner, key.peer)
    const sid = await write(store, entropy, title, turns)
    store.close()
    return hex(sid)
  },
  async recover ({ peer, words }) {
    const store = await openStore(connections.get(peer))
    const found = await recover(store, entropyOf(words))
    store.close()
    return found
  },
  async subscribe ({ topic }) { gossip.subscribe(topic) },
  async publish ({ topic, data }) { gossip.publish(topic, utf8(data)) },
  async messages () { return gossip.heard },
  async mesh ({ topic }) { return [...gossip.theirs].filter(([, topics]) => topics.has(topic)).map(([peer]) => peer) },
  async provide ({ key: record }) { await dht.provide(unhex(record).subarray(2)) },
  async find ({ key: record }) {
    const found = await dht.find(unhex(record).subarray(2))
    return found.map(({ peer, addresses }) => ({ peer, addrs: addresses }))
  },
  async failures () { return failures }
}

const say = (value) => process.stdout.write(JSON.stringify(value) + '\n')
say({ ready: { peer_id: key.peer, addrs: [`${address}/p2p/${key.peer}`] } })
for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, ...args } = JSON.parse(line)
  commands[name](args).then((result) => say({ id, result: result ?? null }), (error) => say({ id, error: error.stack }))
}
process.exit(0)
