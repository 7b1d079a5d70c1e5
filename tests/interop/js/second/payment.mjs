// What a payer signs. Written from protocols/inference/SPEC.md, section "Payment".
import { secp256k1 } from '@noble/curves/secp256k1.js'
import { randomBytes } from 'node:crypto'

import { Malformed, same, unhex, utf8 } from './codec.mjs'
import { abi, hash, signer } from './messages.mjs'

export const TERMS = 'SessionTerms(address payer,address host,address voucherKey,address receiptKey,bytes32 modelId,' +
  'uint64 deposit,uint64 pricePerMTokIn,uint64 pricePerMTokOut,uint64 sessionFee,uint64 tip,' +
  'uint64 expiry,bytes32 salt)'
export const VOUCHER = 'Voucher(bytes32 sessionId,uint64 seq,uint64 tokensIn,uint64 tokensOut,uint64 amount,bytes32 root)'
export const RECEIVE = 'ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,' +
  'uint256 validBefore,bytes32 nonce)'
const DOMAIN = 'EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)'
const VALID_S = 450
const EXPIRY_S = 7200
const MILLION = 1_000_000n

export const addressOf = (secret) => hash(secp256k1.getPublicKey(secret, false).subarray(1)).subarray(12)

// r, s, v over a digest.
export function signDigest (secret, digest) {
  const [recovery, ...signature] = secp256k1.sign(digest, secret, { prehash: false, format: 'recovered' })
  return Buffer.from([...signature, 27 + recovery])
}

const separator = ({ name, version, chain_id: chain, contract }) =>
  hash(abi(hash(utf8(DOMAIN)), hash(utf8(name)), hash(utf8(version)), chain, unhex(contract)))

// The EIP-712 digest of a struct, for the contract that verifies it.
export const digestOf = (domain, type, ...fields) =>
  hash(unhex('1901'), separator(domain), hash(abi(hash(utf8(type)), ...fields)))

// One paid session of a payer with the host of an advert.
export class Payment {
  constructor ({ payer, advert, model, deposit, market, token }) {
    const offer = advert.o.find(({ m }) => same(m, model))
    const now = Math.floor(Date.now() / 1000)
    this.market = market
    this.key = randomBytes(32)
    this.terms = {
      payer: addressOf(payer),
      host: advert.b.w,
      voucher_key: addressOf(this.key),
      receipt_key: advert.b.r,
      model,
      deposit,
      price_in: offer.i,
      price_out: offer.o,
      session_fee: offer.f,
      tip: 0,
      expiry: now + EXPIRY_S,
      salt: randomBytes(32)
    }
    this.session = digestOf(market, TERMS, ...Object.values(this.terms))
    this.validBefore = now + VALID_S
    this.authorisation = signDigest(payer, digestOf(
      token, RECEIVE, this.terms.payer, unhex(market.contract), deposit, 0, this.validBefore, this.session
    ))
  }

  accepted ({ session, session_fee: fee }) {
    if (!same(session, this.session) || fee !== this.terms.session_fee) throw new Malformed('another session')
  }

  // Exact where the products are beyond 2^53; what is signed is at most the deposit.
  amount (tokensIn, tokensOut) {
    const { price_in: priceIn, price_out: priceOut, session_fee: fee } = this.terms
    const cost = BigInt(tokensIn) * BigInt(priceIn) + BigInt(tokensOut) * BigInt(priceOut)
    return Number(BigInt(fee) + (cost + MILLION - 1n) / MILLION)
  }

  covers (tokensIn, tokensOut) { return this.amount(tokensIn, tokensOut) <= this.terms.deposit }

  signedReceipt (digest, signature) { return same(signer(digest, signature), this.terms.receipt_key) }

  // `turn`: the quote whose input it newly pays, or 0.
  voucher (seq, tokensIn, tokensOut, root, turn) {
    if (!this.covers(tokensIn, tokensOut)) throw new Error('more than the deposit')
    const made = { seq, tokens_in: tokensIn, tokens_out: tokensOut, amount: this.amount(tokensIn, tokensOut), root }
    return { ...made, signature: signDigest(this.key, this.voucherDigest(made)), turn }
  }

  voucherDigest ({ seq, tokens_in: tokensIn, tokens_out: tokensOut, amount, root }) {
    return digestOf(this.market, VOUCHER, this.session, seq, tokensIn, tokensOut, amount, root)
  }

  // Whether a voucher is our own, exact, and within the deposit.
  holds (voucher) {
    const { tokens_in: tokensIn, tokens_out: tokensOut, amount } = voucher
    return amount === this.amount(tokensIn, tokensOut) && this.covers(tokensIn, tokensOut) &&
      same(signer(this.voucherDigest(voucher), voucher.signature), this.terms.voucher_key)
  }
}

// Who verifies signatures for a token: its name and version, read from itself.
export async function tokenDomain (url, chain, contract) {
  const read = async (selector) => {
    const body = { jsonrpc: '2.0', id: 1, method: 'eth_call', params: [{ to: `0x${contract}`, data: selector }, 'latest'] }
    const answer = await fetch(url, {
      method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body)
    })
    const data = unhex((await answer.json()).result.slice(2))
    return data.subarray(64, 64 + Number(data.readBigUInt64BE(56))).toString()
  }
  return { name: await read('0x06fdde03'), version: await read('0x54fd4d50'), chain_id: chain, contract }
}
