"""LiteLLM against a gateway: `python litellm_client.py URL`. Prints what it got as one JSON object."""

import json
import sys

import litellm


def main(url: str) -> None:
    """Ask in each of LiteLLM's ways."""
    asked = {"api_base": f"{url}/v1", "api_key": "none", "model": "openai/scripted", "num_retries": 0}
    hello = [{"role": "user", "content": "hello"}]
    chat = {**asked, "messages": hello, "temperature": 0, "max_tokens": 400}
    whole = litellm.completion(**chat)
    chunks = list(litellm.completion(**chat, stream=True, stream_options={"include_usage": True}))
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    called = litellm.completion(**chat, tools=tools).choices[0]
    call = called.message.tool_calls[0]
    streamed = [
        part.function.arguments
        for each in litellm.completion(**chat, tools=tools, stream=True)
        for part in each.choices[0].delta.tool_calls or ()
    ]
    messages = litellm.completion(
        **{**chat, "model": "anthropic/scripted", "api_base": url}, tools=tools
    ).choices[0]
    vectors = litellm.embedding(**asked, input=["one", "two"], encoding_format="float").data
    try:
        litellm.completion(**{**chat, "model": "openai/nobodys"})
        failed = ""
    except litellm.exceptions.NotFoundError as error:
        failed = str(error)
    told = {
        "text": whole.choices[0].message.content,
        "usage": [whole.usage.prompt_tokens, whole.usage.completion_tokens],
        "streamed": "".join(each.choices[0].delta.content or "" for each in chunks),
        "streamed_usage": next(
            [each.usage.prompt_tokens, each.usage.completion_tokens]
            for each in chunks
            if getattr(each, "usage", None)
        ),
        "finish": called.finish_reason,
        "call": call.function.arguments,
        "streamed_call": "".join(each or "" for each in streamed),
        "by_messages": messages.message.tool_calls[0].function.arguments,
        "vectors": [len(each["embedding"]) for each in vectors],
        "failed": failed,
    }
    json.dump(told, sys.stdout)


main(sys.argv[1])
