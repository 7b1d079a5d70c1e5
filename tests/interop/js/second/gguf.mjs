// The manifest that follows from a model's files. Written from models/SPEC.md.
import { hex, join, u32, u64, utf8 } from './codec.mjs'
import { sha256 } from './names.mjs'

const QUANTISATIONS = {
  0: 'F32', 1: 'F16', 2: 'Q4_0', 3: 'Q4_1', 7: 'Q8_0', 8: 'Q5_0', 9: 'Q5_1', 10: 'Q2_K', 11: 'Q3_K_S', 12: 'Q3_K_M',
  13: 'Q3_K_L', 14: 'Q4_K_S', 15: 'Q4_K_M', 16: 'Q5_K_S', 17: 'Q5_K_M', 18: 'Q6_K', 19: 'IQ2_XXS', 20: 'IQ2_XS',
  21: 'Q2_K_S', 22: 'IQ3_XS', 23: 'IQ3_XXS', 24: 'IQ1_S', 25: 'IQ4_NL', 26: 'IQ3_S', 27: 'IQ3_M', 28: 'IQ2_S',
  29: 'IQ2_M', 30: 'IQ4_XS', 31: 'IQ1_M', 32: 'BF16', 36: 'TQ1_0', 37: 'TQ2_0', 38: 'MXFP4_MOE'
}
const SIZES = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8] // by type; 8 is a string, 9 an array
const [STRING, ARRAY, CONTROL] = [8, 9, 3]
const TEMPLATE = 'tokenizer.chat_template'

// By key: the value, and its type and bytes as they stand in the file.
function metadata (file) {
  let at = 4 + 4 + 8
  const number = (size) => { at += size; return size === 4 ? file.readInt32LE(at - 4) : Number(file.readBigUInt64LE(at - 8)) }
  const text = () => { const size = number(8); at += size; return file.subarray(at - size, at) }
  const value = (type) => {
    if (type === STRING) return text()
    if (type === ARRAY) {
      const [of, count] = [number(4), number(8)]
      return Array.from({ length: count }, () => value(of))
    }
    if (SIZES[type] === 4 || SIZES[type] === 8) return number(SIZES[type])
    at += SIZES[type]
    return file[at - SIZES[type]]
  }
  const found = new Map()
  for (let left = number(8); left > 0; left--) {
    const key = text().toString()
    const start = at
    const held = value(number(4))
    found.set(key, { held, raw: file.subarray(start, at) })
  }
  return found
}

const entry = (key, value) => join(u32(utf8(key).length), utf8(key), u64(value.length), value)

// `files`: by name, as they lie on a disk.
export function manifestOf (files) {
  const names = Object.keys(files).sort()
  return names[0].endsWith('.gguf') ? manifestOfGguf(names.map((name) => files[name])) : manifestOfFolder(files)
}

const CHUNK = 1 << 20
const chunks = (file) => Array.from({ length: Math.ceil(file.length / CHUNK) }, (_, i) => file.subarray(i * CHUNK, (i + 1) * CHUNK))

function listed (files) {
  return Object.keys(files).sort().map((path) => ({
    chunks: hex(sha256(...chunks(files[path]).map((chunk) => sha256(chunk)))),
    path,
    sha256: hex(sha256(files[path])),
    size_bytes: files[path].length
  }))
}

function manifestOfGguf (parts) {
  const keys = metadata(parts[0])
  const number = (each) => String(each).padStart(5, '0')
  const path = (_, i) => parts.length === 1 ? 'model.gguf' : `model-${number(i + 1)}-of-${number(parts.length)}.gguf`
  const held = (key) => keys.get(key)?.held
  const architecture = held('general.architecture').toString()
  const template = held(TEMPLATE)?.toString() ?? ''
  const type = held('general.file_type')
  const tokenizer = [...keys].filter(([key]) => key.startsWith('tokenizer.') && key !== TEMPLATE)
    .sort(([one], [other]) => Buffer.compare(utf8(one), utf8(other)))
    .map(([key, { raw }]) => entry(key, raw))
  const kinds = held('tokenizer.ggml.token_type') ?? []
  const control = (held('tokenizer.ggml.tokens') ?? []).filter((_, i) => kinds[i] === CONTROL).map(String)
  return {
    architecture,
    chat_template: hex(sha256(utf8(template))),
    files: listed(Object.fromEntries(parts.map((part, i) => [path(part, i), part]))),
    format: 'gguf',
    n_ctx: held(`${architecture}.context_length`),
    name: '',
    quantisation: type === undefined ? 'unknown' : QUANTISATIONS[type] ?? `ftype${type}`,
    template_overhead: overheadOf(template, control),
    tokenizer: hex(sha256(utf8('p2pnode/tokenizer/gguf/1\0'), ...tokenizer))
  }
}

const PARTS = [
  'added_tokens.json', 'chat_template.jinja', 'chat_template.json', 'config.json', 'generation_config.json',
  'model.safetensors.index.json', 'quantize_config.json', 'special_tokens_map.json', 'tokenizer.json',
  'tokenizer.model', 'tokenizer_config.json'
]
const DTYPES = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' }

