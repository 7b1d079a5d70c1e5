// Every vector that this implementation can make or read: `node vectors.mjs ROOT` prints one JSON line.
import { readFileSync } from 'node:fs'
import path from 'node:path'

import {
  Float, first, frame, hex, join, pack, readProtobuf, readVarint, same, unbase58, unhex, unpack, utf8
} from './codec.mjs'
import { Handshake, Pair, Yamux, Bytes, line, noiseFrame, payloadOf, peerIn, yamuxFrame } from './connection.mjs'
import { genericForm } from './generic.mjs'
import { manifestOf, overheadOf } from './gguf.mjs'
import { goesOn, promptOf, resumeDigest } from './client.mjs'
import {
  bindingDigest, blake, hash, profileHash, readAdvert, readSheet, sheetHash, signer
} from './messages.mjs'
import {
  Key, SCRIPTED, addressBytes, addressText, canonical, holds, keyOf, makeInvite, modelId, modelText, parseAddress,
  publicProtobuf, readInvite, sha256
} from './names.mjs'
import { Payment, RECEIVE, TERMS, VOUCHER, addressOf, digestOf } from './payment.mjs'
import {
  Leaf, callSeed, idsHash, nextRoot, receiptDigest, requestHash, rootZero, textsHash, tokenHash
} from './receipts.mjs'
import {
  Keys, better, entropyOf, joined, link, makeEntry, padded, readEntry, seal, segmentOf, unseal, walletSecret,
  wins, wordsOf
} from './storage.mjs'
import {
  distance, graftRpc, makeMessage, publishRpc, readIdentity, readMessage, recordKey, subscribeRpc
} from './topics.mjs'

const root = process.argv[2]
const read = (...parts) => JSON.parse(readFileSync(path.join(root, ...parts, 'vectors.json'), 'utf8'))
const failed = []
let checked = 0

// Bytes are compared as hex, anything else as JSON.
function equal (name, found, wanted) {
  checked++
  const [one, other] = [found, wanted].map((each) => JSON.stringify(each instanceof Uint8Array ? hex(each) : each))
  if (one !== other) failed.push(`${name}: ${one} is not ${other}`)
}

function refused (name, run) {
  checked++
  try { run() } catch { return }
  failed.push(`${name}: was taken`)
}

// ---- transport

async function transport () {
  const told = read('protocols', 'transport')
  for (const each of told.keys) {
    const key = new Key(unhex(each.secret))
    equal('public key', key.public, each.public)
    equal('public key, protobuf', publicProtobuf(key.public), each.public_protobuf)
    equal('peer id', key.peer, each.peer)
    equal('key of a peer id', keyOf(each.peer), each.public)
  }
  for (const { text, hex: bytes } of told.multiaddrs) {
    equal(text, addressBytes(text), bytes)
    equal(text, addressText(unhex(bytes)), text)
  }
  for (const { name, text } of told.refused_multiaddrs) refused(name, () => parseAddress(text))
  for (const { addresses, invite } of told.invites) {
    const [peer] = addresses.map((each) => each.split('/p2p/')[1])
    equal('invite, read', readInvite(` ${invite.slice(0, 30)}\n${invite.slice(30)}`), addresses)
    equal('invite, made', makeInvite(peer, addresses.map((each) => each.split('/p2p/')[0])), invite)
  }
  for (const { name, invite } of told.refused_invites) refused(name, () => readInvite(invite))
  for (const { text, hex: bytes } of told.lines) equal(text, line(text), bytes)
  noise(told)
  await yamux(told.yamux)
}

function noise ({ keys, noise: told }) {
  const sides = Object.fromEntries(['dialler', 'listener'].map((side, place) => {
    const fixed = new Pair(unhex(told.static_secrets[side]))
    equal('static key', fixed.public, told.static_publics[side])
    const handshake = new Handshake(side === 'dialler', fixed, new Pair(unhex(told.ephemeral_secrets[side])))
    return [side, { fixed, handshake, key: new Key(unhex(keys[place].secret)) }]
  }))
  const other = (side) => sides[side === 'dialler' ? 'listener' : 'dialler']
  for (const [place, step] of told.handshake.entries()) {
    const { fixed, handshake, key } = sides[step.from]
    const payload = place > 0 ? payloadOf(key, fixed) : Buffer.alloc(0)
    equal('payload', payload, step.payload)
    const message = handshake.write(payload)
    equal(`message ${place + 1}`, noiseFrame(message), step.bytes)
    const heard = other(step.from).handshake.read(message)
    if (place > 0) equal('peer', peerIn(heard, other(step.from).handshake.rs), told.peers[step.from])
  }
  const ciphers = Object.fromEntries(Object.entries(sides).map(([side, { handshake }]) => [side, handshake.split()]))
  for (const step of told.after) equal('after', noiseFrame(ciphers[step.from][0].seal(unhex(step.text))), step.bytes)
}

