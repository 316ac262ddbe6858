"""Anthropic, models: `/v1/messages`, streamed.

Events: the classes of anthropic 2.14.0 `types/raw_message_stream_event.py`; errors and their statuses:
docs.anthropic.com/en/api/errors; the rules for tools: docs.anthropic.com/en/docs/agents-and-tools/tool-use; versions:
platform.claude.com/docs/en/api/versioning. Since 2026-10-21 a request with temperature, top_p or top_k is refused, and
the vendor's clients send the key as `Authorization: Bearer`.
"""

import json

from aiohttp import web

from .core import Refused, Stream, Vendor, new_id

ERRORS = {
    400: ("invalid_request_error", "Invalid request."),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "The requested resource was not found."),
    429: ("rate_limit_error", "This request would exceed your rate limit."),
    529: ("overloaded_error", "Overloaded"),
}
FIELDS = {
    "model", "messages", "max_tokens", "system", "temperature", "top_p", "top_k", "stop_sequences", "stream", "tools", "tool_choice", "metadata",
    "thinking", "service_tier", "output_config",
}  # fmt: skip


VERSIONS = ("2023-01-01", "2023-06-01", "2026-10-21")
REMOVED = {"2026-10-21": ("temperature", "top_p", "top_k")}


def routes(vendor: Vendor):
    vendor.error_body = error_body
    return [web.post("/v1/messages", vendor.stream(check, answer))]


def error_body(status: int, message: str | None = None) -> dict:
    kind, text = ERRORS.get(status, ("api_error", "Internal server error"))
    return {"type": "error", "error": {"type": kind, "message": message or text}, "request_id": f"req_{new_id()}"}


async def check(s: Stream) -> dict:
    s.answer_headers["request-id"] = f"req_{s.id}"
    if not s.key_is_right():
        raise Refused(401)
    version = s.request.headers.get("anthropic-version")
    if version not in VERSIONS:
        text = f'"{version}" is not a valid version' if version else "header is required"
        raise Refused(400, error_body(400, f"anthropic-version: {text}"))
    body = await s.read()
    if removed := [name for name in REMOVED.get(version, ()) if name in body]:
        raise Refused(400, error_body(400, f"{removed[0]}: not supported since API version {version}"))
    if wrong := fault_of(body):
        raise Refused(400, error_body(400, wrong))
    if not body.get("stream"):
        raise Refused(501, "this stand-in only streams")
    return body


def fault_of(body: dict) -> str | None:
    if unknown := set(body) - FIELDS:
        return f"{sorted(unknown)[0]}: Extra inputs are not permitted"
    for name in ("model", "max_tokens", "messages"):
        if name not in body:
            return f"{name}: Field required"
    if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
        return "max_tokens: Input should be greater than or equal to 1"
    if not body["messages"]:
        return "messages: at least one message is required"
    for n, tool in enumerate(body.get("tools", [])):
        if not tool.get("name") or tool.get("input_schema", {}).get("type") != "object":
            return f"tools.{n}: a tool has a name and an input_schema of type object"
    return fault_of_messages(body["messages"])


def fault_of_messages(messages: list) -> str | None:
    asked: set[str] = set()
    for n, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant"):
            return f"messages.{n}.role: Input should be 'user' or 'assistant'"
        if n == 0 and role != "user":
            return 'messages: first message must use the "user" role'
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        if not blocks or any(block.get("type") == "text" and not block.get("text", "").strip() for block in blocks):
            return f"messages.{n}: text content blocks must be non-empty"
        answered = {block.get("tool_use_id") for block in blocks if block.get("type") == "tool_result"}
        if missing := asked - answered:
            return f"messages.{n}: `tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(sorted(missing))}"
        if extra := answered - asked:
            return f"messages.{n}: unexpected `tool_use_id` found in `tool_result` blocks: {', '.join(sorted(map(str, extra)))}"
        asked = {block.get("id") for block in blocks if block.get("type") == "tool_use"}
    if asked:
        return f"messages.{len(messages)}: `tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(sorted(asked))}"
    return None


async def answer(s: Stream):
    body, reply = s.checked, s.script.next_reply()
    asked = len(json.dumps(body["messages"])) // 4
    message = {"id": f"msg_{s.id}", "type": "message", "role": "assistant", "model": body["model"], "content": [], "stop_reason": None}
    message |= {"stop_sequence": None, "usage": {"input_tokens": asked, "output_tokens": 1}}
    await send(s, "message_start", message=message)
    index, tokens = 0, 0
    if reply.get("text"):
        await send(s, "content_block_start", index=index, content_block={"type": "text", "text": ""})
        await send(s, "ping")
        async for piece in s.pieces(reply):
            tokens += 1
            await send(s, "content_block_delta", index=index, delta={"type": "text_delta", "text": piece})
        await send(s, "content_block_stop", index=index)
        index += 1
    if kind := reply.get("error"):
        await s.send({"type": "error", "error": {"type": kind, "message": "Overloaded"}}, "error", event="error")
        return
    for tool in reply.get("tools", []):
        block = {"type": "tool_use", "id": tool.get("id", f"toolu_{new_id()}"), "name": tool["name"], "input": {}}
        await send(s, "content_block_start", index=index, content_block=block)
        arguments = json.dumps(tool.get("arguments", {}))
        # The first piece is empty, and a piece may end anywhere.
        for piece in ("", *(arguments[at : at + 7] for at in range(0, len(arguments), 7))):
            tokens += 1
            await send(s, "content_block_delta", index=index, delta={"type": "input_json_delta", "partial_json": piece})
        await send(s, "content_block_stop", index=index)
        index += 1
    finish = reply.get("finish", "tool_use" if reply.get("tools") else "end_turn")
    await send(s, "message_delta", delta={"stop_reason": finish, "stop_sequence": None}, usage={"output_tokens": tokens})
    await send(s, "message_stop")


async def send(s: Stream, kind: str, **fields):
    await s.send({"type": kind, **fields}, kind, event=kind)
