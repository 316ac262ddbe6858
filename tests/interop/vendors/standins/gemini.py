"""Gemini, models: `/v1beta/models/{model}:streamGenerateContent?alt=sse`.

Requests and answers: ai.google.dev/api/generate-content and the classes of google-genai 3.6.1; errors:
ai.google.dev/gemini-api/docs/troubleshooting.
"""

import json

from aiohttp import web

from .core import Refused, Stream, Vendor, new_id

ERRORS = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "Method doesn't allow unregistered callers (callers without established identity)."),
    404: ("NOT_FOUND", "The model is not found."),
    429: ("RESOURCE_EXHAUSTED", "You exceeded your current quota."),
    500: ("INTERNAL", "An internal error has occurred."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
}
# Both spellings are read, as the vendor does for all fields.
FIELDS = {
    "contents", "systemInstruction", "system_instruction", "tools", "toolConfig", "tool_config", "generationConfig", "generation_config",
    "safetySettings", "safety_settings", "cachedContent", "labels", "store", "serviceTier",
}  # fmt: skip


def routes(vendor: Vendor):
    vendor.error_body = error_body
    return [web.post("/v1beta/models/{model:[^:/]+}:streamGenerateContent", vendor.stream(check, answer))]


def error_body(status: int, message: str | None = None) -> dict:
    name, text = ERRORS.get(status, ("UNKNOWN", "Unknown error."))
    return {"error": {"code": status, "message": message or text, "status": name}}


async def check(s: Stream) -> dict:
    if not s.key:
        raise Refused(403)
    if not s.key_is_right():
        # It is an invalid argument, not 401.
        raise Refused(400, error_body(400, "API key not valid. Please pass a valid API key."))
    if not s.request.match_info["model"].startswith("gemini-"):
        raise Refused(404, error_body(404, f"models/{s.request.match_info['model']} is not found for API version v1beta."))
    if s.request.query.get("alt") != "sse":
        raise Refused(501, "this stand-in streams with alt=sse")
    body = await s.read()
    if wrong := fault_of(body):
        raise Refused(400, error_body(400, wrong))
    return body


def fault_of(body: dict) -> str | None:
    if unknown := set(body) - FIELDS:
        return f'Invalid JSON payload received. Unknown name "{sorted(unknown)[0]}": Cannot find field.'
    contents = body.get("contents") or []
    if not contents:
        return "* GenerateContentRequest.contents: contents is not specified"
    asked = 0
    for n, content in enumerate(contents):
        if content.get("role", "user") not in ("user", "model", "function"):
            return "Please use a valid role: user, model."
        parts = content.get("parts") or []
        if not parts or any(not part for part in parts):
            return f"* GenerateContentRequest.contents[{n}].parts: contents.parts must not be empty."
        answered = sum("functionResponse" in part for part in parts)
        if answered != asked:
            return "Please ensure that the number of function response parts is equal to the number of function call parts of the function call turn."
        asked = sum("functionCall" in part for part in parts)
    return None


async def answer(s: Stream):
    reply, tokens = s.script.next_reply(), 0
    asked = len(json.dumps(s.checked["contents"])) // 4

    async def send(parts: list, finish: str | None = None):
        candidate = {"content": {"parts": parts, "role": "model"}, "index": 0}
        if finish:
            candidate["finishReason"] = finish
        usage = {"promptTokenCount": asked, "candidatesTokenCount": tokens, "totalTokenCount": asked + tokens}
        model = s.request.match_info["model"]
        await s.send({"candidates": [candidate], "usageMetadata": usage, "modelVersion": model, "responseId": s.id}, finish or "piece")

    async for piece in s.pieces(reply):
        tokens += 1
        await send([{"text": piece}])
    if error := reply.get("error"):
        await s.send({"error": {"code": 503, "message": "The model is overloaded.", "status": error}}, "error")
        return
    if tools := reply.get("tools"):
        tokens += len(tools)
        await send(
            [{"functionCall": {"id": tool.get("id", new_id()), "name": tool["name"], "args": tool.get("arguments", {})}} for tool in tools]
        )
    # The end comes with an empty text.
    await send([{"text": ""}], reply.get("finish", "STOP"))