async function yamux (told) {
  const frames = Object.fromEntries(told.frames.map(({ name, hex: bytes }) => [name, bytes]))
  equal('open stream 1', yamuxFrame(1, 1, 1, 0), frames['open stream 1'])
  equal('five bytes', join(yamuxFrame(0, 0, 1, 5), utf8('hello')), frames['five bytes on stream 1'])
  equal('goodbye', yamuxFrame(3, 0, 0, 0), frames.goodbye)
  for (const { name, dialler, listener } of told.exchanges) {
    const [input, sent] = [new Bytes(), []]
    const conn = new Yamux({ input, write: (data) => sent.push(data), close () {} }, 'peer', false, () => {})
    input.push(unhex(dialler))
    await new Promise((resolve) => setTimeout(resolve, 5))
    equal(`yamux: ${name}`, join(...sent), listener)
    input.end()
    await conn.over
  }
}

// ---- framing, adverts, lookup, inference

function framing () {
  const told = read('protocols', 'framing')
  for (const { name, payload, frame: bytes } of told.frames) equal(name, frame(unhex(payload)), bytes)
  for (const { name, frame: bytes } of told.refused_frames) {
    refused(name, () => {
      const size = readVarint(unhex(bytes), 0, 4)
      if (size === undefined || size.value < 1 || size.value > 65536) throw new Error(name)
    })
  }
  for (const { hex: bytes } of told.payloads) unpack(unhex(bytes))
  for (const { name, hex: bytes } of told.refused_payloads) refused(name, () => unpack(unhex(bytes)))
}

// A message that was read is written again, byte for byte. Of floats it knows that they are of 64 bits.
function messages () {
  for (const protocol of ['adverts', 'inference', 'checkpoint', 'count', 'blob']) {
    for (const { name, hex: bytes } of read('protocols', protocol).messages) {
      equal(`${protocol}: ${name}`, pack(unpack(unhex(bytes))), bytes)
    }
  }
}

function adverts () {
  const told = read('protocols', 'adverts')
  const advert = readAdvert(unpack(unhex(told.messages.find(({ type }) => type === 'advert').hex)))
  equal('who', advert.p, told.peer)
  equal('binding', bindingDigest(advert.p, advert.b), told.binding_digest)
  equal('wallet', advert.b.w, told.wallet)
  equal('topic', `/p2pnode/adverts/1/${hex(advert.o[0].m)}`, told.topic)
  const { body } = unpack(unhex(told.messages.find(({ type }) => type === 'sheet').hex))
  const sheet = readSheet(body, advert)
  equal('sheet', sheetHash(body), told.sheet_hash)
  equal('sheet of the advert', advert.h, told.sheet_hash)
  equal('profile', profileHash(sheet.offers[0].profile), told.profile_hash)
  equal('profile of the offer', advert.o[0].h, told.profile_hash)
  for (const { model, key } of read('protocols', 'lookup').provider_keys) {
    equal('provider key', hash(utf8('p2pnode/provider/1\0'), unhex(model)), key)
  }
}

