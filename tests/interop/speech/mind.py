"""A small model that answers by rule: what it says and which tools it calls depend on the last thing that was said to it.

Pure: knows nothing of HTTP and keeps nothing from one request to the next. It asks only for tools that the request offers."""

import json
import re
from dataclasses import dataclass, field

# How many words of what was said are said back.
ECHO_WORDS = 8
PRICES = "The small plan costs twenty a month, the business plan costs fifty."
WHO = "Tell me your name, your company and your e-mail address, and I will send you an offer."


@dataclass
class Reply:
    text: str = ""
    # Names of tools and their arguments.
    tools: list[tuple[str, dict]] = field(default_factory=list)


def lead(said: str) -> dict[str, str]:
    """Name, e-mail address and company of somebody who says them, as far as they are there."""
    found = {}
    if name := re.search(r"\bmy name is ((?:[A-Z][\w'-]+)(?: [A-Z][\w'-]+)*)", said, re.IGNORECASE):
        # A name ends where the small letters begin.
        words = name[1].split()
        found["name"] = " ".join(words[: next((i for i, word in enumerate(words) if word[0].islower()), len(words))])
    if email := re.search(r"\b(?:e-?)?mail(?: address(?:es)?)?(?: is)?[\s,:.]+(.+?)(?:,? and (?:i|my)\b|, i\b|$)", said, re.IGNORECASE):
        address = re.sub(r"[\s,.]+(?:at|@)[\s,]+", "@", email[1].lower())
        address = re.sub(r"\s*\bdot\s+", ".", address).replace(" ", "").rstrip(".?!")
        if re.fullmatch(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", address):
            found["email"] = address
    if company := re.search(r"\bwork (?:for|at) (?:the )?(.+?)(?:,| and (?:i|my)\b|\.(?:\s|$)|$)", said, re.IGNORECASE):
        found["company"] = company[1].strip()
    return {key: value for key, value in found.items() if value}


def answer(messages: list[dict], offered: set[str]) -> Reply:
    """The reply to a conversation in the form of OpenAI's chat messages."""
    if messages and messages[-1].get("role") == "tool":
        return after_tool(messages)
    said = [text_of(m) for m in messages if m.get("role") == "user"]
    reply = by_rule(said[-1] if said else "", " ".join(said))
    reply.tools = [(name, arguments) for name, arguments in reply.tools if name in offered]
    return reply


def by_rule(said: str, all_said: str) -> Reply:
    small = said.lower()
    if lead(said):
        details = lead(all_said)
        if "name" not in details:
            return Reply("And what is your name?")
        if "email" not in details:
            return Reply(f"Thank you, {details['name']}. And what is your e-mail address?")
        return Reply(tools=[("create_lead", {"interest": "an offer", **details})])
    if re.search(r"\b(goodbye|good bye|bye|that is all|that's all|hang up)\b", small):
        return Reply("Thank you for calling. Goodbye.", [("end_call", {})])
    if re.search(r"\b(plans?|prices?|pricing|costs?|how much|offers?)\b", small):
        return Reply(f"{PRICES} {WHO}", [("detect_intent", {"intent": "pricing", "confidence": 0.9})])
    if re.search(r"\b(opening hours|open|close at|hours)\b", small):
        return Reply("We are open from nine to five, from Monday to Friday.")
    if re.fullmatch(r"\W*(hello|hi|hey|good (morning|afternoon|evening))\b[^?]*", small):
        return Reply("Hello. Ask me what our plans cost, or when we are open.")
    words = re.sub(r"\s+", " ", said).strip().rstrip(".?!,;:").split(" ")
    echo = " ".join(words[:ECHO_WORDS]).rstrip(".?!,;:")
    return Reply(f"You said: {echo}.") if echo else Reply("I did not understand you.")


def after_tool(messages: list[dict]) -> Reply:
    last = messages[-1]
    calls = [call for m in messages for call in m.get("tool_calls") or []]
    call = next((c for c in reversed(calls) if c.get("id") == last.get("tool_call_id")), None)
    if call is None or call["function"]["name"] != "create_lead":
        return Reply()
    try:
        name = str(json.loads(call["function"]["arguments"]).get("name", ""))
    except (json.JSONDecodeError, AttributeError):
        name = ""
    thanks = f"Thank you, {name}." if name else "Thank you."
    return Reply(f"{thanks} The offer is on its way. Is there anything else?")


def text_of(message: dict) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content or ""
