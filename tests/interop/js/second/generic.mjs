// The form of a prompt with tools for a template that knows none, and what a host may bill for a prompt. Written from
// models/SPEC.md, "Rendering", and protocols/inference/SPEC.md, "What a prompt allows".
import { utf8 } from './codec.mjs'

const WORDS = 'You can call tools. Answer with one JSON object and nothing else: {"tool_calls": [{"name": …, ' +
  '"arguments": {…}}]} calls tools, {"response": "…"} answers. The tools, with the JSON Schemas of their arguments:\n'

// JSON with ", " between members and ": " after names.
function json (value) {
  if (Array.isArray(value)) return `[${value.map(json).join(', ')}]`
  if (value === null || typeof value !== 'object') return JSON.stringify(value)
  return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${json(each)}`).join(', ')}}`
}

const textOf = ({ content }) => content.map(({ text }) => text).join('')
const schemaOf = ({ parameters }) => JSON.parse(parameters || '{"type": "object", "properties": {}}')

// Messages of role and text.
export function genericForm ({ messages, tools, tool_choice: choice }) {
  const offered = choice === 'none' ? [] : tools
  const found = messages.map((message) => {
    const text = textOf(message)
    if (message.tool_calls.length > 0) {
      const calls = message.tool_calls.map(({ name, arguments: given }) => ({ name, arguments: JSON.parse(given) }))
      return { role: 'assistant', text: json({ tool_calls: calls }) }
    }
    if (message.role === 'assistant' && offered.length > 0) return { role: 'assistant', text: json({ response: text }) }
    if (message.role === 'tool') {
      return { role: 'user', text: json({ tool_result: { tool_call_id: message.tool_call_id, content: text } }) }
    }
    return { role: message.role, text }
  })
  if (offered.length === 0) return found
  const lines = offered.map((tool) => json({ name: tool.name, description: tool.description, parameters: schemaOf(tool) }))
  const told = WORDS + lines.join('\n')
  return found[0]?.role === 'system'
    ? [{ role: 'system', text: `${found[0].text}\n\n${told}` }, ...found.slice(1)]
    : [{ role: 'system', text: told }, ...found]
}

// A quote's bound for a client that has neither the model's tokenizer nor its manifest.
const TEMPLATE_FIXED = 512
const TEMPLATE_PER_MESSAGE = 64
const EACH = 64 // tool or call

const AROUND = 4 // a text to embed

export function quoteMax (prompt) {
  const { messages, embed, tools, prefix } = prompt
  if (embed.length > 0) return embed.reduce((sum, text) => sum + utf8(text).length + AROUND, 0)
  const each = tools.length + messages.reduce((sum, message) => sum + message.tool_calls.length, 0)
  const generic = each > 0 || messages.some(({ role }) => role === 'tool')
  const texts = generic ? genericForm(prompt).map(({ text }) => text) : messages.map(textOf)
  return texts.reduce((sum, text) => sum + utf8(text).length, 0) + EACH * each + prefix.length +
    TEMPLATE_FIXED + TEMPLATE_PER_MESSAGE * (texts.length + each)
}