function inference () {
  const all = read('protocols', 'inference')
  for (const { name, hex: bytes } of all.records) equal(`inference: ${name}`, pack(unpack(unhex(bytes))), bytes)
  for (const { name, hex: bytes, fields } of all.records.filter(({ type }) => type === 'PromptBody')) {
    equal(`made: ${name}`, pack(promptOf(prompted(fields))), bytes)
  }
  for (const { seed, start, call } of all.seeds) equal('seed of a call', callSeed(unhex(seed), start), call)
  const told = all.receipts
  const [session, model, salt] = [told.session, told.model, told.salt].map(unhex)
  equal('root 0', rootZero(session, model, salt), told.root_0)
  equal('request hash', requestHash(unhex(all.records[0].hex)), told.request_hash)
  equal('prompt hash', idsHash(told.prompt_ids), told.prompt_hash)
  const frames = told.frames.map(({ hex: bytes }) => unpack(unhex(bytes)))
  const leaves = told.leaves.map(({ turn, first, request, prompt, ended, leaf: wanted }) => {
    const leaf = new Leaf(turn, unhex(request), first)
    leaf.prompt = unhex(prompt)
    for (const frame of frames.filter((each) => each.turn === turn)) leaf.take(frame)
    const made = leaf.cut(ended)
    equal(`leaf of turn ${turn}`, made, wanted)
    return made
  })
  embedded(all)
  const tokens = tokenHash(leaves)
  equal('token hash', tokens, told.token_hash)
  const { seq, tokens_in: tokensIn, tokens_out: tokensOut, ...checkpoint } =
    unpack(unhex(all.messages.find(({ type }) => type === 'checkpoint').hex))
  const next = nextRoot(unhex(told.root_0), seq, tokensIn, tokensOut, tokens, checkpoint.fingerprint_hash)
  equal('root 1', next, told.root_1)
  const digest = receiptDigest(session, told.epoch, next)
  equal('digest', digest, told.digest)
  equal('signature', holds(keyOf(told.peer), digest, unhex(told.signature)), true)
  paid(all.paid)
}

// What a vector says of a prompt, in values.
function embedded ({ embeddings: told, records }) {
  const leaf = new Leaf(told.turn, requestHash(unhex(records.find(({ name }) => name === told.prompt).hex)))
  equal('hash of texts', textsHash(told.ids), told.prompt_hash)
  leaf.prompt = textsHash(told.ids)
  told.frames.forEach(({ hex: bytes }, at) => {
    const frame = unpack(unhex(bytes))
    equal('vector', Buffer.from(new Float32Array(told.vectors[at]).buffer), frame.data)
    leaf.takeVector(frame)
  })
  equal('leaf of vectors', leaf.cut(told.ended), told.leaf)
}

const prompted = ({ messages, sampling, seed, cache_key: key, ...others }) => ({
  ...others,
  messages: messages.map(({ content, ...message }) =>
    ({ ...message, content: content.map((part) => ({ ...part, data: unhex(part.data) })) })),
  sampling: { ...sampling, logit_bias: sampling.logit_bias.map(({ id, bias }) => ({ id, bias: new Float(bias) })) },
  seed: unhex(seed),
  cache_key: key === undefined ? undefined : unhex(key)
})

function paid (told) {
  const said = (list) => list.map(({ hex: bytes }) => unpack(unhex(bytes)))
  const [open, accept, prompt, , quote, input, frame, checkpoint, output] = said(told.turn)
  const terms = open.terms
  const session = digestOf(told.market, TERMS, ...Object.values(terms))
  equal('session', session, told.session)
  equal('accepted', accept.session, told.session)
  const authorised = digestOf(
    told.token, RECEIVE, terms.payer, unhex(told.market.contract), terms.deposit, 0, open.valid_before, session
  )
  equal('authorisation', authorised, told.authorisation_digest)
  equal('payer', signer(authorised, open.authorisation), terms.payer)
  const zero = rootZero(session, open.model, open.salt)
  equal('root 0 of a paid session', zero, told.root_0)
  const [resume, again] = [said(told.resume)[0], said(told.recovery)[2]]
  const digests = [...told.voucher_digests, told.final_voucher_digest]
  for (const [place, each] of [input, output, again.voucher].entries()) {
    const digest = digestOf(
      told.market, VOUCHER, session, each.seq, each.tokens_in, each.tokens_out, each.amount, each.root
    )
    equal('voucher', digest, digests[place])
    equal('voucher key', signer(digest, each.signature), terms.voucher_key)
    equal('amount', Payment.prototype.amount.call({ terms }, each.tokens_in, each.tokens_out), each.amount)
  }
  const leaf = new Leaf(quote.turn, requestHash(prompt.body))
  leaf.prompt = quote.prompt_hash
  leaf.take(frame)
  equal('tokens of a paid turn', tokenHash([leaf.cut(checkpoint.ended[0].reason)]), hex(checkpoint.token_hash))
  const { seq, tokens_in: tokensIn, tokens_out: tokensOut } = checkpoint
  const root = nextRoot(zero, seq, tokensIn, tokensOut, checkpoint.token_hash, checkpoint.fingerprint_hash)
  equal('root of a paid receipt', root, hex(checkpoint.root))
  const receipt = receiptDigest(session, accept.epoch, checkpoint.root)
  equal('paid receipt', receipt, told.receipt_digest)
  equal('receipt key', signer(receipt, checkpoint.signature), terms.receipt_key)
  for (const [nonce, wanted, { proof }] of [
    [accept.nonce, told.resume_digest, resume], [said(told.recovery)[1].nonce, told.challenge_digest, again],
    [said(told.resume_left)[1].nonce, told.challenge_digest, said(told.resume_left)[2]]
  ]) {
    const digest = resumeDigest(nonce, session, told.host_peer, told.client_peer)
    equal('resume', digest, wanted)
    equal('proof', signer(digest, proof), terms.voucher_key)
  }
  // A session that was left goes on from what its host shows, whatever the journal knew.
  const payment = Object.assign(Object.create(Payment.prototype), { terms, market: told.market, session })
  for (const name of ['resume_left', 'resume_left_old']) {
    const from = goesOn({ session, payment }, said(told[name])[3], { root: zero, seq: 0 })
    equal(`${name}: root`, from.root, hex(checkpoint.root))
    equal(`${name}: counts`, [from.seq, from.in, from.out].join(), [output.seq, output.tokens_in, output.tokens_out].join())
  }
  for (const [name, secret] of Object.entries(told.secrets)) {
    equal(name, addressOf(unhex(secret)), hex(terms[name]))
  }
}

