"""LangChain against a gateway: `python langchain_client.py URL`. Prints what it got as one JSON object."""

import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


def main(url: str) -> None:
    """Ask in each of LangChain's ways."""
    asked = {
        "base_url": f"{url}/v1",
        "api_key": "none",
        "model": "scripted",
        "temperature": 0,
        "max_retries": 0,
    }
    chat = ChatOpenAI(max_tokens=400, **asked)
    hello = HumanMessage("hello")
    whole = chat.invoke([hello])
    pieces = list(ChatOpenAI(max_tokens=400, stream_usage=True, **asked).stream([hello]))
    with_tools = chat.bind_tools([{"type": "function", "function": {"name": "weather", "parameters": {}}}])
    called = with_tools.invoke([hello])
    call = called.tool_calls[0]
    streamed = [part for each in with_tools.stream([hello]) for part in each.tool_call_chunks]
    last = with_tools.invoke([hello, called, ToolMessage("rain", tool_call_id=call["id"])])
    schema = {
        "title": "Weather",
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    }
    structured = chat.with_structured_output(schema, method="json_schema").invoke([HumanMessage("as JSON")])
    # Otherwise it sends ids of OpenAI's tokens, which mean something else to any other model.
    embeddings = OpenAIEmbeddings(
        base_url=asked["base_url"], api_key="none", model="scripted", check_embedding_ctx_length=False
    )
    vectors = embeddings.embed_documents(["one", "two"])
    told = {
        "text": whole.content,
        "usage": whole.usage_metadata,
        "finish": whole.response_metadata["finish_reason"],
        "streamed": "".join(each.content for each in pieces),
        "streamed_usage": next(each.usage_metadata for each in pieces if each.usage_metadata),
        "call": call["args"],
        "streamed_call": "".join(each["args"] or "" for each in streamed),
        "after_tool": last.content,
        "structured": structured,
        "vectors": [len(each) for each in vectors],
        "query": embeddings.embed_query("one") == vectors[0],
    }
    json.dump(told, sys.stdout)


main(sys.argv[1])