function manifestOfFolder (files) {
  const json = (name) => files[name] === undefined ? {} : JSON.parse(files[name])
  const config = json('config.json')
  const value = (key) => config[key] ?? config.text_config?.[key]
  const quantised = config.quantization_config ??
    (files['quantize_config.json'] && { quant_method: 'gptq', ...json('quantize_config.json') })
  const [format, quantisation] = kindOf(quantised, value)
  const index = json('model.safetensors.index.json').weight_map
  const weights = index === undefined || format.startsWith('exl')
    ? Object.keys(files).filter((name) => name.endsWith('.safetensors'))
    : Object.values(index)
  const own = PARTS.filter((name) => !(format.startsWith('exl') && name === 'model.safetensors.index.json'))
  const kept = Object.fromEntries([...own, ...weights].filter((name) => files[name]).map((name) => [name, files[name]]))
  const [settings, special, tokenizer] = [json('tokenizer_config.json'), json('special_tokens_map.json'), json('tokenizer.json')]
  const named = (key) => [settings[key], special[key]].map((each) => each?.content ?? each).find(Boolean) ?? ''
  let template = json('chat_template.json').chat_template ?? settings.chat_template ?? ''
  if (Array.isArray(template)) template = template.find(({ name }) => name === 'default')?.template ?? ''
  template = files['chat_template.jinja']?.toString() ?? template
  return {
    architecture: config.model_type ?? config.architectures[0],
    chat_template: hex(sha256(utf8(template))),
    files: listed(kept),
    format,
    n_ctx: ['max_position_embeddings', 'n_positions', 'max_sequence_length', 'seq_length'].map(value).find(Boolean),
    name: '',
    quantisation,
    template_overhead: overheadOf(template, (tokenizer.added_tokens ?? []).filter((each) => each.special).map((each) => each.content)),
    tokenizer: hex(sha256(
      utf8('p2pnode/tokenizer/folder/1\0'), entry('bos', utf8(named('bos_token'))), entry('eos', utf8(named('eos_token'))),
      entry('tokenizer.json', files['tokenizer.json'])
    ))
  }
}

function kindOf (quantised, value) {
  if (quantised === undefined) {
    const dtype = value('torch_dtype') ?? value('dtype') ?? 'unknown'
    return ['safetensors', DTYPES[dtype] ?? dtype]
  }
  const { quant_method: method, bits, group_size: group } = quantised
  if (method.startsWith('exl')) return [method, bits === undefined ? method : `${method}-${bits}bpw`]
  const name = bits === undefined ? method : `${method}-${bits}bit`
  return [method === 'gptq' ? 'gptq' : 'safetensors', group > 0 ? `${name}-${group}g` : name]
}

// ---- what a template adds at most

const TAG = /\{%-?([^]*?)-?%\}|\{\{-?([^]*?)-?\}\}|\{#[^]*?#\}/g
const LITERAL = /'((?:[^'\\]|\\[^])*)'|"((?:[^"\\]|\\[^])*)"/g
const SUBSCRIPT = /\[\s*(?:'[^']*'|"[^"]*")\s*\]/g

export function overheadOf (template, control) {
  const longest = [...control].sort((one, other) => other.length - one.length)
  const cost = (text) => {
    let found = 0
    for (let rest = text; ;) {
      const at = longest.map((token) => rest.indexOf(token)).filter((place) => place >= 0)
      if (at.length === 0) return found + utf8(rest).length
      const place = Math.min(...at)
      const token = longest.find((each) => rest.startsWith(each, place))
      found += 1 + utf8(rest.slice(0, place)).length
      rest = rest.slice(place + token.length)
    }
  }
  const overhead = { fixed: 8, per_message: 9 }
  const blocks = []
  const count = (amount) => {
    const from = blocks.indexOf('for')
    const repeated = from >= 0 && !blocks.slice(from).includes('once')
    overhead[repeated ? 'per_message' : 'fixed'] += amount
  }
  let at = 0
  for (const tag of template.matchAll(TAG)) {
    const [, statement, expression] = tag
    const word = statement?.trim().split(/\s+/)[0]
    let amount = cost(template.slice(at, tag.index))
    if (expression !== undefined || word === 'set') {
      const code = (expression ?? statement).replace(SUBSCRIPT, '')
      for (const [, one, other] of code.matchAll(LITERAL)) amount += cost((one ?? other).replace(/\\([^])/g, '$1'))
    }
    count(amount)
    at = tag.index + tag[0].length
    if (word === 'for') blocks.push('for')
    else if (word === 'if') blocks.push(runsOnce(statement) ? 'once' : 'if')
    else if ((word === 'elif' || word === 'else') && blocks.at(-1) !== 'for' && blocks.length > 0) {
      blocks[blocks.length - 1] = word === 'elif' && runsOnce(statement) ? 'once' : 'if'
    } else if ((word === 'endif' || word === 'endfor') && blocks.length > 0) blocks.pop()
  }
  count(cost(template.slice(at)))
  return overhead
}

const runsOnce = (condition) => /loop\.(first|last)/.test(condition) &&
  !/\b(not|or)\b|!=\s*loop|loop\.\w+\s*[!=]=/.test(condition)