function blob () {
  const told = read('protocols', 'blob')
  const owner = new Key(unhex(told.owner_secret))
  const digest = blake(utf8('p2pnode/blob-owner/1\0'), utf8(told.client), utf8('\0'), utf8(told.server))
  equal('claim', digest, told.claim_digest)
  const claim = unpack(unhex(told.messages[0].hex))
  equal('signed claim', owner.sign(digest), hex(claim.signature))
  for (const { entry_key: key, key: wanted } of told.provider_keys) {
    equal('provider key of an entry', sha256(utf8('p2pnode/entry/1\0'), unhex(key)), wanted)
  }
  for (const { model, key: wanted } of told.files_keys) {
    equal('key of who shares files', sha256(utf8('p2pnode/model-files/1\0'), unhex(model)), wanted)
  }
}

// ---- gossip and the DHT

// The message of an RPC that publishes one.
const published = ({ hex: bytes }) => readMessage(first(readProtobuf(unhex(bytes)), 2))

function topics () {
  const told = read('protocols', 'gossipsub')
  const rpcs = Object.fromEntries(told.rpcs.map(({ name, hex: bytes }) => [name, bytes]))
  equal('subscribe', subscribeRpc(told.topic, true), rpcs.subscribe)
  equal('graft', graftRpc(told.topic), rpcs.graft)
  for (const each of told.messages) {
    checked++
    let message
    try { message = published(each) } catch { message = { holds: false } }
    if (message.holds !== each.holds) failed.push(`gossip: ${each.name} holds: ${message.holds}`)
    if (each.holds) { equal('id', message.id, each.id); equal('signed', message.signed, each.signed) }
  }
  const key = new Key(unhex(told.peer_secret))
  const advert = told.messages.find(({ name }) => name === 'an advert')
  const made = makeMessage(key, 1_700_000_000_000, told.topic, published(advert).data)
  equal('message', publishRpc(made), advert.hex)
  equal('publish', publishRpc(made), rpcs.publish)
  for (const { name, hex: bytes, addresses, protocols } of read('protocols', 'identify').messages.slice(0, 3)) {
    const told = readIdentity(unhex(bytes))
    equal(`identify: ${name}`, told, { addrs: addresses.map((each) => addressText(unhex(each))), protocols })
  }
  const dht = read('protocols', 'kademlia')
  for (const { of, record_key: wanted } of dht.keys) equal('record key', recordKey(unhex(of)), wanted)
  for (const { peer, key: at, distance: wanted } of dht.distances) {
    equal('distance in the DHT', distance(unbase58(peer), unhex(at)), wanted)
  }
}

// ---- models and storage

function models () {
  const told = read('models')
  for (const each of told.manifests) {
    equal('canonical', canonical(each.manifest), each.canonical)
    equal('model id', modelId(each.manifest), each.id)
    equal('model id as text', modelText(unhex(each.id)), each.text)
  }
  for (const each of told.files) {
    const files = Object.entries(each.files).map(([name, data]) => [name, unhex(data)])
    const manifest = manifestOf(Object.fromEntries(files))
    equal('manifest of files', canonical(manifest), each.canonical)
    equal('its id', modelId(manifest), each.id)
  }
  for (const { template, control, fixed, per_message: perMessage } of told.templates) {
    equal(`overhead of ${template}`, overheadOf(template, control), { fixed, per_message: perMessage })
  }
  for (const { name, body, segments } of told.prompts.filter(({ format }) => format === 'generic')) {
    const texts = segments.filter(([, ofThePrompt]) => ofThePrompt).map(([text]) => text)
    const prompt = unpack(unhex(body))
    if (prompt.tools.length > 0) equal(name, genericForm(prompt).map(({ text }) => text), texts)
  }
  equal('scripted', SCRIPTED, told.scripted.id)
  equal('scripted', modelText(SCRIPTED), told.scripted.text)
}

function storage () {
  const told = read('storage')
  const entropy = unhex(told.phrase.entropy)
  equal('words', wordsOf(entropy), told.phrase.words)
  equal('entropy', entropyOf(told.phrase.words), told.phrase.entropy)
  const secret = walletSecret(told.phrase.words)
  equal('wallet secret', secret, told.phrase.wallet_secret)
  equal('wallet', addressOf(secret), told.phrase.wallet)
  const keys = new Keys(entropy)
  equal('root', keys.root, told.keys.root)
  equal('owner', keys.owner.public, told.keys.owner)
  const conversation = keys.conversation(unhex(told.keys.conversation.sid))
  for (const [log, name] of [[keys.index, 'index'], [conversation, 'conversation']]) {
    equal(`${name}: sealing`, log.sealing, told.keys[name].sealing)
    equal(`${name}: entry`, log.entry.public, told.keys[name].entry_key)
  }
  for (const [size, wanted] of told.padded) equal('padded', padded(size), wanted)
  const { seq, kind, nonce, record, hash: wanted } = told.sealed
  equal('sealed', blake(seal(conversation, seq, kind, unhex(record), unhex(nonce))), wanted)
  for (const each of told.refused) refused(each.name, () => unseal(conversation, 7, 'S', unhex(each.hex)))
  logs([[conversation, told.conversation], [keys.index, told.index]])
  const { revision, entry } = told.tombstone
  equal('tombstone', makeEntry(conversation.entry, revision, Buffer.alloc(32)), entry)
  for (const { name, of, kept } of told.merge) {
    equal(name, better(...of.map(unhex)), kept)
    equal(name, better(...of.map(unhex).reverse()), kept)
  }
  for (const { ours, other, ours_wins: won } of told.forks) {
    const [one, two] = [ours, other].map(({ revision, hash: digest }) => link(revision, unhex(digest)))
    equal('fork', wins(one, two), won)
  }
  for (const each of told.compaction) {
    const segments = each.segments.flatMap(([count, level, size]) => Array(count).fill([level, size]))
    equal('compaction', joined(segments), each.joined)
  }
  for (const { entry_key: key, peer, distance } of told.distances) {
    const [one, two] = [blake(unhex(key)), blake(utf8(peer))]
    equal('distance', Buffer.from(one.map((byte, i) => byte ^ two[i])), distance)
  }
}

function logs (all) {
  for (const [log, { commits }] of all) {
    for (const { revision, records, manifest, objects, entry, hash: digest } of commits) {
      const plain = [...(records.length > 0 ? [segmentOf(records.map(unhex))] : []), unhex(manifest)]
      equal('manifest', pack(unpack(unhex(manifest))), manifest)
      for (const [place, object] of objects.entries()) {
        const sealed = seal(log, object.seq, object.kind, plain[place], unhex(object.nonce))
        equal('object', blake(sealed), object.hash ?? hex(blake(unhex(object.hex))))
        equal('opened', unseal(log, object.seq, object.kind, sealed), hex(plain[place]))
      }
      equal('entry', makeEntry(log.entry, revision, unhex(digest)), entry)
      equal('entry, read', hex(readEntry(unhex(entry)).hash), digest)
    }
  }
}

equal('a float', pack(new Float(1.5)), 'cb3ff8000000000000')
if (!same(sha256(), unhex('e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'))) throw new Error('sha256')
for (const part of [transport, framing, messages, adverts, inference, blob, topics, models, storage]) {
  try { await part() } catch (error) { failed.push(`${part.name}: ${error.stack}`) }
}
console.log(JSON.stringify({ checked, failed }))
